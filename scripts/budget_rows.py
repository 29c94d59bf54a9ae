"""The rows of bench_weights.py whose bits are chosen layer by layer, within the bytes of the bits in the row's name.

What stands here decides the numbers, so that a change makes all rows again.
"""

import time
from typing import Any

import jax
from block_rows import Blocks
from weights_rows import NUM_GROUPS, rules_of

import jaxdq
from jaxdq.calibration import (
    Recipe,
    compensate_rounding,
    plan_for,
    share_uniformly,
    spend_budget,
    weight_grids,
)
from jaxdq.grid import stored_bytes
from jaxdq.observers import mse_weights

METHODS = {"budget": "nearest", "budget-gptq": "gptq"}  # -> how the weights are then rounded


class Budgets(Blocks):
    """What all rows of one model and one seed have in common."""

    def budget_row(self, bits: str, name: str) -> dict[str, Any]:
        """Calibrates and measures one row."""
        work, before = self.evidence
        start = time.perf_counter()
        plan = plan_for(work.denoiser, Recipe("bits", rules_of(bits), ()))
        grids = weight_grids(work.denoiser.params, plan, mse_weights())
        work = work.deciding(plan=plan, weights=grids, acts=None)._replace(log=())
        key = jax.random.key(self.seed)
        work = share_uniformly(NUM_GROUPS)(work, key)
        uniform = jax.eval_shape(jaxdq.quantize, self.denoiser.params, work.calib)
        share = stored_bytes(uniform) / stored_bytes(self.denoiser.params)
        work = spend_budget(share, mse_weights())(work, key)
        spent = work.log[-1][1]["spent"]
        if METHODS[name] == "gptq":
            work = compensate_rounding("gptq")(work, key)
        qparams = jax.block_until_ready(jax.jit(jaxdq.quantize)(self.denoiser.params, work.calib))
        seconds = time.perf_counter() - start
        row = {"prepare_seconds": before, "calibrate_seconds": seconds, "budget": share, "spent": spent}
        return {**self._measured(qparams), **row}
