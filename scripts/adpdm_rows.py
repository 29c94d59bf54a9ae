"""The rows of bench_adpdm.py: how one model, bit widths, method and seed are calibrated and measured.

What stands here decides the numbers, so that a change makes all rows again; how rows are ordered, kept and shown is in
bench_adpdm.py.
"""

import functools
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxdq
from jaxdq.calibration import (
    Calibrator,
    Recipe,
    Work,
    fit_weights,
    learn_ranges,
    measure_sensitivity,
    normal_timesteps,
    observe,
    plan_for,
    random_timesteps,
    run_recipe,
    search_groups,
    select_timesteps,
    share_by_price,
    share_optimally,
    share_uniformly,
    structural_risk,
    uniform_timesteps,
    visits_penalised,
    weight_grids,
)
from jaxdq.evaluation import noise_energies
from jaxdq.metrics import (
    frechet_distance,
    mean_of_finite,
    mean_of_worst,
    pooled_pixels,
    psnr_db,
    psnr_per_image_db,
    ratio_db,
)
from jaxdq.observers import minmax, minmax_weights, mse, mse_weights
from jaxdq.recipes import default_rules
from jaxdq.sampling import Trajectories, sample, trajectories

SEED_OF_EVALUATION = 1_000
NOISE_IMAGES = 64  # of those that images are compared on


class Method(NamedTuple):
    """How the ranges of G groups come about.

    Attributes:
        share: The number of groups -> the calibrator that says which steps share a grid, and fits the grids.
        num_groups: G where the method leaves no choice.
        learned: Whether the ranges then follow the gradient of the output's error.
        is_plain: Min-max ranges, of weights too; otherwise those of least squared error.
    """

    share: Callable[[int], Calibrator]
    num_groups: int | None = None
    learned: bool = False
    is_plain: bool = False


METHODS = {
    "minmax": Method(share_uniformly, 1, is_plain=True),
    "uniform": Method(share_uniformly, is_plain=True),
    "mse": Method(share_uniformly, 1),
    "uniform-mse": Method(share_uniformly),
    "one-priced": Method(share_by_price, 1),
    "uniform-priced": Method(share_by_price),
    "dynamic-priced": Method(share_optimally),
    "adpdm-priced": Method(search_groups),
    "one-learned": Method(share_by_price, 1, learned=True),
    "uniform-learned": Method(share_by_price, learned=True),
    "dynamic": Method(share_optimally, learned=True),
    "adpdm": Method(search_groups, learned=True),
}
POLICIES = {
    "uniform": uniform_timesteps,
    "random": random_timesteps,
    "normal": normal_timesteps,
    "risk": structural_risk,
    "visits": visits_penalised,
}


class Reference(NamedTuple):
    """The float model's images, and as many from other noise."""

    data: Trajectories
    floor: np.ndarray


