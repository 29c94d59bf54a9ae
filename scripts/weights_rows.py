"""The rows of bench_weights.py: how one model's weights are rounded and what the images lose.

What stands here decides the numbers, so that a change makes all rows again.
"""

import dataclasses
import functools
import re
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
from adpdm_rows import Shared, prepared

import jaxdq
from jaxdq.calibration import (
    Calibrator,
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
        sparsity: What of each kernel becomes 0, as `compensate_rounding` takes it.
    """

    rounding: str
    learned: bool = False
    sparsity: str | float | None = None


METHODS = {
    "nearest": Method("nearest"),
    "gptq": Method("gptq"),
    "obq": Method("obq"),
    "nearest-learned": Method("nearest", learned=True),
    "gptq-learned": Method("gptq", learned=True),
    "gptq-half": Method("gptq", sparsity=0.5),
    "gptq-2:4": Method("gptq", sparsity="2:4"),
    "gptq-4:8": Method("gptq", sparsity="4:8"),
    "obq-half": Method("obq", sparsity=0.5),
    "obq-2:4": Method("obq", sparsity="2:4"),
    "obq-4:8": Method("obq", sparsity="4:8"),
}


class Weights(Shared):
    """What all rows of one model and one seed have in common, split as recipes do it or not."""

    def __init__(self, denoiser: Any, sampler: Any, seed: int, num_images: int, split: bool = True) -> None:
        super().__init__(denoiser, sampler, seed, num_images)
        self.split = split

    @functools.cached_property
    def evidence(self) -> tuple[Work, float]:
        """Work with trajectories, what was observed on them and what errors cost; and the seconds it took."""
        return prepared(self.denoiser, self.sampler, self.seed, False, "all", "W8A8", self.split)

    def weights_row(self, bits: str, name: str) -> dict[str, Any]:
        """Calibrates and measures one row."""
        method = METHODS[name]
        pruning: Any = {"sparsity": method.sparsity, "weight_range": mse_weights()}
        steps = [] if method.rounding == "nearest" else [compensate_rounding(method.rounding, **pruning)]
        return self.row(bits, steps + [learn_ranges(RangeSettings())] * method.learned)

    def row(self, bits: str, steps: Iterable[Calibrator], num_groups: int = NUM_GROUPS) -> dict[str, Any]:
        """What comes of these calibrators, once all ranges are fitted in equal spans."""
        _, before = self.evidence
        start = time.perf_counter()
        work = self.with_ranges(bits, num_groups)
        for index, step in enumerate(steps):
            work = step(work, jax.random.fold_in(self.key, index) if index else self.key)
        qparams = jax.block_until_ready(jax.jit(jaxdq.quantize)(self.denoiser.params, work.calib))
        seconds = time.perf_counter() - start
        kept = [numbers.get("kept") for _, numbers in work.log]
        return {**self._measured(qparams), "prepare_seconds": before, "calibrate_seconds": seconds, "kept": kept}

    @property
    def key(self) -> jax.Array:
        """The key of the row's calibrators."""
        return jax.random.key(self.seed)

    def with_ranges(self, bits: str, num_groups: int = NUM_GROUPS) -> Work:
        """Work with ranges of least squared error, those of activations in equal spans of time."""
        work, _ = self.evidence
        plan = plan_for(work.denoiser, Recipe("bits", rules_of(bits, self.split), ()))
        grids = weight_grids(work.denoiser.params, plan, mse_weights())
        work = work.deciding(plan=plan, weights=grids, acts=None)._replace(log=())
        return share_uniformly(num_groups)(work, self.key)


def rules_of(bits: str, split: bool = True) -> Any:
    """The rules of `W4A8`, or of `W4`: activations in float, so that nothing but weights is rounded."""
    found = re.fullmatch(r"W(\d)(?:A(\d))?", bits)
    if found is None:
        raise SystemExit(f"--bits has '{bits}'; give them as W4A8, or as W4 with activations in float.")
    rules = default_rules(int(found[1]), int(found[2] or 8), split=split)

    def of_sites(sites: Any) -> list[Rule]:
        made = list(rules(sites))
        return made if found[2] else [dataclasses.replace(rule, act=None) for rule in made]

    return of_sites
