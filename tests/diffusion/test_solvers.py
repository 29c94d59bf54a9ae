"""Solvers with a past, times between timesteps or fresh noise, held against diffusers' along whole trajectories."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxdq._common.errors import InputError
from jaxdq.diffusion import (
    dpm_solver,
    euler,
    euler_ancestral,
    image_keys,
    lcm,
    linear_schedule,
    pndm,
    rescale_zero_terminal_snr,
    schedule_from_config,
    step,
    trajectory,
)
from jaxdq.diffusion._sampler import left_by

SHAPE = (2, 4, 4, 3)
SPACINGS = ["linspace", "leading", "trailing"]
PREDICTIONS = ["epsilon", "v_prediction", "sample"]
RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(size=(3, 3)) / 3


def model(x, t, xp=np):
    """A network that reacts to where it is and when."""
    return xp.tanh(x @ xp.asarray(WEIGHT, dtype=x.dtype) + 0.3 * xp.sin(t / 100.0)) + 0.2 * x


def along(sampler, schedule, noise):
    """The states before each step and the last, in the same numbers at every step."""
    coefficients = sampler.coefficients(schedule)
    x = noise[-1] * (1 if coefficients.initial_std is None else coefficients.initial_std[0])
    past, states = (np.zeros_like(x),) * coefficients.num_past, [x]
    for index in range(sampler.num_steps):
        numbers = coefficients.at(index)
        output = model(x, float(numbers.t))
        fresh = noise[index] if sampler.is_stochastic else None
        after = np.asarray(step(numbers, x, output, fresh, past))
        past = (np.asarray(left_by(numbers, x, output)), *past[:-1]) if past else ()
        x = after
        states.append(x)
    return np.stack(states)


def along_theirs(theirs, num_steps, noise, monkeypatch, module=None, scaled=False, **kwargs):
    """The same of diffusers' scheduler, in our units where theirs are others."""
    theirs.set_timesteps(num_steps, **kwargs)
    drawn = iter(noise)
    if module is not None:
        monkeypatch.setattr(module, "randn_tensor", lambda *args, **kwargs: torch.tensor(next(drawn)))
    x = torch.tensor(noise[-1]) * float(theirs.init_noise_sigma)
    states = []
    for index, t in enumerate(theirs.timesteps):
        sigma = float(theirs.sigmas[index]) if scaled else 0.0
        states.append(x.numpy() / np.sqrt(1 + sigma**2))
        shown = theirs.scale_model_input(x, t)
        x = theirs.step(torch.tensor(model(shown.numpy(), float(t))), t, x).prev_sample
    return np.stack([*states, x.numpy()])


def noises(num):
    return np.random.default_rng(1).normal(size=(num, *SHAPE))


def schedule_of(theirs):
    return schedule_from_config({**theirs.config, "_class_name": type(theirs).__name__})


def assert_alike(ours, theirs):
    assert len(ours) == len(theirs)
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=2e-4 * np.abs(theirs).max())


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("num_steps", [1, 2, 8, 20])
def test_oracle_dpm_solver(num_steps, prediction, spacing, monkeypatch):
    theirs = diffusers.DPMSolverMultistepScheduler(
        prediction_type=prediction, timestep_spacing=spacing, beta_schedule="scaled_linear", beta_end=0.012
    )
    ours = dpm_solver(num_steps)
    schedule = schedule_of(theirs)
    found = along_theirs(theirs, num_steps, noises(1), monkeypatch)
    np.testing.assert_array_equal(ours.coefficients(schedule).t, theirs.timesteps.numpy())
    assert_alike(along(ours, schedule, noises(1)), found)


def test_oracle_dpm_solver_of_other_orders_and_ends(monkeypatch):
    for order, final in ((1, "zero"), (2, "sigma_min")):
        theirs = diffusers.DPMSolverMultistepScheduler(solver_order=order, final_sigmas_type=final)
        schedule = schedule_of(theirs)
        for num_steps in (10, 16):
            found = along_theirs(theirs, num_steps, noises(1), monkeypatch)
            assert_alike(along(dpm_solver(num_steps, order=order), schedule, noises(1)), found)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("num_steps", [2, 3, 5, 20])
def test_oracle_pndm(num_steps, prediction, spacing, monkeypatch):
    offset = int(spacing == "leading")  # Stable Diffusion's
    theirs = diffusers.PNDMScheduler(
        prediction_type=prediction,
        timestep_spacing=spacing,
        skip_prk_steps=True,
        steps_offset=offset,
        beta_schedule="scaled_linear",
        beta_end=0.012,
    )
    ours, schedule = pndm(num_steps), schedule_of(theirs)
    try:
        found = along_theirs(theirs, num_steps, noises(1), monkeypatch)
    except IndexError:
        pytest.skip("diffusers looks past its last timestep there")
    np.testing.assert_array_equal(ours.coefficients(schedule).t, theirs.timesteps.numpy())
    assert ours.num_steps == num_steps + 1
    assert_alike(along(ours, schedule, noises(1)), found)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("num_steps", [1, 7, 30])
