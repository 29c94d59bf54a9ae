"""Fitting the observer's own ranges to groups that were found by other means."""

import jax

from jaxdq.calibration._base import Run, Work, calibrator
from jaxdq.calibration.tools.evidence import Evidence, group_of_step, share
from jaxdq.linen import Acts


@calibrator(needs=(Evidence, Acts), gives=(Acts,))
def refit_ranges() -> Run:
    """Keeps the groups and gives each of them the observer's own grids, in place of those that the search priced.

    Returns:
        A calibrator that replaces the activations' grids.
    """

    def run(work: Work, key: jax.Array) -> Work:
        return share(work, group_of_step(work), work.acts.scale.shape[0])

    return run
