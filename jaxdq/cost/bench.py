"""How fast a model runs in float and on integers: measured where the platform is at hand, modelled for a TPU."""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdq import cost, recipes
from jaxdq._common.errors import InputError
from jaxdq._common.progress import track
from jaxdq.calibration import plan_for, weight_grids
from jaxdq.cost import ExecutionMode
from jaxdq.diffusion import Denoiser
from jaxdq.grid import stored_bytes
from jaxdq.linen import Calibration, Plan, apply, apply_dynamic, is_attention, quantize, unfitted_acts
from jaxdq.models.unet import load_denoiser
from jaxdq.observers import minmax_weights

BASELINE = "bfloat16, whole scores"
MEASURED = ("cpu", "gpu", "tpu")


class VariantSpec(NamedTuple):
    """One variant that is compared.

    Attributes:
        mode: How it runs; its dtype is that of activations where the platform is fast in bfloat16.
        weight_bits: Bits of kernels.
        act_bits: Bits of inputs.
        what: One line for readers.
    """

    mode: ExecutionMode
    weight_bits: int
    act_bits: int
    what: str


_STATIC, _BLOCKS = ExecutionMode(quantized=True, act="static"), ExecutionMode()
ROWS = {
    "float32": VariantSpec(ExecutionMode(dtype=jnp.float32), 32, 32, "as checkpoints come"),
    BASELINE: VariantSpec(ExecutionMode(blocked=False), 16, 16, "as diffusers' Flax classes run"),
    "bfloat16": VariantSpec(_BLOCKS, 16, 16, "attention in blocks of queries"),
    "W8A8": VariantSpec(_STATIC, 8, 8, "what jaxdq.quantize makes"),
    "W4A8": VariantSpec(_STATIC, 4, 8, "what jaxdq.quantize makes"),
    "W8A8 dynamic": VariantSpec(ExecutionMode(quantized=True, act="dynamic"), 8, 8, "ranges measured at every call"),
    "W8A16": VariantSpec(ExecutionMode(quantized=True), 8, 16, "kernels made float again at every call"),
}


def bench_model(
    model: str, *, platform: str = "cpu", batch_size: int = 8, variants: Sequence[str] = (), rounds: int = 10
) -> dict[str, Any]:
    """The time and the bytes of one call of a model's network, in each variant of `ROWS`.

    On "cpu", "gpu" and "tpu" the network runs there, variants in turn, and the median of the rounds counts. On
    "tpu:v5e" and "tpu:v6e" nothing runs: see `jaxdq.cost.modelled`; weights are not read, and may be absent.

    Args:
        model: What `jaxdq.load_denoiser` takes.
        platform: "cpu", "gpu", "tpu", or a modelled chip.
        batch_size: Rows of the batch.
        variants: Names of `ROWS`; none is all. `BASELINE` is always among them.
        rounds: Calls of each variant that are timed.

    Returns:
        What `jaxdq bench --json` prints: `rows`, variant -> figures, each with `ratio`, how many times as fast as
        `BASELINE` in this run.

    Raises:
        InputError: An unknown variant or platform, a platform that is not at hand, or a compiler that is not installed.
    """
    names = list(dict.fromkeys((BASELINE, *(variants or ROWS))))
    unknown = [name for name in names if name not in ROWS]
    if unknown:
        raise InputError(f"'{unknown[0]}' is no variant; give some of {', '.join(map(repr, ROWS))}.")
    if batch_size < 1 or rounds < 1:
        raise InputError(f"batch_size is {batch_size} and rounds {rounds}; give at least 1 of each.")
    start = time.perf_counter()
    is_here = platform in MEASURED
    if is_here:
        with jax.default_device(_device(platform)):
            rows = _measured(_with_conditions(model, batch_size), names, batch_size, rounds)
    else:
        chip = cost.chip_of(platform)
        cost.check_installed()
        rows = _modelled(load_denoiser(model, weights=False), names, batch_size, chip)
    ordered = {name: rows[name] for name in ROWS if name in rows}
    for figures in ordered.values():
        figures["ratio"] = rows[BASELINE]["milliseconds"] / figures["milliseconds"]
    return {
        "model": model,
        "platform": platform,
        "how": "measured" if is_here else "modelled",
        "batch_size": batch_size,
        "baseline": BASELINE,
        "jax": jax.__version__,
        "seconds": time.perf_counter() - start,
        "rows": ordered,
    }


