"""How much noise a model was trained with at each timestep.

The forward process is `x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps`, with `abar_t = prod_{s <= t} (1 - beta_s)` and
`t = 0` the least noisy timestep (Ho et al. 2020, eq. 4; diffusers counts from 0 where the paper counts from 1).
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np

from jaxdq._common.errors import InputError
from jaxdq.diffusion._numbers import is_integer, is_real

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
        spacing: Default of how samplers spread their steps over the timesteps.
        steps_offset: Int >= 0, added to every timestep of the "leading" spacing.
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
        try:
            alphas_cumprod = np.array(self.alphas_cumprod, np.float64)
        except (TypeError, ValueError):
            raise InputError(
                f"alphas_cumprod is a {type(self.alphas_cumprod).__name__} that holds other things than numbers; pass "
                "one number per timestep."
            ) from None
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
        if self.clip_range is not None and not (is_real(self.clip_range) and self.clip_range > 0):
            raise InputError(f"clip_range is {self.clip_range!r}; pass a positive number, or None for no clipping.")
        if not is_integer(self.steps_offset) or self.steps_offset < 0:
            raise InputError(f"steps_offset is {self.steps_offset!r}; pass an integer >= 0.")
        if not isinstance(self.set_alpha_to_one, bool | np.bool_):
            raise InputError(f"set_alpha_to_one is {self.set_alpha_to_one!r}; pass True or False.")

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
        beta_start: Float in (0, 1), the noise added at t = 0.
        beta_end: Float in (0, 1), the noise added at t = T - 1.
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
        beta_start: Float in (0, 1), the noise added at t = 0.
        beta_end: Float in (0, 1), the noise added at t = T - 1.
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


def schedule_of_betas(
    beta_schedule: str,
    num_timesteps: int,
    ends: tuple[float, float],
    trained_betas: Any = None,
    **fields: Any,
) -> NoiseSchedule:
    """The schedule whose betas diffusers knows by a name, or one whose betas are given.

    Args:
        beta_schedule: "linear", "scaled_linear", "squaredcos_cap_v2" or "sigmoid".
        num_timesteps: T >= 1.
        ends: Beta at t = 0 and at t = T - 1, each in (0, 1); squared cosine has its own.
        trained_betas: float[T] in (0, 1), which take the place of the named ones; None if there are none.
        **fields: Other fields of `NoiseSchedule`.

    Returns:
        The schedule.

    Raises:
        InputError: A value is outside its range.
    """
    if trained_betas is not None:
        return _from_betas(np.asarray(trained_betas, np.float64), **fields)
    if beta_schedule == "squaredcos_cap_v2":
        return squared_cosine_schedule(num_timesteps, **fields)
    betas = {"linear": _linear_betas, "scaled_linear": _scaled_linear_betas, "sigmoid": _sigmoid_betas}
    return _from_betas(betas[beta_schedule](num_timesteps, *ends), **fields)


def _linear_betas(num_timesteps: int, beta_start: float, beta_end: float) -> np.ndarray:
    _check_line(num_timesteps, beta_start, beta_end)
    return np.linspace(beta_start, beta_end, num_timesteps)


def _scaled_linear_betas(num_timesteps: int, beta_start: float, beta_end: float) -> np.ndarray:
    _check_line(num_timesteps, beta_start, beta_end)
    return np.linspace(beta_start**0.5, beta_end**0.5, num_timesteps) ** 2


def _squared_cosine_betas(num_timesteps: int) -> np.ndarray:
    _check_num_timesteps(num_timesteps)
    time = np.arange(num_timesteps + 1) / num_timesteps
    alphas_cumprod = np.cos((time + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - alphas_cumprod[1:] / alphas_cumprod[:-1], 0.999)


def _sigmoid_betas(num_timesteps: int, beta_start: float, beta_end: float) -> np.ndarray:
    """GeoDiff's schedule, as diffusers' DDPMScheduler has it."""
    _check_line(num_timesteps, beta_start, beta_end)
    return beta_start + (beta_end - beta_start) / (1 + np.exp(-np.linspace(-6, 6, num_timesteps)))


def _from_betas(betas: np.ndarray, **fields: Any) -> NoiseSchedule:
    if betas.ndim != 1 or betas.size == 0 or not np.all((betas > 0) & (betas < 1)):
        raise InputError(
            f"The betas have shape {betas.shape} and lie in [{betas.min(initial=np.inf):.6g}, "
            f"{betas.max(initial=-np.inf):.6g}]; pass one number in (0, 1) per timestep."
        )
    return NoiseSchedule(np.cumprod(1 - betas), **fields)


def _check_num_timesteps(num_timesteps: int) -> None:
    if not is_integer(num_timesteps) or num_timesteps < 1:
        raise InputError(f"num_timesteps is {num_timesteps!r}; pass a whole number of at least 1.")


def _check_line(num_timesteps: int, beta_start: float, beta_end: float) -> None:
    _check_num_timesteps(num_timesteps)
    if not all(is_real(beta) and 0 < beta < 1 for beta in (beta_start, beta_end)):
        raise InputError(f"The betas run from {beta_start!r} to {beta_end!r}; pass two numbers in (0, 1).")


def _check_choice(name: str, value: Any, choices: Any) -> None:
    if not isinstance(value, str) or value not in get_args(choices):
        raise InputError(f"{name} is {value!r}; pass one of {', '.join(get_args(choices))}.")
