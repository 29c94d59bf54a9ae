"""Denoising diffusion implicit models: the sampler that skips timesteps (Song et al. 2021, arXiv 2010.02502)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxdq._common.checks import is_whole
from jaxdq._common.errors import InputError
from jaxdq.diffusion._numbers import is_real
from jaxdq.diffusion._sampler import (
    Coefficients,
    build_coefficients,
    check_num_steps,
    check_spacing,
    spaced_timesteps,
    x0_and_epsilon,
)
from jaxdq.diffusion._schedule import NoiseSchedule, Spacing


@dataclass(frozen=True)
class DDIM:
    """The DDIM sampler; see `ddim`, which makes it.

    Attributes:
        num_steps: S >= 1.
        eta: Float in [0, 1].
        spacing: How the steps spread over the timesteps; None takes the schedule's.
        timesteps: The timesteps themselves, S of them, the noisiest first; None leaves them to the spacing.

    Raises:
        InputError: A field is outside its range.
    """

    num_steps: int
    eta: float = 0.0
    spacing: Spacing | None = None
    timesteps: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_num_steps(self.num_steps)
        if self.timesteps is not None:
            check_timesteps(self.timesteps, self.num_steps)
        check_spacing(self.spacing)
        if not is_real(self.eta) or not 0 <= self.eta <= 1:
            raise InputError(f"eta is {self.eta!r:.60}; pass a number from 0 (no noise) to 1 (as much as DDPM).")

    @property
    def is_stochastic(self) -> bool:
        """Whether fresh noise enters at each step."""
        return self.eta > 0

    def coefficients(self, schedule: NoiseSchedule) -> Coefficients:
        """Compute the S steps for one noise schedule, on the host and in float64.

        Args:
            schedule: The noise schedule, with T >= num_steps.

        Returns:
            The coefficients, noisiest step first.

        Raises:
            InputError: More steps than timesteps, or a prediction type that can't start from pure noise.
        """
        t = self._timesteps(schedule)
        abar, abar_next = schedule.alphas_cumprod[t], self._next_alphas_cumprod(schedule, t)
        variance = (1 - abar_next) / (1 - abar) * (1 - abar / abar_next)
        noise_std = self.eta * np.sqrt(np.maximum(variance, 0))
        # sigma^2 <= 1 - abar_next holds exactly for eta <= 1; the maximum is for float64's last digit.
        toward_x = np.sqrt(np.maximum(1 - abar_next - noise_std**2, 0))
        _, epsilon = x0_and_epsilon(schedule, t)
        return build_coefficients(schedule, t, np.sqrt(abar_next), toward_x * epsilon, noise_std)

    def _timesteps(self, schedule: NoiseSchedule) -> np.ndarray:
        if self.timesteps is None:
            return spaced_timesteps(schedule, self.num_steps, self.spacing)
        if self.timesteps[0] >= schedule.num_timesteps:
            raise InputError(
                f"timesteps start at {self.timesteps[0]} and the noise schedule has {schedule.num_timesteps}; give "
                f"timesteps below that."
            )
        return np.array(self.timesteps)

    def _next_alphas_cumprod(self, schedule: NoiseSchedule, t: np.ndarray) -> np.ndarray:
        """The noise level that each step lands on."""
        if self.timesteps is not None or (self.spacing or schedule.spacing) == "quadratic":
            t_next = np.append(t[1:], -1)
        else:
            t_next = t - schedule.num_timesteps // self.num_steps
        final = 1.0 if schedule.set_alpha_to_one else schedule.alphas_cumprod[0]
        return np.where(t_next >= 0, schedule.alphas_cumprod[t_next], final)


def ddim(
    num_steps: int | None = None,
    *,
    eta: float = 0.0,
    spacing: Spacing | None = None,
    timesteps: Sequence[int] | None = None,
) -> DDIM:
    """Draw images in `num_steps` calls of the model, deterministically unless `eta` > 0.

        x_prev = sqrt(abar_next) x_0 + sqrt(1 - abar_next - sigma^2) eps + sigma z
        sigma  = eta sqrt((1 - abar_next) / (1 - abar)) sqrt(1 - abar / abar_next)

    Args:
        num_steps: S in [1, T]; may be left out where `timesteps` are given.
        eta: Float in [0, 1]; 0 adds no noise, 1 adds as much as DDPM.
        spacing: "linspace", "leading", "trailing" or "quadratic"; None takes the schedule's.
        timesteps: The S timesteps themselves, strictly decreasing; each step lands on the next one's noise level and
            the last on the clean image. None leaves them to the spacing.

    Returns:
        The sampler.

    Raises:
        InputError: A value is outside its range.

    Example:
        >>> from jaxdq.diffusion import linear_schedule
        >>> ddim(4).coefficients(linear_schedule(1000)).t
        array([750, 500, 250,   0], dtype=int32)

    Source:
        Song et al. 2021, eq. 12 and 16. As in diffusers, a step lands on the noise level of `t - floor(T / S)`, which
        with "linspace" and "trailing" need not be the next step's `t`; "quadratic" lands on the next step's `t`.
        As in diffusers, clipping x_0 leaves eps as the model said it. Where S does not divide T, "trailing" may land
        on timestep 0 instead of on the clean image.
    """
    if timesteps is not None:
        if not hasattr(timesteps, "__len__") or getattr(timesteps, "ndim", 1) != 1:
            raise InputError(f"timesteps is {timesteps!r:.60}; give a list with one whole number for each step.")
        given = tuple(timesteps)
        return DDIM(len(given) if num_steps is None else num_steps, eta, spacing, given)
    if num_steps is None:
        raise InputError("ddim was given neither num_steps nor timesteps; give one, such as ddim(50).")
    return DDIM(num_steps, eta, spacing)


def check_timesteps(timesteps: tuple[int, ...], num_steps: int) -> None:
    """Refuse timesteps that no sampler can walk through."""
    whole = all(is_whole(t) and t >= 0 for t in timesteps)
    if not whole or list(timesteps) != sorted(set(timesteps), reverse=True) or len(timesteps) != num_steps:
        raise InputError(
            f"timesteps are {timesteps!r:.80} for {num_steps} steps; give one whole number of at least 0 for each "
            f"step, strictly decreasing."
        )
