"""The cost to the image of an error in an activation."""

import jax

from jaxdq.calibration._base import Run, Work, calibrator, check_at_least
from jaxdq.calibration.tools.propagation import Sensitivity, sensitivity


@calibrator(gives=(Sensitivity,))
def measure_sensitivity(num_images: int = 32, num_draws: int = 4) -> Run:
    """Measures what an error of each activation and of the output costs the image, at each step.

    Costs about `3 num_images num_draws` network calls at every step, by one compiled program.

    Args:
        num_images: Trajectories averaged over, of those that were sampled.
        num_draws: Random directions for each.

    Returns:
        A calibrator that gives a `Sensitivity`.
    """
    check_at_least(1, num_images=num_images, num_draws=num_draws)

    def run(work: Work, key: jax.Array) -> Work:
        return work.knowing(sensitivity(work, key, num_images=num_images, num_draws=num_draws))

    return run
