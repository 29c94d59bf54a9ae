"""Latent consistency models: each call says what the image is, and fresh noise leads to the next (arXiv 2310.04378)."""

from dataclasses import dataclass

import numpy as np

from jaxdq._common.errors import InputError
from jaxdq.diffusion._sampler import Coefficients, build_coefficients, check_num_steps
from jaxdq.diffusion._schedule import NoiseSchedule

_SIGMA_DATA = 0.5


@dataclass(frozen=True)
class LCM:
    """The LCM sampler; see `lcm`, which makes it.

    Attributes:
        num_steps: S >= 1.
        original_steps: Steps of the solver that the model was distilled from; S of them are taken.
        timestep_scaling: How fast the boundary condition fades with t.

    Raises:
        InputError: A field is outside its range.
    """

    num_steps: int
    original_steps: int = 50
    timestep_scaling: float = 10.0

    def __post_init__(self) -> None:
        check_num_steps(self.num_steps)
        check_num_steps(self.original_steps)
        if self.num_steps > self.original_steps:
            raise InputError(
                f"lcm takes {self.num_steps} steps and the model was distilled from {self.original_steps}; take at "
                f"most those."
            )

    @property
    def is_stochastic(self) -> bool:
        """Whether fresh noise enters between the steps: wherever there are two."""
        return self.num_steps > 1

    def coefficients(self, schedule: NoiseSchedule) -> Coefficients:
        """Compute the S steps for one noise schedule, on the host and in float64.

        Args:
            schedule: The noise schedule, with T >= original_steps.

        Returns:
            The coefficients, noisiest step first.

        Raises:
            InputError: More original steps than timesteps.
        """
        every = schedule.num_timesteps // self.original_steps
        if not every:
            raise InputError(
                f"lcm spreads {self.original_steps} original steps over {schedule.num_timesteps} timesteps; give "
                f"original_steps=... of at most that."
            )
        of_all = (np.arange(1, self.original_steps + 1) * every - 1)[::-1]
        t = of_all[np.floor(np.linspace(0, len(of_all), self.num_steps, endpoint=False)).astype(int)]
        abar_next = np.append(schedule.alphas_cumprod[t[1:]], 1.0)
        scaled = t * self.timestep_scaling
        keep_x = _SIGMA_DATA**2 / (scaled**2 + _SIGMA_DATA**2)
        keep_x0 = scaled / np.sqrt(scaled**2 + _SIGMA_DATA**2)
        signal = np.sqrt(abar_next)
        keep = np.stack([signal * keep_x, np.zeros(len(t))])
        return build_coefficients(schedule, t, signal * keep_x0, keep, np.sqrt(1 - abar_next))


def lcm(num_steps: int = 4, *, original_steps: int = 50, timestep_scaling: float = 10.0) -> LCM:
    """Draw images from a latent consistency model in a few calls.

        denoised = c_out x_0 + c_skip x,    c_skip = 0.25 / ((10 t)^2 + 0.25),    c_out = 10 t / sqrt((10 t)^2 + 0.25)
        x_prev   = sqrt(abar_next) denoised + sqrt(1 - abar_next) z,    denoised after the last

    Args:
        num_steps: S in [1, original_steps].
        original_steps: Steps of the solver that the model was distilled from.
        timestep_scaling: The 10 of the equation.

    Returns:
        The sampler.

    Raises:
        InputError: A value is outside its range.

    Example:
        >>> from jaxdq.diffusion import linear_schedule
        >>> lcm(4).coefficients(linear_schedule(1000)).t
        array([999, 759, 499, 259], dtype=int32)

    Source: Luo et al. 2023, algorithm 2; diffusers' LCMScheduler.
    """
    return LCM(num_steps, original_steps, timestep_scaling)
