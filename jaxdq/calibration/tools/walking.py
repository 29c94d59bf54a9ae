"""The walk of a calibrator along the sampler's way, and the choice by images of what it found."""

from collections.abc import Mapping

import jax
import numpy as np

from jaxdq.calibration._base import Work
from jaxdq.calibration.tools.corrections import nearest_steps
from jaxdq.calibration.tools.rows import image_error
from jaxdq.sampling import Walk, walk


def walk_of(work: Work, num_images: int, key: jax.Array) -> Walk:
    """A walk of so many images of this noise, on the machine of the work."""
    batch_size, mesh, _ = work.machine
    return walk(work.denoiser, work.problem.sampler, num_images=num_images, key=key, batch_size=batch_size, mesh=mesh)


def closest(work: Work, tried: Mapping[str, Work]) -> tuple[Work, dict[str, float], str]:
    """The work whose images on the integer path are closest to the float model's.

    Args:
        work: As it was; it stays where nothing is better.
        tried: Name -> what it might become.

    Returns:
        The work that stays, the error of the images of each, "before" among them, and the name of the one that stays.
    """
    errors = {"before": image_error(work)} | {name: image_error(other) for name, other in tried.items()}
    kept = min(errors, key=lambda name: errors[name])
    return tried.get(kept, work), errors, kept


def steps_at_times(steps: np.ndarray, t: np.ndarray, num_timesteps: int) -> np.ndarray:
    """bool[T]: whether the sampler's step nearest to a time is among these.

    Args:
        steps: bool[S].
        t: The times of the S steps.
        num_timesteps: T.
    """
    return np.asarray(steps)[nearest_steps(t, num_timesteps)]
