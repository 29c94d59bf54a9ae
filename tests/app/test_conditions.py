"""Classes and prompts of a run: spread over all there are, chosen by name, and said afterwards."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import UNET2D_CONFIG, Tiny, tiny_quantized, toy_denoiser, toy_params

import jaxdq
from jaxdq import InputError, ddim, recipes
from jaxdq.app import run
from jaxdq.app.command import main
from jaxdq.app.conditions import Choice, choice_of_run, load_model, num_classes, with_classes
from jaxdq.app.report import seen
from jaxdq.app.settings import parse_classes
from jaxdq.calibration import run_recipe
from jaxdq.models import text
from jaxdq.models.unet import save_unet_folder, unet2d_from_config

CONFIG = UNET2D_CONFIG | {"num_class_embeds": 100}
SCHEDULER = {"_class_name": "DDPMScheduler", "num_train_timesteps": 20, "beta_start": 0.01, "beta_end": 0.3}
SMALL = ["--steps", "2", "--images", "6", "--calibration-images", "4", "--recipe", "minmax"]
KEY = jax.random.key(3)
LABELS = np.linspace(0, 1, 40, dtype=np.float32).reshape(10, 4)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("classes") / "tiny"
    args = (np.zeros((1, 8, 8, 1), np.float32), np.int32(0), np.zeros(1, np.int32))
    save_unet_folder(path, CONFIG, toy_params(unet2d_from_config(CONFIG), *args), SCHEDULER)
    return path


def made_by(words, out: Path) -> dict:
    with pytest.raises(SystemExit, match="0"):
        main([*map(str, words), *SMALL, "--out", str(out)])
    return json.loads((out / "metrics.json").read_text())


@pytest.fixture(scope="module")
def made(model) -> Path:
    made_by(["quantize", model], model.parent / "run")
    return model.parent / "run"


def output_of(capsys, words) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit, match="0"):
        main([str(word) for word in words])
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_calibration_and_evaluation_spread_over_all_conditions():
    denoiser, qparams = toy_denoiser(Tiny(), (LABELS,)), tiny_quantized()[1]
    shown = []
    for num_images in (4, 12):
        asked = {"sampler": ddim(2), "num_images": num_images, "batch_size": 4}
        work = run_recipe(denoiser, recipes.minmax(), key=KEY, **asked)
        found = jaxdq.evaluate(denoiser, qparams, key=jax.random.key(9), **asked)
        for rows in (work.problem.rows, found.rows):
            assert len(set(rows.tolist())) == len(rows) == min(num_images, 10)
        shown.append(work)
    few, enough = shown
    (conditions,) = few.denoiser.conditions
    np.testing.assert_array_equal(conditions, LABELS[few.problem.rows])
    assert few.problem.rows.tolist() != list(range(4))
    # With images enough for all, they are taken in turn as the user gave them.
    assert enough.denoiser is denoiser and enough.problem.rows.tolist() == list(range(10))


def test_the_rows_are_the_keys_and_no_row_is_left_out():
    denoiser = toy_denoiser(Tiny(), (LABELS,))
    rows = [denoiser.spread(4, jax.random.key(seed))[1].tolist() for seed in range(40)]
    assert denoiser.spread(4, jax.random.key(7))[1].tolist() == rows[7]
    counts = np.bincount(np.ravel(rows), minlength=10)
    assert counts.min() >= 5 and counts.max() <= 30  # 16 each on average
    # Raw keys are keys too; and the choice is the same for ever, on every version.
    assert denoiser.spread(4, jax.random.PRNGKey(7))[1].tolist() == rows[7] == [0, 6, 8, 3]


def test_arrays_of_different_lengths_are_spread_together():
    denoiser = toy_denoiser(Tiny(), (LABELS,))
    both = jaxdq.Denoiser(denoiser.module, denoiser.params, denoiser.schedule, denoiser.shape, (LABELS, [[1.0], [2.0]]))
    assert (both.num_conditions, toy_denoiser(Tiny()).num_conditions) == (10, 0)
    other, rows = both.spread(3, KEY)
    np.testing.assert_array_equal(other.conditions[0], LABELS[rows])
    np.testing.assert_array_equal(np.ravel(other.conditions[1]), 1.0 + rows % 2)
    shapes = both.with_rows(np.arange(7)).abstract_args(2)
    assert [shape.shape for shape in shapes] == [(2, 4), (2, 1)]
    text = jax.ShapeDtypeStruct((9, 4), jnp.float32)
    abstract = jaxdq.Denoiser(denoiser.module, denoiser.params, denoiser.schedule, denoiser.shape, (text,))
    assert abstract.spread(2, KEY)[0].conditions == (jax.ShapeDtypeStruct((2, 4), jnp.float32),)


@pytest.mark.parametrize("num_images", [0, -1, 2.5, None, "3"])
def test_numbers_that_are_none_are_left_to_those_who_draw(num_images):
    denoiser = toy_denoiser(Tiny(), (LABELS,))
    assert denoiser.spread(num_images, KEY)[0] is denoiser


def test_a_run_says_which_classes_it_saw(made, capsys):
    found = json.loads((made / "metrics.json").read_text())["conditions"]
    assert (found["kind"], found["total"], found["chosen"]) == ("classes", 100, None)
    for name, count in (("calibrated", 4), ("evaluated", 6)):
        assert found[name] == sorted(set(found[name])) and len(found[name]) == count and found[name][-1] >= count
    sentence = seen({"conditions": found})
    assert sentence.startswith("Of 100 classes, 4 were seen (") and "in calibration and 6 were seen (" in sentence
    assert sentence in output_of(capsys, ["inspect", made])
    assert sentence in (made / "report.html").read_text()
    again = json.loads(output_of(capsys, ["evaluate", made, "--json"]))
    assert again["conditions"]["evaluated"] == found["evaluated"]
    assert again["image_psnr_db"] == json.loads((made / "metrics.json").read_text())["image_psnr_db"]


@pytest.mark.slow
def test_classes_are_chosen_by_name(model, made, tmp_path, capsys):
    metrics = made_by(["quantize", model, "--classes", "0, 5,99"], tmp_path / "few")
    found = metrics["conditions"]
    assert (found["kind"], found["total"]) == ("classes", 100)
    assert found["chosen"] == found["calibrated"] == found["evaluated"] == [0, 5, 99]
    assert "--classes '0, 5,99'" in metrics["command"]
    assert "Of 100 classes, 3 were seen (0, 5, 99) in calibration" in output_of(capsys, ["inspect", tmp_path / "few"])
    for words, expected in (([], [0, 5, 99]), (["--classes", "7"], [7])):
        found = json.loads(output_of(capsys, ["evaluate", tmp_path / "few", "--json", *words]))
        assert found["conditions"]["evaluated"] == expected
    drawn = {classes: run.sample_run(made, images=2, classes=classes) for classes in ("0", "1", "0,1", "1,0", None)}
    np.testing.assert_array_equal(drawn["0,1"], drawn[None])  # in order, if nobody says otherwise
    np.testing.assert_array_equal(drawn["0,1"], [drawn["0"][0], drawn["1"][1]])
    np.testing.assert_array_equal(drawn["1,0"], [drawn["1"][0], drawn["0"][1]])
    assert (drawn["0"] != drawn["1"]).any()
    output_of(capsys, ["sample", made, "--class", "7", "--images", "2", "--out", tmp_path / "7.png"])
    assert (tmp_path / "7.png").exists()


def test_inspect_says_how_many_classes_a_model_has(model, tmp_path, capsys):
    said = output_of(capsys, ["inspect", model])
    assert "100, 0 to 99" in said and "32 in calibration and 64 in evaluation" in said
    assert "classes" not in output_of(capsys, ["inspect", "digits"])


@pytest.mark.parametrize("classes", ["", "a", "0,", "-1", "0.5", "1,1", "0-9", "0;1", "²", "1e3", 3, ["0"]])
def test_what_is_no_list_of_classes_is_refused(classes):
    with pytest.raises(InputError, match="give different whole numbers from 0 with commas between"):
        parse_classes(classes)
    with pytest.raises(InputError, match="give different whole numbers"):
        run.Settings("digits", classes=classes)


@pytest.mark.parametrize(
    ("which", "classes", "said"),
    [
        ("model", "100", "has 100: 0 to 99."),
        ("model", "0,5,1000", "classes 0, 5, 1000 were asked for"),
        ("model", "x", "classes is 'x'"),
        ("digits", "0", "'digits' is unconditional; name no classes."),
    ],
)
def test_classes_that_a_model_has_not_are_refused_before_any_work(
    model, made, tmp_path, capsys, monkeypatch, which, classes, said
):
    monkeypatch.setattr("jaxdq.app.run.run_recipe", None)
    monkeypatch.setattr("jaxdq.app.run.evaluate", None)
    monkeypatch.setattr("jaxdq.app.run.sample", None)
    name = model if which == "model" else which
    commands = [["quantize", name, "--out", tmp_path / "out", "--classes", classes]]
    if which == "model":
        commands += [["evaluate", made, "--classes", classes], ["sample", made, "--class", classes]]
    for command in commands:
        capsys.readouterr()
        with pytest.raises(SystemExit, match="2"):
            main([str(word) for word in command])
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("jaxdq: ") and said in line
    assert not list(tmp_path.iterdir())


def test_classes_and_prompts_exclude_each_other():
    with pytest.raises(InputError, match="both classes and prompts"):
        run.Settings("model", classes="1", prompts="prompts.txt")


def test_prompts_are_spread_over_their_file(tmp_path, monkeypatch):
    (tmp_path / "prompts.txt").write_text("\n".join(f"prompt {index}" for index in range(50)))
    embedded = []

    def embed(model, prompts, *, guidance_scale, others):
        embedded.append(prompts)
        return toy_denoiser(Tiny(), (np.zeros((len(prompts), 4), np.float32),))

    monkeypatch.setattr(text, "load_text_denoiser", embed)
    settings = {"prompts": str(tmp_path / "prompts.txt"), "images": 5, "calibration_images": 7}
    for seed in (0, 0, 1):
        denoiser, choice = load_model(run.Settings("model", seed=seed, **settings))
        assert (choice.kind, choice.total, denoiser.num_conditions) == ("prompts", 50, 7)
        assert embedded[-1] == [f"prompt {index}" for index in choice.ids]
    assert embedded[0] == embedded[1] != embedded[2] and max(choice.ids) > 7
    load_model(run.Settings("model", **settings | {"images": 60}))
    assert embedded[-1] == [f"prompt {index}" for index in range(50)]  # all, in order


def test_the_prompts_of_a_run_keep_their_numbers():
    denoiser = toy_denoiser(Tiny(), (np.zeros((3, 4), np.float32),))
    said = Choice("prompts", 50, np.array([40, 2, 7])).seen(calibrated=np.array([0, 1]))
    assert said["calibrated"].tolist() == [2, 40] and said["chosen"].tolist() == [40, 2, 7]
    _, choice = choice_of_run(denoiser, {"conditions": said}, None)
    assert choice.seen(evaluated=np.array([0, 2]))["evaluated"].tolist() == [7, 40]
    assert choice_of_run(denoiser, {}, None)[1] is None  # a run of an earlier version
    with pytest.raises(InputError, match="draws from other conditions; name no classes"):
        choice_of_run(denoiser, {"conditions": said}, (0,))


def test_what_counts_as_classes():
    plain = toy_denoiser(Tiny())

    def given(*rows):
        return jaxdq.Denoiser(plain.module, plain.params, plain.schedule, plain.shape, rows)

    assert num_classes(given(np.arange(7))) == 7 and num_classes(given(jnp.arange(1))) == 1
    for other in ((), (np.arange(7.0),), (np.array([1, 0]),), (np.arange(3), np.arange(3)), (LABELS,)):
        assert num_classes(given(*other)) is None
    with pytest.raises(InputError, match="is unconditional"):
        with_classes(given(), (0,))


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (None, None),
        ({"kind": "prompts", "total": 3, "evaluated": [0, 1, 2]}, "Of 3 prompts, all were seen in evaluation."),
        (
            {"kind": "classes", "total": 1000, "calibrated": [0, 1, 2, 9], "evaluated": [3]},
            "Of 1,000 classes, 4 were seen (0-2, 9) in calibration and 1 were seen (3) in evaluation.",
        ),
        (
            {"kind": "classes", "total": 1000, "evaluated": list(range(0, 100, 2))},
            "Of 1,000 classes, 50 were seen ("
            + ", ".join(map(str, range(0, 80, 2)))
            + " and 10 more spans) in evaluation.",
        ),
    ],
)
def test_golden_sentences(found, said):
    assert seen({"conditions": found}) == said
