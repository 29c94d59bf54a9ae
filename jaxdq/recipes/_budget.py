"""Default budgets of the recipes' searching and learning.

Eight bits leave little to gain. `digits` at W8A8, eight groups, seed 0: noise SQNR 37.6 dB before learning, 38.0 after
20 updates, 38.4 after 40, 38.5 after 60, 38.7 after 120 (with the search's earlier form). Each update takes 0.4 s of
CPU, and each boundary that is moved two more. Below eight bits the settings' own defaults stand.
"""

from jaxdq.calibration import RangeSettings, SearchSettings
from jaxdq.grid import Scheme
from jaxdq.recipes._weights import WeightRounding


def learning_for(weight_bits: int, act_bits: int) -> RangeSettings:
    """How ranges are learned at these bits.

    Example:
        >>> learning_for(8, 8).num_updates < learning_for(4, 8).num_updates
        True
    """
    return RangeSettings(num_updates=60, judge_every=30) if _is_fine(weight_bits, act_bits) else RangeSettings()


def search_for(weight_bits: int, act_bits: int) -> SearchSettings:
    """How groups are searched at these bits.

    Example:
        >>> search_for(8, 8).moves
        0
    """
    return SearchSettings(moves=0) if _is_fine(weight_bits, act_bits) else SearchSettings()


def rounding_for(weight_bits: int) -> WeightRounding:
    """How weights are rounded at these bits.

    Example:
        >>> rounding_for(8), rounding_for(4)
        ('nearest', 'gptq')
    """
    return "nearest" if Scheme(weight_bits).bits >= 8 else "gptq"


def _is_fine(weight_bits: int, act_bits: int) -> bool:
    return min(Scheme(weight_bits).bits, Scheme(act_bits).bits) >= 8
