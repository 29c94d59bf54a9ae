"""What every sampler is: a list of timesteps, and for each of them one affine step.

    x_0    = clip(x0_from_x x + x0_from_output output, -clip_range, clip_range)
    x_prev = keep_x0 x_0 + keep_x x + keep_output output + sum_j keep_past[j] past[j] + noise_std z,    z ~ N(0, 1)

where past are what the steps before have left, the latest first: `leave_x0 x_0 + leave_output output` of theirs.
Samplers, for models that predict epsilon, v or the sample, differ only in these numbers; those that look at one step
alone have no past. Carrying them as data means that one compiled step serves every sampler, schedule and prediction
type with as many steps of past.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxdq._common.checks import is_whole
from jaxdq._common.errors import InputError
from jaxdq.diffusion._schedule import NoiseSchedule, Spacing


class Coefficients(NamedTuple):
    """The numbers of every step, noisiest first; `coefficients[i]` of each field is what `step` takes.

    Attributes:
        t: int32[S] in [0, T), noisiest first; the timestep that the model is given. float32 where one lies between two.
        x0_from_x: f32[S], see the equations of this module.
        x0_from_output: f32[S].
        clip_range: f32[S] > 0; +inf where the predicted x_0 is left alone.
        keep_x0: f32[S].
        keep_x: f32[S].
        keep_output: f32[S].
        noise_std: f32[S] >= 0; 0 where a step lands on the clean image.
        keep_past: f32[S, H], of the H steps before, the latest first; None for a sampler without past, as the next two.
        leave_x0: f32[S], how much of x_0 a step leaves to those after it.
        leave_output: f32[S].
        initial_std: f32[S], all alike: standard deviation of the noise that sampling starts from; None is 1.
    """

    t: Any
    x0_from_x: Any
    x0_from_output: Any
    clip_range: Any
    keep_x0: Any
    keep_x: Any
    keep_output: Any
    noise_std: Any
    keep_past: Any = None
    leave_x0: Any = None
    leave_output: Any = None
    initial_std: Any = None

    def at(self, index: Any) -> "Coefficients":
        """The numbers of one step, which `step` takes."""
        return Coefficients(*(None if field is None else field[index] for field in self))

    @property
    def of_output(self) -> Any:
        """How much of an error of the output arrives in the next state, where x_0 is not clipped."""
        return self.keep_x0 * self.x0_from_output + self.keep_output

    @property
    def num_past(self) -> int:
        """H."""
        return 0 if self.keep_past is None else self.keep_past.shape[-1]


_CLIP_RANGE = Coefficients._fields.index("clip_range") - 1  # among the numbers after t


class Sampler(Protocol):
    """How images are drawn from a model: a frozen, hashable value.

    Attributes:
        num_steps: S, how often the model is called.
        is_stochastic: Whether fresh noise enters between the first step and the last.
    """

    @property
    def num_steps(self) -> int: ...

    @property
    def is_stochastic(self) -> bool: ...

    def coefficients(self, schedule: NoiseSchedule) -> Coefficients:
        """Compute the S steps for one noise schedule, on the host and in float64."""
        ...


def step(
    coefficients: Coefficients,
    x: jax.Array,
    output: jax.Array,
    noise: jax.Array | None = None,
    past: Sequence[jax.Array] = (),
) -> jax.Array:
    """Take one sampling step, from `x` at this step's timestep to the next, less noisy one.

    Args:
        coefficients: One step's numbers: every field a scalar (or broadcastable to x).
        x: f32[B, H, W, C], the noisy images.
        output: f32[B, H, W, C], what the model returned for x.
        noise: f32[B, H, W, C] standard normal; None leaves the noise term out.
        past: What `left_by` returned at the steps before, the latest first; zeros where there were none.

    Returns:
        f32[B, H, W, C], the images one step less noisy.

    Example:
        >>> halve = Coefficients(0, 0.0, 1.0, jnp.inf, 0.5, 0.0, 0.0, 0.0)
        >>> step(halve, jnp.zeros(1), jnp.ones(1))
        Array([0.5], dtype=float32)
    """
    c = coefficients
    x_prev = c.keep_x0 * _x0(c, x, output) + c.keep_x * x + c.keep_output * output
    for index, left in enumerate(past):
        x_prev = x_prev + c.keep_past[..., index] * left
    return x_prev if noise is None else x_prev + c.noise_std * noise


def left_by(coefficients: Coefficients, x: jax.Array, output: jax.Array) -> jax.Array:
    """What a step leaves to those after it; args as of `step`, of a sampler that has a past."""
    c = coefficients
    return c.leave_x0 * _x0(c, x, output) + c.leave_output * output


def _x0(c: Coefficients, x: jax.Array, output: jax.Array) -> jax.Array:
    return jnp.clip(c.x0_from_x * x + c.x0_from_output * output, -c.clip_range, c.clip_range)


def spaced_timesteps(schedule: NoiseSchedule, num_steps: int, spacing: Spacing | None) -> np.ndarray:
    """Spread `num_steps` over the schedule's timesteps.

    With T timesteps and i = 0 ... S - 1 (diffusers' own formulas and rounding, but for "quadratic"):

        linspace   round(i (T - 1) / (S - 1))
        leading    i floor(T / S) + steps_offset
        trailing   round(T - (S - 1 - i) T / S) - 1
        quadratic  floor((i sqrt(0.8 T) / (S - 1))^2)

    Source: Lin et al. 2023, table 2; "quadratic" Song et al. 2021 (DDIM), app. D.2. Deviation: where neighbouring
    quadratic timesteps fall on the same integer, which makes a step that changes nothing, the later ones move up to
    the next free integer.

    Args:
        schedule: The noise schedule.
        num_steps: S in [1, T].
        spacing: One of the above; None takes the schedule's.

    Returns:
        int64[S] in [0, T), strictly decreasing.

    Raises:
        InputError: S > T, or the schedule's offset leads past the last timestep.
    """
    check_fits(schedule, num_steps)
    num_timesteps = schedule.num_timesteps
    index = np.arange(num_steps)
    t: np.ndarray
    match spacing or schedule.spacing:
        case "linspace":
            t = np.linspace(0, num_timesteps - 1, num_steps).round()
        case "leading":
            t = index * (num_timesteps // num_steps) + schedule.steps_offset
        case "trailing":
            # arange, as in diffusers, so that ties round alike; its rounding can add an element, hence the cut.
            t = np.arange(num_timesteps, 0, -num_timesteps / num_steps).round()[:num_steps][::-1] - 1
        case _:
            t = np.floor(np.linspace(0, np.sqrt(0.8 * num_timesteps), num_steps) ** 2)
            t = np.maximum.accumulate(t - index) + index
    if t[-1] >= num_timesteps:
        raise InputError(
            f"{num_steps} steps with steps_offset={schedule.steps_offset} lead to timestep {int(t[-1])}, past the last "
            f"of {num_timesteps}; take fewer steps or another spacing."
        )
    return t[::-1].astype(np.int64)


def check_num_steps(num_steps: int) -> None:
    """Refuse a sampler that never calls the model."""
    if not is_whole(num_steps) or num_steps < 1:
        raise InputError(f"The sampler takes {num_steps!r} steps; pass a whole number of at least 1.")


def check_fits(schedule: NoiseSchedule, num_steps: int) -> None:
    """Refuse more steps than there are timesteps."""
    if num_steps > schedule.num_timesteps:
        raise InputError(
            f"The sampler takes {num_steps} steps but the noise schedule has {schedule.num_timesteps} timesteps; "
            f"pass at most {schedule.num_timesteps} steps."
        )


def check_spacing(spacing: str | None) -> None:
    """Refuse a spacing that nobody has defined; None stands for the schedule's."""
    if spacing is not None and spacing not in get_args(Spacing):
        raise InputError(f"spacing is {spacing!r}; pass one of {', '.join(get_args(Spacing))}, or None.")


def x0_and_epsilon(
    schedule: NoiseSchedule, t: np.ndarray, abar: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """How x_0 and epsilon follow from x and the model's output.

    From x = a x_0 + s eps with a = sqrt(abar_t), s = sqrt(1 - abar_t):

        epsilon       x_0 = (x - s output) / a       eps = output
        v_prediction  x_0 = a x - s output           eps = s x + a output
        sample        x_0 = output                   eps = (x - a output) / s

    Args:
        schedule: The noise schedule.
        t: Int64[S] in [0, T).
        abar: float64[S], where it is not that of whole timesteps.

    Returns:
        Two float64[2, S]: the coefficients of (x, output) in x_0, and in epsilon.

    Raises:
        InputError: The model predicts epsilon at pure noise, from which no x_0 follows.
    """
    abar = schedule.alphas_cumprod[t] if abar is None else abar
    a, s, zero, one = np.sqrt(abar), np.sqrt(1 - abar), np.zeros(len(t)), np.ones(len(t))
    if schedule.prediction_type == "v_prediction":
        return np.stack([a, -s]), np.stack([s, a])
    if schedule.prediction_type == "sample":
        return np.stack([zero, one]), np.stack([1 / s, -a / s])
    if np.any(abar == 0):
        raise InputError(
            f"Timestep {t[abar == 0][0]} is pure noise (alphas_cumprod 0), from which a model that predicts epsilon "
            "can't tell the image; use a spacing that leaves this timestep out, or a model that predicts v."
        )
    return np.stack([1 / a, -s / a]), np.stack([zero, one])


def build_coefficients(
    schedule: NoiseSchedule,
    t: np.ndarray,
    keep_x0: np.ndarray,
    keep: np.ndarray,
    noise_std: np.ndarray,
    *,
    abar: np.ndarray | None = None,
    past: tuple[np.ndarray, float, float] | None = None,
    initial_std: float | None = None,
) -> Coefficients:
    """Round a sampler's float64 numbers to what runs.

    Args:
        schedule: The noise schedule; gives the clip range and x_0.
        t: Int64[S].
        keep_x0: float64[S].
        keep: float64[2, S], the coefficients of (x, output).
        noise_std: float64[S].
        abar: float64[S], where it is not that of whole timesteps.
        past: float64[S, H], how much of what the H steps before have left is kept, and of x_0 and of the output how
            much every step leaves; None is no past.
        initial_std: Standard deviation of the noise that sampling starts from; None is 1.

    Returns:
        The coefficients, int32 and f32.

    Raises:
        InputError: A number is too large for f32, because next to no signal is left at a timestep.
    """
    abar = schedule.alphas_cumprod[t] if abar is None else abar
    from_x, from_output = x0_and_epsilon(schedule, t, abar)[0]
    clip_range = np.full(len(t), np.inf if schedule.clip_range is None else schedule.clip_range)
    numbers = (from_x, from_output, clip_range, keep_x0, keep[0], keep[1], noise_std)
    with np.errstate(over="ignore"):
        rounded = [number.astype(np.float32) for number in numbers]
    # clip_range is infinite where nothing is clipped.
    if not all(np.isfinite(number).all() for index, number in enumerate(rounded) if index != _CLIP_RANGE):
        raise InputError(
            f"alphas_cumprod is {abar.min():.3g} at timestep {t.max()}, which leaves too little "
            "of the image for float32 to tell it; check the betas, or use a spacing that leaves this timestep out."
        )
    times = t.astype(np.int32) if np.all(t == np.round(t)) else t.astype(np.float32)
    made = Coefficients(times, *rounded)
    if initial_std is not None:
        made = made._replace(initial_std=np.full(len(t), initial_std, np.float32))
    if past is None:
        return made
    left = [np.full(len(t), share, np.float32) for share in past[1:]]
    return made._replace(keep_past=past[0].astype(np.float32), leave_x0=left[0], leave_output=left[1])