def _modelled(denoiser: Denoiser, names: Sequence[str], batch_size: int, chip: cost.Chip) -> dict[str, dict[str, Any]]:
    variants, argument_bytes = {}, {}
    for name in names:
        row = ROWS[name]
        plan, params = _plan(denoiser, row), _cast(denoiser.params, row.mode.dtype)
        x, t, *args = _inputs(denoiser, batch_size, row.mode.dtype)
        variants[name] = cost.Variant(cost.network_of(denoiser.module, params, x, t, *args), row.mode, plan)
        kept = params
        if row.mode.quantized:
            # Scales and zero points of activations are part of what runs, one of each here.
            made = functools.partial(quantize, dtype=row.mode.dtype)
            kept = jax.eval_shape(lambda p, plan=plan, made=made: made(p, _calibration(p, plan)), denoiser.params)
        argument_bytes[name] = stored_bytes((kept, x, t, args))
    found = cost.modelled(variants, chip)
    return {name: _figures(figures, argument_bytes[name]) for name, figures in found.items()}


def _figures(found: cost.Modelled, argument_bytes: int) -> dict[str, Any]:
    figures = found._asdict()
    contractions = figures.pop("contractions")
    return {**figures, "argument_bytes": argument_bytes, "contractions": _by_number(contractions)}


def _by_number(contractions: dict[str, int]) -> dict[str, int]:
    """How many dots and convolutions take integers, and how many anything else."""
    whole = sum(n for operands, n in contractions.items() if all(kind in _INTEGERS for kind in operands.split(" x ")))
    return {"integer": whole, "float": sum(contractions.values()) - whole}


_INTEGERS = ("s8", "s4", "s2", "u8", "s32")


def _measured(denoiser: Denoiser, names: Sequence[str], batch_size: int, rounds: int) -> dict[str, dict[str, Any]]:
    calls: dict[str, Callable[[], Any]] = {}
    rows: dict[str, dict[str, Any]] = {}
    for name in track(names, "compile"):
        function, args = _runnable(denoiser, ROWS[name], batch_size)
        start = time.perf_counter()
        executable = jax.jit(function).lower(*args).compile()
        seconds, memory = time.perf_counter() - start, executable.memory_analysis()
        assert memory is not None
        rows[name] = {
            "argument_bytes": stored_bytes(args),
            "temp_bytes": memory.temp_size_in_bytes,
            "code_bytes": memory.generated_code_size_in_bytes,
            "contractions": _by_number(cost.read_program(executable.as_text() or "").contractions),
            "compile_seconds": seconds,
        }
        calls[name] = functools.partial(executable, *args)
    times: dict[str, list[float]] = {name: [] for name in names}
    for index in track(range(rounds + 1), "measure"):
        for name, call in calls.items():  # in turn: what slows the machine down for a while slows all of them
            start = time.perf_counter()
            jax.block_until_ready(call())
            if index:  # the first call warms up
                times[name].append(time.perf_counter() - start)
    for name, seconds_of_rounds in times.items():
        rows[name]["milliseconds"] = 1e3 * statistics.median(seconds_of_rounds)
        rows[name]["fastest_milliseconds"] = 1e3 * min(seconds_of_rounds)
    return rows


