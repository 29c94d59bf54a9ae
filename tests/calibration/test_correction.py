"""Corrections along the sampler's way, on a small network at few bits."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import NUM_TIMESTEPS, SHAPE, Tiny, toy_denoiser

from jaxdq import InputError, Rule, Scheme, apply, ddim, quantize, restore, sample, save
from jaxdq.calibration import (
    Recipe,
    correct_noise,
    correct_trajectory,
    fit_weights,
    observe,
    run_recipe,
    share_uniformly,
)
from jaxdq.calibration import _correction as correction
from jaxdq.observers import minmax, minmax_weights
from jaxdq.sampling import Walk, walk

KEY = jax.random.key(0)
STEPS = 4


@functools.cache
def before(eta=0.0):
    rules = lambda sites: [Rule(".*", Scheme(3, channel_axis=-1), Scheme(4, symmetric=False))]  # noqa: E731
    recipe = Recipe("coarse", rules, (fit_weights(minmax_weights()), observe(minmax()), share_uniformly(1)))
    return run_recipe(toy_denoiser(Tiny()), recipe, sampler=ddim(STEPS, eta=eta), key=KEY, num_images=8, batch_size=8)


def log_of(work, name):
    return next(log for found, log in reversed(work.log) if found == name)


@functools.cache
def always(name, **settings):
    """Corrected whether images come closer or not: what the tables do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(correction, "_accepted", lambda work, tables: ({"before": 1.0}, list(tables)[-1]))
        return MAKE[name](num_images=8, **settings)(before(), KEY)


MAKE = {"noise": correct_noise, "trajectory": correct_trajectory}


def test_what_was_corrected_has_no_linear_error_left():
    """On the same states: a least-squares fit leaves nothing that it could fit again."""
    first = log_of(always("noise"), "correct_noise")
    again = log_of(correct_noise(num_images=8)(always("noise"), KEY), "correct_noise")
    assert np.abs(first["slope"]).max() > 0.02
    np.testing.assert_allclose(again["slope"], 0, atol=2e-4)
    factors = log_of(
        correct_trajectory(input_bias=False, num_images=8)(always("trajectory", input_bias=False), KEY),
        "correct_trajectory",
    )
    np.testing.assert_allclose(factors["gain"], 1, atol=2e-4)


def test_the_walk_is_the_samplers_own():
    """Each step was estimated where `sample` arrives with the corrections of the steps before."""
    work, seen = before(), []

    def fix(step):
        seen.append(step.x)
        found = step.found(step.x)
        gain = np.full(found.shape[-1], 1 + 0.1 * step.step)
        return correction.Fix(np.asarray(gain * found, np.float32), None, {"gain": gain})

    rows = correction.correct_along(work, fix, 8, KEY)
    tables = correction._tables(work, output_gain=rows["gain"])
    qparams = quantize(work.denoiser.params, correction._corrected(work, tables).calib)
    way = walk(work.denoiser, ddim(STEPS), num_images=8, key=KEY, batch_size=8)
    x = way.start()
    for index in range(STEPS):
        np.testing.assert_allclose(seen[index], x, atol=1e-5)
        x, _ = way.advance(x, way.output(qparams, x, index), index)


def test_two_network_calls_a_step_and_one_program_each(monkeypatch):
    traces, calls = [], []

    class Counted(Tiny):
        def __call__(self, x, t):
            traces.append(t)
            return super().__call__(x, t)

    own = Walk.output
    monkeypatch.setattr(Walk, "output", lambda *args: calls.append(1) or own(*args))
    work = before()
    counted = work._replace(problem=work.problem._replace(denoiser=toy_denoiser(Counted())))
    monkeypatch.setattr(correction, "_accepted", lambda work, tables: ({"before": 1.0}, "before"))
    traces.clear()  # what made its params
    correct_noise(num_images=8)(counted, KEY)
    assert (len(traces), len(calls)) == (2, 2 * STEPS)


