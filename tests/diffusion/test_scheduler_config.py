"""Scheduler files: what counts in them is what the class they name reads, as in diffusers."""

import inspect

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdq._common.errors import InputError
from jaxdq.diffusion import ddim, ddpm, linear_schedule, scaled_linear_schedule, schedule_from_config
from jaxdq.diffusion._scheduler_fields import FIELDS

CLASSES = [name for name in FIELDS if not name.startswith("Flax")]
WITH_BETAS = [name for name in CLASSES if "beta_start" in FIELDS[name]]
SOLVERS = [name for name in CLASSES if name not in ("DDIMScheduler", "DDPMScheduler")]
POINT, STEPS = 3.0, 20


@pytest.mark.parametrize("class_name", FIELDS)
def test_golden_fields_are_those_of_diffusers_own_class(class_name):
    parameters = inspect.signature(getattr(diffusers, class_name).__init__).parameters
    theirs = {name: value.default for name, value in parameters.items() if name not in ("self", "dtype")}
    assert FIELDS[class_name] == {name: [] if name == "disable_corrector" else theirs[name] for name in theirs}


@pytest.mark.parametrize("class_name", FIELDS)
def test_a_file_that_names_its_class_alone_has_that_class_defaults(class_name):
    complete = FIELDS[class_name] | {"_class_name": class_name, "_diffusers_version": "0.39.0"}
    ours, theirs = schedule_from_config({"_class_name": class_name}), schedule_from_config(complete)
    assert repr(ours) == repr(theirs)
    np.testing.assert_array_equal(ours.alphas_cumprod, theirs.alphas_cumprod)


def drawn_here(config, x):
    """What the perfect denoiser of one point ends on, with the sampler that is closest to the class."""
    schedule = schedule_from_config(config)
    sampler = ddpm(STEPS) if config["_class_name"] == "DDPMScheduler" else ddim(STEPS)
    for c in map(sampler.coefficients(schedule).at, range(STEPS)):
        t, from_x, from_output, clip_range, keep_x0, keep_x, keep_output, _ = map(float, c[:8])
        abar = schedule.alphas_cumprod[int(t)]
        output = (x - np.sqrt(abar) * POINT) / np.sqrt(1 - abar)
        x0 = np.clip(from_x * x + from_output * output, -clip_range, clip_range)
        x = keep_x0 * x0 + keep_x * x + keep_output * output
    return x


def drawn_in_diffusers(config, x):
    scheduler = getattr(diffusers, config["_class_name"]).from_config(config)
    scheduler.set_timesteps(STEPS)
    alphas_cumprod = scheduler.alphas_cumprod.double().numpy()
    x = torch.tensor([[[[x]]]], dtype=torch.float64) * float(scheduler.init_noise_sigma)
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        # Between two timesteps Euler interpolates the sigma of its state.
        low = np.interp(float(t), np.arange(len(alphas_cumprod)), np.sqrt(1 / alphas_cumprod - 1))
        a, s = 1 / np.sqrt(1 + low**2), low / np.sqrt(1 + low**2)
        x = scheduler.step((scaled - a * POINT) / s, t, x).prev_sample
    return float(x)


FOREIGN = {  # fields of a DDPM scheduler, as diffusers leaves them in a file when another class takes it over
    "clip_sample": True,
    "clip_sample_range": 0.5,
    "set_alpha_to_one": False,
    "rescale_betas_zero_snr": False,
    "thresholding": True,
    "variance_type": "learned_range",
    "timestep_spacing": "trailing",
    "skip_prk_steps": True,
    "solver_order": 1,
    "final_sigmas_type": "sigma_min",
    "timestep_type": "continuous",
    "use_flow_sigmas": True,
}


@pytest.mark.parametrize("changes", [{}, FOREIGN, {"set_alpha_to_one": False}], ids=["plain", "foreign", "alpha"])
@pytest.mark.parametrize("class_name", WITH_BETAS)
def test_oracle_the_perfect_denoiser_of_a_point_draws_what_it_draws_in_diffusers(class_name, changes):
    changes = {name: value for name, value in changes.items() if name not in FIELDS[class_name]} | (
        {"skip_prk_steps": True} if class_name == "PNDMScheduler" else {}
    )
    config = {"_class_name": class_name, "beta_schedule": "scaled_linear"} | changes
    if class_name in ("DDIMScheduler", "DDPMScheduler"):
        config["clip_sample_range"] = 2.0
    torch.manual_seed(0)
    # DEIS ends on abar_0, where a little noise is left, and our linspace lands between two of its timesteps.
    tolerance = 5e-3 if class_name == "DEISMultistepScheduler" else 2e-4
    assert drawn_here(config, 0.7) == pytest.approx(drawn_in_diffusers(config, 0.7), abs=tolerance)


