"""`Parts`: a kernel that is a sum, for what one integer dot with one scale per output channel cannot carry."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdq._common.errors import InputError
from jaxdq.grid import Grid, QParams, QTensor, Scheme, dequantize, quantize
from jaxdq.linen._kinds import DenseKind, kind_of


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Parts:
    """A kernel cut along its input channels, with a scale per input channel and a low-rank branch beside it.

    With x cut into x_1 .. x_K along its channels, s the input scale and A, B the branch,

        y = sum_k (s_k x_k) * W_k  +  (x * A) B  +  bias,

    where `*` is the site's own contraction. Each product with a W_k is one integer dot, with grids of its own; the
    results are added in float32. The input scale is folded into the multiplication by which x is quantized; the branch
    runs in float.

    Attributes:
        parts: W_1 .. W_K: grids to which the kernel's slices are rounded, or their codes. After `quantize`, codes.
        input_scale: f32[C] > 0, by which inputs are multiplied; kernels on disk and in `params` are the original ones
            and are divided by it before they are rounded. None is 1.
        low_rank: (A f32[*window, C, R], B f32[R, N]); the parts carry the rest of the kernel. None is no branch.
    """

    parts: tuple[Grid | QTensor, ...]
    input_scale: jax.Array | None = None
    low_rank: tuple[jax.Array, jax.Array] | None = None


def bounds_of(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """(start, stop) of each part."""
    stops = np.cumsum(sizes)
    return [(int(stop - size), int(stop)) for size, stop in zip(sizes, stops, strict=True)]


def input_axis(shape: tuple[int, ...], kind: str) -> int:
    """The axis of a kernel that its input channels lie along."""
    return 0 if kind == "dense" else len(shape) - 2


def cut(kernel: Any, sizes: Sequence[int], axis: int) -> list[Any]:
    """The slices of a kernel."""
    return [jax.lax.slice_in_dim(kernel, start, stop, axis=axis) for start, stop in bounds_of(sizes)]


def fit_in_parts(
    fit: Callable[[jax.Array, Scheme], QParams], kernel: jax.Array, scheme: Scheme, sizes: tuple[int, ...], axis: int
) -> QParams:
    """The grid of a kernel that is cut, while it is whole: along the input channels, scales change with the part.

    Args:
        fit: Such as `jaxdq.observers.mse_weights()`; sees each part alone.
        kernel: The whole one.
        scheme: Scheme of every part.
        sizes: Input channels of each part; () is one kernel with one grid.
        axis: Axis that they lie along.

    Returns:
        What `fit` returns, in the kernel's size along the axis if it is cut.
    """
    if not sizes:
        return fit(kernel, scheme)
    grids = [fit(piece, scheme) for piece in cut(kernel, sizes, axis)]
    each = [
        jax.tree.map(lambda leaf, n=size: jnp.repeat(leaf, n, axis), grid)
        for size, grid in zip(sizes, grids, strict=True)
    ]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis), *each)


def one_for_each_part(leaf: Any, sizes: Sequence[int], axis: int) -> Any:
    """Scales or zero points of a whole kernel's grid, one for each part in place of one for each channel."""
    return leaf.take(np.array([start for start, _ in bounds_of(sizes)]), axis)


def along_parts(leaf: jax.Array, sizes: Sequence[int], axis: int) -> jax.Array:
    """The inverse of `one_for_each_part`."""
    return jnp.repeat(leaf, np.array(sizes), axis, total_repeat_length=sum(sizes))


def cut_codes(codes: QTensor, sizes: Sequence[int], axis: int) -> Parts:
    """The parts of a whole kernel in codes, whose grid is one of `fit_in_parts`."""
    pieces = cut(codes.qvalue, sizes, axis)
    grids = [
        jax.tree.map(lambda leaf, k=k: leaf.take(jnp.array([k]), axis), codes.qparams) for k, _ in bounds_of(sizes)
    ]
    return Parts(tuple(QTensor(piece, grid, codes.scheme) for piece, grid in zip(pieces, grids, strict=True)))


