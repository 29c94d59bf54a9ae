"""int8 x int8 -> int32 convolution, and its float twin. Channels last: [B, *space, C] * [*window, C / groups, N]."""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from jaxdq._common.errors import InputError
from jaxdq.grid import QTensor, dequantize
from jaxdq.ops._dot import code_sum
from jaxdq.ops._epilogue import check_leaves_contraction, check_terms, finish
from jaxdq.ops._forms import convolve
from jaxdq.ops._lowering import convolve_codes

_PADDINGS = ("SAME", "SAME_LOWER", "VALID")


@dataclasses.dataclass(frozen=True)
class Window:
    """How a kernel slides. Static.

    Attributes:
        strides: One per space axis.
        padding: "SAME", "SAME_LOWER" or "VALID", in any case, or (before, after) per space axis.
        dilation: Dilation of the kernel, one per space axis.
        groups: Feature groups; C and N are divided into as many parts.
    """

    strides: tuple[int, ...]
    padding: str | tuple[tuple[int, int], ...] = "SAME"
    dilation: tuple[int, ...] = ()
    groups: int = 1

    def pads(self, lhs_shape: Sequence[int], rhs_shape: Sequence[int]) -> list[tuple[int, int]]:
        """(before, after) per space axis, for these shapes."""
        space = len(lhs_shape) - 2
        if len(self.strides) != space:
            raise InputError(f"{len(self.strides)} strides came for an input of shape {lhs_shape}; give {space}.")
        if not isinstance(self.padding, str):
            if len(self.padding) != space:
                raise InputError(f"padding is {self.padding} for an input of shape {lhs_shape}; give {space} pairs.")
            return list(self.padding)
        if self.padding.upper() not in _PADDINGS:
            raise InputError(f"padding is {self.padding!r}; give one of {', '.join(_PADDINGS)}, or pairs.")
        dilation = self.dilation or (1,) * len(self.strides)
        window = [(size - 1) * step + 1 for size, step in zip(rhs_shape[:-2], dilation, strict=True)]
        return [
            (int(a), int(b))
            for a, b in lax.padtype_to_pads(lhs_shape[1:-1], window, self.strides, self.padding.upper())
        ]


def conv_general_dilated(
    lhs: QTensor,
    rhs: QTensor,
    window: Window,
    *,
    bias: jax.Array | None = None,
    out_dtype: jax.typing.DTypeLike | None = None,
) -> jax.Array:
    """`lax.conv_general_dilated` of two quantized tensors by one integer convolution.

    Where lhs has a zero point, borders are padded with its code and not with 0, so that the padding means 0.0 and the
    correction `z_l sum q_r` is one constant per output channel. Where rhs has one, `sum q_l` over each window is a
    second integer convolution with a kernel of ones and one output channel per group.

    Args:
        lhs: Codes [B, *space, C]; scale per tensor or per row ([B, 1, ..., 1]).
        rhs: Codes [*window, C / groups, N]; scale per tensor or per output channel ([1, ..., 1, N]).
        window: Strides, padding, dilation, groups.
        bias: float[N] or broadcastable to the output.
        out_dtype: Dtype of the output; None is float32.

    Returns:
        float[B, *space', N].

    Raises:
        InputError: A scale that varies along a contracted axis, or so many terms that int32 could overflow.
    """
    terms = math.prod(rhs.shape[:-1])
    check_terms(terms, lhs, rhs)
    # Space is slid over, so a scale that varies along it can't leave the sum either.
    check_leaves_contraction(lhs.qparams.scale, lhs.ndim, tuple(range(1, lhs.ndim)), "lhs")
    check_leaves_contraction(rhs.qparams.scale, rhs.ndim, tuple(range(rhs.ndim - 1)), "rhs")
    pads = window.pads(lhs.shape, rhs.shape)
    lhs_zero, rhs_zero = lhs.qparams.zero_point, rhs.qparams.zero_point
    lhs_codes, rhs_codes = lhs.qvalue.astype(jnp.int8), rhs.qvalue.astype(jnp.int8)
    if lhs_zero is not None:
        lhs_codes, pads = _pad_with_code(lhs_codes, lhs_zero, pads), [(0, 0)] * len(pads)
    total = convolve_codes(lhs_codes, rhs_codes, window, pads, lhs.shape[1:-1])
    correction: jax.Array | int = 0
    if lhs_zero is not None:
        correction = lhs_zero * _per_channel(code_sum(rhs, tuple(range(rhs.ndim - 1))), total.ndim)
    if rhs_zero is not None:
        ones = jnp.ones((*rhs.shape[:-1], window.groups), jnp.int8)
        window_sum = jnp.repeat(
            convolve_codes(lhs_codes, ones, window, pads, lhs.shape[1:-1]), rhs.shape[-1] // window.groups, axis=-1
        )
        if lhs_zero is not None:
            window_sum = window_sum - terms * lhs_zero
        correction = correction + _per_channel(rhs_zero, total.ndim) * window_sum
    return finish(total, correction, lhs.qparams.scale * _per_channel(rhs.qparams.scale, total.ndim), bias, out_dtype)


