"""Wider activations at some steps: one switch between two networks of the same weights."""

import functools

import jax
import numpy as np
import pytest
from toys import SHAPE, Tiny, toy_denoiser

from jaxdq import InputError, Rule, Scheme, apply, ddim, quantize, restore, sample, save
from jaxdq.calibration import (
    Recipe,
    correct_noise,
    fit_weights,
    observe,
    relax_activations,
    run_recipe,
    share_uniformly,
)
from jaxdq.calibration import _relaxing as relaxing
from jaxdq.grid import QTensor, stored_bytes
from jaxdq.linen import Switch, dequantize_params
from jaxdq.observers import minmax, minmax_weights

KEY, STEPS = jax.random.key(0), 4
X = jax.random.normal(jax.random.key(3), (3, *SHAPE))


def rules(sites):
    return [Rule(".*", Scheme(8, channel_axis=-1), Scheme(3, symmetric=False))]


@functools.cache
def before():
    fitted = (fit_weights(minmax_weights()), observe(minmax()), share_uniformly(2))
    recipe = Recipe("coarse", rules, fitted)
    return run_recipe(toy_denoiser(Tiny()), recipe, sampler=ddim(STEPS), key=KEY, num_images=8, batch_size=8)


@functools.cache
def relaxed(**settings):
    work = relax_activations(**settings)(before(), KEY)
    return work, jax.jit(quantize)(work.denoiser.params, work.calib)


def kernels(qparams):
    return [
        leaf
        for leaf in jax.tree.leaves(qparams.params, is_leaf=lambda leaf: isinstance(leaf, QTensor))
        if isinstance(leaf, QTensor)
    ]


def test_images_come_closer_and_an_end_of_the_way_is_chosen():
    work, _ = relaxed(act_bits=8, share_of_steps=0.5)
    log = dict(work.log)["relax_activations"]
    assert set(log["tried"]) == {"before", "first steps", "last steps"} and log["kept"] != "before"
    assert log["tried"][log["kept"]] < log["tried"]["before"]
    assert log["steps"] == ([0, 1] if log["kept"] == "first steps" else [2, 3])


@pytest.mark.parametrize("act_bits", [8, None])
def test_each_time_runs_the_network_of_its_bits(act_bits):
    work, switch = relaxed(act_bits=act_bits, share_of_steps=0.5)
    narrow, wide = switch.choices
    steps = dict(work.log)["relax_activations"]["steps"]
    for step, t in enumerate(work.data.t):
        own = wide if step in steps else narrow
        np.testing.assert_allclose(apply(Tiny(), switch, X, t), apply(Tiny(), own, X, t), atol=1e-6)
    t = work.data.t[steps[0]]
    exact = Tiny().apply({"params": dequantize_params(narrow)}, X, t)
    error = np.abs(apply(Tiny(), switch, X, t) - exact).max() / np.abs(exact).max()
    assert error < (0.1 if act_bits else 1e-6)


@pytest.mark.parametrize("act_bits", [8, None])
def test_weights_are_in_memory_and_on_disk_once(act_bits, tmp_path):
    """Under jit too, where every output is a buffer of its own."""
    _, switch = relaxed(act_bits=act_bits, share_of_steps=0.5)
    narrow, wide = switch.choices
    assert isinstance(switch, Switch) and kernels(narrow)
    for one, two in zip(kernels(narrow), kernels(wide), strict=True):
        assert one.qvalue is two.qvalue
    beside = stored_bytes((wide.acts, switch.choice_of_t))
    assert stored_bytes(switch) <= stored_bytes(narrow) + beside
    save(tmp_path / "q", switch)
    restored = restore(tmp_path / "q")
    assert stored_bytes(restored) == stored_bytes(switch)
    assert jax.tree.structure(restored) == jax.tree.structure(switch)
    for one, two in zip(jax.tree.leaves(restored), jax.tree.leaves(switch), strict=True):
        np.testing.assert_array_equal(one, two)
    drawn = {"sampler": ddim(STEPS), "num_images": 4, "key": KEY, "batch_size": 4}
    denoiser = before().denoiser
    np.testing.assert_array_equal(sample(denoiser, restored, **drawn), sample(denoiser, switch, **drawn))


def test_oracle_ratios_are_those_of_the_network_on_its_own_way():
    work = before()
    found, own = relaxing._ratios(work, 8, KEY)
    abar = np.asarray(work.denoiser.schedule.alphas_cumprod)[work.data.t]
    np.testing.assert_allclose(own, abar / (1 - abar), rtol=1e-6)
    x, first = relaxing.walk_of(work, 8, KEY).start(), work.data.t[0]
    exact = Tiny().apply({"params": work.denoiser.params}, x, first)
    output = apply(Tiny(), quantize(work.denoiser.params, work.calib), x, first)
    np.testing.assert_allclose(found[0], np.sum(exact**2) / np.sum((exact - output) ** 2), rtol=1e-3)
    assert (found > 1).all()


def test_low_ratios_decide_which_steps_are_relaxed():
    work, _ = relaxed(act_bits=8, where="snr")
    found, own = relaxing._ratios(before(), 32, KEY)
    log = dict(work.log)["relax_activations"]
    assert log["kept"] == "before" or log["steps"] == np.flatnonzero(found <= own).tolist()
    assert 0 < np.sum(found <= own) < STEPS


def test_nothing_is_wider_than_eight_bits_of_eight():
    fitted = (fit_weights(minmax_weights()), observe(minmax()), share_uniformly(1), relax_activations(8))
    recipe = Recipe("toy", lambda sites: [Rule(".*", Scheme(8, channel_axis=-1), Scheme(8))], fitted)
    work = run_recipe(toy_denoiser(Tiny()), recipe, sampler=ddim(2), key=KEY, num_images=4, batch_size=4)
    assert work.calib.instead is None and not work.log


def test_corrections_come_after_it_and_a_second_one_is_refused():
    work, _ = relaxed(act_bits=8, share_of_steps=0.5)
    corrected = correct_noise(num_images=8)(work, KEY)
    assert np.isfinite(dict(corrected.log)["correct_noise"]["slope"]).all()
    once = (fit_weights(minmax_weights()), observe(minmax()), share_uniformly(2), relax_activations(8))
    with pytest.raises(
        InputError, match="'relax_activations' comes after wider activations at some times were decided"
    ):
        twice = Recipe("toy", rules, (*once, relax_activations(None)))
        run_recipe(before().denoiser, twice, sampler=ddim(2), key=KEY)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"act_bits": 10}, "act_bits is 10; give 2 to 8, or None"),
        ({"act_bits": "8"}, "act_bits is '8'"),
        ({"share_of_steps": 0}, "share_of_steps is 0"),
        ({"share_of_steps": float("nan")}, "share_of_steps is nan"),
        ({"where": "middle"}, "where is 'middle'; give one of 'ends', 'snr'"),
        ({"num_images": 0}, "num_images is 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, sentence):
    with pytest.raises(InputError, match=sentence):
        relax_activations(**settings)
