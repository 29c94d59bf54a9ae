import itertools
from unittest import mock

import diffusers
import numpy as np
import pytest
import torch

from jaxdq._common.errors import InputError
from jaxdq.diffusion import (
    NoiseSchedule,
    ddpm,
    linear_schedule,
    rescale_zero_terminal_snr,
    schedule_from_config,
    step,
)

SHAPE = (2, 3, 4, 4)


def assert_steps_like_diffusers(theirs, num_steps):
    schedule = schedule_from_config(dict(theirs.config))
    coefficients = ddpm(num_steps).coefficients(schedule)
    # Their float32 products lose digits that ours keep (test_schedule.py compares them): step from the same numbers.
    theirs.alphas_cumprod = torch.tensor(schedule.alphas_cumprod)
    theirs.set_timesteps(num_steps)
    random = np.random.default_rng(0)
    for index, t in enumerate(theirs.timesteps[:num_steps]):
        x, output, noise = random.normal(size=(3, *SHAPE))
        # Their step draws its own noise: give it ours, and none in the last step, where ours adds none.
        drawn = torch.tensor(noise if index < num_steps - 1 else 0 * noise)
        with mock.patch(
            "diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *args, drawn=drawn, **kwargs: drawn
        ):
            expected = theirs.step(torch.tensor(output), int(t), torch.tensor(x)).prev_sample.numpy()
        numbers = coefficients.at(index)
        assert numbers.t == t
        # Ours is single precision: a few roundings (6e-8 each) of the largest term, here x_0's.
        largest = np.abs([numbers.keep_x0 * numbers.x0_from_x, numbers.keep_x0 * numbers.x0_from_output, 1]).max()
        actual = step(numbers, np.float32(x), np.float32(output), np.float32(noise))
        np.testing.assert_allclose(actual, expected, atol=1e-5 * largest)


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_small_log", "fixed_large"])
@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_oracle_steps_are_those_of_diffusers(prediction_type, spacing, variance_type):
    betas = ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"]
    for beta_schedule, clip_sample in itertools.product(betas, [False, True]):
        theirs = diffusers.DDPMScheduler(
            beta_schedule=beta_schedule,
            clip_sample=clip_sample,
            variance_type=variance_type,
            prediction_type=prediction_type,
            timestep_spacing=spacing,
        )
        assert_steps_like_diffusers(theirs, 10)


@pytest.mark.parametrize("num_steps", [1, 7, 50, 333])
@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
def test_oracle_step_counts(num_steps, spacing):
    assert_steps_like_diffusers(diffusers.DDPMScheduler(timestep_spacing=spacing, steps_offset=1), num_steps)


def test_oracle_zero_terminal_snr():
    theirs = diffusers.DDPMScheduler(
        rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing"
    )
    assert_steps_like_diffusers(theirs, 10)


def test_golden_two_steps():
    # abar 0.64, 0.36. From t = 1 to t = 0: alpha = 0.5625; keep_x0 = 0.8 * 0.4375 / 0.64; keep_x = 0.75 * 0.36 / 0.64;
    # posterior variance 0.4375 * 0.36 / 0.64. From t = 0 to the clean image: x_0 itself.
    schedule = NoiseSchedule(np.array([0.64, 0.36]))
    coefficients = ddpm(2).coefficients(schedule)
    np.testing.assert_allclose(coefficients.keep_x0, [0.546875, 1], rtol=1e-6)
    np.testing.assert_allclose(coefficients.keep_x, [0.421875, 0], rtol=1e-6)
    np.testing.assert_array_equal(coefficients.keep_output, [0, 0])
    np.testing.assert_array_equal(coefficients.clip_range, [1, 1])
    np.testing.assert_allclose(coefficients.noise_std, [0.24609375**0.5, 0], rtol=1e-6)


@pytest.mark.parametrize("variance_type", ["fixed_large", "fixed_large_log"])
def test_golden_large_variance_is_beta(variance_type):
    schedule = NoiseSchedule(np.array([0.64, 0.36]), variance_type=variance_type)
    np.testing.assert_allclose(ddpm(2).coefficients(schedule).noise_std, [0.4375**0.5, 0], rtol=1e-6)


def test_invariant_every_timestep_keeps_the_marginal_variance():
    """With a unit-variance x_0, independent of eps, each step maps x's variance 1 onto 1 (Ho et al. 2020, eq. 7)."""
    schedule = linear_schedule(1000, prediction_type="sample", clip_range=None)
    c = ddpm(1000).coefficients(schedule)
    abar = schedule.alphas_cumprod[c.t]
    variance = c.keep_x0**2 + c.keep_x**2 + 2 * c.keep_x0 * c.keep_x * np.sqrt(abar) + c.noise_std**2
    np.testing.assert_allclose(variance, 1, rtol=1e-5)


def test_refuses_epsilon_at_pure_noise():
    with pytest.raises(InputError, match="pure noise"):
        ddpm(5, spacing="trailing").coefficients(rescale_zero_terminal_snr(linear_schedule()))


def test_is_stochastic():
    assert ddpm(5).is_stochastic
