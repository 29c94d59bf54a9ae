"""Samplers by name, and the one that a scheduler's file asks for."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxdq._common.errors import InputError
from jaxdq.diffusion._ddim import ddim
from jaxdq.diffusion._ddpm import ddpm
from jaxdq.diffusion._dpm_solver import dpm_solver
from jaxdq.diffusion._euler import euler, euler_ancestral
from jaxdq.diffusion._lcm import lcm
from jaxdq.diffusion._pndm import pndm
from jaxdq.diffusion._sampler import Sampler
from jaxdq.diffusion._scheduler_config import fields_of

SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "ddim": ddim,
    "ddpm": ddpm,
    "dpm_solver": dpm_solver,
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "lcm": lcm,
    "pndm": pndm,
}
_PLAIN_SIGMAS = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}


_DPM_2M = {
    "algorithm_type": "dpmsolver++",
    "solver_order": 2,
    "solver_type": "midpoint",
    "lower_order_final": True,
    "euler_at_final": False,
}


class _Own(NamedTuple):
    """Which of our samplers a class of diffusers is, and as long as which of its fields are what.

    Attributes:
        name: In `SAMPLERS`.
        only_with: Field -> the value that ours has.
    """

    name: str
    only_with: Mapping[str, Any] = {}


_OF_CLASS = {
    "DDIMScheduler": _Own("ddim"),
    "DDPMScheduler": _Own("ddpm"),
    "PNDMScheduler": _Own("pndm", {"skip_prk_steps": True}),
    "EulerDiscreteScheduler": _Own(
        "euler", {**_PLAIN_SIGMAS, "interpolation_type": "linear", "sigma_min": None, "sigma_max": None}
    ),
    "EulerAncestralDiscreteScheduler": _Own("euler_ancestral"),
    "DPMSolverMultistepScheduler": _Own(
        "dpm_solver",
        {
            **_PLAIN_SIGMAS,
            **_DPM_2M,
            "use_lu_lambdas": False,
            "lambda_min_clipped": -np.inf,
            "rescale_betas_zero_snr": False,
        },
    ),
    "EDMDPMSolverMultistepScheduler": _Own("dpm_solver", _DPM_2M | {"final_sigmas_type": "zero"}),
    "EDMEulerScheduler": _Own("euler", {"final_sigmas_type": "zero"}),
    # A step of Euler's method on the straight lines of flow matching is one of DDIM.
    "FlowMatchEulerDiscreteScheduler": _Own("ddim", _PLAIN_SIGMAS),
    "LCMScheduler": _Own("lcm", {"original_inference_steps": 50, "timestep_scaling": 10.0}),
    "FlaxDDIMScheduler": _Own("ddim"),
    "FlaxDDPMScheduler": _Own("ddpm"),
    "FlaxPNDMScheduler": _Own("pndm", {"skip_prk_steps": True}),
    "FlaxEulerDiscreteScheduler": _Own("euler"),
}


def sampler_from_config(config: Mapping[str, Any], num_steps: int) -> Sampler:
    """The sampler that diffusers' `scheduler_config.json` asks for.

    Args:
        config: The file's JSON object, which `schedule_from_config` takes too.
        num_steps: As the class counts them: `PNDMScheduler` calls the model once more.

    Returns:
        The sampler.

    Raises:
        InputError: A class that jaxdq has no sampler for, or one with settings that its sampler does not follow.

    Example:
        >>> sampler_from_config({"_class_name": "EulerDiscreteScheduler"}, 20)
        Euler(num_steps=20, is_ancestral=False, spacing=None)
    """
    name, why = _named(config)
    if why:
        raise InputError(f"{why}; sample with one of {', '.join(SAMPLERS)}.")
    return SAMPLERS[name](num_steps)


def default_sampler(config: Mapping[str, Any]) -> str:
    """The name in `SAMPLERS` of the sampler that a scheduler's file asks for, or "ddim".

    "ddim" stands in for those that jaxdq does not have, and for DDPM's own: that class says how a model was trained,
    and needs all of its timesteps.
    """
    name, why = _named(config)
    return "ddim" if why or name == "ddpm" else name


def sampler_named(name: str, num_steps: int, **settings: Any) -> Sampler:
    """The sampler of this name.

    Raises:
        InputError: No such sampler, a number out of its range.
    """
    if name not in SAMPLERS:
        raise InputError(f"there is no sampler {name!r}; the samplers are {', '.join(SAMPLERS)}.")
    return SAMPLERS[name](num_steps, **settings)


def _named(config: Mapping[str, Any]) -> tuple[str, str]:
    """(name of the sampler, or ""; why it is not quite the file's, or "")."""
    class_name, fields = fields_of(config)
    own = _OF_CLASS.get(class_name)
    if own is None:
        return "", f"The scheduler config is of class {class_name or '(none)'!r}, which jaxdq has no sampler for"
    others = {name: fields[name] for name, value in own.only_with.items() if fields.get(name, value) != value}
    if others:
        shown = ", ".join(f"{name}={value!r}" for name, value in others.items())
        return "", f"The scheduler config sets {shown}, which jaxdq's {own.name} does not follow"
    return own.name, ""
