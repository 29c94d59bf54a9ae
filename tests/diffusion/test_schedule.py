import dataclasses

import diffusers
import numpy as np
import pytest

from jaxdq._common.errors import InputError
from jaxdq.diffusion import (
    NoiseSchedule,
    linear_schedule,
    rescale_zero_terminal_snr,
    scaled_linear_schedule,
    schedule_from_config,
    squared_cosine_schedule,
)

BETA_SCHEDULES = ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"]


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("beta_schedule", BETA_SCHEDULES)
def test_oracle_alphas_cumprod_are_those_of_diffusers(beta_schedule, rescale):
    theirs = diffusers.DDPMScheduler(beta_schedule=beta_schedule, rescale_betas_zero_snr=rescale)
    ours = schedule_from_config(dict(theirs.config)).alphas_cumprod
    # They multiply 1000 float32 factors of relative error 6e-8 each; 1 - beta loses more digits where beta nears 1.
    np.testing.assert_allclose(ours, theirs.alphas_cumprod.numpy(), rtol=3e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("schedule", "beta_schedule", "ends"),
    [
        (linear_schedule(50, 0.01, 0.2), "linear", (0.01, 0.2)),
        (scaled_linear_schedule(50, 0.01, 0.2), "scaled_linear", (0.01, 0.2)),
        (squared_cosine_schedule(50), "squaredcos_cap_v2", (0.1, 0.2)),
    ],
)
def test_constructors_agree_with_configs(schedule, beta_schedule, ends):
    config = {"num_train_timesteps": 50, "beta_schedule": beta_schedule, "beta_start": ends[0], "beta_end": ends[1]}
    np.testing.assert_array_equal(schedule.alphas_cumprod, schedule_from_config(config).alphas_cumprod)


def test_golden_linear_schedule():
    # betas 0.1, 0.3, 0.5: products 0.9, 0.9 * 0.7, 0.63 * 0.5.
    np.testing.assert_allclose(linear_schedule(3, 0.1, 0.5).alphas_cumprod, [0.9, 0.63, 0.315], rtol=1e-15)


def test_golden_scaled_linear_schedule():
    # square roots 0.1, 0.3, 0.5: betas 0.01, 0.09, 0.25.
    expected = np.cumprod([0.99, 0.91, 0.75])
    np.testing.assert_allclose(scaled_linear_schedule(3, 0.01, 0.25).alphas_cumprod, expected, rtol=1e-15)


def test_golden_rescaled_schedule():
    # square roots 0.8, 0.6, 0.4 -> shifted 0.4, 0.2, 0 -> doubled 0.8, 0.4, 0.
    rescaled = rescale_zero_terminal_snr(NoiseSchedule(np.array([0.64, 0.36, 0.16])))
    np.testing.assert_allclose(rescaled.alphas_cumprod, [0.64, 0.16, 0.0], atol=1e-15)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"alphas_cumprod": np.array([])}, "shape"),
        ({"alphas_cumprod": np.ones((2, 2))}, "shape"),
        ({"alphas_cumprod": np.array([0.5, 0.6])}, "decrease"),
        ({"alphas_cumprod": np.array([1.0, 0.6])}, r"\[0, 1\)"),
        ({"alphas_cumprod": np.array([0.9, np.nan])}, "nan"),
        ({"prediction_type": "score"}, "prediction_type is 'score'"),
        ({"clip_range": 0.0}, "clip_range"),
        ({"steps_offset": -1}, "steps_offset"),
        ({"steps_offset": 0.5}, "steps_offset is 0.5"),
        ({"steps_offset": True}, "steps_offset is True"),
        ({"clip_range": "1"}, "clip_range is '1'"),
        ({"clip_range": True}, "clip_range is True"),
        ({"clip_range": np.nan}, "clip_range is nan"),
        ({"set_alpha_to_one": "no"}, "set_alpha_to_one is 'no'"),
        ({"spacing": ["leading"]}, "spacing is"),
        ({"alphas_cumprod": ["a", "b"]}, "alphas_cumprod is a list that holds"),
    ],
)
def test_refuses_impossible_schedules(fields, word):
    with pytest.raises(InputError, match=word):
        dataclasses.replace(linear_schedule(4), **fields)


@pytest.mark.parametrize("make", [linear_schedule, scaled_linear_schedule])
@pytest.mark.parametrize("ends", [("0.1", 0.2), (0.1, None), (0.0, 0.2), (0.1, 1.0), (np.nan, 0.2), (-0.1, 0.2)])
def test_refuses_ends_that_are_no_betas(make, ends):
    with pytest.raises(InputError, match="The betas run from"):
        make(10, *ends)


@pytest.mark.parametrize("num_timesteps", [0, 2.0, True, "10", None])
def test_refuses_numbers_of_timesteps_that_are_none(num_timesteps):
    with pytest.raises(InputError, match="num_timesteps is"):
        squared_cosine_schedule(num_timesteps)


def test_rescaling_needs_two_timesteps():
    with pytest.raises(InputError, match="1 timestep"):
        rescale_zero_terminal_snr(linear_schedule(1))


def test_is_hashable_and_cannot_be_written():
    schedule = linear_schedule(4)
    assert {schedule: 1}[schedule] == 1
    with pytest.raises(ValueError, match="read-only"):
        schedule.alphas_cumprod[0] = 0.5
