"""ADP-DM: activation grids per group of timesteps, the groups found by differentiable search."""

import dataclasses

from jaxdq.calibration import Recipe, SearchSettings, observe, search_groups
from jaxdq.observers import minmax_weights, mse
from jaxdq.recipes._rules import default_rules


def adpdm(
    weight_bits: int = 8, act_bits: int = 8, num_groups: int = 8, *, search: SearchSettings | None = None
) -> Recipe:
    """Accurate post-training quantization of diffusion models: searched time groups on an integer path.

    Equation: for logits `a[s, g]`, `p = softmax(a)`, an activation during the search is
    `sum_g p[s, g] Q_g(x)`; the error of the noise prediction, the discretisation error and an annealed entropy of p are
    minimised; then `group(s) = argmax_g a[s, g]`, and each group's grids are fitted to its steps.

    Where we deviate from the paper and from its public code, and why: one bank per tensor instead of ranges per input
    channel, since a scale that varies along the contraction can't leave an integer dot; straight-through rounding,
    since without it half of the layers get no gradient; an entropy term that grows until the choice is one-hot, since a
    mixture of grids is no grid; errors weighted by what reaches the image; and an acceptance test on the integer path.
    8 groups are the paper's; its learning rate and its weight decay are not used (see `SearchSettings`).

    Args:
        weight_bits: 2 to 8.
        act_bits: 2 to 8.
        num_groups: 1 to the sampler's number of steps.
        search: settings of the search.

    Returns:
        Recipe.

    Example:
        >>> adpdm(6, 6).settings["groups"]
        8

    Source: Wang et al., arXiv 2305.18723 (CVPR 2024).
    """
    search = search or SearchSettings()
    return Recipe(
        name="adpdm",
        rules=default_rules(weight_bits, act_bits),
        weight_range=minmax_weights(),
        calibrators=(observe(mse(2.0)), search_groups(num_groups, search)),
        settings={
            "weight_bits": weight_bits,
            "act_bits": act_bits,
            "groups": num_groups,
            "search": dataclasses.asdict(search),
        },
    )
