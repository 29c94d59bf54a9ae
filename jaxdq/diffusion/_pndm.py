"""Pseudo linear multistep: PNDM without Runge-Kutta steps, as Stable Diffusion is sampled (Liu et al. 2022)."""

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

# Adams-Bashforth: of this call's output, and of those of the calls before, the latest first. The second call repeats
# the first step with the mean of its two ends, and is not remembered: 0 wherever it would stand.
_WEIGHTS = np.array(
    [
        [1, 0, 0, 0, 0],
        [1 / 2, 1 / 2, 0, 0, 0],
        [3 / 2, 0, -1 / 2, 0, 0],
        [23 / 12, -16 / 12, 0, 5 / 12, 0],
        [55 / 24, -59 / 24, 37 / 24, 0, -9 / 24],
        [55 / 24, -59 / 24, 37 / 24, -9 / 24, 0],
    ]
)


@dataclass(frozen=True)
class PNDM:
    """The PLMS sampler; see `pndm`, which makes it.

    Attributes:
        steps: Of the schedule; the model is called once more.
        spacing: How the steps spread over the timesteps; None takes the schedule's.

    Raises:
        InputError: A field is outside its range.
    """

    steps: int
    spacing: Spacing | None = None

    def __post_init__(self) -> None:
        check_num_steps(self.steps)
        check_spacing(self.spacing)

    @property
    def num_steps(self) -> int:
        """How often the model is called: once more than there are steps, of which the first is made twice."""
        return self.steps + (self.steps > 1)

    @property
    def is_stochastic(self) -> bool:
        """Whether fresh noise enters at each step: never."""
        return False

    def coefficients(self, schedule: NoiseSchedule) -> Coefficients:
        """Compute the calls for one noise schedule, on the host and in float64.

        Args:
            schedule: The noise schedule, with T >= steps.

        Returns:
            The coefficients, noisiest step first; the second and the third call have the same timestep.

        Raises:
            InputError: More steps than timesteps, or pure noise at the first of them.
        """
        t = spaced_timesteps(schedule, self.steps, self.spacing)
        if len(t) > 1:
            t = np.insert(t, 1, t[1])
        ratio = schedule.num_timesteps // self.steps
        start, end = t.copy(), t - ratio  # noise levels that a call's step begins and lands on
        if len(t) > 1:
            start[1], end[1] = t[1] + ratio, t[1]
        final = 1.0 if schedule.set_alpha_to_one else schedule.alphas_cumprod[0]
        abar = schedule.alphas_cumprod[np.minimum(start, schedule.num_timesteps - 1)]
        after = np.where(end >= 0, schedule.alphas_cumprod[end], final)
        if np.any(abar == 0):
            raise InputError(
                f"Timestep {t[0]} is pure noise (alphas_cumprod 0), where PNDM can't start; use another spacing, or "
                f"ddim."
            )
        keep_x = np.sqrt(after / abar)
        toward = (abar - after) / (abar * np.sqrt(1 - after) + np.sqrt(abar * (1 - abar) * after))
        from_x, from_output = x0_and_epsilon(schedule, start, abar)[1]
        keep_x, keep = keep_x + toward * from_x, toward * from_output  # x' = keep_x x + keep (sum of outputs)
        weights = _WEIGHTS[np.minimum(np.arange(len(t)), len(_WEIGHTS) - 1)]
        numbers = keep[:, None] * weights
        if len(t) > 1:  # the second call starts where the first one did: its x is what that made of it
            numbers[1, 1] -= keep_x[1] * numbers[0, 0] / keep_x[0]
            keep_x[1] /= keep_x[0]
        nothing = np.zeros(len(t))
        return build_coefficients(
            schedule, t, nothing, np.stack([keep_x, numbers[:, 0]]), nothing, past=(numbers[:, 1:], 0.0, 1.0)
        )


def pndm(steps: int, *, spacing: Spacing | None = None) -> PNDM:
    """Draw images in `steps` + 1 calls of the model, by the linear multistep method of fourth order.

    With the outputs o of this call and those before, `o' = (55 o - 59 o_1 + 37 o_2 - 9 o_3) / 24` (of lower order until
    there are four), eps of it, and abar of this timestep and of the one that the step lands on,

        x_prev = sqrt(abar_next / abar) x - (abar_next - abar) eps / c,
        c      = abar sqrt(1 - abar_next) + sqrt(abar (1 - abar) abar_next).

    The first step is made twice, the second time with the mean of the outputs at both ends.

    Args:
        steps: In [1, T]; the model is called `steps` + 1 times.
        spacing: "linspace", "leading" or "trailing"; None takes the schedule's.

    Returns:
        The sampler.

    Raises:
        InputError: A value is outside its range.

    Example:
        >>> from jaxdq.diffusion import linear_schedule
        >>> pndm(4).coefficients(linear_schedule(1000)).t
        array([750, 500, 500, 250,   0], dtype=int32)

    Source:
        Liu et al. 2022, arXiv 2202.09778, eq. 9 and 11; diffusers' PNDMScheduler with `skip_prk_steps`, which is how
        Stable Diffusion is sampled.
    """
    return PNDM(steps, spacing)
