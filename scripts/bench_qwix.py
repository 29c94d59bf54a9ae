"""Layers of Stable Diffusion v1-4 in bfloat16, on our integers, and quantized by Qwix, as a TPU's compiler prices them.

    pip install qwix
    python scripts/bench_qwix.py --chips v5e --json scripts/results/bench_qwix.json

"jaxdq" is what our recipes make: kernels of 8 bits, symmetric, and inputs of 8 bits with a zero point, both of whose
numbers are arguments. "with look-up" adds what picks them at the time t, an argument too, from the tables of eight
groups: once a call of a network, however many layers it has. "symmetric" is what a rule without the zero point brings.
Qwix's kernels and inputs have 8 bits, symmetric; "qwix static" are its rules with `act_static_scale=True`, "qwix
dynamic" its default, which measures the input at every call. Nothing runs on a TPU: the numbers are thousands of cycles
of the compiler's simulated schedule, of a layer that finds its params in fast memory, as any but the first of a network
does; what it does to them (converting, laying out anew) counts. A number that the simulation did not give is the
heuristic's and is left out.
"""

import argparse
import dataclasses
import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import qwix

import jaxdq
from jaxdq.cost import CHIPS, compile_for, export_framed
from jaxdq.grid import Grid, QParams, Scheme
from jaxdq.linen import Calibration, QuantizedParams, call_on_integers, find_sites, make_plan, unfitted_acts
from jaxdq.recipes import default_rules

GROUPS, TIMESTEPS = 8, 1000

# Name -> (module, shape of its input): whole layers or, of large images, some rows.
LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "3x3 320, 8 x 8 x 32": (nn.Conv(320, (3, 3)), (8, 8, 32, 320)),
    "3x3 640, 8 x 4 x 32": (nn.Conv(640, (3, 3)), (8, 4, 32, 640)),
    "3x3 1280, 8 x 4 x 16": (nn.Conv(1280, (3, 3)), (8, 4, 16, 1280)),
    "3x3 1280, 8 x 8 x 8": (nn.Conv(1280, (3, 3)), (8, 8, 8, 1280)),
    "3x3 640, 2 x 16 x 16": (nn.Conv(640, (3, 3)), (2, 16, 16, 640)),
    "3x3 1280, 2 x 8 x 8": (nn.Conv(1280, (3, 3)), (2, 8, 8, 1280)),
    "1x1 320, 8 x 8 x 32": (nn.Conv(320, (1, 1)), (8, 8, 32, 320)),
    "dense 320 to 320, 2048 tokens": (nn.Dense(320), (8, 256, 320)),
    "dense 320 to 2560, 2048 tokens": (nn.Dense(2560), (8, 256, 320)),
    "dense 1280 to 320, 2048 tokens": (nn.Dense(320), (8, 256, 1280)),
    "dense 640 to 640, 2048 tokens": (nn.Dense(640), (8, 256, 640)),
    "dense 1280 to 10240, 512 tokens": (nn.Dense(10240), (8, 64, 1280)),
}


class Layer(nn.Module):
    """A network of one layer, with a time that it makes no use of."""

    layer: nn.Module

    @nn.compact
    def __call__(self, x: jax.Array, t: int) -> jax.Array:
        """Map x as the layer does."""
        return self.layer(x)


