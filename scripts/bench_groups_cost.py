"""What time groups cost when the network runs: the same model with one group and with eight, in one run.

    python scripts/bench_groups_cost.py --model digits --groups 1 8 --rounds 7

Rounds alternate between the two, so that a machine that slows down slows both. Prints one JSON line: seconds to draw
the images (median over rounds, compilation left out), instructions, dots and convolutions in the compiled loop,
and each as a ratio to the first number of groups.
"""

import argparse
import functools
import json
import re
import statistics
import time
from typing import Any

import jax
import models

import jaxdq
from jaxdq import diffusion
from jaxdq.calibration import run_recipe, share_uniformly


def main(argv: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="digits", help=models.HELP)
    parser.add_argument("--groups", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args(argv)
    denoiser, sampler = models.load(args.model), jaxdq.ddim(args.steps)
    key = jax.random.key(0)
    work = run_recipe(denoiser, jaxdq.recipes.minmax(8, 8), sampler=sampler, key=key, num_images=4)
    programs = {}
    for groups in args.groups:
        calib = share_uniformly(groups)(work, key).calib
        qparams = jax.jit(jaxdq.quantize)(denoiser.params, calib)
        draw = jax.jit(functools.partial(images_of, denoiser, sampler, args.images))
        programs[groups] = draw.lower(qparams, key).compile(), qparams
    seconds: dict[int, list[float]] = {groups: [] for groups in args.groups}
    for _ in range(args.rounds):
        for groups, (program, qparams) in programs.items():
            start = time.perf_counter()
            program(qparams, key).block_until_ready()
            seconds[groups].append(time.perf_counter() - start)
    rows = {
        groups: {"seconds": statistics.median(seconds[groups]), **counts(program.as_text())}
        for groups, (program, _) in programs.items()
    }
    first = rows[args.groups[0]]
    ratios = {
        groups: {name: round(value / first[name], 4) for name, value in row.items()} for groups, row in rows.items()
    }
    print(json.dumps({"jax": jax.__version__, "backend": jax.default_backend(), "rows": rows, "ratios": ratios}))


def images_of(denoiser: Any, sampler: Any, num_images: int, qparams: Any, key: jax.Array) -> jax.Array:
    """The sampling loop of `jaxdq.sample`, as one program."""
    index = jax.numpy.arange(num_images)
    return diffusion.sample(
        lambda x, t: jaxdq.apply(denoiser.module, qparams, x, t, *denoiser.args(index)),
        sampler,
        sampler.coefficients(denoiser.schedule),
        diffusion.initial_noise(key, index, denoiser.shape),
        diffusion.image_keys(key, index),
    )


def counts(program: str) -> dict[str, int]:
    """Instructions of an optimized program, and those of them that multiply matrices."""
    return {
        "instructions": len(re.findall(r"^\s+(?:ROOT )?%?\S+ = ", program, re.MULTILINE)),
        "contractions": len(re.findall(r"= \S+ (?:dot|convolution|custom-call)\(", program)),
    }


if __name__ == "__main__":
    main()
