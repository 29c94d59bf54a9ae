"""The rows of bench_weights.py whose bits are chosen layer by layer, within the bytes of the bits in the row's name.

What stands here decides the numbers, so that a change makes all rows again.
"""

from typing import Any

import jax
from block_rows import Blocks

import jaxdq
from jaxdq.calibration import compensate_rounding, spend_budget
from jaxdq.grid import stored_bytes
from jaxdq.observers import mse_weights

METHODS = {"budget": "nearest", "budget-gptq": "gptq"}  # -> how the weights are then rounded


class Budgets(Blocks):
    """What all rows of one model and one seed have in common."""

    def budget_row(self, bits: str, name: str) -> dict[str, Any]:
        """Calibrates and measures one row."""
        uniform = jax.eval_shape(jaxdq.quantize, self.denoiser.params, self.with_ranges(bits).calib)
        share = stored_bytes(uniform) / stored_bytes(self.denoiser.params)
        rounding = [compensate_rounding("gptq")] if METHODS[name] == "gptq" else []
        return {**self.row(bits, [spend_budget(share, mse_weights()), *rounding]), "budget": share}