def _runnable(denoiser: Denoiser, row: VariantSpec, batch_size: int) -> tuple[Callable, tuple]:
    """(function, its arguments) of one variant, to be compiled for the default device."""
    # Where bfloat16 is slow, as on a CPU, what an integer network leaves in float runs in float32.
    is_cpu = next(iter(jnp.zeros(()).devices())).platform == "cpu"
    dtype = jnp.float32 if is_cpu and row.mode.quantized else row.mode.dtype
    params, module = denoiser.params, denoiser.module
    inputs = tuple(_filled(shape) for shape in _inputs(denoiser, batch_size, dtype))
    if not row.mode.quantized:
        return (_float if row.mode.blocked else _float_whole)(module), (_cast(params, dtype), *inputs)
    qparams = quantize(params, _calibration(params, _plan(denoiser, row)), dtype=dtype)
    call = apply_dynamic if row.mode.act == "dynamic" else apply
    return (lambda qparams, *args: call(module, qparams, *args)), (qparams, *inputs)


def _float(module: Any) -> Callable:
    return lambda params, *args: module.apply({"params": params}, *args)


def _float_whole(module: Any) -> Callable:
    def visit(next_fun: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        return (context.module.products if is_attention(context) else next_fun)(*args, **kwargs)

    def function(params: Any, *args: Any) -> Any:
        with nn.intercept_methods(visit):
            return module.apply({"params": params}, *args)

    return function


def _plan(denoiser: Denoiser, row: VariantSpec) -> Plan:
    """The recipes' own plan at these bits; kernels alone where activations stay in float."""
    act = row.act_bits if row.mode.act != "float" else 8
    plan = plan_for(denoiser, recipes.uniform_groups(row.weight_bits if row.mode.quantized else 8, act))
    if row.mode.act != "float":
        return plan
    sites = tuple(dataclasses.replace(site, act=None, reason=site.reason or "weights only") for site in plan.sites)
    return dataclasses.replace(plan, sites=sites)


def _calibration(params: Any, plan: Plan) -> Calibration:
    """Ranges that nobody measured: they change no time. One group."""
    acts = unfitted_acts(plan.columns, 1000, scale=0.05)
    return Calibration(weight_grids(params, plan, minmax_weights()), acts, plan)


def _with_conditions(model: str, batch_size: int) -> Denoiser:
    """The model, given made-up conditions where it takes some that nobody gave."""
    shapes = load_denoiser(model, weights=False).abstract_args(batch_size)
    made_up = tuple(_filled(shape) for shape in shapes if jnp.issubdtype(shape.dtype, jnp.floating))
    return load_denoiser(model, conditions=made_up or None)


def _inputs(denoiser: Denoiser, batch_size: int, dtype: Any) -> tuple[jax.ShapeDtypeStruct, ...]:
    x = jax.ShapeDtypeStruct((batch_size, *denoiser.shape), dtype)
    return x, jax.ShapeDtypeStruct((), jnp.int32), *_cast(denoiser.abstract_args(batch_size), dtype)


def _filled(shape: jax.ShapeDtypeStruct) -> jax.Array:
    if not jnp.issubdtype(shape.dtype, jnp.floating):
        return jnp.zeros(shape.shape, shape.dtype)
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape.shape), shape.dtype)


def _cast(tree: Any, dtype: Any) -> Any:
    """The floats of a tree in another dtype; arrays, or shapes of them."""

    def cast(leaf: Any) -> Any:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        is_shape = isinstance(leaf, jax.ShapeDtypeStruct)
        return jax.ShapeDtypeStruct(leaf.shape, dtype) if is_shape else jnp.asarray(leaf, dtype)

    return jax.tree.map(cast, tree)


def _device(platform: str) -> jax.Device:
    try:
        return jax.devices(platform)[0]
    except RuntimeError:
        found = ", ".join(sorted({device.platform for device in jax.devices()}))
        raise InputError(
            f"JAX finds no {platform} here (it finds {found}); give one of those, or model a chip: "
            f"{', '.join(f'tpu:{name}' for name in cost.CHIPS)}."
        ) from None
