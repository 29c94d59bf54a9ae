"""Observing: the ranges of every quantized activation at every step of the float model's trajectories."""

import jax

from jaxdq.calibration._base import Run, Work, calibrator
from jaxdq.calibration.tools.evidence import Evidence, gather_evidence
from jaxdq.observers import Observer


@calibrator(gives=(Evidence,))
def observe(observer: Observer) -> Run:
    """Runs an observer at every site and step, in one pass over the trajectories.

    Kept by step and not by group, so that any partition of the steps can be fitted afterwards without another pass.
    Activations of one batch at one step are all that is ever in memory.

    Args:
        observer: Such as `jaxdq.observers.minmax()`.

    Returns:
        A calibrator that gives `Evidence`.
    """

    def run(work: Work, key: jax.Array) -> Work:
        return work.knowing(gather_evidence(work, observer))

    return run
