"""Time every form that an integer convolution can take: the measurements behind the table in jaxdq/ops/_lowering.py.

    python scripts/bench_forms.py --platform cpu --json jaxdq/ops/forms_cpu.json
    python scripts/bench_forms.py --platform tpu:v5e --json jaxdq/ops/forms_tpu_v5e.json

On "cpu" and "gpu" the forms run in turn and the median of the rounds counts, in milliseconds. On a modelled chip the
numbers are thousands of cycles of the compiler's simulated schedule; nothing runs. Every row quantizes a float input,
convolves, rescales and adds a bias, so that what a form costs its neighbours is in; "float" is the convolution in
float32, or on a modelled chip in bfloat16. `compile_cpu_ms` is what compiling that layer takes, in milliseconds of CPU
(no modelled chip has it): a form that gains 0.1 ms a call and takes 100 more to compile pays after 1,000 calls. Shapes
that the JSON has are not measured again.
"""

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxdq.cost import CHIPS, compile_for, export_framed
from jaxdq.ops import Window
from jaxdq.ops._forms import FORMS, convolve

# (batch, side, channels in, channels out), of 3x3 windows unless a fifth number says otherwise.
SHAPES = {
    "cpu": [(8, 16, 24, 24), (8, 8, 48, 48), (8, 4, 96, 96), (2, 32, 320, 320), (2, 16, 640, 640), (2, 8, 1280, 1280)],
    "tpu": [
        (2, 32, 320, 320),
        (8, 16, 320, 320),
        (2, 16, 960, 320),
        (8, 16, 960, 320),
        (2, 32, 640, 640),
        (2, 16, 640, 640),
        (8, 16, 640, 640),
        (2, 8, 1280, 1280),
    ],
}


def main(argv: list[str] | None = None) -> None:
    """Measure and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--platform", choices=["cpu", "gpu", *(f"tpu:{name}" for name in CHIPS)], default="cpu")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    is_modelled = args.platform.startswith("tpu")
    kept = json.loads(args.json.read_text()) if args.json and args.json.exists() else {"rows": {}}
    rows, compiling = kept["rows"], kept.get("compile_cpu_ms", {})
    for shape in SHAPES["tpu" if is_modelled else "cpu"]:
        name = "x".join(map(str, shape))
        calls = {
            form: call_of(form, shape, jnp.bfloat16 if is_modelled else jnp.float32) for form in ("float", *args.forms)
        }

        def missing(found: dict, name: str = name, calls: dict = calls) -> dict:
            return {form: call for form, call in calls.items() if form not in found.get(name, {})}

        if wanted := missing(rows):
            times = modelled(wanted, args.platform) if is_modelled else measured(wanted, args.platform, args.rounds)
            rows[name] = {**rows.get(name, {}), **times}
        if not is_modelled and (wanted := missing(compiling)):
            compiling[name] = {**compiling.get(name, {}), **compile_times(wanted, args.platform)}
        found = {
            "platform": args.platform,
            "unit": "thousands of cycles" if is_modelled else "milliseconds",
            "jax": jax.__version__,
            "rows": rows,
            **({} if is_modelled else {"compile_cpu_ms": compiling}),
        }
        if args.json:
            part = args.json.with_suffix(".part")
            part.write_text(json.dumps(found, indent=1) + "\n")
            part.replace(args.json)
    print(json.dumps({"platform": args.platform, "rows": rows, "compile_cpu_ms": compiling}))


def call_of(form: str, shape: tuple[int, ...], dtype: jnp.dtype) -> tuple[Callable, tuple]:
    """(function, shapes of its arguments) of one layer in one form."""
    batch, side, channels, features, taps = (*shape, 3)[:5]
    window, pads = Window((1, 1)), [(taps // 2, taps // 2)] * 2
    x = jax.ShapeDtypeStruct((batch, side, side, channels), dtype)
    kernel = jax.ShapeDtypeStruct((taps, taps, channels, features), dtype if form == "float" else jnp.int8)
    scale = jax.ShapeDtypeStruct((features,), jnp.float32)

    def layer(x: jax.Array, kernel: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
        if form == "float":
            return convolve(x, kernel, window, pads, dtype) + bias.astype(dtype)
        codes = jnp.clip(jnp.round(x.astype(jnp.float32) * scale[0]), -128, 127).astype(jnp.int8)
        total = FORMS[form](codes, kernel, window, pads)
        return (total.astype(jnp.float32) * scale + bias).astype(dtype)

    return layer, (x, kernel, scale, scale)


def modelled(calls: dict[str, tuple[Callable, tuple]], platform: str) -> dict[str, float]:
    """Thousands of cycles of each call's final schedule."""
    programs = [
        export_framed(lambda inputs, rest, layer=layer: layer(*inputs, *rest), args[:1], args[1:])
        for layer, args in calls.values()
    ]
    answers = compile_for(programs, CHIPS[platform.removeprefix("tpu:")])
    # What the heuristic guessed is no measurement.
    return {
        form: round(sum(answer.program.cycles.values()) / 1e3, 1)
        for form, answer in zip(calls, answers, strict=True)
        if not answer.program.guessed
    }


def measured(calls: dict[str, tuple[Callable, tuple]], platform: str, rounds: int) -> dict[str, float]:
    """Median milliseconds of each call, the calls in turn."""
    device = jax.devices(platform)[0]
    compiled = {}
    for form, (layer, shapes) in calls.items():
        keys = jax.random.split(jax.random.key(0), len(shapes))
        pairs = zip(keys, shapes, strict=True)
        args = [jax.device_put((100 * jax.random.normal(key, s.shape)).astype(s.dtype), device) for key, s in pairs]
        compiled[form] = functools.partial(jax.jit(layer).lower(*args).compile(), *args)
    times: dict[str, list[float]] = {form: [] for form in calls}
    for index in range(rounds + 1):
        for form, call in compiled.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            if index:
                times[form].append(1e3 * (time.perf_counter() - start))
    return {form: round(statistics.median(seconds), 3) for form, seconds in times.items()}


def compile_times(calls: dict[str, tuple[Callable, tuple]], platform: str) -> dict[str, float]:
    """Milliseconds of CPU, of all threads, that compiling each call takes: the least of three."""
    times: dict[str, list[float]] = {form: [] for form in calls}
    with jax.default_device(jax.devices(platform)[0]):
        for _ in range(3):
            for form, (layer, shapes) in calls.items():
                lowered = jax.jit(layer).lower(*shapes)
                start = time.process_time()
                lowered.compile()
                times[form].append(1e3 * (time.process_time() - start))
                jax.clear_caches()
    return {form: round(min(milliseconds), 1) for form, milliseconds in times.items()}


if __name__ == "__main__":
    main()
