"""PCR: grids of each step fitted behind the quantized steps before it, and more bits at the end that needs them."""

from jaxdq.calibration import RangeSettings, Recipe, fit_progressively, relax_activations
from jaxdq.recipes._ranges import RangeMethod, chosen, correcting
from jaxdq.recipes._weights import WeightRounding


def pcr(
    weight_bits: int = 8,
    act_bits: int = 8,
    num_groups: int = 8,
    *,
    relaxed_bits: int | None = 8,
    relaxed_steps: float = 0.2,
    ranges: RangeMethod = "mse",
    weights: WeightRounding | None = None,
    split: bool = True,
    learning: RangeSettings | None = None,
) -> Recipe:
    """Progressive calibration and activation relaxing.

    Every step of the sampler has grids of its own, fitted to the states at which the quantized sampler arrives
    (`jaxdq.calibration.fit_progressively`); then the activations of one end of the way have more bits, the end whose
    images come closer (`relax_activations`). Each stays where images do.

    Args:
        weight_bits: 2 to 8.
        act_bits: 2 to 8.
        num_groups: 1 to the sampler's number of steps: equal spans whose grids the walk starts from.
        relaxed_bits: Up to 8, where activations stay integers, and nothing is relaxed that has as many; None is float,
            at the cost of float dots at these steps. The paper's 10 bits are no integers of any TPU.
        relaxed_steps: Share of the steps at either end.
        ranges: As in `minmax`; how the grids of each step are chosen, too.
        weights: As in `minmax`; None is "gptq" below 8 bits of weights, and "nearest" at 8.
        split: As in `default_rules`.
        learning: As in `minmax`.

    Returns:
        Recipe.

    Raises:
        InputError: As in `minmax`; bits outside 2 to 8, a share outside (0, 1].

    Example:
        >>> [one.name for one in pcr(4, 4).adds]
        ['fit_progressively', 'relax_activations']

    Source: Tang et al., arXiv 2311.06322 (ECCV 2024).
    """
    observer = chosen(ranges, learning, RangeSettings()).acts
    steps = fit_progressively(observer), relax_activations(relaxed_bits, relaxed_steps)
    return correcting("pcr", steps, (weight_bits, act_bits), num_groups, ranges, weights, split, learning)
