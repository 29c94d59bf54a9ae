"""Efficiency Meets Fidelity: tables of grids and of the time for the sampler's steps."""

from jaxdq.calibration import RangeSettings, Recipe, TableDtype, fit_progressively, tabulate_time
from jaxdq.recipes._budget import learning_for
from jaxdq.recipes._ranges import RangeMethod, chosen, correcting
from jaxdq.recipes._weights import WeightRounding


def fidelity(
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
    """Activation grids and time information as tables over the sampler's steps.

    In series, each step's grids are fitted where the quantized sampler arrives (`fit_progressively`); in parallel, over
    shuffled steps, all of them follow the gradient of the output's error (`learn_ranges`, LSQ's); and the
    layers of time alone become rows (`tabulate_time`). Each of the first two stays where images on the integer path
    come closer. Mixed precision by measured sensitivity is `within_budget(fidelity(4, 8), ...)`, `--budget` on the
    command line.

    Where we deviate from the source, of which the abstract is public and no code: the parallel part learns on states of
    the float sampler. States of the quantized one, with local targets or the float trajectory's, were tried and brought
    no closer images (scripts/results).

    Args:
        weight_bits: 2 to 8.
        act_bits: 2 to 8.
        num_groups: 1 to the sampler's number of steps: equal spans whose grids the walk starts from.
        table_dtype: Of the time tables, as in `time_tables`.
        ranges: As in `minmax`; how the grids of each step are chosen before they are learned.
        weights: As in `minmax`; None is "gptq" below 8 bits of weights, and "nearest" at 8.
        split: As in `default_rules`.
        learning: Settings of the learning; None takes fewer updates at 8 bits than below.

    Returns:
        Recipe.

    Raises:
        InputError: As in `minmax`; an unknown dtype.

    Example:
        >>> [one.name for one in fidelity(4, 8).adds]
        ['fit_progressively', 'learn_ranges', 'tabulate_time']

    Source: "Efficiency Meets Fidelity", arXiv 2412.06661.
    """
    bits = weight_bits, act_bits
    learn = chosen("learned", learning, learning_for(*bits)).learn
    start: RangeMethod = "mse" if isinstance(ranges, str) and ranges == "learned" else ranges
    observer = chosen(start, None, RangeSettings()).acts
    steps = fit_progressively(observer), *learn, tabulate_time(table_dtype)
    return correcting("fidelity", steps, bits, num_groups, start, weights, split, None)
