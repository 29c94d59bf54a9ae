"""diffusers' `scheduler_config.json`: which of its fields count, what each may hold, and the schedule they describe.

diffusers hands a file from one scheduler class to the next, so a file carries fields of classes that it has belonged
to; the class it names reads its own fields and passes over the rest. `_FIELDS` says which are whose.
"""

import difflib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, get_args

import numpy as np

from jaxdq._common.errors import InputError
from jaxdq.diffusion._ladder import Ladder, Preconditioned, ladder_of
from jaxdq.diffusion._numbers import is_integer, is_real
from jaxdq.diffusion._schedule import (
    NoiseSchedule,
    PredictionType,
    VarianceType,
    rescale_zero_terminal_snr,
    schedule_of_betas,
)

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
_FIELDS: dict[str, dict[str, Any]] = {
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

# What a class does that has no field for it: it clips nothing and ends on the clean image.
_WITHOUT_FIELD: dict[str, Any] = {
    "clip_sample": False,
    "clip_sample_range": 1.0,
    "set_alpha_to_one": True,
    "final_sigmas_type": "zero",
    "timestep_spacing": "linspace",
    "steps_offset": 0,
    "rescale_betas_zero_snr": False,
    "variance_type": "fixed_small",
}
_OF_ITS_OWN: dict[str, dict[str, Any]] = {
    "DEISMultistepScheduler": {"set_alpha_to_one": False},
    "FlaxDDIMScheduler": {"timestep_spacing": "leading"},
    "FlaxDDPMScheduler": {"timestep_spacing": "leading"},
    "FlaxPNDMScheduler": {"timestep_spacing": "leading"},
    "FlaxDPMSolverMultistepScheduler": {"set_alpha_to_one": False},
}

# Values that change the images in a way that jaxdq does not follow: the field, whom it concerns, the harmless value.
_REFUSED: tuple[tuple[str, str, Any], ...] = (
    ("thresholding", "", False),
    ("use_flow_sigmas", "", False),
    ("timestep_type", "", "discrete"),
    ("use_dynamic_shifting", "FlowMatchEulerDiscreteScheduler", False),  # the shift depends on the image's size
    ("invert_sigmas", "", False),
    ("stochastic_sampling", "", False),
    ("shift_terminal", "FlowMatchEulerDiscreteScheduler", None),
    ("final_sigmas_type", "EulerDiscreteScheduler", "zero"),  # it ends on x_0 + sigma eps, which is no state of ours
)
LEARNED_VARIANCES = ("learned", "learned_range")
"""What `variance_type` says where a network returns its variance behind its prediction (Nichol & Dhariwal 2021)."""
_DDIM_OR_DDPM = ""  # what a file that names no class is taken for
_MAX_TIMESTEPS = 1_000_000


class _Kind(NamedTuple):
    """What a field may hold.

    Attributes:
        accepts: Whether a value is one of them.
        expected: Ends the sentence that refuses the others.
    """

    accepts: Callable[[Any], bool]
    expected: str


def _one_of(*choices: str | None) -> _Kind:
    words = ", ".join("null" if choice is None else choice for choice in choices)
    return _Kind(lambda value: (value is None or isinstance(value, str)) and value in choices, f"one of {words}")


def _fraction(value: Any) -> bool:
    return is_real(value) and 0 < value < 1


_FLAG = _Kind(lambda value: isinstance(value, bool | np.bool_), "true or false")
_POSITIVE = _Kind(lambda value: is_real(value) and 0 < value < np.inf, "a positive number")
_SIGMA = _Kind(lambda value: value is None or _POSITIVE.accepts(value), "a positive number or null")
_WORD = _Kind(lambda value: isinstance(value, str), "a word")
_BETA = _Kind(_fraction, "a number between 0 and 1")
_ANYTHING = _Kind(lambda value: True, "")
_KINDS: dict[str, _Kind] = {
    "num_train_timesteps": _Kind(
        lambda value: is_integer(value) and 1 <= value <= _MAX_TIMESTEPS, f"a whole number from 1 to {_MAX_TIMESTEPS}"
    ),
    "beta_start": _BETA,
    "beta_end": _BETA,
    "beta_schedule": _one_of("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"),
    "trained_betas": _Kind(
        lambda value: (
            value is None
            or (isinstance(value, list | tuple | np.ndarray) and np.shape(value) != () and all(map(_fraction, value)))
        ),
        "null, or a list of betas between 0 and 1, one for each timestep",
    ),
    "prediction_type": _one_of(*get_args(PredictionType)),
    "clip_sample_range": _POSITIVE,
    "dynamic_thresholding_ratio": _Kind(lambda value: is_real(value) and 0 < value <= 1, "a number from 0 to 1"),
    "sample_max_value": _POSITIVE,
    "timestep_spacing": _one_of("linspace", "leading", "trailing"),
    "steps_offset": _Kind(lambda value: is_integer(value) and value >= 0, "a whole number of at least 0"),
    "variance_type": _one_of(*get_args(VarianceType), *LEARNED_VARIANCES, None),
    "original_inference_steps": _Kind(lambda value: is_integer(value) and value >= 1, "a whole number of at least 1"),
    "timestep_scaling": _POSITIVE,
    "solver_order": _Kind(lambda value: is_integer(value) and value >= 1, "a whole number of at least 1"),
    "flow_shift": _POSITIVE,
    "lambda_min_clipped": _Kind(is_real, "a number"),
    "sigma_min": _SIGMA,
    "sigma_max": _SIGMA,
    "shift_terminal": _SIGMA,
    **dict.fromkeys(("sigma_data", "rho", "snr", "sampling_eps", "shift", "base_shift", "max_shift"), _POSITIVE),
    **dict.fromkeys(
        ("correct_steps", "base_image_seq_len", "max_image_seq_len"),
        _Kind(lambda value: is_integer(value) and value >= 1, "a whole number of at least 1"),
    ),
    "sigma_schedule": _one_of("karras", "exponential"),
    "timestep_type": _one_of("discrete", "continuous"),
    "final_sigmas_type": _one_of("zero", "sigma_min"),
    "interpolation_type": _WORD,
    "time_shift_type": _WORD,
    "algorithm_type": _WORD,
    "solver_type": _WORD,
    "disable_corrector": _Kind(lambda value: isinstance(value, list | tuple), "a list of steps"),
    "solver_p": _ANYTHING,
}
"""Field -> what it may hold; the others are true or false."""


def schedule_from_config(config: Mapping[str, Any]) -> NoiseSchedule:
    """Read the contents of diffusers' `scheduler_config.json`.

    The file names a scheduler class; one that names none may have the fields of DDIM's and of DDPM's. A field that is
    missing takes that class's default. Fields that the class does not have are passed over, as in diffusers: a solver
    does not clip x_0 because the file once belonged to a DDPM scheduler. So are fields that only say how a solver steps
    (`solver_order`, `use_karras_sigmas`, ...), which `sampler_from_config` reads.

    Args:
        config: The file's JSON object.

    Returns:
        The schedule.

    Raises:
        InputError: A field has the wrong type or is out of range, or asks for something that changes the images and
            that jaxdq does not do: another scheduler family, thresholding, an unknown beta schedule or prediction
            type.

    Example:
        >>> schedule_from_config({"_class_name": "DDPMScheduler", "num_train_timesteps": 10}).num_timesteps
        10
    """
    if not isinstance(config, Mapping) or not all(isinstance(name, str) for name in config):
        raise InputError(
            f"The scheduler config is {config!r:.60}; pass the JSON object of a scheduler_config.json: names of fields "
            "and their values."
        )
    class_name = str(config.get("_class_name", _DDIM_OR_DDPM))
    if class_name not in _FIELDS and class_name != _DDIM_OR_DDPM:
        raise InputError(
            f"The scheduler config is of class {class_name!r}; jaxdq reads {', '.join(_FIELDS)}: "
            "convert it to one of them, or build the schedule with jaxdq.linear_schedule and its siblings."
        )
    own = _FIELDS.get(class_name, _FIELDS["DDPMScheduler"] | _FIELDS["DDIMScheduler"])
    given = {name: value for name, value in config.items() if name in own}
    _check_values(given)
    _check_names(config)
    _check_supported(class_name, given, config)
    values = _WITHOUT_FIELD | _OF_ITS_OWN.get(class_name, {}) | own | given
    ladder = _checked_ladder(class_name, values)
    if ladder is not None:
        spacing: Any = {"clip_range": None, "spacing": "linspace"}
        return NoiseSchedule(ladder.alphas_cumprod, prediction_type="sample", **spacing)
    schedule = schedule_of_betas(
        values["beta_schedule"],
        _num_timesteps(values, given),
        (values["beta_start"], values["beta_end"]),
        values["trained_betas"],
        prediction_type=values["prediction_type"],
        clip_range=float(values["clip_sample_range"]) if values["clip_sample"] else None,
        spacing=values["timestep_spacing"],
        steps_offset=values["steps_offset"],
        set_alpha_to_one=bool(values["set_alpha_to_one"]) and values["final_sigmas_type"] == "zero",
        # Null is how the DPM solvers write "fixed". What a network says of the variance is not used: the fixed one,
        # which the learned one is trained to be near, draws in its place.
        variance_type="fixed_small"
        if values["variance_type"] in (None, *LEARNED_VARIANCES)
        else values["variance_type"],
    )
    return rescale_zero_terminal_snr(schedule) if values["rescale_betas_zero_snr"] else schedule


def with_precondition(module: Any, config: Mapping[str, Any]) -> Any:
    """The network of a scheduler's file in the form that its `schedule_from_config` is for.

    Args:
        module: The network.
        config: The contents of scheduler_config.json.

    Returns:
        The network itself where it takes the variance-preserving state, as most do; else `Preconditioned`.
    """
    ladder = ladder_of(*fields_of(config))
    return module if ladder is None else Preconditioned(module, ladder)


def _checked_ladder(class_name: str, values: Mapping[str, Any]) -> Ladder | None:
    """The ladder of a file, if its class has one; raise InputError where its levels don't rise."""
    ladder = ladder_of(class_name, values)
    if ladder is None:
        return None
    low, high, kind = values.get("sigma_min", 0.0), values.get("sigma_max", np.inf), values.get("prediction_type")
    if low is None or high is None or not low < high:
        raise InputError(
            f"The scheduler config's sigma_min is {low} and sigma_max is {high}; jaxdq needs numbers that rise."
        )
    if kind == "sample":
        raise InputError("The scheduler config sets prediction_type='sample', which EDM's class has no form for.")
    return ladder


def fields_of(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The class that a file names, "" where it names none, and its fields with their defaults; others are left out."""
    class_name = str(config.get("_class_name", _DDIM_OR_DDPM))
    own = _FIELDS.get(class_name, {})
    return class_name, {name: config.get(name, default) for name, default in own.items()}


def _num_timesteps(values: Mapping[str, Any], given: Mapping[str, Any]) -> int:
    """T, which `trained_betas` may say too; and no step may be moved past it."""
    num_timesteps = int(values["num_train_timesteps"])
    if values["trained_betas"] is not None:
        num_betas = len(values["trained_betas"])
        if num_betas != given.get("num_train_timesteps", num_betas):
            raise InputError(
                f"The scheduler config has {num_betas} trained_betas and num_train_timesteps {num_timesteps}; "
                "give one beta for each timestep."
            )
        num_timesteps = num_betas
    if values["steps_offset"] >= max(num_timesteps, 1):
        raise InputError(
            f"The scheduler config's steps_offset is {values['steps_offset']}, past the last of {num_timesteps} "
            "timesteps; give a smaller one (0 or 1 as a rule)."
        )
    return num_timesteps


def _check_values(given: Mapping[str, Any]) -> None:
    """Raise InputError for a field of the wrong type or out of its range."""
    for name, value in given.items():
        kind = _KINDS.get(name, _FLAG)
        if not kind.accepts(value):
            shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:60]}..."
            raise InputError(f"The scheduler config's {name} is {shown}; jaxdq needs {kind.expected}.")


def _check_names(config: Mapping[str, Any]) -> None:
    """Raise InputError for a name that is no field's and looks like a misspelt one, which would leave the default."""
    known = {name for fields in _FIELDS.values() for name in fields}
    for name in config:
        close = [] if name in known or name.startswith("_") else difflib.get_close_matches(name, known, 1, cutoff=0.85)
        if close and close[0] not in config:
            raise InputError(f"The scheduler config has {name!r}, which no scheduler reads; is it {close[0]!r}?")


def _check_supported(class_name: str, given: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Raise InputError for what would change the images and is not followed."""
    for name, concerned, harmless in _REFUSED:
        if concerned in ("", class_name) and given.get(name, harmless) != harmless:
            raise InputError(
                f"The scheduler config sets {name}={given[name]!r}, which jaxdq does not support; "
                f"set it to {harmless!r} if the model can do without."
            )
    # How files wrote prediction_type before diffusers 0.9, whatever their class.
    predicts_epsilon = config.get("predict_epsilon", True)
    if predicts_epsilon is not True and config.get("prediction_type") != "sample":
        raise InputError(
            f"The scheduler config sets predict_epsilon={predicts_epsilon!r}, an old name; say what the model predicts "
            "as prediction_type instead: sample for x_0, or epsilon."
        )
