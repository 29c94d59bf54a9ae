import itertools

import diffusers
import jax
import numpy as np
import pytest
import torch

from jaxdq._common.errors import InputError
from jaxdq.diffusion import (
    NoiseSchedule,
    ddim,
    linear_schedule,
    rescale_zero_terminal_snr,
    schedule_from_config,
    step,
)

SHAPE = (2, 3, 4, 4)


def assert_steps_like_diffusers(theirs, num_steps, eta):
    """Every step from x, a model output and noise that are all new: no error can hide behind an earlier one."""
    sampler = ddim(num_steps, eta=eta)
    schedule = schedule_from_config(dict(theirs.config))
    coefficients = sampler.coefficients(schedule)
    # Their float32 products lose digits that ours keep (test_schedule.py compares them): step from the same numbers.
    theirs.alphas_cumprod = torch.tensor(schedule.alphas_cumprod)
    theirs.final_alpha_cumprod = torch.tensor(1.0) if schedule.set_alpha_to_one else theirs.alphas_cumprod[0]
    theirs.set_timesteps(num_steps)
    random = np.random.default_rng(0)
    for index, t in enumerate(theirs.timesteps[:num_steps]):
        x, output, noise = random.normal(size=(3, *SHAPE))
        expected = theirs.step(
            torch.tensor(output), int(t), torch.tensor(x), eta=eta, variance_noise=torch.tensor(noise) if eta else None
        ).prev_sample.numpy()
        numbers = coefficients.at(index)
        assert numbers.t == t
        actual = step(numbers, np.float32(x), np.float32(output), np.float32(noise) if sampler.is_stochastic else None)
        # Ours is single precision: a few roundings (6e-8 each) of the largest term, here x_0's.
        largest = np.abs([numbers.keep_x0 * numbers.x0_from_x, numbers.keep_x0 * numbers.x0_from_output, 1]).max()
        np.testing.assert_allclose(actual, expected, atol=1e-5 * largest)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_oracle_steps_are_those_of_diffusers(prediction_type, spacing, eta):
    betas, clip, to_one = ["linear", "scaled_linear", "squaredcos_cap_v2"], [False, True], [False, True]
    for beta_schedule, clip_sample, set_alpha_to_one in itertools.product(betas, clip, to_one):
        theirs = diffusers.DDIMScheduler(
            beta_schedule=beta_schedule,
            clip_sample=clip_sample,
            clip_sample_range=1.5,
            set_alpha_to_one=set_alpha_to_one,
            prediction_type=prediction_type,
            timestep_spacing=spacing,
        )
        assert_steps_like_diffusers(theirs, 10, eta)


@pytest.mark.parametrize("num_steps", [1, 7, 50, 333])
@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
def test_oracle_step_counts(num_steps, spacing):
    theirs = diffusers.DDIMScheduler(timestep_spacing=spacing, steps_offset=1, set_alpha_to_one=False)
    assert_steps_like_diffusers(theirs, num_steps, 0.5)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_oracle_zero_terminal_snr(prediction_type, spacing):
    theirs = diffusers.DDIMScheduler(
        rescale_betas_zero_snr=True, prediction_type=prediction_type, timestep_spacing=spacing
    )
    assert_steps_like_diffusers(theirs, 10, 0.5)


def test_golden_two_steps():
    # abar 0.64, 0.36: a = 0.8, 0.6 and s = 0.6, 0.8. From t = 1 to t = 0:
    # x_0 = (x - 0.8 eps) / 0.6, x_prev = 0.8 x_0 + 0.6 eps; from t = 0 to the clean image: x_0 = (x - 0.6 eps) / 0.8.
    schedule = NoiseSchedule(np.array([0.64, 0.36]), clip_range=None)
    coefficients = ddim(2).coefficients(schedule)
    np.testing.assert_array_equal(coefficients.t, [1, 0])
    np.testing.assert_allclose(coefficients.x0_from_x, [1 / 0.6, 1 / 0.8], rtol=1e-6)
    np.testing.assert_allclose(coefficients.x0_from_output, [-0.8 / 0.6, -0.6 / 0.8], rtol=1e-6)
    np.testing.assert_array_equal(coefficients.clip_range, [np.inf, np.inf])
    np.testing.assert_allclose(coefficients.keep_x0, [0.8, 1], rtol=1e-6)
    np.testing.assert_array_equal(coefficients.keep_x, [0, 0])
    np.testing.assert_allclose(coefficients.keep_output, [0.6, 0], atol=1e-7)
    np.testing.assert_array_equal(coefficients.noise_std, [0, 0])
    # eta = 1: sigma^2 = (0.36 / 0.64) (1 - 0.36 / 0.64) = 0.24609375.
    np.testing.assert_allclose(ddim(2, eta=1).coefficients(schedule).noise_std, [0.24609375**0.5, 0], atol=1e-7)