@pytest.mark.parametrize("make", [correct_noise, correct_trajectory])
@pytest.mark.parametrize("estimator", ["closed-loop", "paper"])
def test_images_decide_and_no_worse_ones_are_kept(make, estimator):
    work = make(estimator, num_images=8)(before(), KEY)
    log = log_of(work, make(estimator).name)
    assert log["tried"][log["kept"]] == min(log["tried"].values())
    assert (work.calib.correction is None or work.calib.correction.output_gain is None) == (log["kept"] == "before")


def test_what_bias_and_slope_leave_makes_room_in_the_fresh_noise():
    plain = before(eta=1.0)
    work = correct_noise(num_images=8)(plain, KEY)
    log = log_of(work, "correct_noise")
    assert work.calib.correction.output_std.shape == (NUM_TIMESTEPS,)
    # All steps but the last, which lands on the image without fresh noise.
    assert all(0 <= left < 1 for left in log["noise_left"][:-1]) and log["noise_left"][-1] == 1
    qparams, draw = quantize(plain.denoiser.params, work.calib), {"num_images": 4, "key": KEY}
    exact = dataclasses.replace(qparams, correction=dataclasses.replace(qparams.correction, output_std=None))
    stochastic, still = ddim(STEPS, eta=1.0), ddim(STEPS)
    assert (
        abs(
            sample(plain.denoiser, qparams, sampler=stochastic, **draw)
            - sample(plain.denoiser, exact, sampler=stochastic, **draw)
        ).max()
        > 1e-3
    )
    np.testing.assert_array_equal(
        sample(plain.denoiser, qparams, sampler=still, **draw), sample(plain.denoiser, exact, sampler=still, **draw)
    )


def test_the_walk_draws_the_fresh_noise_that_is_left():
    """As `sample` will, once the residual of each step is known."""
    work, seen = before(eta=1.0), []

    def fix(step):
        seen.append(step.x)
        return correction.Fix(step.found(step.x), None, {"std": np.float64(0.2)}, 0.2)

    rows = correction.correct_along(work, fix, 8, KEY)
    tables = correction._tables(work, output_std=rows["std"])
    qparams = quantize(work.denoiser.params, correction._corrected(work, tables).calib)
    way = walk(work.denoiser, ddim(STEPS, eta=1.0), num_images=8, key=KEY, batch_size=8)
    x = full = way.start()
    for index in range(STEPS):
        np.testing.assert_allclose(seen[index], x, atol=1e-5)
        assert index == 0 or abs(full - x).max() > 1e-3
        x, _ = way.advance(x, output := way.output(qparams, x, index), index, params=qparams)
        full, _ = way.advance(seen[index], output, index)


def test_corrections_go_through_the_house(tmp_path):
    work = always("trajectory")
    assert work.calib.correction.input_shift.shape == (NUM_TIMESTEPS, SHAPE[-1])
    both = correct_noise(num_images=8)(work, KEY)
    qparams = quantize(work.denoiser.params, both.calib)
    save(tmp_path / "q", qparams)
    x, t = jax.random.normal(KEY, (2, *SHAPE)), jnp.array([3, 15])
    found = apply(work.denoiser.module, qparams, x, t)
    np.testing.assert_array_equal(apply(work.denoiser.module, restore(tmp_path / "q"), x, t), found)
    each = [apply(work.denoiser.module, qparams, x[i : i + 1], t[i])[0] for i in range(2)]
    np.testing.assert_allclose(found, each, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "settings", "said"),
    [
        (correct_noise, {"estimator": "open"}, "estimator is 'open'; give one of 'closed-loop', 'paper'"),
        (correct_noise, {"variance": "no"}, "variance is 'no'; give True or False"),
        (correct_noise, {"num_images": 0}, "num_images is 0"),
        (correct_trajectory, {"estimator": None}, "estimator is None"),
        (correct_trajectory, {"input_bias": 1}, "input_bias is 1; give True or False"),
        (correct_trajectory, {"mask": -1}, "mask is -1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, settings, said):
    with pytest.raises(InputError, match=said):
        make(**settings)
