"""The rows of bench_weights.py whose rounding is learned block by block, or layer by layer.

What stands here decides the numbers, so that a change makes all rows again.
"""

import time
from typing import Any, NamedTuple

import jax
from weights_rows import NUM_GROUPS, Weights, rules_of

import jaxdq
from jaxdq.calibration import Recipe, ReconstructionSettings, plan_for, reconstruct, share_uniformly, weight_grids
from jaxdq.observers import mse_weights


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
        work, before = self.evidence
        start = time.perf_counter()
        plan = plan_for(work.denoiser, Recipe("bits", rules_of(bits), ()))
        grids = weight_grids(work.denoiser.params, plan, mse_weights())
        work = work.deciding(plan=plan, weights=grids, acts=None)._replace(log=())
        key = jax.random.key(self.seed)
        work = reconstruct(method.settings)(share_uniformly(method.num_groups)(work, key), key)
        qparams = jax.block_until_ready(jax.jit(jaxdq.quantize)(self.denoiser.params, work.calib))
        seconds = time.perf_counter() - start
        kept = [numbers.get("kept") for _, numbers in work.log]
        return {**self._measured(qparams), "prepare_seconds": before, "calibrate_seconds": seconds, "kept": kept}
