"""Calibrates and quantizes a model over all devices, of this host or of several, and saves the integers.

    python scripts/calibrate.py digits --recipe adpdm --weight-bits 8 --act-bits 8 --groups 8 --steps 50 --out out/q

On several hosts, the same line on each, with its own number and all with one coordinator (any of them):

    python scripts/calibrate.py digits --out out/q --coordinator HOST:PORT --num-processes 2 --process-id 0

The images of a batch are sharded over the devices, the params replicated; a batch of a multiple of their number wastes
nothing. Every process calibrates; the first one saves DIR, for `jaxdq.restore(DIR)`, and prints one JSON line: seconds
for each phase, and the bytes that one device holds in one call of the float network on one batch, as its compiler
counts them.
"""

import argparse
import itertools
import json
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import models

import jaxdq
from jaxdq import InputError
from jaxdq.app.arguments import pairs
from jaxdq.app.conditions import load_model, with_classes
from jaxdq.app.run import Settings, make_recipe, make_sampler
from jaxdq.checkpoint import check_can_save


def main(argv: list[str] | None = None) -> None:
    """Calibrate, quantize, save and print; what the input is at fault for is one sentence and exit code 2."""
    args = parsed(argv)
    try:
        calibrate(args)
    except InputError as error:
        print(f"calibrate.py: {error}", file=sys.stderr)
        sys.exit(2)


def calibrate(args: argparse.Namespace) -> None:
    """What the command line asks for."""
    settings = Settings(
        args.model,
        args.recipe,
        weight_bits=args.weight_bits,
        act_bits=args.act_bits,
        groups=args.groups,
        ranges=args.ranges,
        arguments=pairs(args.set or ()),
        seed=args.seed,
        calibration_images=args.calibration_images,
        batch_size=args.batch_size,
        images=max(2, args.calibration_images),  # of no use here but to say how many prompts there shall be
        prompts=args.prompts,
        guidance=args.guidance,
        classes=args.classes,
    )
    recipe, sampler = make_recipe(settings), make_sampler("ddim", args.steps)
    if args.coordinator:
        jax.distributed.initialize(args.coordinator, args.num_processes, args.process_id)
    mesh = jax.make_mesh((jax.device_count(),), ("batch",))
    laps = [time.perf_counter()]
    if args.prompts is None:
        denoiser, _ = with_classes(models.load(args.model), settings.class_ids)
    else:
        denoiser, _ = load_model(settings)
    laps.append(time.perf_counter())
    calib = jaxdq.calibrate(
        denoiser,
        recipe,
        sampler=sampler,
        key=jax.random.key(args.seed),
        num_images=args.calibration_images,
        batch_size=args.batch_size,
        checkpoint_dir=args.checkpoint_dir,
        mesh=mesh,
    )
    laps.append(time.perf_counter())
    if jax.process_index() == 0:
        jaxdq.save(args.out, jax.jit(jaxdq.quantize)(denoiser.params, calib))
        laps.append(time.perf_counter())
        seconds = [round(end - start, 2) for start, end in itertools.pairwise(laps)]
        report = {
            "devices": mesh.size,
            "processes": jax.process_count(),
            "batch_size": args.batch_size,
            "seconds": dict(zip(("load", "calibrate", "quantize and save"), seconds, strict=True)),
            "bytes_per_device": bytes_per_device(
                denoiser, -(-min(args.batch_size, args.calibration_images) // mesh.size)
            ),
        }
        print(json.dumps(report))


def parsed(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help=models.HELP)
    parser.add_argument("--recipe", default="adpdm")
    parser.add_argument("--weight-bits", type=int, default=8)
    parser.add_argument("--act-bits", type=int, default=8)
    parser.add_argument("--groups", type=int)
    parser.add_argument("--ranges", help="minmax, mse, percentile or learned; the recipe's own choice if not given")
    parser.add_argument("--set", action="append", metavar="NAME=VALUE", help="an argument of the recipe; repeat it")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--calibration-images", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=32, help="images at a time, over all devices together")
    parser.add_argument("--prompts", help="of a text-to-image model: a text file, one prompt a line")
    parser.add_argument("--guidance", type=float, default=7.5, help="scale of classifier-free guidance, with --prompts")
    parser.add_argument("--classes", help="of a class-conditional model, those to calibrate on: 0,5,9")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", required=True, help="a folder that does not exist yet")
    parser.add_argument("--checkpoint-dir", help="keeps the state of a run that may be killed; on a shared disk")
    parser.add_argument("--coordinator", help="HOST:PORT of the first process")
    parser.add_argument("--num-processes", type=int)
    parser.add_argument("--process-id", type=int)
    args = parser.parse_args(argv)
    try:
        check_can_save(args.out)
    except jaxdq.InputError as error:
        parser.error(f"--out: {error}")
    # Without a coordinator each process would be alone, and take itself for the first.
    together = (args.coordinator, args.num_processes, args.process_id)
    if together != (None, None, None):
        if None in together or not 0 <= args.process_id < args.num_processes:
            parser.error("give all of --coordinator, --num-processes N and --process-id (0 to N - 1), or none.")
        if not args.coordinator.rpartition(":")[0] or not args.coordinator.rpartition(":")[2].isdigit():
            parser.error(f"--coordinator is '{args.coordinator}'; give HOST:PORT.")
    return args


def bytes_per_device(denoiser: Any, images: int) -> dict[str, int]:
    """What one device holds while the float network sees its share of a batch."""
    x = jax.ShapeDtypeStruct((images, *denoiser.shape), jnp.float32)
    call = jax.jit(lambda params, x, t, *args: jaxdq.apply(denoiser.module, params, x, t, *args))
    t = jax.ShapeDtypeStruct((), jnp.int32)
    memory = call.lower(denoiser.params, x, t, *denoiser.abstract_args(images)).compile().memory_analysis()
    params = jaxdq.stored_bytes(denoiser.params)
    batch = memory.argument_size_in_bytes - params + memory.output_size_in_bytes
    return {"params": params, "states and outputs": batch, "activations": memory.temp_size_in_bytes}


if __name__ == "__main__":
    main()
