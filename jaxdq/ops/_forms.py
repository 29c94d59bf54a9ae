"""The forms that one integer convolution can take. All give the same int32, bit for bit.

A form is `(lhs: int8[B, *space, C], rhs: int8[*window, C / groups, N], window, pads) -> int32[B, *space', N]`. Which
one is fast depends on the platform and the shapes: `_lowering` chooses.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

# Native int8 convolutions of the TPU compiler work on whole lanes: of 320 channels the last 64 cost as much as 128.
LANES = 128
# Terms of a float32 sum of products of two int8 codes that is always exact: 2**24 / (128 * 128).
EXACT_TERMS = 1024

Pads = Sequence[tuple[int, int]]
Form = Callable[[jax.Array, jax.Array, Any, Pads], jax.Array]


def native(lhs: jax.Array, rhs: jax.Array, window: Any, pads: Pads) -> jax.Array:
    """`lax.conv_general_dilated`, int8 x int8 -> int32."""
    return convolve(lhs, rhs, window, pads, jnp.int32)


def padded(lhs: jax.Array, rhs: jax.Array, window: Any, pads: Pads) -> jax.Array:
    """`native` with the channels filled up with zeros to a multiple of `LANES`; of one feature group only."""
    missing = -lhs.shape[-1] % LANES
    if window.groups != 1 or not missing:
        return native(lhs, rhs, window, pads)
    lhs = lax.pad(lhs, jnp.int8(0), [*[(0, 0, 0)] * (lhs.ndim - 1), (0, missing, 0)])
    rhs = lax.pad(rhs, jnp.int8(0), [*[(0, 0, 0)] * (rhs.ndim - 2), (0, missing, 0), (0, 0, 0)])
    return native(lhs, rhs, window, pads)


def im2col(lhs: jax.Array, rhs: jax.Array, window: Any, pads: Pads) -> jax.Array:
    """One dot over all taps of the window, whose inputs are laid side by side; a 1x1 convolution is a dot as it is."""
    if window.groups != 1:
        return native(lhs, rhs, window, pads)
    taps = [part for _, part in _taps(lhs, rhs.shape, window, pads)]
    patches = taps[0] if len(taps) == 1 else jnp.concatenate(taps, axis=-1)
    return _dot(patches, rhs.reshape(-1, rhs.shape[-1]))


def shifted(lhs: jax.Array, rhs: jax.Array, window: Any, pads: Pads) -> jax.Array:
    """A dot for each tap of the window, added up."""
    if window.groups != 1:
        return native(lhs, rhs, window, pads)
    return sum(_dot(part, rhs[tap]) for tap, part in _taps(lhs, rhs.shape, window, pads))  # type: ignore[return-value]


def float_valued(lhs: jax.Array, rhs: jax.Array, window: Any, pads: Pads) -> jax.Array:
    """Convolutions of bfloat16 whole numbers, summed in float32 over so few terms that every sum is exact.

    For chips without an int8 rate. The zero-padded parts are added as int32.
    """
    if window.groups != 1:
        return native(lhs, rhs, window, pads)
    most = max(1, EXACT_TERMS // math.prod(rhs.shape[:-2]))
    total: Any = 0
    for start in range(0, lhs.shape[-1], most):
        part = slice(start, start + most)
        ends = lhs[..., part].astype(jnp.bfloat16), rhs[..., part, :].astype(jnp.bfloat16)
        total = total + convolve(*ends, window, pads, jnp.float32).astype(jnp.int32)
    return total


FORMS: dict[str, Form] = {form.__name__: form for form in (native, padded, im2col, shifted, float_valued)}


def convolve(lhs: jax.Array, rhs: jax.Array, window: Any, pads: Pads, dtype: Any) -> jax.Array:
    """`lax.conv_general_dilated`, channels last, summed in `dtype`."""
    space = "".join(chr(ord("a") + axis) for axis in range(lhs.ndim - 2))
    return lax.conv_general_dilated(
        lhs,
        rhs,
        window.strides,
        pads,
        rhs_dilation=window.dilation or None,
        dimension_numbers=(f"N{space}C", f"{space}IO", f"N{space}C"),
        feature_group_count=window.groups,
        preferred_element_type=dtype,
        precision=lax.Precision.HIGHEST if lhs.dtype == jnp.float32 else None,
    )


def _taps(
    lhs: jax.Array, rhs_shape: Sequence[int], window: Any, pads: Pads
) -> Iterator[tuple[tuple[int, ...], jax.Array]]:
    """(index in the window, the inputs that this tap meets: [B, *space', C])."""
    lhs = lax.pad(lhs, jnp.zeros((), lhs.dtype), [(0, 0, 0), *((*pad, 0) for pad in pads), (0, 0, 0)])
    dilation = window.dilation or (1,) * len(window.strides)
    sizes = [
        (size - (taps - 1) * step - 1) // stride + 1
        for size, taps, step, stride in zip(lhs.shape[1:-1], rhs_shape, dilation, window.strides, strict=False)
    ]
    for tap in itertools.product(*map(range, rhs_shape[:-2])):
        start = [index * step for index, step in zip(tap, dilation, strict=True)]
        stop = [s + (n - 1) * stride + 1 for s, n, stride in zip(start, sizes, window.strides, strict=True)]
        yield tap, lax.slice(lhs, [0, *start, 0], [lhs.shape[0], *stop, lhs.shape[-1]], [1, *window.strides, 1])


def _dot(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    return lax.dot_general(lhs, rhs, (((lhs.ndim - 1,), (0,)), ((), ())), preferred_element_type=jnp.int32)
