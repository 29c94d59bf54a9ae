"""How weights are rounded to their grids, in one word that every recipe takes."""

from typing import Literal, get_args

from jaxdq._common.errors import InputError
from jaxdq.calibration import Calibrator, ReconstructionSettings, compensate_rounding, reconstruct

WeightRounding = Literal["nearest", "gptq", "obq", "adaround"]


def rounding(weights: WeightRounding) -> tuple[Calibrator, ...]:
    """The calibrators that round the weights, once all grids are fitted.

    - "nearest": each weight on its own.
    - "gptq": in one order for all outputs, each weight making up for the errors of those before it.
    - "obq": the same, in a greedy order for each output; minutes where a layer has a thousand inputs.
    - "adaround": up or down, learned block after block; a quarter of a minute of two cores for each small block.

    Raises:
        InputError: An unknown name.
    """
    known = get_args(WeightRounding)
    if not isinstance(weights, str) or weights not in known:
        raise InputError(f"weights is {weights!r}; give one of {', '.join(map(repr, known))}.")
    if weights == "adaround":
        return (reconstruct(ReconstructionSettings(acts=False)),)
    return () if weights == "nearest" else (compensate_rounding(weights),)
