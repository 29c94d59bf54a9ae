import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest
from toys import SHAPE, Tiny, toy_denoiser

from jaxdq import InputError, Rule, Scheme, calibrate, ddim, quantize
from jaxdq.calibration import Recipe, _calibrate, observe, plan_for, share_uniformly
from jaxdq.observers import minmax, minmax_weights

KEY = jax.random.key(0)
W8, A8 = Scheme(8, channel_axis=-1), Scheme(8, symmetric=False)


RULES = (Rule("time", W8), Rule(".*", W8, A8))


def recipe(*calibrators, rules=RULES):
    return Recipe("toy", lambda sites: rules, minmax_weights(), calibrators)


ONE_SCALE = recipe(observe(minmax()), share_uniformly(1))


def run(denoiser, recipe, key=KEY):
    return calibrate(denoiser, recipe, sampler=ddim(2), key=key, num_images=2)


@pytest.fixture(scope="module")
def denoiser():
    return toy_denoiser(Tiny())


@pytest.fixture(scope="module")
def calib(denoiser):
    return run(denoiser, ONE_SCALE)


def test_the_same_key_learns_the_same_and_another_does_not(denoiser, calib):
    again, other = run(denoiser, ONE_SCALE), run(denoiser, ONE_SCALE, jax.random.key(1))
    assert jax.tree.structure(again) == jax.tree.structure(calib)
    jax.tree.map(np.testing.assert_array_equal, again, calib)
    assert abs(other.act_scale - calib.act_scale).max() > 0
    # Weights are data-free.
    jax.tree.map(np.testing.assert_array_equal, other.weights, calib.weights)


def test_golden_weight_ranges(denoiser, calib):
    assert set(calib.weights) == {"time", "conv_in", "conv", "dense", "conv_out"}
    kernel = np.asarray(denoiser.params["conv"]["kernel"])
    scale = calib.weights["conv"].scale
    np.testing.assert_allclose(scale, abs(kernel).max((0, 1, 2), keepdims=True) / 127, rtol=1e-6)
    assert calib.weights["conv"].zero_point is None


def test_the_calibration_fits_the_denoiser(denoiser, calib):
    assert calib.act_scale.shape == (1, 4) and calib.group_of_t.shape == (denoiser.schedule.num_timesteps,)
    assert calib.plan == plan_for(denoiser, ONE_SCALE)
    assert np.isfinite(calib.act_scale).all() and (np.asarray(calib.act_scale) > 0).all()
    jax.eval_shape(quantize, denoiser.params, calib)


def test_calibrators_run_in_order_with_keys_of_their_own(denoiser):
    seen = []

    def spy(work, key):
        seen.append((work.calib is not None, jax.random.key_data(key).tolist()))
        return work

    run(denoiser, recipe(spy, observe(minmax()), share_uniformly(2), spy))
    assert [has_calib for has_calib, _ in seen] == [False, True]
    assert seen[0][1] != seen[1][1]


def test_a_recipe_must_leave_a_calibration(denoiser):
    with pytest.raises(InputError, match="recipe 'toy' ends without a calibration"):
        run(denoiser, recipe())


def test_more_groups_than_steps_are_refused(denoiser):
    with pytest.raises(InputError, match="3 groups were asked for and the sampler has 2 steps"):
        run(denoiser, recipe(observe(minmax()), share_uniformly(3)))


def test_more_groups_than_steps_are_refused_before_any_work(denoiser, monkeypatch):
    monkeypatch.setattr(_calibrate, "trajectories", None)
    with pytest.raises(InputError, match="3 groups were asked for and the sampler has 2 steps"):
        run(denoiser, dataclasses.replace(recipe(), settings={"groups": 3}))


def test_rules_that_do_not_fit_are_refused_before_any_work(denoiser):
    with pytest.raises(InputError, match="no rule matches 'time'"):
        run(denoiser, recipe(rules=[Rule("conv.*", W8, A8), Rule("dense", W8, A8)]))


def test_a_network_without_sites_is_refused():
    class Nothing(nn.Module):
        @nn.compact
        def __call__(self, x, t):
            return x * self.param("gain", nn.initializers.ones, ())

    with pytest.raises(InputError, match="Nothing calls no Dense, DenseGeneral or Conv"):
        plan_for(toy_denoiser(Nothing()), ONE_SCALE)


def test_a_float_model_that_returns_nan_is_named_with_its_time():
    class Breaks(nn.Module):
        @nn.compact
        def __call__(self, x, t):
            return nn.Dense(SHAPE[-1], name="dense")(x) / (t != 0)

    with pytest.raises(InputError, match="returns NaN or infinity at t = 0;"):
        run(toy_denoiser(Breaks()), recipe(rules=[Rule(".*", W8, A8)]))


def test_the_plan_needs_no_arrays(denoiser):
    abstract = dataclasses.replace(denoiser, params=jax.eval_shape(lambda: denoiser.params))
    assert plan_for(abstract, ONE_SCALE) == plan_for(denoiser, ONE_SCALE)
