"""Denoising diffusion probabilistic models: ancestral sampling (Ho et al. 2020, arXiv 2006.11239)."""

from dataclasses import dataclass

import numpy as np

from jaxdq.diffusion._sampler import (
    Coefficients,
    build_coefficients,
    check_num_steps,
    check_spacing,
    spaced_timesteps,
)
from jaxdq.diffusion._schedule import NoiseSchedule, Spacing


@dataclass(frozen=True)
class DDPM:
    """The DDPM sampler; see `ddpm`, which makes it.

    Attributes:
        num_steps: S >= 1.
        spacing: How the steps spread over the timesteps; None takes the schedule's.

    Raises:
        InputError: A field is outside its range.
    """

    num_steps: int
    spacing: Spacing | None = None

    def __post_init__(self) -> None:
        check_num_steps(self.num_steps)
        check_spacing(self.spacing)

    @property
    def is_stochastic(self) -> bool:
        """Whether fresh noise enters at each step: always."""
        return True

    def coefficients(self, schedule: NoiseSchedule) -> Coefficients:
        """Compute the S steps for one noise schedule, on the host and in float64.

        Args:
            schedule: The noise schedule, with T >= num_steps.

        Returns:
            The coefficients, noisiest step first.

        Raises:
            InputError: More steps than timesteps, or a prediction type that can't start from pure noise.
        """
        t = spaced_timesteps(schedule, self.num_steps, self.spacing)
        abar = schedule.alphas_cumprod[t]
        abar_next = np.append(abar[1:], 1.0)
        alpha = abar / abar_next
        keep_x0 = np.sqrt(abar_next) * (1 - alpha) / (1 - abar)
        keep_x = np.sqrt(alpha) * (1 - abar_next) / (1 - abar)
        posterior = (1 - abar_next) / (1 - abar) * (1 - alpha)
        variance = posterior if schedule.variance_type.startswith("fixed_small") else 1 - alpha
        noise_std = np.sqrt(variance)
        noise_std[-1] = 0.0
        return build_coefficients(schedule, t, keep_x0, np.stack([keep_x, np.zeros(len(t))]), noise_std)


def ddpm(num_steps: int, *, spacing: Spacing | None = None) -> DDPM:
    """Draw images in `num_steps` calls of the model, with fresh noise after each but the last.

        x_prev = sqrt(abar_next) (1 - alpha) / (1 - abar) x_0 + sqrt(alpha) (1 - abar_next) / (1 - abar) x + sigma z
        alpha  = abar / abar_next,    sigma^2 = (1 - alpha) (1 - abar_next) / (1 - abar)  or  1 - alpha

    Args:
        num_steps: S in [1, T]; T is the paper's own sampler.
        spacing: "linspace", "leading", "trailing" or "quadratic"; None takes the schedule's.

    Returns:
        The sampler.

    Raises:
        InputError: A value is outside its range.

    Example:
        >>> from jaxdq.diffusion import linear_schedule
        >>> ddpm(4).coefficients(linear_schedule(1000)).t
        array([750, 500, 250,   0], dtype=int32)

    Source:
        Ho et al. 2020, eq. 7 and algorithm 2; the choice of sigma is the schedule's `variance_type`. The last step
        always lands on the clean image and adds no noise, as in the paper; diffusers adds noise there when its
        timestep is not 0 (a "trailing" spacing or a steps_offset). Its "fixed_large_log" takes the square root of a
        logarithm, which is NaN; ours means what the name says.
    """
    return DDPM(num_steps, spacing)
