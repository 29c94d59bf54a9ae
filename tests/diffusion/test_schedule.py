import dataclasses

import diffusers
import numpy as np
import pytest

from jaxdq._errors import InputError
from jaxdq.diffusion import (
    NoiseSchedule,
    linear_schedule,
    rescale_zero_terminal_snr,
    scaled_linear_schedule,
    schedule_from_config,
    squared_cosine_schedule,
)
from jaxdq.diffusion._schedule import _CLASS_DEFAULTS, _DDIM_DEFAULTS

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


def test_trained_betas_are_used():
    schedule = schedule_from_config({"trained_betas": [0.1, 0.3, 0.5], "beta_schedule": "linear"})
    np.testing.assert_allclose(schedule.alphas_cumprod, [0.9, 0.63, 0.315], rtol=1e-15)


@pytest.mark.parametrize("class_name", _CLASS_DEFAULTS)
def test_missing_fields_take_the_defaults_of_diffusers_own_class(class_name):
    theirs = getattr(diffusers, class_name)().config
    ours = _DDIM_DEFAULTS | _CLASS_DEFAULTS[class_name]
    shared = [name for name in ours if name in theirs and name != "variance_type"]
    assert {name: ours[name] for name in shared} == {name: theirs[name] for name in shared}
    if "clip_sample" not in theirs:
        assert not ours["clip_sample"]
    assert schedule_from_config(dict(theirs) | {"_class_name": class_name}).num_timesteps == 1000


def test_stable_diffusion_config():
    # The scheduler_config.json of Stable Diffusion 1.5.
    schedule = schedule_from_config(
        {
            "_class_name": "PNDMScheduler",
            "_diffusers_version": "0.6.0",
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "num_train_timesteps": 1000,
            "set_alpha_to_one": False,
            "skip_prk_steps": True,
            "steps_offset": 1,
            "trained_betas": None,
            "clip_sample": False,
        }
    )
    np.testing.assert_array_equal(schedule.alphas_cumprod, scaled_linear_schedule().alphas_cumprod)
    assert (schedule.clip_range, schedule.set_alpha_to_one, schedule.steps_offset) == (None, False, 1)
    assert (schedule.prediction_type, schedule.spacing) == ("epsilon", "leading")


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"thresholding": True}, "thresholding"),
        ({"beta_schedule": "laplace"}, "laplace"),
        ({"prediction_type": "flow_prediction"}, "flow_prediction"),
        ({"variance_type": "learned_range"}, "learned_range"),
        ({"timestep_spacing": "logspace"}, "logspace"),
        ({"predict_epsilon": False}, "predict_epsilon"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "FlowMatchEulerDiscreteScheduler"),
        ({"trained_betas": []}, "betas"),
        ({"trained_betas": [0.1, 1.0]}, "betas"),
        ({"num_train_timesteps": 0}, "num_timesteps"),
        ({"beta_schedule": "scaled_linear", "beta_start": -1.0}, "betas"),
    ],
)
def test_refuses_configs_that_would_be_computed_differently(config, word):
    with pytest.raises(InputError, match=word):
        schedule_from_config(config)


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
    ],
)
def test_refuses_impossible_schedules(fields, word):
    with pytest.raises(InputError, match=word):
        dataclasses.replace(linear_schedule(4), **fields)


def test_rescaling_needs_two_timesteps():
    with pytest.raises(InputError, match="1 timestep"):
        rescale_zero_terminal_snr(linear_schedule(1))


def test_is_hashable_and_cannot_be_written():
    schedule = linear_schedule(4)
    assert {schedule: 1}[schedule] == 1
    with pytest.raises(ValueError, match="read-only"):
        schedule.alphas_cumprod[0] = 0.5


def test_a_flax_class_is_its_namesake():
    ours, theirs = (schedule_from_config({"_class_name": name}) for name in ("FlaxPNDMScheduler", "PNDMScheduler"))
    assert repr(ours) == repr(theirs) != repr(schedule_from_config({}))
