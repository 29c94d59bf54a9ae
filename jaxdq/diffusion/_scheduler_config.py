"""diffusers' `scheduler_config.json`: which of its fields count, what each may hold, and the schedule they describe.

diffusers hands a file from one scheduler class to the next, so a file carries fields of classes that it has belonged
to; the class it names reads its own fields and passes over the rest. `FIELDS` says which are whose.
"""

import difflib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxdq._common.errors import InputError
from jaxdq.diffusion._ladder import Ladder, Preconditioned, ladder_of
from jaxdq.diffusion._schedule import NoiseSchedule, rescale_zero_terminal_snr, schedule_of_betas
from jaxdq.diffusion._scheduler_fields import FIELDS, FLAG, KINDS, LEARNED_VARIANCES

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
_DDIM_OR_DDPM = ""  # what a file that names no class is taken for


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
    if class_name not in FIELDS and class_name != _DDIM_OR_DDPM:
        raise InputError(
            f"The scheduler config is of class {class_name!r}; jaxdq reads {', '.join(FIELDS)}: "
            "convert it to one of them, or build the schedule with jaxdq.linear_schedule and its siblings."
        )
    own = FIELDS.get(class_name, FIELDS["DDPMScheduler"] | FIELDS["DDIMScheduler"])
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
    own = FIELDS.get(class_name, {})
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
        kind = KINDS.get(name, FLAG)
        if not kind.accepts(value):
            shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:60]}..."
            raise InputError(f"The scheduler config's {name} is {shown}; jaxdq needs {kind.expected}.")


def _check_names(config: Mapping[str, Any]) -> None:
    """Raise InputError for a name that is no field's and looks like a misspelt one, which would leave the default."""
    known = {name for fields in FIELDS.values() for name in fields}
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
