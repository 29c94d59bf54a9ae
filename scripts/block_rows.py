"""The rows of bench_weights.py whose rounding is learned block by block, or layer by layer.

What stands here decides the numbers, so that a change makes all rows again.
"""

from typing import Any, NamedTuple

from weights_rows import NUM_GROUPS, Weights

from jaxdq.calibration import ReconstructionSettings, reconstruct


class Method(NamedTuple):
    """How codes come about.

    Attributes:
        settings: Of `reconstruct`.
        num_groups: Equal spans of time.
    """

    settings: ReconstructionSettings
    num_groups: int = NUM_GROUPS


METHODS = {
    "adaround-layer": Method(ReconstructionSettings(by="layer", acts=False)),
    "adaround": Method(ReconstructionSettings(acts=False)),
    "qdiffusion": Method(ReconstructionSettings()),
    "qdiffusion-static": Method(ReconstructionSettings(), num_groups=1),
}


class Blocks(Weights):
    """What all rows of one model and one seed have in common."""

    def blocks_row(self, bits: str, name: str) -> dict[str, Any]:
        """Calibrates and measures one row."""
        method = METHODS[name]
        return self.row(bits, [reconstruct(method.settings)], method.num_groups)
