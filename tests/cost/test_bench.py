import json

import jax
import numpy as np
import pytest
import toys

from jaxdq import cost
from jaxdq._common.errors import InputError
from jaxdq.app import command
from jaxdq.app.command import main
from jaxdq.cost import bench
from jaxdq.cost.bench import BASELINE, ROWS, bench_model
from jaxdq.models.unet import abstract_params, save_unet_folder, unet2d_from_config

pytestmark = pytest.mark.optimized


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The smallest model on disk."""
    folder = tmp_path_factory.mktemp("small")
    shapes = abstract_params(unet2d_from_config(toys.UNET2D_CONFIG))
    params = jax.tree.map(lambda leaf: np.random.default_rng(0).normal(size=leaf.shape).astype(np.float32), shapes)
    save_unet_folder(folder, toys.UNET2D_CONFIG, params, {"_class_name": "DDPMScheduler", "num_train_timesteps": 100})
    return str(folder)


def run(*words):
    with pytest.raises(SystemExit) as exit_info:
        main(list(words))
    assert exit_info.value.code == 0


@pytest.mark.slow
def test_integers_are_smaller_and_run_as_integers(small):
    found = bench_model(small, batch_size=2, variants=["W8A8", "W4A8"], rounds=1)
    rows = found["rows"]
    assert list(rows) == [BASELINE, "W8A8", "W4A8"]
    assert rows[BASELINE]["ratio"] == 1
    assert rows[BASELINE]["contractions"]["integer"] == 0 < rows["W8A8"]["contractions"]["integer"]
    sizes = [row["argument_bytes"] for row in rows.values()]
    assert sizes[0] > sizes[1] > sizes[2]
    assert all(row["milliseconds"] > 0 for row in rows.values())


def test_the_help_names_every_variant():
    words = command._VARIANTS.replace(",", " ").replace(";", " ")
    assert all(f" {name} " in words or f'"{name}"' in words for name in ROWS if name != BASELINE)


@pytest.mark.parametrize("name", ROWS)
def test_every_variant_is_a_function_of_what_it_is_given(name, small):
    denoiser = bench._with_conditions(small, 2)
    function, args = bench._runnable(denoiser, ROWS[name], 2)
    out = jax.eval_shape(function, *args)
    assert out.shape == (2, *denoiser.shape)


class Answer:
    """What a compiler says of every program alike."""

    def __call__(self, programs, chip, *, jobs=None):
        program = cost.Program({"matrix": 1500, "other": 1500}, 0, {"s8 x s8": 1}, 0)
        return [cost.Compiled(program, 0, 1000, 2.0) for _ in programs]


@pytest.fixture
def answers(monkeypatch):
    from jaxdq.cost import _compose

    monkeypatch.setattr(_compose, "compile_for", Answer())
    monkeypatch.setattr(cost, "check_installed", lambda: None)


def test_a_modelled_bench_sums_its_parts(answers, small, capsys):
    run("bench", small, "--platform", "tpu:v5e", "--batch-size", "2", "--variant", "W8A8", "--json")
    found = json.loads(capsys.readouterr().out)
    assert (found["how"], found["platform"]) == ("modelled", "tpu:v5e")
    for row in found["rows"].values():
        assert row["milliseconds"] == pytest.approx(sum(row["parts"].values()))
        assert row["milliseconds"] >= max(row["schedule_milliseconds"], row["memory_milliseconds"])
    rows = found["rows"]
    assert rows["W8A8"]["argument_bytes"] < rows[BASELINE]["argument_bytes"]
    assert rows["W8A8"]["memory_bytes"] < rows[BASELINE]["memory_bytes"]


def test_the_table_has_a_line_for_each_variant(answers, small, capsys):
    run("bench", small, "--platform", "tpu:v6e", "--variant", "W8A8", "--variant", "bfloat16")
    out = capsys.readouterr().out
    assert "batch 8, modelled on tpu:v6e" in out
    assert all(name in out for name in ("W8A8", "bfloat16", "arguments", "convolutions", "look-up"))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"variants": ["W1A1"]}, "'W1A1' is no variant; give some of 'float32'"),
        ({"platform": "tpu:v9"}, "'tpu:v9' is no platform of jaxdq"),
        ({"platform": "gpu"}, "JAX finds no gpu here"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"rounds": 0}, "rounds 0"),
    ],
)
def test_bad_input_is_one_sentence(options, sentence):
    with pytest.raises(InputError, match=sentence):
        bench_model("digits", **options)
