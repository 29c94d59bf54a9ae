"""The rows of bench_weights.py: how one model's weights are rounded and what the images lose.

What stands here decides the numbers, so that a change makes all rows again.
"""

import dataclasses
import functools
import re
import time
from typing import Any, NamedTuple

import jax
from adpdm_rows import Shared, prepared

import jaxdq
from jaxdq.calibration import (
    RangeSettings,
    Recipe,
    Work,
    compensate_rounding,
    learn_ranges,
    plan_for,
    share_uniformly,
    weight_grids,
)
from jaxdq.linen import Rule
from jaxdq.observers import mse_weights
from jaxdq.recipes import default_rules

NUM_GROUPS = 8


class Method(NamedTuple):
    """How codes come about.

    Attributes:
        rounding: "nearest", or a method of `compensate_rounding`.
        learned: Whether ranges then follow the gradient of the output's error: those of activations, and with nearest
            rounding those of weights.
    """

    rounding: str
    learned: bool = False


METHODS = {
    "nearest": Method("nearest"),
    "gptq": Method("gptq"),
    "obq": Method("obq"),
    "nearest-learned": Method("nearest", learned=True),
    "gptq-learned": Method("gptq", learned=True),
}


class Weights(Shared):
    """What all rows of one model and one seed have in common."""

    @functools.cached_property
    def evidence(self) -> tuple[Work, float]:
        """Work with trajectories, what was observed on them and what errors cost; and the seconds it took."""
        return prepared(self.denoiser, self.sampler, self.seed, False, "all", "W8A8")

    def weights_row(self, bits: str, name: str) -> dict[str, Any]:
        """Calibrates and measures one row."""
        method = METHODS[name]
        work, before = self.evidence
        start = time.perf_counter()
        plan = plan_for(work.denoiser, Recipe("bits", rules_of(bits), ()))
        grids = weight_grids(work.denoiser.params, plan, mse_weights())
        work = work.deciding(plan=plan, weights=grids, acts=None)._replace(log=())
        key = jax.random.key(self.seed)
        work = share_uniformly(NUM_GROUPS)(work, key)
        if method.rounding != "nearest":
            work = compensate_rounding(method.rounding)(work, key)
        if method.learned:
            work = learn_ranges(RangeSettings())(work, jax.random.fold_in(key, 1))
        qparams = jax.block_until_ready(jax.jit(jaxdq.quantize)(self.denoiser.params, work.calib))
        seconds = time.perf_counter() - start
        kept = [numbers.get("kept") for _, numbers in work.log]
        return {**self._measured(qparams), "prepare_seconds": before, "calibrate_seconds": seconds, "kept": kept}


def rules_of(bits: str) -> Any:
    """The rules of `W4A8`, or of `W4`: activations in float, so that nothing but weights is rounded."""
    found = re.fullmatch(r"W(\d)(?:A(\d))?", bits)
    if found is None:
        raise SystemExit(f"--bits has '{bits}'; give them as W4A8, or as W4 with activations in float.")
    rules = default_rules(int(found[1]), int(found[2] or 8))

    def of_sites(sites: Any) -> list[Rule]:
        made = list(rules(sites))
        return made if found[2] else [dataclasses.replace(rule, act=None) for rule in made]

    return of_sites
