"""The rows of bench_sampler.py: what corrections along the sampler's way bring, alone and together.

What stands here decides the numbers, so that a change makes all rows again.
"""

import functools
import re
import time
from typing import Any

import jax
from weights_rows import Weights

import jaxdq
from jaxdq.calibration import (
    Calibrator,
    Work,
    compensate_rounding,
    correct_noise,
    correct_trajectory,
    fit_progressively,
    relax_activations,
    tabulate_time,
)
from jaxdq.diffusion import SAMPLERS, Sampler, ddim

METHODS: dict[str, tuple[Calibrator, ...]] = {
    "none": (),
    "ptqd": (correct_noise(),),
    "ptqd-mean": (correct_noise(variance=False),),
    "ptqd-paper": (correct_noise("paper"),),
    "tac": (correct_trajectory(),),
    "tac-paper": (correct_trajectory("paper"),),
    "tac+ptqd": (correct_trajectory(), correct_noise()),
    "tables": (tabulate_time(),),
    "series": (fit_progressively(),),  # a group for each step, behind the quantized steps before it
    "ends": (relax_activations(8),),  # a fifth of the steps at one end has activations of 8 bits
    "ends-float": (relax_activations(None),),
    "snr": (relax_activations(8, where="snr"),),
    "snr-float": (relax_activations(None, where="snr"),),
    "pcr": (fit_progressively(), relax_activations(8)),
    "pcr+tables+tac": (fit_progressively(), relax_activations(8), tabulate_time(), correct_trajectory()),
}


class Sampled(Weights):
    """What all rows of one model, sampler and seed have in common."""

    def __init__(self, denoiser: Any, sampler: Sampler, seed: int, num_images: int) -> None:
        super().__init__(denoiser, sampler, seed, num_images)
        self.before = functools.lru_cache(maxsize=1)(self._before)

    def _before(self, bits: str) -> tuple[Work, float]:
        """Work without corrections, below 8 bits rounded by GPTQ, and the seconds it took."""
        start = time.perf_counter()
        work = self.with_ranges(bits)
        if not bits.startswith("W8"):
            work = compensate_rounding("gptq")(work, self.key)
        return work, time.perf_counter() - start

    def sampler_row(self, bits: str, name: str) -> dict[str, Any]:
        """Calibrates and measures one row."""
        work, before = self.before(bits)
        start = time.perf_counter()
        for index, step in enumerate(METHODS[name]):
            work = step(work, jax.random.fold_in(self.key, 1 + index))
        seconds = time.perf_counter() - start
        qparams = jax.block_until_ready(jax.jit(jaxdq.quantize)(self.denoiser.params, work.calib))
        kept = [numbers.get("kept") for _, numbers in work.log]
        measured = self._measured(qparams)
        return {**measured, "prepare_seconds": self.evidence[1] + before, "calibrate_seconds": seconds, "kept": kept}


def sampler_of(text: str) -> Sampler:
    """The sampler of `ddim50`, `ddim50:1` with eta 1, or `dpm_solver20`."""
    found = re.fullmatch(r"([a-z_]+)(\d+)(?::([\d.]+))?", text)
    if found is None or found[1] not in SAMPLERS or (found[3] and found[1] != "ddim"):
        raise SystemExit(f"--samplers has '{text}'; give a name of {', '.join(SAMPLERS)} and steps: ddim50, ddim50:1.")
    return ddim(int(found[2]), eta=float(found[3])) if found[3] else SAMPLERS[found[1]](int(found[2]))
