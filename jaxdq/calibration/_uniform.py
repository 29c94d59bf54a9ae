"""Sharing grids over equal spans of the sampler's steps."""

import jax
import numpy as np

from jaxdq._errors import InputError
from jaxdq.calibration._base import Calibrator, Work, check_at_least, share


def share_uniformly(num_groups: int) -> Calibrator:
    """One grid per activation and group, where group g holds an equal span of the steps.

    `group(step) = floor(step * G / S)`, the noisiest step first; model times between the sampled ones take the group of
    their nearest sampled time.

    Args:
        num_groups: G, from 1 (one static scale, what everyone does) to S (a scale for each step).

    Returns:
        A calibrator that sets `work.calib`; needs evidence.

    Raises:
        InputError: more groups than steps, or fewer than 1.
    """

    def calibrator(work: Work, key: jax.Array) -> Work:
        num_steps = work.data.num_steps
        check_groups_fit(work, num_groups)
        return share(work, equal_spans(num_steps, num_groups), num_groups)

    return calibrator


def equal_spans(num_steps: int, num_groups: int) -> np.ndarray:
    """int[S]: `floor(step * G / S)`."""
    return np.arange(num_steps) * num_groups // num_steps


def check_num_groups(num_groups: int, num_steps: int) -> None:
    """Refuses a number of groups that these steps can't fill."""
    whole = isinstance(num_groups, int | np.integer) and not isinstance(num_groups, bool)
    if not whole or not 1 <= num_groups <= num_steps:
        steps, groups = ("1 step", "1 group") if num_steps == 1 else (f"{num_steps} steps", f"1 to {num_steps} groups")
        raise InputError(
            f"{num_groups} groups were asked for and the sampler has {steps}; give {groups}, or a sampler of "
            f"more steps."
        )


def check_groups_fit(work: Work, num_groups: int) -> None:
    """Refuses a number of groups that the sampler's steps, or the budget of calibration, can't fill.

    States may well be chosen at fewer steps than there are groups: a step without any is observed at the nearest one.
    """
    check_num_groups(num_groups, work.data.num_steps)
    check_budget(int(work.counts_or_all.sum()), num_groups)


def check_budget(budget: int, num_groups: int) -> None:
    """Refuses a calibration set of fewer states than there are groups."""
    check_at_least(1, num_groups=num_groups)
    if not isinstance(budget, int | np.integer) or budget < num_groups:
        raise InputError(
            f"a budget of {budget} states was given and {num_groups} groups were asked for; give a budget of at least "
            f"{num_groups} states, or fewer groups."
        )
