"""Sharing grids over equal spans of the sampler's steps."""

import jax

from jaxdq.calibration._base import Run, Work, calibrator
from jaxdq.calibration.tools.evidence import Evidence, share
from jaxdq.calibration.tools.selection import check_groups_fit, equal_spans
from jaxdq.linen import Acts


@calibrator(needs=(Evidence,), gives=(Acts,))
def share_uniformly(num_groups: int) -> Run:
    """One grid per activation and group, where group g holds an equal span of the steps.

    `group(step) = floor(step * G / S)`, the noisiest step first; model times between the sampled ones take the group of
    their nearest sampled time.

    Args:
        num_groups: G, from 1 (one static scale, what everyone does) to S (a scale for each step).

    Returns:
        A calibrator that fits the activations' grids.

    Raises:
        InputError: More groups than steps, or fewer than 1.
    """

    def run(work: Work, key: jax.Array) -> Work:
        check_groups_fit(work, num_groups)
        return share(work, equal_spans(work.data.num_steps, num_groups), num_groups)

    return run
