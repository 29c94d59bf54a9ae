"""Memory, time and bytes of Stable Diffusion v1-4 at full size (860 M parameters), with random weights.

    python scripts/bench_stable_diffusion.py --work out/sd --weight-bits 8

Each phase is a process of its own, so that its peak of memory is its own: `make` writes the folder in diffusers' layout
(3.4 GB, kept for the next call), `calibrate` reads it, calibrates on two prompts x two steps with classifier-free
guidance, quantizes and saves, `restore` reads the integers back and makes one step. The embeddings of the prompts are
random too: text encoders stay the user's. Prints one JSON line.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from count_stable_diffusion import MODELS

import jaxdq
from jaxdq.models.unet import abstract_params, load_denoiser, save_unet_folder, unet2d_condition_from_config

UNET = {"_class_name": "UNet2DConditionModel", **MODELS["v1-4"]}
SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
NUM_PROMPTS, NUM_STEPS, NUM_TOKENS = 2, 2, 77


def main(argv: list[str] | None = None) -> None:
    """Run one phase, or all of them in processes of their own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("out/stable_diffusion"))
    parser.add_argument("--weight-bits", type=int, default=8)
    parser.add_argument("--recipe", default="uniform_groups", choices=["minmax", "uniform_groups", "adpdm"])
    parser.add_argument("--phase", choices=list(PHASES))
    args = parser.parse_args(argv)
    if args.phase is not None:
        found = PHASES[args.phase](args)
        found["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps(found))
        return
    rows: dict[str, Any] = {"jax": jax.__version__, "recipe": args.recipe, "weight_bits": args.weight_bits}
    options = ["--work", args.work, "--weight-bits", args.weight_bits, "--recipe", args.recipe]
    for phase in PHASES:
        command = [sys.executable, __file__, *map(str, options), "--phase", phase]
        out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        rows[phase] = json.loads(out.splitlines()[-1])
    print(json.dumps(rows))


def make(args: argparse.Namespace) -> dict[str, Any]:
    """Write the folder, if it is not there."""
    start = time.perf_counter()
    folder = folder_of(args)
    if not folder.exists():
        random = np.random.default_rng(0)
        expected = abstract_params(unet2d_condition_from_config(UNET))
        params = jax.tree_util.tree_map_with_path(lambda path, leaf: weights(random, path, leaf), expected)
        save_unet_folder(folder, UNET, params, SCHEDULER)
    return {"seconds": time.perf_counter() - start, "gb": sum(f.stat().st_size for f in folder.rglob("*.*")) / 1e9}


def calibrate(args: argparse.Namespace) -> dict[str, Any]:
    """Load, calibrate, quantize, save."""
    seconds = {}
    clock = Clock(seconds)
    denoiser = loaded(args)
    clock("load")
    recipe = getattr(jaxdq.recipes, args.recipe)(args.weight_bits, 8, **groups_of(args.recipe))
    calib = jaxdq.calibrate(
        denoiser, recipe, sampler=jaxdq.ddim(NUM_STEPS), key=jax.random.key(0), num_images=NUM_PROMPTS, batch_size=1
    )
    clock("calibrate")
    qparams = jax.block_until_ready(jax.jit(jaxdq.quantize)(denoiser.params, calib))
    clock("quantize")
    jaxdq.save(args.work / "quantized", qparams, overwrite=True)
    clock("save")
    on_disk = sum(file.stat().st_size for file in (args.work / "quantized").rglob("*") if file.is_file())
    num_params = sum(leaf.size for leaf in jax.tree.leaves(denoiser.params))
    return {"seconds": seconds, "num_params": num_params, "checkpoint_of_float32": on_disk / (4 * num_params)}


def restore(args: argparse.Namespace) -> dict[str, Any]:
    """Read the integers back and make one step."""
    seconds: dict[str, float] = {}
    clock = Clock(seconds)
    qparams = jax.block_until_ready(jaxdq.restore(args.work / "quantized"))
    clock("restore")
    denoiser = loaded(args, weights=False)
    image = jaxdq.sample(denoiser, qparams, sampler=jaxdq.ddim(1), num_images=1, key=jax.random.key(1))
    clock("one step, compiled first")
    return {"seconds": seconds, "finite": bool(jnp.isfinite(image).all())}


PHASES = {"make": make, "calibrate": calibrate, "restore": restore}


class Clock:
    """Writes the seconds since the last call under a name."""

    def __init__(self, seconds: dict[str, float]):
        self.seconds, self.last = seconds, time.perf_counter()

    def __call__(self, name: str) -> None:
        """Name what has just ended."""
        now = time.perf_counter()
        self.seconds[name], self.last = now - self.last, now


def folder_of(args: argparse.Namespace) -> Path:
    """Where the float model is."""
    return args.work / "model"


def groups_of(recipe: str) -> dict[str, int]:
    """A group for each step, where the recipe has groups."""
    return {} if recipe == "minmax" else {"num_groups": NUM_STEPS}


def weights(random: np.random.Generator, path: tuple, leaf: Any) -> np.ndarray:
    """Kernels that keep the size of what flows through them; scales of one, biases of zero."""
    name = path[-1].key
    if name != "kernel":
        return np.full(leaf.shape, float(name == "scale"), np.float32)
    return random.standard_normal(leaf.shape, np.float32) / np.float32(np.sqrt(np.prod(leaf.shape[:-1])))


def loaded(args: argparse.Namespace, *, weights: bool = True) -> Any:
    """The guided denoiser, its prompts' embeddings random."""
    random = np.random.default_rng(1)
    text = random.standard_normal((NUM_PROMPTS, NUM_TOKENS, UNET["cross_attention_dim"]), np.float32)
    denoiser = load_denoiser(folder_of(args), weights=weights, conditions=(text,))
    return jaxdq.guided(denoiser, (np.zeros_like(text[:1]),))


if __name__ == "__main__":
    main()
