"""Optimal Brain Compression: rounding, and if asked for pruning, that makes up for itself layer by layer."""

from jaxdq.calibration import RangeSettings, Recipe, RoundingMethod, compensate_rounding
from jaxdq.recipes._budget import learning_for
from jaxdq.recipes._ranges import RangeMethod, chosen, in_equal_spans
from jaxdq.recipes._rules import default_rules


def obc(
    weight_bits: int = 8,
    act_bits: int = 8,
    num_groups: int = 8,
    *,
    ranges: RangeMethod = "mse",
    method: RoundingMethod = "gptq",
    sparsity: str | float | None = None,
    split: bool = True,
    learning: RangeSettings | None = None,
) -> Recipe:
    """Codes of weights that make up for one another's errors, on ranges of `num_groups` equal spans of time.

    `jaxdq.calibration.compensate_rounding` has the equation. With a sparsity, weights become 0 before the others are
    rounded: 2:4 with 4 bits takes 3 bits a weight on disk, a bit of which says where the zeros are. In memory zeros
    take what other codes take, and XLA is no faster for them.

    Where we deviate from the paper: grids clip by least error to the power of 2.4; Hessians are weighted by step.

    Args:
        weight_bits: 2 to 8.
        act_bits: 2 to 8.
        num_groups: 1 to the sampler's number of steps.
        ranges: As in `minmax`.
        method: "gptq"; or "obq", greedy as in the paper, minutes where a layer has a thousand inputs.
        sparsity: Share of each kernel's weights that become 0, such as 0.5, or "2:4"; None keeps all.
        split: As in `default_rules`.
        learning: As in `minmax`.

    Returns:
        Recipe.

    Raises:
        InputError: As in `minmax`; an unknown method, a sparsity that is neither.

    Example:
        >>> obc(4, 8, sparsity="2:4").name
        'obc'

    Source: Frantar et al., arXiv 2208.11580 (NeurIPS 2022); Frantar et al., arXiv 2210.17323 (GPTQ).
    """
    weight_range = chosen(ranges, learning, learning_for(weight_bits, act_bits)).weights
    compress = compensate_rounding(method, sparsity=sparsity, weight_range=weight_range)
    calibrators = in_equal_spans(num_groups, ranges, (compress,), learning, learning_for(weight_bits, act_bits))
    return Recipe("obc", default_rules(weight_bits, act_bits, split=split), calibrators, adds=(compress,))
