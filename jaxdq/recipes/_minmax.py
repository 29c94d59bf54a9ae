"""One static scale per activation: what everyone does, and the baseline."""

from jaxdq.calibration import RangeSettings, Recipe
from jaxdq.recipes._budget import learning_for
from jaxdq.recipes._ranges import RangeMethod, in_equal_spans
from jaxdq.recipes._rules import default_rules
from jaxdq.recipes._weights import WeightRounding


def minmax(
    weight_bits: int = 8,
    act_bits: int = 8,
    *,
    ranges: RangeMethod = "minmax",
    weights: WeightRounding = "nearest",
    learning: RangeSettings | None = None,
) -> Recipe:
    """Min-max ranges over all timesteps, one scale per activation.

    Equation: `scale = (max(x, 0) - min(x, 0)) / (2**act_bits - 1)` over all steps and images; weights per output
    channel, `scale = max |w| / (2**(weight_bits - 1) - 1)`.

    Args:
        weight_bits: 2 to 8.
        act_bits: 2 to 8.
        ranges: "minmax" (nothing is clipped), "mse" (least rounding error), "percentile" (all but the outermost
            values) or "learned" (from "mse", by the gradient of the output's error).
        weights: "nearest" rounding; "gptq" or "obq", which let the other weights of a layer make up for each weight's
            rounding error, and need the layer's inputs: below 8 bits of weights far closer images; or "adaround", which
            learns block by block which weights are rounded up.
        learning: Settings of the learning, with ranges "learned"; None takes fewer updates at 8 bits than below.

    Returns:
        Recipe.

    Raises:
        InputError: Bits outside; unknown ranges or rounding; settings of a learning that does not take place.

    Example:
        >>> minmax(8, 8).name
        'minmax'

    Source: Jacob et al. 2018, section 3 (static ranges, nearest rounding); activations there are 8-bit only.
    """
    calibrators = in_equal_spans(1, ranges, weights, learning, learning_for(weight_bits, act_bits))
    return Recipe("minmax", default_rules(weight_bits, act_bits), calibrators)
