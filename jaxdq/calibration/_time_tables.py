"""Tables in place of the layers that see nothing but the time (Efficiency Meets Fidelity)."""

import dataclasses
import warnings
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxdq._common.errors import InputError, InputWarning
from jaxdq.calibration._base import Run, Work, calibrator
from jaxdq.linen import (
    Calibration,
    TimeTable,
    apply_visited,
    layers_of,
    layers_of_time,
    params_at,
    with_leaves,
)

TableDtype = Literal["float32", "float16", "bfloat16"]


@calibrator()
def tabulate_time(dtype: TableDtype = "float32") -> Run:
    """Replaces the time embedding, and what each block makes of it, by rows for the sampler's steps.

    A layer whose inputs depend on t and the params alone returns the same rows for every image, so that one row for
    each of the sampler's S times,

        rows[s] = kernel^T input(t_s) + bias,

    computed in float32 by the float network, is exact, and nothing of it is quantized. Which layers these are is found
    by data flow; an embedding that only tabled layers read needs no rows at all. Where a class or a text joins the time
    before the blocks project it, only what comes before is tabled.

    The network runs at the sampler's times from then on and at no other: `jaxdq.sample` says so before it draws.

    Args:
        dtype: Of the rows.

    Returns:
        A calibrator that puts tables into the calibration. It warns, and does nothing, where no layer is one of time
        alone.

    Raises:
        InputError: An unknown dtype; rows that are not finite in it.

    Source: "Efficiency Meets Fidelity", arXiv 2412.06661: time-information precalculation.
    """
    if dtype not in get_args(TableDtype):
        raise InputError(f"dtype is {dtype!r}; give one of {', '.join(map(repr, get_args(TableDtype)))}.")

    def run(work: Work, key: jax.Array) -> Work:
        del key
        tables = _tables(work, dtype)
        if not tables:
            warnings.warn(
                f"no layer of '{work.denoiser.name}' depends on the time alone, so that time_tables changes nothing.",
                InputWarning,
                stacklevel=2,
            )
            return work.logging("tabulate_time", {"layers": 0})
        own = jax.tree.leaves([params_at(work.denoiser.params, path) for path in tables])
        log = {
            "layers": len(tables),
            "times": len(work.data.t),
            "parameters": sum(int(np.size(leaf)) for leaf in own),
            "table_bytes": sum(table.rows.nbytes for table in tables.values()),
            "macs": sum(site.site.macs for site in work.plan.sites if site.path in tables),
        }
        return work._replace(calib=_tabled(work.calib, tables)).logging("tabulate_time", log)

    return run


def _tabled(calib: Calibration, tables: dict[str, TimeTable]) -> Calibration:
    """The calibration, and the one that runs in its place at some times, with these tables."""
    instead = calib.instead
    if instead is not None and isinstance(instead.calib, Calibration):
        instead = dataclasses.replace(instead, calib=_tabled(instead.calib, tables))
    return dataclasses.replace(calib, tables={**calib.tables, **tables}, instead=instead)


def _tables(work: Work, dtype: str) -> dict[str, TimeTable]:
    denoiser = work.denoiser
    params = with_leaves(denoiser.params, work.calib.params)
    x, args = jnp.zeros((2, *denoiser.shape), jnp.float32), denoiser.args(jnp.arange(2))
    found = layers_of_time(denoiser.module, params, x, jnp.zeros((), work.data.t.dtype), *args)
    layers = layers_of(denoiser.module, params, x, jnp.zeros((), work.data.t.dtype), *args)
    t = jnp.asarray(work.data.t)

    @jax.jit
    def rows_of(params: Any, t: jax.Array) -> dict[str, jax.Array]:
        def at(one: jax.Array) -> dict[str, jax.Array]:
            seen = {}

            def look(name: str, value: jax.Array) -> jax.Array:
                if name in found:
                    seen[name] = value
                return value

            apply_visited(denoiser.module, params, look, x, one, *args)
            return {path: _one_row(layers[path], params_at(params, path), seen[path]) for path in found}

        return jax.lax.map(at, t)

    rows = rows_of(params, t)
    times = jnp.asarray(t, jnp.float32)
    return {
        path: TimeTable(times, _in_dtype(rows[path], dtype, path))
        if is_read
        else TimeTable(times[:1], jnp.zeros_like(rows[path][:1]))
        for path, is_read in found.items()
    }


def _one_row(layer: Any, params: Any, x: jax.Array) -> jax.Array:
    """What the layer returns for one row of the batch, in float32; a vector has no batch."""
    exact = layer.clone(dtype=jnp.float32, precision=jax.lax.Precision.HIGHEST)
    out = exact.apply({"params": params}, x)
    return out if x.ndim == 1 else out[0]


def _in_dtype(rows: jax.Array, dtype: str, path: str) -> jax.Array:
    cast = rows.astype(dtype)
    if not bool(jnp.isfinite(cast).all()):
        raise InputError(f"the output of '{path}' is not finite in {dtype}; give dtype='float32'.")
    return cast
