"""How far the weights of timesteps that `measure_sensitivity` finds agree between seeds.

    python scripts/bench_sensitivity.py --model digits --seeds 3 --images 32 --draws 4

A weight is a step's share of the sum over all steps and activations. Each seed has its own noise, images and
directions. Prints one JSON line: for each step the largest deviation of a seed's weight from the seeds' mean, as a
ratio (`deviation`: its median and maximum over steps), and what the last tenth of the steps weighs for each seed.
"""

import argparse
import json

import jax
import models
import numpy as np

import jaxdq
from jaxdq.calibration import Recipe, fit_weights, measure_sensitivity, observe, run_recipe, share_uniformly
from jaxdq.calibration.tools.propagation import Sensitivity
from jaxdq.observers import minmax, minmax_weights
from jaxdq.recipes import default_rules


def main(argv: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="digits", help=models.HELP)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--draws", type=int, default=4)
    args = parser.parse_args(argv)
    denoiser, sampler = models.load(args.model), jaxdq.ddim(args.steps)
    calibrators = (
        fit_weights(minmax_weights()),
        observe(minmax()),
        measure_sensitivity(args.images, args.draws),
        share_uniformly(1),
    )
    recipe = Recipe("sensitivity", default_rules(8, 8), calibrators)
    shares = []
    for seed in range(args.seeds):
        work = run_recipe(denoiser, recipe, sampler=sampler, key=jax.random.key(seed), num_images=args.images)
        by_step = work.fact(Sensitivity).sites.sum(axis=1)
        shares.append(by_step / by_step.sum())
    mean = np.mean(shares, axis=0)
    deviation = np.exp(abs(np.log(np.array(shares) / mean)).max(axis=0))
    last = max(1, args.steps // 10)
    print(
        json.dumps(
            {
                "model": denoiser.name,
                "images": args.images,
                "draws": args.draws,
                "deviation": {"median": round(float(np.median(deviation)), 3), "max": round(float(deviation.max()), 3)},
                "last_tenth": [round(float(share[-last:].sum()), 3) for share in shares],
            }
        )
    )


if __name__ == "__main__":
    main()
