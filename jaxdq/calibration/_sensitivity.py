"""Measuring what an error costs the image."""

import jax

from jaxdq.calibration._base import Run, Work, calibrator, check_at_least
from jaxdq.calibration.tools.propagation import Sensitivity, sensitivity


@calibrator(gives=(Sensitivity,))
def measure_sensitivity(num_images: int = 8, num_draws: int = 1) -> Run:
    """Measures what an error of each activation and of the output costs the image, at each step.

    Args:
        num_images: Trajectories averaged over.
        num_draws: Random directions for each.

    Returns:
        A calibrator that gives a `Sensitivity`.
    """
    check_at_least(1, num_images=num_images, num_draws=num_draws)

    def run(work: Work, key: jax.Array) -> Work:
        return work.knowing(sensitivity(work, key, num_images=num_images, num_draws=num_draws))

    return run
