"""PTQD: the output's linear error taken out, the rest of it in place of fresh noise."""

from jaxdq.calibration import Estimator, RangeSettings, Recipe, correct_noise
from jaxdq.recipes._ranges import RangeMethod, correcting
from jaxdq.recipes._weights import WeightRounding


def ptqd(
    weight_bits: int = 8,
    act_bits: int = 8,
    num_groups: int = 8,
    *,
    estimator: Estimator = "closed-loop",
    variance: bool = True,
    ranges: RangeMethod = "mse",
    weights: WeightRounding | None = None,
    split: bool = True,
    learning: RangeSettings | None = None,
) -> Recipe:
    """Bias and slope of the output's error corrected at every step, and fresh noise that makes room for the rest.

    `jaxdq.calibration.correct_noise` has the equation and the deviations. It corrects what ranges of `num_groups` equal
    spans of time leave, weights rounded by GPTQ below 8 bits; `chain(adpdm(4, 8), ptqd())` corrects another recipe.

    Args:
        weight_bits: 2 to 8.
        act_bits: 2 to 8.
        num_groups: 1 to the sampler's number of steps.
        estimator: "closed-loop", or "paper" as the public code estimates.
        variance: Whether fresh noise makes room for the error; without fresh noise (`ddim` with eta 0) it does nothing.
        ranges: As in `minmax`.
        weights: As in `minmax`; None is "gptq" below 8 bits of weights, and "nearest" at 8.
        split: As in `default_rules`.
        learning: As in `minmax`.

    Returns:
        Recipe.

    Raises:
        InputError: As in `minmax`; an unknown estimator.

    Example:
        >>> ptqd(4, 8).calibrators[-1].name
        'correct_noise'

    Source: He et al., arXiv 2305.10657 (NeurIPS 2023).
    """
    step, bits = correct_noise(estimator, variance), (weight_bits, act_bits)
    return correcting("ptqd", step, bits, num_groups, ranges, weights, split, learning)