class Shared:
    """What all rows of one model and one seed have in common: each part is made when it is first asked for.

    Args:
        denoiser: The float model.
        sampler: Draws its images.
        seed: Seed of calibration and evaluation.
        num_images: Number of images to evaluate on.
    """

    def __init__(self, denoiser: Any, sampler: Any, seed: int, num_images: int) -> None:
        self.denoiser, self.sampler, self.seed, self.num_images = denoiser, sampler, seed, num_images
        self._prepared = functools.cache(functools.partial(prepared, denoiser, sampler, seed))
        self._grouped = functools.cache(self._group)

    @functools.cached_property
    def reference(self) -> Reference:
        """What all rows are measured against."""
        draw = functools.partial(trajectories, self.denoiser, self.denoiser.params, sampler=self.sampler)
        data = draw(num_images=self.num_images, key=key_of_images(self.seed))
        return Reference(data, self.images_from(self.denoiser.params, key_of_floor(self.seed)))

    def images_from(self, params: Any, key: jax.Array) -> np.ndarray:
        """f32[N, H, W, C] of the float model or a quantized one."""
        return np.asarray(sample(self.denoiser, params, sampler=self.sampler, num_images=self.num_images, key=key))

    def row(self, bits: str, name: str, groups: int, budget: str) -> dict[str, Any]:
        """Calibrates and measures one row."""
        method = METHODS[name]
        work, before, seconds = self._grouped(bits, method.share, method.is_plain, groups, budget)
        start = time.perf_counter()
        if method.learned:
            work = learn_ranges()(work, jax.random.fold_in(jax.random.key(self.seed), 1))
        qparams = jax.block_until_ready(jax.jit(jaxdq.quantize)(self.denoiser.params, work.calib))
        seconds += time.perf_counter() - start
        return {
            **self._measured(qparams),
            "prepare_seconds": before,
            "calibrate_seconds": seconds,
            "log": [[name, numbers_of(log)] for name, log in work.log],
        }

    def _group(
        self, bits: str, share: Callable[[int], Calibrator], is_plain: bool, groups: int, budget: str
    ) -> tuple[Work, float, float]:
        # A policy may look at the grids; all states are the same for all bit widths.
        work, before = self._prepared(is_plain, budget, "W8A8" if budget == "all" else bits)
        start = time.perf_counter()
        work = share(groups)(with_bits(work, bits, is_plain), jax.random.fold_in(jax.random.key(self.seed), 0))
        return work, before, time.perf_counter() - start

    def _measured(self, qparams: Any) -> dict[str, float]:
        data = self.reference.data
        energies = noise_energies(self.denoiser, qparams, data.first(NOISE_IMAGES))
        images = self.images_from(qparams, key_of_images(self.seed))
        others = self.images_from(qparams, key_of_floor(self.seed))
        per_image, own = psnr_per_image_db(data.images, images), pooled_pixels(data.images)
        return {
            "noise_sqnr_db": mean_of_finite(ratio_db(*energies)),
            "noise_sqnr_pooled_db": float(ratio_db(*energies.sum(1))),
            "image_psnr_db": float(psnr_db(data.images, images)),
            "image_psnr_median_db": float(np.median(per_image)),
            "image_psnr_worst5_db": mean_of_worst(per_image, 5),
            "image_psnr_worst_db": float(per_image.min()),
            "fd_to_float": frechet_distance(own, pooled_pixels(images)),
            "fd_other_noise": frechet_distance(own, pooled_pixels(others)),
            "fd_float_floor": frechet_distance(own, pooled_pixels(self.reference.floor)),
        }


def key_of_images(seed: int) -> jax.Array:
    """Noise that calibration never saw."""
    return jax.random.key(SEED_OF_EVALUATION + seed)


def key_of_floor(seed: int) -> jax.Array:
    """Other noise, which calibration did not see either."""
    return jax.random.fold_in(key_of_images(seed), 1)


def numbers_of(log: dict[str, Any]) -> dict[str, Any]:
    """A calibrator's log, and of each update's numbers the last."""
    return {**log, "updates": {name: values[-1:] for name, values in log.get("updates", {}).items()}}


def prepared(
    denoiser: Any, sampler: Any, seed: int, plain: bool, budget: str, bits: str, split: bool = False
) -> tuple[Work, float]:
    """What comes before ranges are shared (trajectories, evidence, sensitivity), and the seconds it took."""
    start = time.perf_counter()
    selection: tuple[Calibrator, ...] = ()
    if budget != "all":
        policy, _, states = budget.partition(":")
        selection = (select_timesteps(POLICIES[policy](), int(states)),)
    evidence = (observe(minmax()),) if plain else (observe(mse(2.0)), measure_sensitivity())
    calibrators = (fit_weights(minmax_weights()), *selection, *evidence, share_uniformly(1))
    recipe = Recipe("prepared", default_rules(*widths(bits), split=split), calibrators)
    work = run_recipe(denoiser, recipe, sampler=sampler, key=jax.random.key(seed))
    return work, time.perf_counter() - start


def widths(bits: str) -> tuple[int, int]:
    """Of weights and of activations."""
    found = re.fullmatch(r"W(\d)A(\d)", bits)
    if found is None:
        raise SystemExit(f"--bits has '{bits}'; give them as W4A8.")
    return int(found[1]), int(found[2])


def with_bits(work: Work, bits: str, is_plain: bool) -> Work:
    """The same evidence under another plan."""
    weight_range = minmax_weights() if is_plain else mse_weights()
    plan = plan_for(work.denoiser, Recipe("bits", default_rules(*widths(bits)), ()))
    weights = weight_grids(work.denoiser.params, plan, weight_range)
    return work.deciding(plan=plan, weights=weights, acts=None)._replace(log=())
