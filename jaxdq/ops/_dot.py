"""int8 x int8 -> int32 `dot_general`, and its float twin."""

import math

import jax
import jax.numpy as jnp
from jax import lax

from jaxdq.grid import QTensor, dequantize
from jaxdq.ops._epilogue import check_leaves_contraction, check_terms, finish

DotDims = tuple[tuple[tuple[int, ...], tuple[int, ...]], tuple[tuple[int, ...], tuple[int, ...]]]


def dot_general(
    lhs: QTensor,
    rhs: QTensor,
    dimension_numbers: DotDims,
    *,
    bias: jax.Array | None = None,
    out_dtype: jax.typing.DTypeLike | None = None,
) -> jax.Array:
    """`lax.dot_general` of two quantized tensors by one integer dot; correction, rescale and bias follow it.

    Codes narrower than int8 are widened inside the program (int4 x int4 does not compile on XLA:CPU, and int8 x int4
    falls to int32 there; on TPU the widening fuses into the dot and is free).

    Args:
        lhs: Codes [...] with scales that do not vary along contracted axes.
        rhs: Likewise; its `code_sum` is used where lhs has a zero point and the sum was computed ahead.
        dimension_numbers: ((lhs contracting, rhs contracting), (lhs batch, rhs batch)), non-negative, as in `lax`.
        bias: Float, broadcastable to the output.
        out_dtype: Dtype of the output; None is float32.

    Returns:
        float[*batch, *lhs free, *rhs free].

    Raises:
        InputError: A scale that varies along a contracted axis, or so many terms that int32 could overflow.
    """
    (lhs_contract, rhs_contract), (lhs_batch, rhs_batch) = dimension_numbers
    terms = math.prod(lhs.shape[axis] for axis in lhs_contract)
    check_terms(terms, lhs, rhs)
    check_leaves_contraction(lhs.qparams.scale, lhs.ndim, lhs_contract, "lhs")
    check_leaves_contraction(rhs.qparams.scale, rhs.ndim, rhs_contract, "rhs")
    total = lax.dot_general(
        lhs.qvalue.astype(jnp.int8),
        rhs.qvalue.astype(jnp.int8),
        dimension_numbers,
        preferred_element_type=jnp.int32,
    )
    lhs_free = lhs.ndim - len(lhs_contract) - len(lhs_batch)
    rhs_free = rhs.ndim - len(rhs_contract) - len(rhs_batch)

    def from_lhs(value: jax.Array) -> jax.Array:
        return _to_output(value, lhs_contract, lhs_batch, before=0, after=rhs_free)

    def from_rhs(value: jax.Array) -> jax.Array:
        return _to_output(value, rhs_contract, rhs_batch, before=lhs_free, after=0)

    lhs_zero, rhs_zero = lhs.qparams.zero_point, rhs.qparams.zero_point
    correction: jax.Array | int = 0
    if rhs_zero is not None:
        correction = correction + from_rhs(rhs_zero) * from_lhs(code_sum(lhs, lhs_contract))
    if lhs_zero is not None:
        correction = correction + from_lhs(lhs_zero) * from_rhs(code_sum(rhs, rhs_contract))
    if lhs_zero is not None and rhs_zero is not None:
        correction = correction - terms * from_lhs(lhs_zero) * from_rhs(rhs_zero)
    return finish(total, correction, from_lhs(lhs.qparams.scale) * from_rhs(rhs.qparams.scale), bias, out_dtype)


def dot_general_float(
    lhs: QTensor,
    rhs: QTensor,
    dimension_numbers: DotDims,
    *,
    bias: jax.Array | None = None,
    out_dtype: jax.typing.DTypeLike | None = None,
) -> jax.Array:
    """The float twin of `dot_general`: dequantize both, then one float32 dot at the highest precision."""
    out = lax.dot_general(dequantize(lhs), dequantize(rhs), dimension_numbers, precision=lax.Precision.HIGHEST)
    return (out if bias is None else out + bias).astype(out_dtype or jnp.float32)


def code_sum(tensor: QTensor, axes: tuple[int, ...]) -> jax.Array:
    """int32: the codes summed over `axes`, which are kept as size 1; the sum made ahead where it is this very one."""
    summed = tuple(1 if axis in axes else size for axis, size in enumerate(tensor.shape))
    if tensor.code_sum is not None and tensor.code_sum.shape == summed:
        return tensor.code_sum
    return jnp.sum(tensor.qvalue.astype(jnp.int32), axis=axes, keepdims=True)


def _to_output(
    value: jax.Array, contract: tuple[int, ...], batch: tuple[int, ...], *, before: int, after: int
) -> jax.Array:
    """Lays a per-operand value, size 1 along `contract`, over the output's axes (batch, lhs free, rhs free)."""
    if value.ndim == 0:
        return value
    free = [axis for axis in range(value.ndim) if axis not in contract and axis not in batch]
    value = jnp.squeeze(jnp.transpose(value, (*batch, *free, *contract)), tuple(range(-len(contract), 0)))
    end = value.ndim + before
    return jnp.expand_dims(value, (*range(len(batch), len(batch) + before), *range(end, end + after)))
