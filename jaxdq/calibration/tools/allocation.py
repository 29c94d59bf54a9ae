"""Which level of compression each layer gets within a budget: a dynamic programme."""

import numpy as np

from jaxdq._common.errors import InputError

RESOLUTION = 20_000  # units that the most expensive choice of all layers is counted in, at the least


def allocate(losses: np.ndarray, costs: np.ndarray, budget: float) -> np.ndarray:
    """The level of each layer that makes the sum of losses least within a budget.

        min sum_l losses[l, k_l]    so that    sum_l costs[l, k_l] <= budget

    by `V_l(u) = min_k losses[l, k] + V_{l-1}(u - costs[l, k])`. Costs are counted in their greatest common divisor, or
    rounded up to units of a 20,000th where that is too small; units depend on the costs alone, so that the budget is
    met and more of it is never worse.

    Args:
        losses: f64[L, K].
        costs: f64[L, K] >= 0, in whatever the budget is counted in.
        budget: The most that all layers may cost.

    Returns:
        int[L].

    Raises:
        InputError: Even the cheapest levels cost more.

    Example:
        >>> allocate(np.array([[9.0, 1.0], [5.0, 4.0]]), np.array([[1.0, 2.0], [1.0, 2.0]]), budget=3).tolist()
        [1, 0]

    Source: Frantar et al., arXiv 2208.11580, section 6 (after AdaQuant and SPDY, arXiv 2201.13096).
    """
    least, most = costs.min(axis=1).sum(), costs.max(axis=1).sum()
    if not least <= budget:
        raise InputError(f"the budget is {budget:,.0f} and the least that can be spent is {least:,.0f}; give more.")
    if budget >= most:
        return losses.argmin(axis=1)
    unit = _unit(costs, most)
    steps = np.ceil(costs / unit - 1e-9).astype(int)
    if steps.min(axis=1).sum() * unit > budget:  # what rounding up adds must not leave nothing
        return costs.argmin(axis=1)
    room = int(budget / unit + 1e-9) + 1
    best, chosen = np.zeros(room), np.zeros((len(losses), room), np.int64)
    for layer, (loss, step) in enumerate(zip(losses, steps, strict=True)):
        options = np.full((len(loss), room), np.inf)
        for level in np.flatnonzero(step < room):
            options[level, step[level] :] = loss[level] + best[: room - step[level]]
        chosen[layer], best = options.argmin(axis=0), options.min(axis=0)
    levels, left = np.zeros(len(losses), np.int64), room - 1
    for layer in reversed(range(len(losses))):
        levels[layer] = chosen[layer, left]
        left -= steps[layer, levels[layer]]
    return levels


def _unit(costs: np.ndarray, most: float) -> float:
    """What costs are counted in."""
    if np.all(costs == np.round(costs)) and most < 2**62:
        common = float(np.gcd.reduce(costs.astype(np.int64), axis=None))
        if common and most / common <= 5 * RESOLUTION:
            return common
    return most / RESOLUTION
