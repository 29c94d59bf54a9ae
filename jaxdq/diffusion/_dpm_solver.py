"""DPM-Solver++ of second order with two steps' past (Lu et al. 2022, arXiv 2211.01095)."""

from dataclasses import dataclass

import numpy as np

from jaxdq._common.errors import InputError
from jaxdq.diffusion._sampler import (
    Coefficients,
    build_coefficients,
    check_fits,
    check_num_steps,
    check_spacing,
    spaced_timesteps,
)
from jaxdq.diffusion._schedule import NoiseSchedule, Spacing


@dataclass(frozen=True)
class DPMSolver:
    """The DPM-Solver++(2M) sampler; see `dpm_solver`, which makes it.

    Attributes:
        num_steps: S >= 1.
        order: 1 or 2.
        spacing: How the steps spread over the timesteps; None takes the schedule's.

    Raises:
        InputError: A field is outside its range.
    """

    num_steps: int
    order: int = 2
    spacing: Spacing | None = None

    def __post_init__(self) -> None:
        check_num_steps(self.num_steps)
        check_spacing(self.spacing)
        if isinstance(self.order, bool) or self.order not in (1, 2):
            raise InputError(f"order is {self.order!r}; give 1 or 2.")

    @property
    def is_stochastic(self) -> bool:
        """Whether fresh noise enters at each step: never."""
        return False

    def coefficients(self, schedule: NoiseSchedule) -> Coefficients:
        """Compute the S steps for one noise schedule, on the host and in float64.

        Args:
            schedule: The noise schedule, with T >= num_steps.

        Returns:
            The coefficients, noisiest step first.

        Raises:
            InputError: More steps than timesteps, or pure noise at the first of them.
        """
        t = _timesteps(schedule, self.num_steps, self.spacing or schedule.spacing)
        abar = schedule.alphas_cumprod[t]
        if abar[0] == 0:
            raise InputError(
                f"Timestep {t[0]} is pure noise (alphas_cumprod 0), from which DPM-Solver's logarithm of the "
                f"signal-to-noise ratio can't start; use a spacing that leaves it out, or ddim."
            )
        abar_next = np.append(abar[1:], 1.0 if schedule.set_alpha_to_one else schedule.alphas_cumprod[0])
        with np.errstate(divide="ignore"):
            lambdas, after = (0.5 * (np.log(a) - np.log1p(-a)) for a in (abar, abar_next))
        h = after - lambdas  # infinite where a step lands on the clean image
        toward_x0 = -np.sqrt(abar_next) * np.expm1(-h)
        keep_x = np.sqrt((1 - abar_next) / (1 - abar))
        # 0.5 / r of the difference to the step before; the first step has none, and the last takes none of few.
        second = np.zeros(len(t))
        if self.order == 2:
            second[1:] = 0.5 * h[1:] / h[:-1] if len(t) > 1 else 0
            if schedule.set_alpha_to_one or len(t) < 15:
                second[-1] = 0
        past = (-toward_x0 * second)[:, None]
        keep = np.stack([keep_x, np.zeros(len(t))])
        return build_coefficients(schedule, t, toward_x0 * (1 + second), keep, np.zeros(len(t)), past=(past, 1.0, 0.0))


def dpm_solver(num_steps: int, *, order: int = 2, spacing: Spacing | None = None) -> DPMSolver:
    """Draw images in `num_steps` calls of the model, each of which takes the step before into account.

    With lambda = log(sqrt(abar) / sqrt(1 - abar)), h its growth in this step and h' in the step before,

        D      = x_0 + (h / (2 h')) (x_0 - x_0 of the step before)
        x_prev = sqrt((1 - abar_next) / (1 - abar)) x - sqrt(abar_next) (exp(-h) - 1) D.

    The first step has D = x_0, and so has the last where it lands on the clean image or there are fewer than 15.

    Args:
        num_steps: S in [1, T - 1]; 20 are as many as most models need.
        order: 2; 1 is DDIM.
        spacing: "linspace", "leading" or "trailing"; None takes the schedule's.

    Returns:
        The sampler.

    Raises:
        InputError: A value is outside its range.

    Example:
        >>> from jaxdq.diffusion import linear_schedule
        >>> dpm_solver(4, spacing="linspace").coefficients(linear_schedule(1000)).t
        array([999, 749, 500, 250], dtype=int32)

    Source:
        Lu et al. 2022, algorithm 2 (2M); diffusers' DPMSolverMultistepScheduler with its default "midpoint".
    """
    return DPMSolver(num_steps, order, spacing)


def _timesteps(schedule: NoiseSchedule, num_steps: int, spacing: Spacing) -> np.ndarray:
    """int64[S]: but for "trailing" those of one step more, of which the last, the cleanest, is left out."""
    if spacing == "quadratic":
        raise InputError(f"spacing is {spacing!r}; DPM-Solver knows linspace, leading and trailing.")
    check_fits(schedule, num_steps)
    if spacing == "trailing":
        return spaced_timesteps(schedule, num_steps, spacing)
    if num_steps == schedule.num_timesteps:
        raise InputError(
            f"{num_steps} steps of DPM-Solver don't fit into {num_steps} timesteps with spacing {spacing!r}, which "
            f"leaves timestep 0 out; take fewer steps."
        )
    return spaced_timesteps(schedule, num_steps + 1, spacing)[:-1]
