"""How much noise a model was trained with at each timestep, and how diffusers writes that down.

The forward process is `x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps`, with `abar_t = prod_{s <= t} (1 - beta_s)` and
`t = 0` the least noisy timestep (Ho et al. 2020, eq. 4; diffusers counts from 0 where the paper counts from 1).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np

from jaxdq._errors import InputError

PredictionType = Literal["epsilon", "v_prediction", "sample"]
Spacing = Literal["linspace", "leading", "trailing", "quadratic"]
VarianceType = Literal["fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"]


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """What a model was trained to undo, and how its authors sample it. A host object, hashable by identity.

    Attributes:
        alphas_cumprod: float64[T] in [0, 1), strictly decreasing; `abar_t`, the signal's share of the variance.
        prediction_type: What the model returns: the noise `eps`, the velocity
            `v = sqrt(abar_t) eps - sqrt(1 - abar_t) x_0` (Salimans & Ho 2022, app. D), or the sample `x_0`.
        clip_range: The predicted x_0 is clipped to [-clip_range, clip_range]; None leaves it alone (latent models).
        spacing: How samplers spread their steps over the timesteps, unless they are told otherwise.
        steps_offset: int >= 0, added to every timestep of the "leading" spacing.
        set_alpha_to_one: Whether DDIM's last step lands on abar = 1 (a clean image) or on `abar_0`.
        variance_type: DDPM's step variance: the posterior's ("small") or beta ("large"; Ho et al. 2020, sec. 3.2).
            The "_log" spellings name the same numbers.

    Raises:
        InputError: A field is outside its range.
    """

    alphas_cumprod: np.ndarray = field(repr=False)
    prediction_type: PredictionType = "epsilon"
    clip_range: float | None = 1.0
    spacing: Spacing = "leading"
    steps_offset: int = 0
    set_alpha_to_one: bool = True
    variance_type: VarianceType = "fixed_small"

    def __post_init__(self) -> None:
        alphas_cumprod = np.array(self.alphas_cumprod, np.float64)
        if alphas_cumprod.ndim != 1 or alphas_cumprod.size == 0:
            raise InputError(
                f"alphas_cumprod has shape {alphas_cumprod.shape}; pass one value per timestep, shape (T,) with T >= 1."
            )
        inside = np.all((alphas_cumprod >= 0) & (alphas_cumprod < 1))  # False for NaN too
        if not inside or np.any(np.diff(alphas_cumprod) >= 0):
            raise InputError(
                f"alphas_cumprod runs from {alphas_cumprod[0]:.6g} to {alphas_cumprod[-1]:.6g}; it must lie in [0, 1) "
                "and decrease at every step: pass the cumulative product of 1 - beta, least noisy timestep first."
            )
        alphas_cumprod.setflags(write=False)
        object.__setattr__(self, "alphas_cumprod", alphas_cumprod)
        _check_choice("prediction_type", self.prediction_type, PredictionType)
        _check_choice("spacing", self.spacing, Spacing)
        _check_choice("variance_type", self.variance_type, VarianceType)
        if self.clip_range is not None and not self.clip_range > 0:
            raise InputError(f"clip_range is {self.clip_range}; pass a positive number, or None for no clipping.")
        if self.steps_offset < 0:
            raise InputError(f"steps_offset is {self.steps_offset}; pass an integer >= 0.")

    @property
    def num_timesteps(self) -> int:
        """T, the number of timesteps the model was trained with."""
        return len(self.alphas_cumprod)


def linear_schedule(
    num_timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02, **fields: Any
) -> NoiseSchedule:
    """Betas on a straight line from `beta_start` to `beta_end` (Ho et al. 2020, sec. 4).

    Args:
        num_timesteps: T >= 1.
        beta_start: float in (0, 1), the noise added at t = 0.
        beta_end: float in (0, 1), the noise added at t = T - 1.
        **fields: Other fields of `NoiseSchedule`.

    Returns:
        The schedule.

    Raises:
        InputError: A value is outside its range.

    Example:
        >>> linear_schedule(2, 0.1, 0.5).alphas_cumprod
        array([0.9 , 0.45])
    """
    return _from_betas(_linear_betas(num_timesteps, beta_start, beta_end), **fields)


def scaled_linear_schedule(
    num_timesteps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012, **fields: Any
) -> NoiseSchedule:
    """Betas whose square roots are on a straight line: the schedule of latent diffusion (Rombach et al. 2022).

    Args:
        num_timesteps: T >= 1.
        beta_start: float in (0, 1), the noise added at t = 0.
        beta_end: float in (0, 1), the noise added at t = T - 1.
        **fields: Other fields of `NoiseSchedule`.

    Returns:
        The schedule.

    Raises:
        InputError: A value is outside its range.

    Example:
        >>> scaled_linear_schedule().num_timesteps
        1000
    """
    return _from_betas(_scaled_linear_betas(num_timesteps, beta_start, beta_end), **fields)


def squared_cosine_schedule(num_timesteps: int = 1000, **fields: Any) -> NoiseSchedule:
    """`abar` follows `cos((t/T + 0.008) / 1.008 * pi/2)^2`, betas capped at 0.999 (Nichol & Dhariwal 2021, eq. 17).

    Args:
        num_timesteps: T >= 1.
        **fields: Other fields of `NoiseSchedule`.

    Returns:
        The schedule.

    Raises:
        InputError: A value is outside its range.

    Example:
        >>> squared_cosine_schedule(1000).alphas_cumprod[499].round(3)
        np.float64(0.494)
    """
    return _from_betas(_squared_cosine_betas(num_timesteps), **fields)


def rescale_zero_terminal_snr(schedule: NoiseSchedule) -> NoiseSchedule:
    """Shift and scale `sqrt(abar)` so that the last timestep is pure noise and the first stays as it was.

    Source: Lin et al. 2023 (arXiv 2305.08891), algorithm 1.

    Args:
        schedule: Any schedule with at least two timesteps.

    Returns:
        The same schedule with `abar_{T-1} = 0`. A model that predicts epsilon can't be sampled from that timestep.

    Raises:
        InputError: The schedule has a single timestep.

    Example:
        >>> rescale_zero_terminal_snr(linear_schedule()).alphas_cumprod[-1]
        np.float64(0.0)
    """
    root = np.sqrt(schedule.alphas_cumprod)
    if len(root) < 2:
        raise InputError("The schedule has 1 timestep; moving the last one and keeping the first takes at least 2.")
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    return replace(schedule, alphas_cumprod=root**2)


# What diffusers' scheduler classes assume for a field that their file leaves out.
_DDIM_DEFAULTS: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "set_alpha_to_one": True,
    "steps_offset": 0,
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "rescale_betas_zero_snr": False,
    "variance_type": "fixed_small",
}
# The solvers never clip x_0, so their models must not be clipped by ours.
_SOLVER = {"clip_sample": False, "timestep_spacing": "linspace"}
_CLASS_DEFAULTS: dict[str, dict[str, Any]] = {
    "DDIMScheduler": {},
    "DDPMScheduler": {},
    "PNDMScheduler": {"clip_sample": False, "set_alpha_to_one": False},
    "EulerDiscreteScheduler": _SOLVER,
    "EulerAncestralDiscreteScheduler": _SOLVER,
    "LMSDiscreteScheduler": _SOLVER,
    "DPMSolverMultistepScheduler": _SOLVER,
    "DPMSolverSinglestepScheduler": _SOLVER,
    "UniPCMultistepScheduler": _SOLVER,
    "DEISMultistepScheduler": _SOLVER,
}
# Fields that change the computation in a way that jaxdq does not follow, with the one value that is harmless.
_HARMLESS: dict[str, Any] = {
    "thresholding": False,
    "use_flow_sigmas": False,
    "timestep_type": "discrete",
    "predict_epsilon": True,  # how old files wrote prediction_type
}


def schedule_from_config(config: Mapping[str, Any]) -> NoiseSchedule:
    """Read the contents of diffusers' `scheduler_config.json`.

    A field that is missing takes the default of the scheduler class that the file names (DDIM's where it names none;
    a Flax class is the same as its namesake); fields that only steer a solver which jaxdq does not run
    (`skip_prk_steps`, `solver_order`, ...) are passed over.

    Args:
        config: The file's JSON object.

    Returns:
        The schedule.

    Raises:
        InputError: The file asks for something that changes the images and that jaxdq does not do: another scheduler
            family, thresholding, an unknown beta schedule or prediction type, a learned variance.

    Example:
        >>> schedule_from_config({"_class_name": "DDPMScheduler", "num_train_timesteps": 10}).num_timesteps
        10
    """
    class_name = str(config.get("_class_name", "DDIMScheduler")).removeprefix("Flax")
    if class_name not in _CLASS_DEFAULTS:
        raise InputError(
            f"The scheduler config is of class {class_name!r}; jaxdq reads {', '.join(_CLASS_DEFAULTS)}: "
            "convert it to one of them, or build the schedule with jaxdq.linear_schedule and its siblings."
        )
    for name, harmless in _HARMLESS.items():
        if config.get(name, harmless) != harmless:
            raise InputError(
                f"The scheduler config sets {name}={config[name]!r}, which jaxdq does not support; "
                f"set it to {harmless!r} if the model can do without."
            )
    values = {**_DDIM_DEFAULTS, **_CLASS_DEFAULTS[class_name], **config}
    if values["variance_type"] is None:  # how the DPM solvers write "fixed"
        values["variance_type"] = "fixed_small"
    schedule = _from_betas(
        _config_betas(values),
        prediction_type=values["prediction_type"],
        clip_range=float(values["clip_sample_range"]) if values["clip_sample"] else None,
        spacing=values["timestep_spacing"],
        steps_offset=values["steps_offset"],
        set_alpha_to_one=values["set_alpha_to_one"],
        variance_type=values["variance_type"],
    )
    return rescale_zero_terminal_snr(schedule) if values["rescale_betas_zero_snr"] else schedule


def _config_betas(values: Mapping[str, Any]) -> np.ndarray:
    """The float64[T] betas that a complete config describes."""
    if values["trained_betas"] is not None:
        return np.asarray(values["trained_betas"], np.float64)
    num_timesteps, ends = values["num_train_timesteps"], (values["beta_start"], values["beta_end"])
    match values["beta_schedule"]:
        case "linear":
            return _linear_betas(num_timesteps, *ends)
        case "scaled_linear":
            return _scaled_linear_betas(num_timesteps, *ends)
        case "squaredcos_cap_v2":
            return _squared_cosine_betas(num_timesteps)
        case "sigmoid":
            return _sigmoid_betas(num_timesteps, *ends)
        case unknown:
            raise InputError(
                f"The scheduler config sets beta_schedule={unknown!r}; jaxdq knows linear, scaled_linear, "
                "squaredcos_cap_v2 and sigmoid: write the betas out as trained_betas instead."
            )


def _linear_betas(num_timesteps: int, beta_start: float, beta_end: float) -> np.ndarray:
    _check_num_timesteps(num_timesteps)
    return np.linspace(beta_start, beta_end, num_timesteps)


def _scaled_linear_betas(num_timesteps: int, beta_start: float, beta_end: float) -> np.ndarray:
    _check_num_timesteps(num_timesteps)
    if min(beta_start, beta_end) < 0:
        raise InputError(f"The betas run from {beta_start} to {beta_end}; pass two numbers in (0, 1).")
    return np.linspace(beta_start**0.5, beta_end**0.5, num_timesteps) ** 2


def _squared_cosine_betas(num_timesteps: int) -> np.ndarray:
    _check_num_timesteps(num_timesteps)
    time = np.arange(num_timesteps + 1) / num_timesteps
    alphas_cumprod = np.cos((time + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - alphas_cumprod[1:] / alphas_cumprod[:-1], 0.999)


def _sigmoid_betas(num_timesteps: int, beta_start: float, beta_end: float) -> np.ndarray:
    """GeoDiff's schedule, as diffusers' DDPMScheduler has it."""
    _check_num_timesteps(num_timesteps)
    return beta_start + (beta_end - beta_start) / (1 + np.exp(-np.linspace(-6, 6, num_timesteps)))


def _from_betas(betas: np.ndarray, **fields: Any) -> NoiseSchedule:
    if betas.ndim != 1 or betas.size == 0 or not np.all((betas > 0) & (betas < 1)):
        raise InputError(
            f"The betas have shape {betas.shape} and lie in [{betas.min(initial=np.inf):.6g}, "
            f"{betas.max(initial=-np.inf):.6g}]; pass one number in (0, 1) per timestep."
        )
    return NoiseSchedule(np.cumprod(1 - betas), **fields)


def _check_num_timesteps(num_timesteps: int) -> None:
    if not isinstance(num_timesteps, int | np.integer) or num_timesteps < 1:
        raise InputError(f"num_timesteps is {num_timesteps!r}; pass a whole number of at least 1.")


def _check_choice(name: str, value: str, choices: Any) -> None:
    if value not in get_args(choices):
        raise InputError(f"{name} is {value!r}; pass one of {', '.join(get_args(choices))}.")
