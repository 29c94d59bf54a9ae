"""Euler steps of the probability-flow ODE, and their ancestral relative (Karras et al. 2022, arXiv 2206.00364)."""

from dataclasses import dataclass

import numpy as np

from jaxdq._common.errors import InputError
from jaxdq.diffusion._sampler import (
    Coefficients,
    build_coefficients,
    check_num_steps,
    check_spacing,
    spaced_timesteps,
    x0_and_epsilon,
)
from jaxdq.diffusion._schedule import NoiseSchedule, Spacing

_LEAST_ABAR = 2.0**-24  # what diffusers takes for a last timestep of pure noise, so that sigma is finite


@dataclass(frozen=True)
class Euler:
    """The Euler sampler; see `euler`, which makes it.

    Attributes:
        num_steps: S >= 1.
        is_ancestral: Whether each step goes farther and fresh noise leads back.
        spacing: How the steps spread over the timesteps; None takes the schedule's.

    Raises:
        InputError: A field is outside its range.
    """

    num_steps: int
    is_ancestral: bool = False
    spacing: Spacing | None = None

    def __post_init__(self) -> None:
        check_num_steps(self.num_steps)
        check_spacing(self.spacing)

    @property
    def is_stochastic(self) -> bool:
        """Whether fresh noise enters at each step."""
        return self.is_ancestral

    def coefficients(self, schedule: NoiseSchedule) -> Coefficients:
        """Compute the S steps for one noise schedule, on the host and in float64.

        Args:
            schedule: The noise schedule, with T >= num_steps.

        Returns:
            The coefficients, noisiest step first.

        Raises:
            InputError: More steps than timesteps, or a spacing that it doesn't know.
        """
        spacing = self.spacing or schedule.spacing
        t = _timesteps(schedule, self.num_steps, spacing)
        of_all = np.where(schedule.alphas_cumprod == 0, _LEAST_ABAR, schedule.alphas_cumprod)
        sigma = np.interp(t, np.arange(schedule.num_timesteps), np.sqrt((1 - of_all) / of_all))
        after = np.append(sigma[1:], 0.0)
        noise = np.sqrt(after**2 * (sigma**2 - after**2)) / sigma if self.is_ancestral else np.zeros(len(t))
        abar, abar_next = 1 / (1 + sigma**2), 1 / (1 + after**2)
        _, epsilon = x0_and_epsilon(schedule, t, abar)
        toward_x = np.sqrt(abar_next) * np.sqrt(np.maximum(after**2 - noise**2, 0))
        start = np.sqrt(1 - abar[0]) if spacing in ("linspace", "trailing") else None
        return build_coefficients(
            schedule,
            t,
            np.sqrt(abar_next),
            toward_x * epsilon,
            np.sqrt(abar_next) * noise,
            abar=abar,
            initial_std=start,
        )


def euler(num_steps: int, *, spacing: Spacing | None = None) -> Euler:
    """Draw images in `num_steps` calls of the model by Euler steps, deterministically.

    With sigma = sqrt((1 - abar) / abar) and the state in units of the variance-preserving process,

        x_prev = sqrt(abar_next) (x_0 + sigma_next eps).

    Args:
        num_steps: S in [1, T].
        spacing: "linspace" (between whole timesteps, sigmas interpolated), "leading" or "trailing"; None takes the
            schedule's.

    Returns:
        The sampler.

    Raises:
        InputError: A value is outside its range.

    Example:
        >>> from jaxdq.diffusion import linear_schedule
        >>> euler(3, spacing="linspace").coefficients(linear_schedule(1000)).t
        array([999. , 499.5,   0. ], dtype=float32)

    Source:
        Karras et al. 2022, algorithm 1 without churn; the same images as diffusers' EulerDiscreteScheduler, whose
        states are these times sqrt(1 + sigma^2). As there, "linspace" and "trailing" start from noise of standard
        deviation sigma in those units, a little below 1 in ours. It is DDIM that lands on the next step's timestep.
    """
    return Euler(num_steps, False, spacing)


def euler_ancestral(num_steps: int, *, spacing: Spacing | None = None) -> Euler:
    """Draw images by Euler steps that go farther than the next noise level, and fresh noise that leads back to it.

        sigma_up^2 = sigma_next^2 (sigma^2 - sigma_next^2) / sigma^2,    sigma_down^2 = sigma_next^2 - sigma_up^2
        x_prev     = sqrt(abar_next) (x_0 + sigma_down eps + sigma_up z)

    Args:
        num_steps: S in [1, T].
        spacing: As in `euler`.

    Returns:
        The sampler.

    Raises:
        InputError: A value is outside its range.

    Example:
        >>> euler_ancestral(20).is_stochastic
        True

    Source: as `euler`; diffusers' EulerAncestralDiscreteScheduler. It is DDIM with eta = 1 that lands on the next
    step's timestep.
    """
    return Euler(num_steps, True, spacing)


def _timesteps(schedule: NoiseSchedule, num_steps: int, spacing: Spacing) -> np.ndarray:
    """As other samplers have them, but that those of "linspace" need not be whole."""
    if spacing == "quadratic":
        raise InputError(f"spacing is {spacing!r}; Euler steps know linspace, leading and trailing.")
    t = spaced_timesteps(schedule, num_steps, spacing)
    return np.linspace(0, schedule.num_timesteps - 1, num_steps)[::-1] if spacing == "linspace" else t