def round_parts(kernel: jax.Array, decided: Parts, sizes: Sequence[int], axis: int, scheme: Scheme) -> Parts:
    """The parts in codes, the kernel rounded to nearest where they are grids.

    Args:
        kernel: The original one.
        decided: Grids or codes.
        sizes: Input channels of each part.
        axis: Axis that they lie along.
        scheme: Scheme of every part.

    Raises:
        InputError: Another number of parts, or grids of another scheme.
    """
    if len(decided.parts) != len(sizes) or any(part.scheme != scheme for part in decided.parts):
        raise InputError(
            f"the plan cuts a kernel into parts of {tuple(sizes)} input channels at {scheme} bits and the calibration "
            f"has {len(decided.parts)} of {sorted({str(part.scheme) for part in decided.parts})} bits; fit the weights "
            f"again after the plan has changed."
        )
    rest = kernel.astype(jnp.float32)
    if decided.low_rank is not None:
        rest = rest - jnp.tensordot(*decided.low_rank, axes=1).reshape(kernel.shape)
    if decided.input_scale is not None:
        shape = [-1 if index == axis else 1 for index in range(kernel.ndim)]
        rest = rest / decided.input_scale.reshape(shape)
    codes = tuple(
        part if isinstance(part, QTensor) else quantize(piece, part.qparams, scheme)
        for part, piece in zip(decided.parts, cut(rest, sizes, axis), strict=True)
    )
    return dataclasses.replace(decided, parts=codes)


def dequantize_kernel(kernel: QTensor | Parts, kind: str) -> jax.Array:
    """The float kernel that codes stand for: what the float twin of the network runs on."""
    if isinstance(kernel, QTensor):
        return dequantize(kernel)
    pieces = [dequantize(part) for part in kernel.parts if isinstance(part, QTensor)]
    axis = input_axis(pieces[0].shape, kind)
    whole = jnp.concatenate(pieces, axis)
    if kernel.input_scale is not None:
        whole = whole * kernel.input_scale.reshape([-1 if index == axis else 1 for index in range(whole.ndim)])
    return whole if kernel.low_rank is None else whole + jnp.tensordot(*kernel.low_rank, axes=1).reshape(whole.shape)


def unsplittable(module: nn.Module, ndim: int) -> str:
    """Why this layer can't be cut along its input channels, or ""."""
    kind = kind_of(module)
    if kind is None or kind.name == "product":
        return "a product of two arrays has no kernel"
    if isinstance(kind, DenseKind):
        if kind.axes(module, ndim) != (ndim - 1,):
            return "it contracts other axes than the last"
        return "it has batch axes" if kind.batched(module) else ""
    return "" if getattr(module, "feature_group_count", 1) == 1 else "its convolution has feature groups"


def call_on_parts(
    module: nn.Module, x: jax.Array, kernel: Parts, grids: Sequence[QParams], scheme: Scheme, dtype: Any
) -> jax.Array:
    """The call of a layer whose kernel is a sum of parts: one integer contraction for each, and the float branch.

    Args:
        module: Bound, with the kernel as its own.
        x: float[..., C], as the contraction meets it.
        kernel: Kernel in codes.
        grids: Grids of the inputs: one for each part, or one for all.
        scheme: Scheme of the inputs.
        dtype: Dtype of the result.
    """
    kind = kind_of(module)
    assert kind is not None
    alone = module.clone(parent=None, name=None, use_bias=False)
    grids = grids if len(grids) > 1 else list(grids) * len(kernel.parts)
    sizes = [part.shape[input_axis(part.shape, kind.name)] for part in kernel.parts if isinstance(part, QTensor)]
    total: Any = 0.0
    for (start, stop), part, grid in zip(bounds_of(sizes), kernel.parts, grids, strict=True):
        assert isinstance(part, QTensor)
        # The scale per input channel joins the multiplication that x is quantized by: no operation of its own.
        scale = grid.scale if kernel.input_scale is None else grid.scale / kernel.input_scale[start:stop]
        codes = quantize(jax.lax.slice_in_dim(x, start, stop, axis=x.ndim - 1), grid._replace(scale=scale), scheme)
        total = total + kind.integer(alone, dataclasses.replace(codes, qparams=grid), part, jnp.float32)
    if kernel.low_rank is not None:
        down, up = kernel.low_rank
        narrow = module.clone(parent=None, name=None, use_bias=False, features=down.shape[-1])
        inner: Any = narrow.apply({"params": {"kernel": down.astype(x.dtype)}}, x)
        total = total + inner @ up
    bias = module.get_variable("params", "bias") if getattr(module, "use_bias", False) else None
    return (total if bias is None else total + bias.astype(jnp.float32)).astype(dtype)
