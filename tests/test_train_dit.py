"""The transformer that is trained by a script, and what scripts load by `--model`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from scripts_by_name import script

import jaxdq
from jaxdq.recipes import default_rules

dit, models, training = script("dit"), script("models"), script("train_dit")
MODULE = dit.DiT(size=4, width=16, depth=2, heads=2, num_classes=3)
ARGS = (jnp.ones((2, 4, 4, 1)), jnp.array(7), jnp.array([0, 2]))
SCHEDULER = {"_class_name": "DDPMScheduler", "num_train_timesteps": 20}


@pytest.fixture(scope="module")
def params():
    return toys.toy_params(MODULE, *ARGS)


def test_outliers_leave_every_bit_of_the_output(params):
    apply = jax.jit(lambda params: MODULE.apply({"params": params}, *ARGS))
    changed = training.with_outliers(params)
    np.testing.assert_array_equal(apply(params), apply(changed))


def test_outliers_are_loud_and_quiet_channels(params):
    changed = training.with_outliers(params)
    for block in ("block_0", "block_1"):
        for norm, reader in (("norm_1", "qkv"), ("norm_2", "mlp_in")):
            gain = np.asarray(changed[block][norm]["scale"]) / np.asarray(params[block][norm]["scale"])
            assert gain.max() >= training.LOUD[0]
            assert gain.min() <= training.QUIET[1]
            assert np.median(gain) == 1
            rows = np.asarray(params[block][reader]["kernel"])[:, 0] / changed[block][reader]["kernel"][:, 0]
            np.testing.assert_array_equal(rows, gain)


@pytest.mark.slow
def test_a_trained_folder_is_a_model_of_every_script(tmp_path):
    folder = tmp_path / "dit"
    words = "--width 8 --depth 1 --updates 2 --batch-size 4".split()
    training.main([*words, "--out", str(folder), "--work", str(tmp_path / "work")])
    denoiser = models.load(folder)
    assert (denoiser.name, denoiser.shape, denoiser.module.width) == ("dit", (16, 16, 1), 8)
    args = (jnp.zeros((2, 16, 16, 1)), jnp.array(7), *denoiser.args(jnp.array([3, 12])))
    np.testing.assert_array_equal(args[2], [3, 2])
    assert jnp.isfinite(jaxdq.apply(denoiser.module, denoiser.params, *args)).all()


def test_all_but_the_ends_the_time_path_and_the_products_run_on_integers(params):
    sites = jaxdq.linen.find_sites(MODULE, params, *ARGS)
    plan = jaxdq.linen.make_plan(default_rules(4, 8)(sites), sites, params)
    found = {site.path for site in plan.sites if site.is_integer}
    assert found == {f"block_{index}/{name}" for index in (0, 1) for name in ("qkv", "out", "mlp_in", "mlp_out")}
    in_float = {site.path for site in plan.sites if site.weight is None and site.site.kind != "product"}
    assert in_float == {"patches", "pixels"}


def test_what_is_saved_is_loaded(tmp_path, params):
    dit.save(tmp_path, MODULE, params, SCHEDULER)
    denoiser = models.load(tmp_path)
    assert denoiser.module == MODULE
    assert denoiser.schedule.num_timesteps == 20
    jax.tree.map(np.testing.assert_array_equal, denoiser.params, params)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("config.json", '{"_class_name": "DiT"}', "can't be read"),
        ("scheduler_config.json", None, "can't be read"),
        ("params.safetensors", "", "can't be read"),
    ],
)
def test_a_damaged_folder_is_one_sentence(tmp_path, params, name, content, sentence):
    dit.save(tmp_path, MODULE, params, SCHEDULER)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(content)
    with pytest.raises(jaxdq.InputError, match=sentence):
        models.load(tmp_path)


def test_files_that_do_not_fit_one_another_are_told(tmp_path, params):
    dit.save(tmp_path, MODULE, params, SCHEDULER)
    (tmp_path / "config.json").write_text((tmp_path / "config.json").read_text().replace('"depth": 2', '"depth": 3'))
    with pytest.raises(jaxdq.InputError, match="don't fit"):
        models.load(tmp_path)


def test_other_names_are_those_of_jaxdq():
    assert models.load("digits").shape == jaxdq.load_denoiser("digits").shape
    with pytest.raises(jaxdq.InputError, match="neither a bundled model nor a folder"):
        models.load("no such model")
