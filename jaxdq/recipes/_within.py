"""A recipe within a budget: bits of weights by layer."""

import dataclasses

from jaxdq._common.errors import InputError
from jaxdq.calibration import Recipe, Resource, measure_sensitivity, spend_budget
from jaxdq.observers import mse_weights

# What builds on fitted grids of weights, so that their bits must be known before.
_AFTER = ("compensate_rounding", "reconstruct", "learn_ranges", "correct_noise", "correct_trajectory")


def within_budget(recipe: Recipe, budget: float, *, resource: Resource = "bytes") -> Recipe:
    """The recipe with bits of weights chosen layer by layer, so that the network's output loses least within a budget.

    `jaxdq.calibration.spend_budget` has the equation. It stands before what rounds weights or learns ranges, so that
    those work with the bits that were chosen.

    Args:
        recipe: Such as `adpdm(4, 8)`.
        budget: Share of the float network's bytes, (0, 1]; or of the bit-operations with 8 bits of weights.
        resource: "bytes" in memory, bytes on "disk", or "bit-operations".

    Returns:
        Recipe.

    Raises:
        InputError: A recipe that has a budget already, a budget outside (0, 1], an unknown resource.

    Example:
        >>> from jaxdq.recipes import uniform_groups
        >>> [one.name for one in within_budget(uniform_groups(4, 8), 0.12).calibrators][-2:]
        ['measure_sensitivity', 'spend_budget']

    Source: Frantar et al., arXiv 2208.11580, section 6.
    """
    names = [one.name for one in recipe.calibrators]
    if "spend_budget" in names:
        raise InputError(f"recipe '{recipe.name}' has a budget already; give one.")
    place = min((names.index(name) for name in _AFTER if name in names), default=len(names))
    sensitivity = () if "measure_sensitivity" in names else (measure_sensitivity(),)
    spend = (*sensitivity, spend_budget(budget, mse_weights(), resource))
    return dataclasses.replace(recipe, calibrators=(*recipe.calibrators[:place], *spend, *recipe.calibrators[place:]))
