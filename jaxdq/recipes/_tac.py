"""TAC: timestep-aware correction of the output's scale and of the states' drift."""

from jaxdq.calibration import Estimator, RangeSettings, Recipe, correct_trajectory
from jaxdq.recipes._ranges import RangeMethod, correcting
from jaxdq.recipes._weights import WeightRounding


def tac(
    weight_bits: int = 8,
    act_bits: int = 8,
    num_groups: int = 8,
    *,
    estimator: Estimator = "closed-loop",
    input_bias: bool = True,
    ranges: RangeMethod = "mse",
    weights: WeightRounding | None = None,
    split: bool = True,
    learning: RangeSettings | None = None,
) -> Recipe:
    """A factor for each output channel at every step, and the mean drift of the quantized trajectory added back.

    `jaxdq.calibration.correct_trajectory` has the equation. It corrects what ranges of `num_groups` equal spans of time
    leave, weights rounded by GPTQ below 8 bits; `chain(adpdm(4, 8), tac())` corrects another recipe.

    Args:
        weight_bits: 2 to 8.
        act_bits: 2 to 8.
        num_groups: 1 to the sampler's number of steps.
        estimator: "closed-loop", or "paper" as published.
        input_bias: Whether the drift is tried beside the factors.
        ranges: As in `minmax`.
        weights: As in `minmax`; None is "gptq" below 8 bits of weights, and "nearest" at 8.
        split: As in `default_rules`.
        learning: As in `minmax`.

    Returns:
        Recipe.

    Raises:
        InputError: As in `minmax`; an unknown estimator.

    Example:
        >>> tac(4, 8).calibrators[-1].name
        'correct_trajectory'

    Source: Yao et al., arXiv 2407.03917 (ECCV 2024).
    """
    step, bits = correct_trajectory(estimator, input_bias), (weight_bits, act_bits)
    return correcting("tac", step, bits, num_groups, ranges, weights, split, learning)