@pytest.mark.parametrize("ancestral", [False, True])
def test_oracle_euler(ancestral, num_steps, prediction, spacing, monkeypatch):
    if prediction == "sample" and ancestral:
        pytest.skip("diffusers has none")
    make = diffusers.EulerAncestralDiscreteScheduler if ancestral else diffusers.EulerDiscreteScheduler
    theirs = make(prediction_type=prediction, timestep_spacing=spacing)
    module = __import__(make.__module__, fromlist=["randn_tensor"]) if ancestral else None
    ours = (euler_ancestral if ancestral else euler)(num_steps)
    schedule = schedule_of(theirs)
    noise = noises(num_steps + 1)
    found = along_theirs(theirs, num_steps, noise, monkeypatch, module, scaled=True)
    np.testing.assert_allclose(ours.coefficients(schedule).t, theirs.timesteps.numpy(), rtol=1e-6)
    assert_alike(along(ours, schedule, noise), found)


@pytest.mark.parametrize("ancestral", [False, True])
def test_oracle_euler_with_next_to_no_signal_at_the_last_timestep(ancestral, monkeypatch):
    make = diffusers.EulerAncestralDiscreteScheduler if ancestral else diffusers.EulerDiscreteScheduler
    theirs = make(beta_schedule="squaredcos_cap_v2")
    module = __import__(make.__module__, fromlist=["randn_tensor"]) if ancestral else None
    noise = noises(8)
    found = along_theirs(theirs, 7, noise, monkeypatch, module, scaled=True)
    assert_alike(along((euler_ancestral if ancestral else euler)(7), schedule_of(theirs), noise), found)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("num_steps", [1, 2, 4, 8])
def test_oracle_lcm(num_steps, prediction, monkeypatch):
    theirs = diffusers.LCMScheduler(prediction_type=prediction)
    schedule = schedule_of(theirs)
    noise = noises(num_steps + 1)
    module = __import__(type(theirs).__module__, fromlist=["randn_tensor"])
    found = along_theirs(theirs, num_steps, noise, monkeypatch, module)
    np.testing.assert_array_equal(lcm(num_steps).coefficients(schedule).t, theirs.timesteps.numpy())
    assert_alike(along(lcm(num_steps), schedule, noise), found)


@pytest.mark.parametrize("sampler", [dpm_solver(6), pndm(6), euler(6, spacing="linspace"), lcm(3)], ids=repr)
def test_the_scanned_loop_is_the_steps_one_by_one(sampler):
    schedule = linear_schedule(1000, clip_range=None)
    keys, coefficients = image_keys(jax.random.key(0), jnp.arange(2)), sampler.coefficients(schedule)
    traces = []

    def counted(x, t):
        traces.append(t)
        return model(x, t, jnp)

    x = np.float32(noises(1)[0]) * (1 if coefficients.initial_std is None else coefficients.initial_std[0])
    images, states, _ = jax.jit(lambda x: trajectory(counted, sampler, coefficients, x, keys))(x)
    assert len(traces) == 1 and len(states) == sampler.num_steps
    if not sampler.is_stochastic:
        expected = along(sampler, schedule, noises(1))
        np.testing.assert_allclose(np.stack([*states, images]), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_pure_noise_at_the_start():
    """A v-model may start from it where sigma stays finite, as diffusers has it; logarithms can't."""
    schedule = rescale_zero_terminal_snr(linear_schedule(1000, prediction_type="v_prediction", spacing="trailing"))
    assert np.isfinite(jax.tree.leaves(euler(5).coefficients(schedule)._replace(clip_range=None))[0]).all()
    for sampler, said in ((dpm_solver(5), "DPM-Solver's logarithm"), (pndm(5), "PNDM can't start")):
        with pytest.raises(InputError, match=said):
            sampler.coefficients(schedule)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: dpm_solver(0), "at least 1"),
        (lambda: dpm_solver(4, order=3), "order is 3; give 1 or 2"),
        (lambda: dpm_solver(4, order=True), "order is True"),
        (lambda: dpm_solver(4, spacing="log"), "'log'"),
        (lambda: dpm_solver(11, spacing="leading").coefficients(linear_schedule(10)), "11 steps but .* 10 timesteps"),
        (lambda: dpm_solver(10, spacing="leading").coefficients(linear_schedule(10)), "don't fit into 10 timesteps"),
        (lambda: dpm_solver(4, spacing="quadratic").coefficients(linear_schedule(10)), "knows linspace, leading and"),
        (lambda: pndm("4"), "at least 1"),
        (lambda: pndm(11).coefficients(linear_schedule(10)), "11 steps"),
        (lambda: euler(2.0), "at least 1"),
        (lambda: euler(4, spacing="quadratic").coefficients(linear_schedule(10)), "know linspace, leading and"),
        (lambda: euler(10, spacing="leading").coefficients(linear_schedule(10, steps_offset=1)), "steps_offset=1 lead"),
        (lambda: lcm(0), "at least 1"),
        (lambda: lcm(51), "takes 51 steps and the model was distilled from 50"),
        (lambda: lcm(4).coefficients(linear_schedule(10)), "50 original steps over 10 timesteps"),
    ],
)
def test_what_no_solver_can_do_is_refused(make, said):
    with pytest.raises(InputError, match=said):
        make()
