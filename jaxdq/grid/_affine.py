"""The equation of the house, said once: `x ~ scale * (qvalue - zero_point)`.

Paper symbols map so: step size, delta, s -> `scale`; z, o -> `zero_point`; alpha, beta, [l, u] -> the range
`(low, high)`; n, k, b -> `bits`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxdq.grid._qtensor import QParams, QTensor
from jaxdq.grid._rounding import round_nearest
from jaxdq.grid._scheme import Scheme

# Below this a float32 is subnormal, and XLA flushes it to zero: a scale must not be.
SMALLEST_SCALE = float(jnp.finfo(jnp.float32).smallest_normal)
# Beyond every code, and finite: infinity minus itself must not arise inside a rounding function.
MANY_STEPS = 2.0**20

Rounding = Callable[[jax.Array], jax.Array]


def qparams_from_range(low: jax.Array, high: jax.Array, scheme: Scheme) -> QParams:
    """The grid that covers a range, with zero exactly on it.

    Symmetric: `scale = max(|low|, |high|) / hi`. Asymmetric: the range is widened to hold 0, then
    `scale = (high - low) / (hi - lo)` and `zero_point = clip(round(lo - low / scale), lo, hi)`, so that an end of the
    range may clip by at most half a step. `lo, hi = scheme.bounds`.

    Args:
        low: float[...], the lower end of the range.
        high: float[...] of the same shape.
        scheme: Bits and symmetry.

    Returns:
        QParams of that shape. An empty range (0 to 0; subnormal ends count as 0, as XLA flushes them) has scale 1; a
        range whose scale would be subnormal has the smallest normal scale; a range with NaN or infinity has a scale of
        NaN or infinity, which `calibrate` refuses.

    Example:
        >>> p = qparams_from_range(jnp.float32(0.0), jnp.float32(2.55), Scheme(8, symmetric=False))
        >>> round(float(p.scale), 6), int(p.zero_point)
        (0.01, -128)
    """
    low, high = jnp.minimum(jnp.float32(low), 0.0), jnp.maximum(jnp.float32(high), 0.0)
    lo, hi = scheme.bounds
    # Divided before it is subtracted: high - low may overflow where the scale does not.
    step = jnp.maximum(-low, high) / hi if scheme.symmetric else high / (hi - lo) - low / (hi - lo)
    scale = jnp.where((low == 0) & (high == 0), 1.0, jnp.maximum(step, SMALLEST_SCALE))
    if scheme.symmetric:
        return QParams(scale)
    zero_point = jnp.clip(jnp.round(lo - low / scale), lo, hi).astype(jnp.int32)
    return QParams(scale, zero_point)


def qparams_from_tensor(x: jax.Array, scheme: Scheme) -> QParams:
    """One grid for a tensor as it is, from its least to its greatest value; see `qparams_from_range`."""
    return qparams_from_range(jnp.min(x).astype(jnp.float32), jnp.max(x).astype(jnp.float32), scheme)


def quantize(x: jax.Array, qparams: QParams, scheme: Scheme, rounding: Rounding = jnp.round) -> QTensor:
    """Puts a tensor on its grid: `qvalue = clip(rounding(x / scale) + zero_point, lo, hi)`, clipped before the cast.

    Args:
        x: float[*shape].
        qparams: The grid, broadcastable to x.
        scheme: The bounds.
        rounding: A function of `x / scale` with whole values: nearest, ties to even, or one of `round_nearest`'s
            siblings.

    Returns:
        QTensor of x's shape. Infinities take the end codes; NaN takes the code of zero (the host refuses NaN before it
        comes here; under jit there is no one to tell).

    Example:
        >>> q = quantize(jnp.array([-1.0, 0.26, 9.0]), QParams(jnp.float32(0.5)), Scheme(4))
        >>> q.qvalue.tolist()
        [-2, 1, 7]
    """
    lo, hi = scheme.bounds
    zero_point = jnp.int32(0) if qparams.zero_point is None else qparams.zero_point
    # Clipped in steps and shifted in int32: bounds are whole, so the codes are the same, and from float32 straight to
    # int8 a TPU takes three times as long. NaN becomes 0 in int32.
    lowest, highest = ((end - zero_point).astype(jnp.float32) for end in (lo, hi))
    steps = jnp.clip(x.astype(jnp.float32) / qparams.scale, lowest, highest)
    codes = rounding(steps).astype(jnp.int32) + zero_point
    if rounding is not jnp.round:
        codes = jnp.clip(codes, lo, hi)
    return QTensor(codes.astype(scheme.storage_dtype), qparams, scheme)


def _steps(x: jax.Array, scale: jax.Array) -> jax.Array:
    return jnp.clip(x.astype(jnp.float32) / scale, -MANY_STEPS, MANY_STEPS)


def dequantize(tensor: QTensor) -> jax.Array:
    """The floats that the codes stand for: `scale * (qvalue - zero_point)`, float32[*shape].

    Example:
        >>> q = quantize(jnp.array([-1.0, 0.26, 9.0]), QParams(jnp.float32(0.5)), Scheme(4))
        >>> dequantize(q).tolist()
        [-1.0, 0.5, 3.5]
    """
    scale, zero_point = tensor.qparams
    codes = tensor.qvalue.astype(jnp.int32)
    return scale * (codes if zero_point is None else codes - zero_point).astype(jnp.float32)


def fake_quantize(x: jax.Array, qparams: QParams, scheme: Scheme, rounding: Rounding = round_nearest) -> jax.Array:
    """`dequantize(quantize(x))` in floats, with a gradient to learn by.

    With `v = x / scale` and `q = rounding(v) + zero_point` before clipping, the gradients at finite x are

    - inside, `lo <= q <= hi`: 1 to x, `rounding(v) - v` to scale (Esser et al. 2020, eq. 3), 0 to zero_point;
    - beyond: 0 to x, `lo - zero_point` or `hi - zero_point` to scale, `-scale` to zero_point.

    A value that rounds onto an end code is inside. At a tie, where rounding jumps, the gradient is that of the code
    which `rounding` chose: the straight-through 1 to x, and the code's own `rounding(v) - v` (of size 1/2) to scale.

    Args:
        x: float[*shape].
        qparams: The grid; zero_point may be float here, so that it can be learned.
        scheme: The bounds.
        rounding: A function of `x / scale` with a straight-through gradient.

    Returns:
        float32[*shape], equal to `dequantize(quantize(...))`, but for NaN, which stays NaN.

    Example:
        >>> s8 = Scheme(8)
        >>> jax.grad(lambda x: fake_quantize(x, QParams(jnp.float32(0.1)), s8))(jnp.float32(0.33)).item()
        1.0
        >>> jax.grad(lambda x: fake_quantize(x, QParams(jnp.float32(0.1)), s8))(jnp.float32(99.0)).item()
        0.0
    """
    lo, hi = scheme.bounds
    scale = qparams.scale
    zero_point = jnp.float32(0) if qparams.zero_point is None else jnp.asarray(qparams.zero_point, jnp.float32)
    steps = rounding(_steps(x, scale))
    codes = steps + zero_point
    # where, not clip: jnp.clip halves the gradient at the ends, and it must be whole there.
    steps = jnp.where(codes < lo, lo - zero_point, jnp.where(codes > hi, hi - zero_point, steps))
    return scale * steps