def conv_general_dilated_float(
    lhs: QTensor,
    rhs: QTensor,
    window: Window,
    *,
    bias: jax.Array | None = None,
    out_dtype: jax.typing.DTypeLike | None = None,
) -> jax.Array:
    """The float twin of `conv_general_dilated`: dequantize both, pad with 0.0, one float32 convolution."""
    pads = window.pads(lhs.shape, rhs.shape)
    out = convolve(dequantize(lhs), dequantize(rhs), window, pads, jnp.float32)
    return (out if bias is None else out + bias).astype(out_dtype or jnp.float32)


def _pad_with_code(codes: jax.Array, zero_point: jax.Array, pads: list[tuple[int, int]]) -> jax.Array:
    """Borders that mean 0.0: the zero point's own code, which may differ from row to row."""
    config = [(0, 0, 0), *((before, after, 0) for before, after in pads), (0, 0, 0)]
    if zero_point.ndim == 0:
        # A frame knows nothing of axes that a mesh has taken explicitly, and can't crop.
        is_plain = not jax.typeof(codes).sharding.mesh.explicit_axes and min(min(pad[:2]) for pad in config) >= 0
        calls = {"cpu": _written_into_frame if is_plain else lax.pad, "default": lax.pad}
        calls = {platform: functools.partial(call, padding_config=config) for platform, call in calls.items()}
        return lax.platform_dependent(codes, zero_point.astype(jnp.int8), **calls)
    inside = lax.pad(jnp.ones((1, *codes.shape[1:-1], 1), bool), False, config)
    padded = lax.pad(codes, jnp.int8(0), config)
    return jnp.where(inside, padded, zero_point.astype(jnp.int8))


def _written_into_frame(codes: jax.Array, code: jax.Array, padding_config: list[tuple[int, int, int]]) -> jax.Array:
    """`lax.pad` for XLA:CPU, which would compute one together with all that makes the codes, element by element.

    A write at places that it can't know is a loop of its own; the barrier hides them, since it would make a pad of
    places that it knows. Every platform traces this, and only the CPU compiles it.
    """
    shape = [before + size + after for size, (before, after, _) in zip(codes.shape, padding_config, strict=True)]
    places = [jnp.int32(before) for before, _, _ in padding_config]
    places = [
        lax.optimization_barrier(place) if pad[0] else place for place, pad in zip(places, padding_config, strict=True)
    ]
    return lax.dynamic_update_slice(jnp.broadcast_to(code, shape), codes, places)


def _per_channel(value: jax.Array, ndim: int) -> jax.Array:
    """A scalar, or [1, ..., 1, N] of a kernel, as it broadcasts over an output of `ndim` axes."""
    return value if value.ndim == 0 else value.reshape((1,) * (ndim - 1) + (-1,))
