"""The sampled states that calibrators may use."""

from typing import NamedTuple

import numpy as np

from jaxdq._common.checks import is_whole
from jaxdq._common.errors import InputError
from jaxdq.calibration._base import Work, check_at_least, kind


@kind("states of a budget", "select_timesteps(policy, budget)")
class Selection(NamedTuple):
    """The calibration set.

    Attributes:
        counts: int[S], number of states of each step in it; steps cycle through the images.
    """

    counts: np.ndarray


def counts_of(work: Work) -> np.ndarray:
    """int[S], how many states of each step may be looked at: all, where none were selected."""
    if Selection in work.facts:
        return work.facts[Selection].counts
    return np.full(work.data.num_steps, work.data.num_images)


def check_num_groups(num_groups: int, num_steps: int) -> None:
    """Refuses a number of groups that these steps can't fill."""
    if not is_whole(num_groups) or not 1 <= num_groups <= num_steps:
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
    check_budget(int(counts_of(work).sum()), num_groups)


def check_budget(budget: int, num_groups: int) -> None:
    """Refuses a calibration set of fewer states than there are groups."""
    check_at_least(1, num_groups=num_groups)
    if not is_whole(budget) or budget < num_groups:
        raise InputError(
            f"a budget of {budget} states was given and {num_groups} groups were asked for; give a budget of at least "
            f"{num_groups} states, or fewer groups."
        )


def equal_spans(num_steps: int, num_groups: int) -> np.ndarray:
    """int[S]: `floor(step * G / S)`."""
    return np.arange(num_steps) * num_groups // num_steps
