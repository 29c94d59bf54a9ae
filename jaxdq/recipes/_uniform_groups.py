"""One scale per activation for each of G equal spans of time."""

from jaxdq.calibration import Recipe, fit_weights, observe, share_uniformly
from jaxdq.observers import minmax as observe_minmax
from jaxdq.observers import minmax_weights
from jaxdq.recipes._rules import default_rules


def uniform_groups(weight_bits: int = 8, act_bits: int = 8, num_groups: int = 8) -> Recipe:
    """Min-max ranges in each of `num_groups` equal spans of the sampler's steps.

    As `minmax`, with the ranges of an activation taken over the steps of one group, and the group of t choosing the
    scale when the network runs.

    Args:
        weight_bits: 2 to 8.
        act_bits: 2 to 8.
        num_groups: 1 to the sampler's number of steps.

    Returns:
        Recipe.

    Example:
        >>> uniform_groups(8, 8, num_groups=4).num_groups
        4

    Source: the uniform partition that ADP-DM (arXiv 2305.18723) starts from and is compared with.
    """
    return Recipe(
        name="uniform_groups",
        rules=default_rules(weight_bits, act_bits),
        calibrators=(fit_weights(minmax_weights()), observe(observe_minmax()), share_uniformly(num_groups)),
    )
