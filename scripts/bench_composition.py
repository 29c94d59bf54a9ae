"""Whole blocks of Stable Diffusion v1-4 as a TPU's compiler prices them, beside the sum of their calls.

    python scripts/bench_composition.py --json scripts/results/bench_composition.json

`jaxdq bench` adds up the calls of a network, each priced as a program of its own. Here a block is one program, in which
the compiler may fuse across calls and keep activations in fast memory; the numbers are milliseconds of the simulated
schedule of both, and the bytes that the whole moves to and from memory beside those that the sum counts. Inputs are on
integers as the recipes have them: with a zero point, from the tables of eight groups at a time that is an argument. A
whole that no schedule was simulated for says so in "guessed". Nothing runs on a TPU. Blocks that the JSON has stay as
they are.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import export

import jaxdq
from jaxdq.cost import CHIPS, ExecutionMode, Variant, compile_for, export_framed, modelled, network_of
from jaxdq.grid import Grid, QParams, Scheme
from jaxdq.linen import Calibration, Plan, Rule, find_sites, make_plan, unfitted_acts
from jaxdq.models.unet._blocks import ResnetBlock, Style
from jaxdq.models.unet._transformer import TORCH, TransformerBlock

STYLE = Style(32, 1e-5, False)
# Name -> (block, shape of x, shape of what else it takes: the embedding of the time, or of the text).
BLOCKS: dict[str, tuple[nn.Module, tuple[int, ...], tuple[int, ...]]] = {
    "residual 640, 2 x 32 x 32": (ResnetBlock(640, STYLE), (2, 32, 32, 640), (1, 1280)),
    "residual 1280, 8 x 16 x 16": (ResnetBlock(1280, STYLE), (8, 16, 16, 1280), (1, 1280)),
    "transformer 640, 1 x 1024": (TransformerBlock(8, TORCH.approximate_gelu), (1, 1024, 640), (1, 77, 768)),
    "transformer 1280, 8 x 256": (TransformerBlock(8, TORCH.approximate_gelu), (8, 256, 1280), (8, 77, 768)),
}
MODES = {"bfloat16": ExecutionMode(), "W8A8": ExecutionMode(quantized=True, act="static")}


class Timed(nn.Module):
    """A block with a time that it makes no use of."""

    block: nn.Module

    @nn.compact
    def __call__(self, x: jax.Array, t: int, other: jax.Array) -> jax.Array:
        """Map x as the block does."""
        return self.block(x, other)


def main(argv: list[str] | None = None) -> None:
    """Ask and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chip", choices=CHIPS, default="v5e")
    parser.add_argument("--blocks", nargs="+", choices=BLOCKS, default=list(BLOCKS))
    parser.add_argument("--limit", type=float, default=300.0, help="seconds that the profiler has for a whole block")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    rows: dict[str, Any] = json.loads(args.json.read_text()) if args.json and args.json.exists() else {}
    for name in args.blocks:
        for variant, mode in MODES.items():
            key = f"{name}, {variant}, {args.chip}"
            if key in rows:
                continue
            rows[key] = priced(*BLOCKS[name], mode, args.chip, args.limit)
            if args.json:
                args.json.write_text(json.dumps(rows, indent=1) + "\n")
    print(json.dumps({"unit": "milliseconds of schedule", "rows": rows}))


def priced(
    block: nn.Module, shape: tuple[int, ...], other: tuple[int, ...], mode: ExecutionMode, chip: str, limit_s: float
) -> dict[str, Any]:
    """One row."""
    whole, variant = assembled(block, shape, other, mode, Scheme(8, symmetric=False))
    (answer,) = compile_for([whole], CHIPS[chip], limit_s=limit_s)
    summed = modelled({"": variant}, CHIPS[chip])[""]
    return {
        "whole": sum(answer.program.cycles.values()) / CHIPS[chip].clock * 1e3,
        "guessed": answer.program.guessed / max(1, sum(answer.program.cycles.values())),
        "sum": summed.schedule_milliseconds,
        "sum_guessed": summed.guessed_fraction,
        "parts": summed.parts,
        "temp_bytes": answer.temp_bytes,
    }


def assembled(
    block: nn.Module, shape: tuple[int, ...], other: tuple[int, ...], mode: ExecutionMode, act: Scheme
) -> tuple[export.Exported, Variant]:
    """A block as one program, and as what `modelled` takes apart."""
    network = Timed(block)
    inputs = tuple(jax.ShapeDtypeStruct(each, jnp.bfloat16) for each in (shape, other))
    x, context = inputs
    wide = jax.eval_shape(lambda x, c: network.init(jax.random.key(0), x, 0, c), x, context)["params"]
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), wide)
    time = jax.ShapeDtypeStruct((), jnp.int32)
    rules = [Rule("block/time_emb_proj|.*/(scores|values)", reason="as the recipes leave them")]
    rules.append(Rule(".*", Scheme(8, channel_axis=-1), act))
    plan = make_plan(rules, find_sites(network, params, x, time, context))
    given = jax.eval_shape(lambda p: quantized(p, plan), params) if mode.quantized else params

    def call(inputs: tuple, given: Any) -> Any:
        params, t = given
        return jaxdq.apply(network, params, inputs[0], t, inputs[1])

    whole = export_framed(call, inputs, (given, time))
    return whole, Variant(network_of(network, params, x, time, context), mode, plan)


def quantized(params: Any, plan: Plan) -> Any:
    """The params on integers, with ranges that nobody measured: they change no time."""
    weights = {}
    for site in plan.sites:
        if site.weight is not None:
            shape = site.site.shape
            axes = site.site.channel_axes
            scale = jnp.ones([n if axis in axes else 1 for axis, n in enumerate(shape)])
            weights[site.path] = Grid(QParams(scale), site.weight)
    calib = Calibration(weights, unfitted_acts(plan.columns, 1000, num_groups=8), plan)
    return jaxdq.quantize(params, calib, dtype="bfloat16")


if __name__ == "__main__":
    main()
