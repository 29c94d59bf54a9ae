"""Where the bytes of a network are, before and after."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdq.grid import Grid, QParams, QTensor, Scheme, stored_bytes
from jaxdq.linen import Acts, Calibration, Plan, QuantizedParams, SitePlan, kernel_at, quantize


class SizeRow(NamedTuple):
    """One line of the table of sizes.

    Attributes:
        label: What is counted, in plain words.
        float_bytes: Bytes in the float model.
        quantized_bytes: Bytes in the quantized model, codes packed, scales included.
    """

    label: str
    float_bytes: int
    quantized_bytes: int


def size_rows(params: Any, qparams: QuantizedParams) -> list[SizeRow]:
    """The bytes by kind of layer; the rows add up to the whole of both models.

    Args:
        params: The float model's.
        qparams: The quantized one's.

    Returns:
        Rows, the largest float bytes first.
    """
    sums: dict[str, list[int]] = {}
    for site in qparams.plan.sites:
        if site.site.kind != "product":
            row = sums.setdefault(_label(site), [0, 0])
            row[0] += stored_bytes(kernel_at(params, site.path))
            row[1] += stored_bytes(kernel_at(qparams.params, site.path))
    kernels = [sum(column) for column in zip(*sums.values(), strict=True)] or [0, 0]
    tables = stored_bytes(qparams.acts)
    sums["biases, norms, embeddings"] = [
        stored_bytes(params) - kernels[0],
        stored_bytes(qparams.params) - kernels[1],
    ]
    sums["activation scales and time groups"] = [0, tables]
    rows = [SizeRow(label, *row) for label, row in sums.items() if any(row)]
    return sorted(rows, key=lambda row: row.float_bytes, reverse=True)


def planned_bytes(params: Any, plan: Plan) -> int:
    """Bytes of the network that the plan makes with one group, before any work is done.

    Args:
        params: Arrays or `jax.ShapeDtypeStruct`.
        plan: Plan of the network.
    """
    table, one_group = (1, len(plan.columns)), _no_array((1,), jnp.int32)
    acts = Acts(_no_array(table, jnp.float32), _no_array(table, jnp.int32), one_group, plan.columns)
    weights: dict[str, Grid | QTensor] = {
        site.path: Grid(_no_qparams(site, site.weight), site.weight) for site in plan.sites if site.weight
    }
    return stored_bytes(jax.eval_shape(quantize, params, Calibration(weights, acts, plan)))


def _no_array(shape: tuple[int, ...], dtype: Any) -> Any:
    """What `jax.eval_shape` takes for an array: its shape."""
    return jax.ShapeDtypeStruct(shape, dtype)


def _no_qparams(site: SitePlan, scheme: Scheme) -> QParams:
    shape = site.site.shape
    cut = (site.input_axis,) if site.parts else ()
    kept = {*scheme.channel_axes(len(shape)), *cut}
    scales = tuple(size if axis in kept else 1 for axis, size in enumerate(shape)) if kept else ()
    return QParams(_no_array(scales, jnp.float32), None if scheme.symmetric else _no_array(scales, jnp.int32))


def _label(site: SitePlan) -> str:
    """The kind of layer in a few words: `3x3 convolutions`, `dense layers, weights only`."""
    how = "" if site.is_integer else ", weights only" if site.weight else ", float"
    if site.site.kind != "conv":
        return f"dense layers{how}"
    window = site.site.shape[:-2]
    points = math.prod(window) == 1
    return f"{'1x1' if points else 'x'.join(map(str, window))} convolutions{how}"
