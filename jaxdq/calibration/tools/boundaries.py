"""Moving the boundaries between groups, judged by what a partition does to the images."""

from collections.abc import Callable, Iterator

import numpy as np


def move_boundaries(
    group_of_step: np.ndarray, error: float, error_of: Callable[[np.ndarray], float], most: int
) -> tuple[np.ndarray, float]:
    """Coordinate descent over the boundaries: each is moved there and back, far at first, then half as far.

    Args:
        group_of_step: int[S], where it starts.
        error: Error of that partition.
        error_of: Partition -> error; a move that does not lower it, or makes it NaN, is taken back.
        most: Calls of `error_of`.

    Returns:
        The best partition, in which every group that was in use still is, and its error.
    """
    far = max(1, len(group_of_step) // (2 * len(np.unique(group_of_step))))
    for distance in dict.fromkeys((far, max(1, far // 2))):
        for boundary in range(len(_boundaries(group_of_step))):
            for candidate in _moves(group_of_step, boundary, distance):
                if most == 0:
                    return group_of_step, error
                most -= 1
                found = error_of(candidate)
                if found < error:
                    group_of_step, error = candidate, found
                    break
    return group_of_step, error


def _boundaries(group_of_step: np.ndarray) -> np.ndarray:
    """The steps that begin a span."""
    return np.flatnonzero(np.diff(group_of_step)) + 1


def _moves(group_of_step: np.ndarray, boundary: int, distance: int) -> Iterator[np.ndarray]:
    """The partitions with one boundary `distance` steps later, and earlier, where no group loses its last step."""
    for signed in (distance, -distance):
        begins = _boundaries(group_of_step)
        if boundary >= len(begins):  # an earlier move joined two spans of one group
            return
        here = begins[boundary]
        low, high = sorted((here, here + signed))
        candidate = group_of_step.copy()
        candidate[max(low, 0) : high] = group_of_step[here - 1 if signed > 0 else here]
        if len(np.unique(candidate)) == len(np.unique(group_of_step)):
            yield candidate
