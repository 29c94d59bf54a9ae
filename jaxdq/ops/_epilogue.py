"""What follows every integer contraction: zero-point correction, rescale, bias. One equation, one place.

With `l ~ s_l (q_l - z_l)` and `r ~ s_r (q_r - z_r)`, contracted over K terms,

    sum_k l r = s_l s_r ( sum q_l q_r  -  z_r sum q_l  -  z_l sum q_r  +  K z_l z_r )

so scales leave the contraction only where they do not vary along it. The terms after the first are the correction.
"""

import jax
import jax.numpy as jnp

from jaxdq._common.errors import InputError
from jaxdq.grid import QTensor


def check_leaves_contraction(scale: jax.Array, ndim: int, contracted: tuple[int, ...], side: str) -> None:
    """Refuses a scale that varies along a contracted axis: no integer dot can carry it.

    Args:
        scale: f32[] or [...] broadcastable to the operand.
        ndim: The operand's number of axes.
        contracted: The axes that are summed over.
        side: "lhs" or "rhs", for the sentence.
    """
    if scale.ndim == 0:
        return
    if scale.ndim != ndim:
        raise InputError(
            f"the {side} scale has shape {scale.shape} for an operand of {ndim} axes; give a scalar, or size 1 along "
            f"every axis that shares a scale."
        )
    varying = [axis for axis in contracted if scale.shape[axis] != 1]
    if varying:
        raise InputError(
            f"the {side} scale has shape {scale.shape} and varies along the contracted axes {varying}, so it can't "
            f"leave the integer dot; use one scale per tensor, per row or per output channel."
        )


def check_terms(terms: int, lhs: QTensor, rhs: QTensor) -> None:
    """Refuses a contraction whose int32 sum could overflow: K times the largest `(q_l - z_l)(q_r - z_r)`.

    The sum that is not corrected yet, and the correction, are no larger.
    """
    most = (2**31 - 1) // (_reach(lhs) * _reach(rhs))
    if terms > most:
        raise InputError(
            f"a contraction over {terms} products of {lhs.scheme} and {rhs.scheme} bits can overflow int32; keep this "
            f"site in float, or split it into parts of at most {most}."
        )


def _reach(tensor: QTensor) -> int:
    """The largest `|qvalue - zero_point|`."""
    lo, hi = tensor.scheme.bounds
    return max(-lo, hi) if tensor.qparams.zero_point is None else hi - lo


def finish(
    total: jax.Array,
    correction: jax.Array | int,
    scale: jax.Array,
    bias: jax.Array | None,
    out_dtype: jax.typing.DTypeLike | None,
) -> jax.Array:
    """`total * scale + (bias - correction * scale)` in float32, then the one cast to `out_dtype`.

    The bracket has the size of one row wherever scales and zero points are the tensor's, so that each element of the
    output takes one multiplication and one addition. It costs half a unit in the last place of `total * scale`.

    Args:
        total: int32[...], the sum of products of codes.
        correction: int32, broadcastable to it; 0 where there are no zero points.
        scale: f32, broadcastable to it: the product of both operands' scales.
        bias: Float, broadcastable to it, or None.
        out_dtype: Dtype of the result; None is float32.
    """
    scale = _row(scale)
    out = total.astype(jnp.float32) * scale
    shift = None if bias is None else _row(bias.astype(jnp.float32))
    if not isinstance(correction, int):
        zero = _row(correction).astype(jnp.float32) * scale
        shift = -zero if shift is None else shift - zero
    return (out if shift is None else out + shift).astype(out_dtype or jnp.float32)


def _row(value: jax.Array) -> jax.Array:
    """The value with one leading axis of size 1 where it has several; it broadcasts to an output all the same.

    Kernels keep their scales as [1, N]. Rows made in that shape are one operation on a TPU; with as many axes as the
    output has, they are three (`scripts/bench_qwix.py`).
    """
    leading = next((axis for axis, size in enumerate(value.shape) if size != 1), value.ndim)
    return value.reshape(value.shape[max(0, leading - 1) :])