def test_quadratic_steps_land_on_the_next_timestep():
    schedule = linear_schedule(1000)
    coefficients = ddim(5, spacing="quadratic").coefficients(schedule)
    expected = np.append(schedule.alphas_cumprod[coefficients.t[1:]], 1.0)
    np.testing.assert_allclose(coefficients.keep_x0**2, expected, rtol=1e-6)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_a_perfect_model_draws_the_image(prediction_type):
    """With the true noise as prediction, DDIM walks the forward process back exactly (Song et al. 2021, eq. 12)."""
    schedule = linear_schedule(1000, prediction_type=prediction_type, clip_range=None)
    coefficients = ddim(20).coefficients(schedule)
    image, noise = jax.random.uniform(jax.random.key(0), (2, 8, 8), minval=-1, maxval=1)
    abar = schedule.alphas_cumprod[coefficients.t[0]]
    x = np.sqrt(abar) * image + np.sqrt(1 - abar) * noise
    for index, t in enumerate(coefficients.t):
        a, s = np.sqrt(schedule.alphas_cumprod[t]), np.sqrt(1 - schedule.alphas_cumprod[t])
        output = {"epsilon": noise, "v_prediction": a * noise - s * image, "sample": image}[prediction_type]
        x = step(coefficients.at(index), x, output)
    np.testing.assert_allclose(x, image, atol=1e-5)


def test_refuses_what_cannot_be():
    for eta in (-0.1, 1.5, float("nan"), "0", None, True, np.array([0.5])):
        with pytest.raises(InputError, match="eta"):
            ddim(5, eta=eta)
    with pytest.raises(InputError, match="pure noise"):
        ddim(5, spacing="trailing").coefficients(rescale_zero_terminal_snr(linear_schedule()))


def test_only_eta_makes_it_stochastic():
    assert not ddim(5).is_stochastic
    assert ddim(5, eta=0.1).is_stochastic


def test_chosen_timesteps_are_walked_through_and_land_on_each_other():
    schedule = linear_schedule(20)
    chosen = ddim(timesteps=(17, 9, 4, 0)).coefficients(schedule)
    np.testing.assert_array_equal(chosen.t, [17, 9, 4, 0])
    abar = np.append(schedule.alphas_cumprod[[9, 4, 0]], 1.0)
    np.testing.assert_allclose(chosen.keep_x0, np.sqrt(abar), rtol=1e-6)
    # Those that a spacing would choose give its own steps, where it lands on the next one's level.
    quadratic = ddim(4, spacing="quadratic")
    same = ddim(timesteps=quadratic.coefficients(schedule).t.tolist()).coefficients(schedule)
    for one, two in zip(same, quadratic.coefficients(schedule), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("timesteps", [(0, 4), (4, 4), (4, -1), (4.5, 1), (), (True,), ("a",)])
def test_timesteps_that_can_not_be_walked_through_are_refused(timesteps):
    with pytest.raises(InputError, match=r"give one whole number|steps"):
        ddim(timesteps=timesteps)
    with pytest.raises(InputError, match="timesteps is 5; give a list"):
        ddim(timesteps=5)
    with pytest.raises(InputError, match="for 3 steps; give one whole number"):
        ddim(3, timesteps=(4, 0))
    with pytest.raises(InputError, match="start at 20 and the noise schedule has 20"):
        ddim(timesteps=(20, 0)).coefficients(linear_schedule(20))
    with pytest.raises(InputError, match="neither num_steps nor timesteps"):
        ddim()