def main(argv: list[str] | None = None) -> None:
    """Ask and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chips", nargs="+", choices=CHIPS, default=["v5e"])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    variants: dict[str, Callable] = {
        "bfloat16": in_float,
        "jaxdq": ours,
        "jaxdq, symmetric": lambda layer, x: ours(layer, x, True),
        "jaxdq, with look-up": ours_with_look_up,
        "qwix static": lambda layer, x: by_qwix(layer, x, True),
        "qwix dynamic": lambda layer, x: by_qwix(layer, x, False),
    }
    programs = []
    for module, shape in LAYERS.values():
        x = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
        for make in variants.values():
            function, params = make(module, x)
            programs.append(export_framed(lambda inputs, params, f=function: f(params, *inputs), (x,), params))
    found: dict[str, Any] = {
        "unit": "thousands of cycles",
        "jax": jax.__version__,
        "qwix": importlib.metadata.version("qwix"),
        "chips": {},
    }
    for chip in args.chips:
        answers = iter(compile_for(programs, CHIPS[chip]))
        rows = {name: {variant: next(answers).program for variant in variants} for name in LAYERS}
        found["chips"][chip] = {
            name: {
                variant: round(sum(program.cycles.values()) / 1e3, 1)
                for variant, program in row.items()
                if not program.guessed
            }
            for name, row in rows.items()
        }
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


def in_float(layer: nn.Module, x: jax.ShapeDtypeStruct) -> tuple[Callable, Any]:
    """(function of params and x, shapes of the params), in bfloat16."""
    params = jax.eval_shape(layer.init, jax.random.key(0), x)
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), params)
    return layer.apply, params


def ours(layer: nn.Module, x: jax.ShapeDtypeStruct, symmetric: bool = False) -> tuple[Callable, Any]:
    """Likewise, on our integers, called with the grid of its input."""
    _, qparams = _quantized(layer, x, symmetric)
    scheme = qparams.plan.by_path["layer"].act
    assert scheme is not None
    scale, zero_point = (jax.ShapeDtypeStruct((), dtype) for dtype in (jnp.float32, jnp.int32))
    grid = QParams(scale, None if scheme.symmetric else zero_point)  # type: ignore[arg-type]

    def function(given: Any, x: jax.Array) -> Any:
        params, grid = given

        def visit(next_fun: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
            return call_on_integers(context.module, args, [grid], scheme, "bfloat16")

        with nn.intercept_methods(visit):
            return layer.apply({"params": params}, x)

    return function, (qparams.params["layer"], grid)


def ours_with_look_up(layer: nn.Module, x: jax.ShapeDtypeStruct) -> tuple[Callable, Any]:
    """Likewise, called with a time."""
    network, qparams = _quantized(layer, x)
    t = jax.ShapeDtypeStruct((), jnp.int32)
    return lambda given, x: jaxdq.apply(network, given[0], x, given[1]), (qparams, t)


def _quantized(layer: nn.Module, x: jax.ShapeDtypeStruct, symmetric: bool = False) -> tuple[nn.Module, QuantizedParams]:
    """(a network of this layer, what recipes make of its params, as shapes)."""
    network = Layer(layer)
    params = jax.eval_shape(lambda x: network.init(jax.random.key(0), x, 0), x)["params"]
    sites = find_sites(network, params, x, jax.ShapeDtypeStruct((), jnp.int32))
    rules = default_rules(8, 8)(sites)
    if symmetric:
        rules = [dataclasses.replace(rule, act=Scheme(8)) for rule in rules]
    plan = make_plan(rules, sites)

    def quantized(params: Any) -> QuantizedParams:
        kernel, (site,) = params["layer"]["kernel"], plan.sites
        scale = jnp.ones((1,) * (kernel.ndim - 1) + kernel.shape[-1:])
        assert site.weight is not None
        acts = unfitted_acts(plan.columns, TIMESTEPS, num_groups=GROUPS)
        calib = Calibration({site.path: Grid(QParams(scale), site.weight)}, acts, plan)
        return jaxdq.quantize(params, calib, dtype="bfloat16")

    return network, jax.eval_shape(quantized, params)


def by_qwix(layer: nn.Module, x: jax.ShapeDtypeStruct, static: bool) -> tuple[Callable, Any]:
    """Likewise, by Qwix's post-training quantization."""
    rule = qwix.QuantizationRule(weight_qtype=jnp.int8, act_qtype=jnp.int8, act_static_scale=static)
    model = qwix.quantize_model(layer, qwix.PtqProvider([rule]))
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    wide = jnp.float32

    def narrow(leaf: Any) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16 if leaf.dtype == wide else leaf.dtype)

    return model.apply, jax.tree.map(narrow, variables)


if __name__ == "__main__":
    main()
