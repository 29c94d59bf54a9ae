"""diffusers' schedulers: the fields of each class with their defaults, and what each field may hold."""

from collections.abc import Callable
from typing import Any, NamedTuple, get_args

import numpy as np

from jaxdq.diffusion._numbers import is_integer, is_real
from jaxdq.diffusion._schedule import PredictionType, VarianceType

LEARNED_VARIANCES = ("learned", "learned_range")
"""What `variance_type` says where a network returns its variance behind its prediction (Nichol & Dhariwal 2021)."""
_MAX_TIMESTEPS = 1_000_000
_BETAS: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
}
_CLIP = {"clip_sample": True, "clip_sample_range": 1.0}
_THRESHOLD = {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
_LEADING = {"timestep_spacing": "leading", "steps_offset": 0}
_LINSPACE = {"timestep_spacing": "linspace", "steps_offset": 0}
_RESCALE = {"rescale_betas_zero_snr": False}
_SIGMAS = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
_SOLVER = {
    **_THRESHOLD,
    **_SIGMAS,
    "solver_order": 2,
    "lower_order_final": True,
    "use_flow_sigmas": False,
    "flow_shift": 1.0,
    "use_dynamic_shifting": False,
    "time_shift_type": "exponential",
}
_DPM = {
    **_SOLVER,
    "algorithm_type": "dpmsolver++",
    "solver_type": "midpoint",
    "final_sigmas_type": "zero",
    "lambda_min_clipped": -np.inf,
    "variance_type": None,
}
_EDM = {
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "sigma_min": 0.002,
    "sigma_max": 80.0,
    "sigma_data": 0.5,
    "sigma_schedule": "karras",
    "rho": 7.0,
    "final_sigmas_type": "zero",
}
FIELDS: dict[str, dict[str, Any]] = {
    "DDIMScheduler": _BETAS | _CLIP | _THRESHOLD | _LEADING | _RESCALE | {"set_alpha_to_one": True},
    "DDPMScheduler": _BETAS | _CLIP | _THRESHOLD | _LEADING | _RESCALE | {"variance_type": "fixed_small"},
    "PNDMScheduler": _BETAS | _LEADING | {"set_alpha_to_one": False, "skip_prk_steps": False},
    "EulerDiscreteScheduler": _BETAS
    | _LINSPACE
    | _RESCALE
    | _SIGMAS
    | {"interpolation_type": "linear", "sigma_min": None, "sigma_max": None}
    | {"timestep_type": "discrete", "final_sigmas_type": "zero"},
    "EulerAncestralDiscreteScheduler": _BETAS | _LINSPACE | _RESCALE,
    "LMSDiscreteScheduler": _BETAS | _LINSPACE | _SIGMAS,
    "DPMSolverMultistepScheduler": _BETAS
    | _LINSPACE
    | _RESCALE
    | _DPM
    | {"euler_at_final": False, "use_lu_lambdas": False},
    "DPMSolverSinglestepScheduler": _BETAS | _DPM | {"lower_order_final": False},
    "UniPCMultistepScheduler": _BETAS
    | _LINSPACE
    | _RESCALE
    | _SOLVER
    | {"predict_x0": True, "solver_type": "bh2", "disable_corrector": [], "solver_p": None, "final_sigmas_type": "zero"}
    | {"sigma_min": None, "sigma_max": None, "shift_terminal": None},
    "DEISMultistepScheduler": _BETAS | _LINSPACE | _SOLVER | {"algorithm_type": "deis", "solver_type": "logrho"},
    "LCMScheduler": _BETAS
    | _CLIP
    | _THRESHOLD
    | _LEADING
    | _RESCALE
    | {"clip_sample": False, "set_alpha_to_one": True}
    | {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    | {"original_inference_steps": 50, "timestep_scaling": 10.0},
    "EDMDPMSolverMultistepScheduler": _EDM
    | _THRESHOLD
    | {"solver_order": 2, "algorithm_type": "dpmsolver++", "solver_type": "midpoint"}
    | {"lower_order_final": True, "euler_at_final": False},
    "EDMEulerScheduler": _EDM,
    "ScoreSdeVeScheduler": {"num_train_timesteps": 2000, "sigma_min": 0.01, "sigma_max": 1348.0}
    | {"snr": 0.15, "sampling_eps": 1e-5, "correct_steps": 1},
    "FlowMatchEulerDiscreteScheduler": _SIGMAS
    | {"num_train_timesteps": 1000, "shift": 1.0, "use_dynamic_shifting": False, "shift_terminal": None}
    | {"base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256, "max_image_seq_len": 4096}
    | {"invert_sigmas": False, "time_shift_type": "exponential", "stochastic_sampling": False},
    "FlaxDDIMScheduler": _BETAS | _CLIP | {"set_alpha_to_one": True, "steps_offset": 0},
    "FlaxDDPMScheduler": _BETAS | {"clip_sample": True, "variance_type": "fixed_small"},
    "FlaxPNDMScheduler": _BETAS | {"skip_prk_steps": False, "set_alpha_to_one": False, "steps_offset": 0},
    "FlaxLMSDiscreteScheduler": _BETAS,
    "FlaxEulerDiscreteScheduler": _BETAS | {"timestep_spacing": "linspace"},
    "FlaxDPMSolverMultistepScheduler": _BETAS
    | _THRESHOLD
    | {"solver_order": 2, "algorithm_type": "dpmsolver++", "solver_type": "midpoint", "lower_order_final": True}
    | {"timestep_spacing": "linspace"},
}
"""Scheduler class -> the arguments of its `__init__` and their defaults (diffusers 0.39)."""


class Kind(NamedTuple):
    """What a field may hold.

    Attributes:
        accepts: Whether a value is one of them.
        expected: Ends the sentence that refuses the others.
    """

    accepts: Callable[[Any], bool]
    expected: str


def _one_of(*choices: str | None) -> Kind:
    words = ", ".join("null" if choice is None else choice for choice in choices)
    return Kind(lambda value: (value is None or isinstance(value, str)) and value in choices, f"one of {words}")


def _fraction(value: Any) -> bool:
    return is_real(value) and 0 < value < 1


FLAG = Kind(lambda value: isinstance(value, bool | np.bool_), "true or false")
_POSITIVE = Kind(lambda value: is_real(value) and 0 < value < np.inf, "a positive number")
_SIGMA = Kind(lambda value: value is None or _POSITIVE.accepts(value), "a positive number or null")
_WORD = Kind(lambda value: isinstance(value, str), "a word")
_BETA = Kind(_fraction, "a number between 0 and 1")
_ANYTHING = Kind(lambda value: True, "")
KINDS: dict[str, Kind] = {
    "num_train_timesteps": Kind(
        lambda value: is_integer(value) and 1 <= value <= _MAX_TIMESTEPS, f"a whole number from 1 to {_MAX_TIMESTEPS}"
    ),
    "beta_start": _BETA,
    "beta_end": _BETA,
    "beta_schedule": _one_of("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"),
    "trained_betas": Kind(
        lambda value: (
            value is None
            or (isinstance(value, list | tuple | np.ndarray) and np.shape(value) != () and all(map(_fraction, value)))
        ),
        "null, or a list of betas between 0 and 1, one for each timestep",
    ),
    "prediction_type": _one_of(*get_args(PredictionType)),
    "clip_sample_range": _POSITIVE,
    "dynamic_thresholding_ratio": Kind(lambda value: is_real(value) and 0 < value <= 1, "a number from 0 to 1"),
    "sample_max_value": _POSITIVE,
    "timestep_spacing": _one_of("linspace", "leading", "trailing"),
    "steps_offset": Kind(lambda value: is_integer(value) and value >= 0, "a whole number of at least 0"),
    "variance_type": _one_of(*get_args(VarianceType), *LEARNED_VARIANCES, None),
    "original_inference_steps": Kind(lambda value: is_integer(value) and value >= 1, "a whole number of at least 1"),
    "timestep_scaling": _POSITIVE,
    "solver_order": Kind(lambda value: is_integer(value) and value >= 1, "a whole number of at least 1"),
    "flow_shift": _POSITIVE,
    "lambda_min_clipped": Kind(is_real, "a number"),
    "sigma_min": _SIGMA,
    "sigma_max": _SIGMA,
    "shift_terminal": _SIGMA,
    **dict.fromkeys(("sigma_data", "rho", "snr", "sampling_eps", "shift", "base_shift", "max_shift"), _POSITIVE),
    **dict.fromkeys(
        ("correct_steps", "base_image_seq_len", "max_image_seq_len"),
        Kind(lambda value: is_integer(value) and value >= 1, "a whole number of at least 1"),
    ),
    "sigma_schedule": _one_of("karras", "exponential"),
    "timestep_type": _one_of("discrete", "continuous"),
    "final_sigmas_type": _one_of("zero", "sigma_min"),
    "interpolation_type": _WORD,
    "time_shift_type": _WORD,
    "algorithm_type": _WORD,
    "solver_type": _WORD,
    "disable_corrector": Kind(lambda value: isinstance(value, list | tuple), "a list of steps"),
    "solver_p": _ANYTHING,
}
"""Field -> what it may hold; the others are true or false."""
