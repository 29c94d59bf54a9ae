"""Which timesteps share their activation quantizers: `group_of_t`, int32[T], plain data."""

from typing import Any

import numpy as np

from jaxdq._common.errors import InputError


def groups_of_steps(t_of_step: Any, group_of_step: Any, num_timesteps: int) -> np.ndarray:
    """Extend a grouping of a sampler's steps to all timesteps: each takes the group of the nearest sampled timestep.

    Args:
        t_of_step: int[S] in [0, T), all different, in any order; a sampler's timesteps.
        group_of_step: int[S] >= 0, the group of each step.
        num_timesteps: T.

    Returns:
        int32[T]; exact on the sampled timesteps. Halfway between two of them, the larger t's group is taken.

    Raises:
        InputError: The two arrays don't fit each other or T.

    Example:
        >>> groups_of_steps([4, 0], [1, 0], 6)
        array([0, 0, 1, 1, 1, 1], dtype=int32)
    """
    t, group = np.asarray(t_of_step), np.asarray(group_of_step)
    if t.ndim != 1 or t.shape != group.shape or t.size == 0:
        raise InputError(
            f"t_of_step has shape {t.shape} and group_of_step {group.shape}; pass two arrays of shape (S,), S >= 1."
        )
    if t.min() < 0 or t.max() >= num_timesteps or len(np.unique(t)) < len(t):
        raise InputError(
            f"t_of_step has {len(np.unique(t))} different values for {len(t)} steps, from {t.min()} to {t.max()}; "
            f"each step needs its own timestep in [0, {num_timesteps})."
        )
    order = np.argsort(t)
    # Halved and rounded up, the distance between neighbours says where the upper one takes over: at the tie itself.
    takes_over = (t[order][:-1] + t[order][1:] + 1) // 2
    nearest = np.searchsorted(takes_over, np.arange(num_timesteps), side="right")
    return check_groups(group[order][nearest], num_timesteps, int(group.max()) + 1)


def check_groups(group_of_t: Any, num_timesteps: int, num_groups: int) -> np.ndarray:
    """Check a grouping against the number of timesteps and of groups.

    Args:
        group_of_t: int[T] in [0, G). A group may be empty: its quantizers then go unused.
        num_timesteps: T.
        num_groups: G in [1, T].

    Returns:
        The same numbers, int32[T].

    Raises:
        InputError: The shape is not (T,), the numbers are not integers in [0, G), or G is not in [1, T].

    Example:
        >>> check_groups([0, 0, 1], 3, 2)
        array([0, 0, 1], dtype=int32)
    """
    groups = np.asarray(group_of_t)
    if groups.shape != (num_timesteps,) or not np.issubdtype(groups.dtype, np.integer):
        raise InputError(
            f"group_of_t is {groups.dtype}{list(groups.shape)}; pass one integer for each of {num_timesteps} timesteps."
        )
    if not 1 <= num_groups <= num_timesteps:
        raise InputError(f"There are {num_groups} groups for {num_timesteps} timesteps; pass 1 to {num_timesteps}.")
    if groups.min() < 0 or groups.max() >= num_groups:
        raise InputError(
            f"group_of_t runs from {groups.min()} to {groups.max()}; with {num_groups} groups it must stay in "
            f"[0, {num_groups})."
        )
    return groups.astype(np.int32)
