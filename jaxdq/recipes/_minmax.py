"""One static scale per activation, from its minimum and maximum: what everyone does, and the baseline."""

from jaxdq.calibration import Recipe, fit_weights, observe, share_uniformly
from jaxdq.observers import minmax as observe_minmax
from jaxdq.observers import minmax_weights
from jaxdq.recipes._rules import default_rules


def minmax(weight_bits: int = 8, act_bits: int = 8) -> Recipe:
    """Min-max ranges over all timesteps, one scale per activation.

    Equation: `scale = (max(x, 0) - min(x, 0)) / (2**act_bits - 1)` over all steps and images; weights per output
    channel, `scale = max |w| / (2**(weight_bits - 1) - 1)`.

    Args:
        weight_bits: 2 to 8.
        act_bits: 2 to 8.

    Returns:
        Recipe.

    Example:
        >>> minmax(8, 8).name
        'minmax'

    Source: Jacob et al. 2018, section 3 (static ranges, nearest rounding); activations there are 8-bit only.
    """
    return Recipe(
        name="minmax",
        rules=default_rules(weight_bits, act_bits),
        calibrators=(fit_weights(minmax_weights()), observe(observe_minmax()), share_uniformly(1)),
    )
