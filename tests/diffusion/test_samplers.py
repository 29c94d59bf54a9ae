"""Which sampler a scheduler's file asks for."""

import diffusers
import pytest

from jaxdq import InputError
from jaxdq.diffusion import (
    SAMPLERS,
    Euler,
    ddim,
    ddpm,
    default_sampler,
    dpm_solver,
    euler,
    euler_ancestral,
    lcm,
    pndm,
    sampler_from_config,
    sampler_named,
)
from jaxdq.diffusion._scheduler_fields import FIELDS

STABLE_DIFFUSION = {
    "_class_name": "PNDMScheduler",
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}
ASKED = {
    "DDIMScheduler": ddim(7),
    "DDPMScheduler": ddpm(7),
    "EulerDiscreteScheduler": euler(7),
    "EulerAncestralDiscreteScheduler": euler_ancestral(7),
    "DPMSolverMultistepScheduler": dpm_solver(7),
    "LCMScheduler": lcm(7),
}


@pytest.mark.parametrize("class_name", ASKED)
def test_a_class_with_its_own_defaults_has_its_sampler(class_name):
    config = {**getattr(diffusers, class_name)().config, "_class_name": class_name}
    assert sampler_from_config(config, 7) == sampler_from_config({"_class_name": class_name}, 7) == ASKED[class_name]
    assert default_sampler(config) in SAMPLERS


def test_stable_diffusion_is_drawn_by_plms():
    assert sampler_from_config(STABLE_DIFFUSION, 50) == pndm(50) and pndm(50).num_steps == 51
    assert default_sampler(STABLE_DIFFUSION) == "pndm"


def test_fields_that_a_class_does_not_have_choose_nothing():
    config = {"_class_name": "EulerAncestralDiscreteScheduler", "use_karras_sigmas": True, "solver_order": 3}
    assert sampler_from_config(config, 4) == Euler(4, True)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"_class_name": "PNDMScheduler"}, r"sets skip_prk_steps=False, which jaxdq's pndm does not follow"),
        ({"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True}, "use_karras_sigmas=True"),
        ({"_class_name": "EulerDiscreteScheduler", "sigma_min": 0.1}, "sigma_min=0.1"),
        ({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"}, "sde-dpmsolver"),
        ({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3}, "solver_order=3"),
        ({"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": -5.1}, "lambda_min_clipped=-5.1"),
        ({"_class_name": "DPMSolverMultistepScheduler", "rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
        ({"_class_name": "LCMScheduler", "original_inference_steps": 100}, "original_inference_steps=100"),
        ({"_class_name": "UniPCMultistepScheduler"}, "class 'UniPCMultistepScheduler', which jaxdq has no sampler for"),
        ({"_class_name": "DEISMultistepScheduler"}, "has no sampler for; sample with one of ddim, ddpm, "),
        ({}, r"class '\(none\)'"),
    ],
    ids=str,
)
def test_what_no_sampler_follows_is_said_and_ddim_stands_in(config, said):
    with pytest.raises(InputError, match=said):
        sampler_from_config(config, 4)
    assert default_sampler(config) == "ddim"


def test_a_file_of_ddpm_is_drawn_by_ddim_unless_asked():
    assert default_sampler({"_class_name": "DDPMScheduler"}) == "ddim"


@pytest.mark.parametrize("class_name", FIELDS)
def test_every_class_that_is_read_has_a_default(class_name):
    assert default_sampler({"_class_name": class_name}) in SAMPLERS


def test_names_that_are_none_are_refused():
    with pytest.raises(InputError, match="no sampler 'heun'; the samplers are ddim, ddpm, dpm_solver, euler"):
        sampler_named("heun", 4)
