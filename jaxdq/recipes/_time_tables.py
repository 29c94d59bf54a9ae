"""Rows for the sampler's steps in place of the layers that see nothing but the time."""

from jaxdq.calibration import RangeSettings, Recipe, TableDtype, tabulate_time
from jaxdq.recipes._ranges import RangeMethod, correcting
from jaxdq.recipes._weights import WeightRounding


def time_tables(
    weight_bits: int = 8,
    act_bits: int = 8,
    num_groups: int = 8,
    *,
    table_dtype: TableDtype = "float32",
    ranges: RangeMethod = "mse",
    weights: WeightRounding | None = None,
    split: bool = True,
    learning: RangeSettings | None = None,
) -> Recipe:
    """Time-information precalculation: the time embedding and its projections become a table of the sampler's steps.

    `jaxdq.calibration.tabulate_time` says how; the network then runs at the times of this sampler alone. The rest has
    ranges of `num_groups` equal spans of time; `chain(adpdm(4, 8), time_tables())` keeps another recipe's.

    Args:
        weight_bits: 2 to 8.
        act_bits: 2 to 8.
        num_groups: 1 to the sampler's number of steps.
        table_dtype: "float32", or half of it as "float16" or "bfloat16".
        ranges: As in `minmax`.
        weights: As in `minmax`; None is "gptq" below 8 bits of weights, and "nearest" at 8.
        split: As in `default_rules`.
        learning: As in `minmax`.

    Returns:
        Recipe.

    Raises:
        InputError: As in `minmax`; an unknown dtype.

    Example:
        >>> time_tables(4, 8).calibrators[-1].name
        'tabulate_time'

    Source: "Efficiency Meets Fidelity", arXiv 2412.06661.
    """
    step, bits = tabulate_time(table_dtype), (weight_bits, act_bits)
    return correcting("time_tables", step, bits, num_groups, ranges, weights, split, learning)