@pytest.mark.parametrize("class_name", ["PNDMScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
@pytest.mark.parametrize("on_abar_0", [False, True])
def test_oracle_where_the_last_step_ends_is_the_files_to_say(class_name, on_abar_0):
    name = "set_alpha_to_one" if class_name == "PNDMScheduler" else "final_sigmas_type"
    value = not on_abar_0 if name == "set_alpha_to_one" else "sigma_min" if on_abar_0 else "zero"
    config = {"_class_name": class_name, "beta_start": 0.01, "skip_prk_steps": True, name: value}
    ours = drawn_here(config, 0.7)
    assert ours == pytest.approx(drawn_in_diffusers(config, 0.7), abs=2e-3)
    assert (abs(ours - POINT) < 1e-5) == (not on_abar_0)


@pytest.mark.parametrize("class_name", SOLVERS)
@settings(deadline=None, max_examples=10)
@given(data=st.data())
def test_fields_that_a_class_does_not_have_change_nothing(class_name, data):
    others = sorted({name for fields in FIELDS.values() for name in fields} - set(FIELDS[class_name]))
    values = st.sampled_from([True, False, None, 0, 7, 0.5, "no", "trailing", "sigma_min", [1], {}])
    foreign = data.draw(st.dictionaries(st.sampled_from([*others, "tensor_format", "use_what_is_new"]), values))
    plain, handed_on = (schedule_from_config({"_class_name": class_name} | more) for more in ({}, foreign))
    assert repr(plain) == repr(handed_on)
    assert plain.clip_range is None


WRONG = {  # what is none of a field's values
    bool: ["no", "false", "true", 0, 1, 7, 0.5, None, []],
    int: ["1000", 0.5, True, None, -1, [10], float("nan")],
    float: ["0.5", True, None, -1.0, float("nan"), [0.5]],
    str: ["nonsense", 7, True, ["epsilon"], {}],
}


@pytest.mark.parametrize("class_name", CLASSES)
def test_values_of_the_wrong_type_are_refused_by_name(class_name):
    for name, default in FIELDS[class_name].items():
        for value in WRONG.get(type(default), []):
            free = name in ("interpolation_type", "time_shift_type", "algorithm_type", "solver_type")
            if (free and isinstance(value, str)) or (name == "lambda_min_clipped" and value == -1.0):
                continue
            with pytest.raises(InputError, match=f"{name} is .*; jaxdq needs") as caught:
                schedule_from_config({"_class_name": class_name, name: value})
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"thresholding": True}, "thresholding=True"),
        ({"_class_name": "DPMSolverMultistepScheduler", "thresholding": True}, "thresholding=True"),
        ({"_class_name": "DEISMultistepScheduler", "use_flow_sigmas": True}, "use_flow_sigmas"),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}, "timestep_type"),
        ({"_class_name": "EulerDiscreteScheduler", "final_sigmas_type": "sigma_min"}, "final_sigmas_type"),
        ({"_class_name": "DDPMScheduler", "variance_type": "learnt"}, "variance_type is 'learnt'"),
        ({"_class_name": "CosineDPMSolverMultistepScheduler"}, "CosineDPMSolverMultistepScheduler"),
        ({"_class_name": ["DDIMScheduler"]}, "of class"),
        ({"beta_schedule": "laplace"}, "laplace"),
        ({"prediction_type": "flow_prediction"}, "flow_prediction"),
        ({"timestep_spacing": "logspace"}, "logspace"),
        ({"timestep_spacing": "quadratic"}, "quadratic"),
        ({"predict_epsilon": False}, "predict_epsilon"),
        ({"trained_betas": []}, "betas"),
        ({"trained_betas": [0.1, 1.0]}, "betas"),
        ({"trained_betas": [0.1, "0.2"]}, "betas"),
        ({"trained_betas": [[0.1, 0.2]]}, "betas"),
        ({"trained_betas": [0.1, True]}, "betas"),
        ({"trained_betas": np.array(0.1)}, "betas"),
        (None, "config is None; pass the JSON object"),
        ([{"num_train_timesteps": 20}], "; pass the JSON object"),
        ({1: 20}, "; pass the JSON object"),
        ({"trained_betas": [0.1, 0.2], "num_train_timesteps": 1000}, "2 trained_betas and num_train_timesteps 1000"),
        ({"num_train_timesteps": 0}, "num_train_timesteps is 0"),
        ({"num_train_timesteps": 10**12}, "num_train_timesteps is 1000000000000"),
        ({"num_train_timesteps": 100, "steps_offset": 100}, "steps_offset is 100, past the last of 100"),
        ({"steps_offset": 10**30}, "steps_offset"),
        ({"beta_start": 0}, "beta_start is 0"),
        ({"beta_end": float("inf")}, "beta_end is inf"),
        ({"clip_sample_range": 0}, "clip_sample_range is 0"),
        ({"clip_sample_range": float("inf")}, "clip_sample_range is inf"),
        ({"dynamic_thresholding_ratio": 1.5}, "dynamic_thresholding_ratio is 1.5"),
        ({"beta_schedul": "scaled_linear"}, "'beta_schedul', which no scheduler reads; is it 'beta_schedule'"),
        ({"prediction_typ": "v_prediction"}, "is it 'prediction_type'"),
    ],
)
def test_refuses_files_that_would_be_computed_differently(config, word):
    with pytest.raises(InputError, match=word) as caught:
        schedule_from_config(config)
    assert "\n" not in str(caught.value)


def test_an_old_name_of_the_prediction_type_is_accepted_where_both_agree():
    old = {"predict_epsilon": False, "prediction_type": "sample"}
    assert schedule_from_config(old).prediction_type == "sample"


def test_spacing_that_a_class_does_not_offer_is_its_own():
    singlestep = {"_class_name": "DPMSolverSinglestepScheduler", "timestep_spacing": "leading", "steps_offset": 1}
    assert (schedule_from_config(singlestep).spacing, schedule_from_config(singlestep).steps_offset) == ("linspace", 0)
    flax = {"_class_name": "FlaxDDIMScheduler", "timestep_spacing": "trailing", "clip_sample_range": 2}
    assert (schedule_from_config(flax).spacing, schedule_from_config(flax).clip_range) == ("leading", 2.0)


def test_trained_betas_are_used():
    schedule = schedule_from_config({"trained_betas": [0.1, 0.3, 0.5], "beta_schedule": "linear"})
    np.testing.assert_allclose(schedule.alphas_cumprod, linear_schedule(3, 0.1, 0.5).alphas_cumprod, rtol=1e-15)


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
