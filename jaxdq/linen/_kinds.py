"""Kinds of modules that can be sites, and how each runs on integers.

What a kind of module needs to become an integer site is one line of `KINDS`, and one class with three methods.
"""

import inspect
from collections.abc import Sequence
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdq import ops
from jaxdq.grid import QTensor
from jaxdq.linen._attention import DotProductAttention
from jaxdq.linen._einsum import Einsum


class Kind(Protocol):
    """What the seam knows of a kind of module."""

    name: str

    def unsupported(self, module: nn.Module, *inputs: jax.Array) -> str:
        """Why this call can't run on integers, or ""."""
        ...

    def prepare(self, module: nn.Module, *inputs: jax.Array) -> tuple[jax.Array, ...]:
        """The inputs as the contraction meets them (padded, where the padding is not zeros)."""
        ...

    def integer(self, module: nn.Module, lhs: QTensor, rhs: QTensor, dtype: Any) -> jax.Array:
        """The call on integers."""
        ...


class DenseKind:
    """`Dense` and `DenseGeneral`: kernels [*contracted, *features]."""

    name = "dense"

    @staticmethod
    def _axes(module: nn.Module, ndim: int) -> tuple[int, ...]:
        axes = getattr(module, "axis", -1)
        return tuple(axis % ndim for axis in ((axes,) if isinstance(axes, int) else axes))

    def unsupported(self, module: nn.Module, *inputs: jax.Array) -> str:
        return "batch_dims of DenseGeneral" if getattr(module, "batch_dims", ()) else ""

    def prepare(self, module: nn.Module, *inputs: jax.Array) -> tuple[jax.Array, ...]:
        return inputs

    def contracted(self, module: nn.Module, ndim: int) -> int:
        return len(self._axes(module, ndim))

    def integer(self, module: nn.Module, lhs: QTensor, rhs: QTensor, dtype: Any) -> jax.Array:
        axes = self._axes(module, lhs.ndim)
        dims = ((axes, tuple(range(len(axes)))), ((), ()))
        return ops.dot_general(lhs, rhs, dims, bias=_bias(module), out_dtype=dtype)


class _Conv:
    """`Conv`, of any number of space axes; kernels [*window, C / groups, N]."""

    name = "conv"

    def unsupported(self, module: nn.Module, *inputs: jax.Array) -> str:
        assert isinstance(module, nn.Conv)
        if module.mask is not None:
            return "a masked convolution"
        if any(step != 1 for step in _per_axis(module.input_dilation, module)):
            return "input dilation (a transposed convolution)"
        if inputs[0].ndim != len(_window(module)) + 2:
            return f"{inputs[0].ndim - len(_window(module)) - 1} batch axes, where one is expected"
        return ""

    def prepare(self, module: nn.Module, *inputs: jax.Array) -> tuple[jax.Array, ...]:
        assert isinstance(module, nn.Conv)
        reach = [
            (size - 1) * step
            for size, step in zip(_window(module), _per_axis(module.kernel_dilation, module), strict=True)
        ]
        modes = {"CIRCULAR": "wrap", "REFLECT": "reflect"}
        if isinstance(module.padding, str) and module.padding in modes:
            pads = [(0, 0), *((r // 2, r - r // 2) for r in reach), (0, 0)]
            return (jnp.pad(inputs[0], pads, mode=modes[module.padding]),)
        if module.padding == "CAUSAL":
            return (jnp.pad(inputs[0], [(0, 0), *((r, 0) for r in reach), (0, 0)]),)
        return inputs

    def integer(self, module: nn.Module, lhs: QTensor, rhs: QTensor, dtype: Any) -> jax.Array:
        assert isinstance(module, nn.Conv)
        padding: Any = module.padding
        if isinstance(padding, int):
            padding = ((padding, padding),) * len(_window(module))
        elif not isinstance(padding, str):
            padding = tuple((p, p) if isinstance(p, int) else tuple(p) for p in padding)
        elif padding not in ("SAME", "VALID"):
            padding = "VALID"  # `prepare` has padded
        window = ops.Window(
            strides=_per_axis(module.strides, module),
            padding=padding,
            dilation=_per_axis(module.kernel_dilation, module),
            groups=module.feature_group_count,
        )
        return ops.conv_general_dilated(lhs, rhs, window, bias=_bias(module), out_dtype=dtype)


class _Product:
    """`Einsum`: a contraction of two arrays, such as the two of attention."""

    name = "product"

    def unsupported(self, module: nn.Module, *inputs: jax.Array) -> str:
        assert isinstance(module, Einsum)
        return "" if einsum_dims(module.spec) else f"einsum {module.spec!r} is not one dot_general"

    def prepare(self, module: nn.Module, *inputs: jax.Array) -> tuple[jax.Array, ...]:
        return inputs

    def integer(self, module: nn.Module, lhs: QTensor, rhs: QTensor, dtype: Any) -> jax.Array:
        assert isinstance(module, Einsum)
        dims, order = einsum_dims(module.spec) or (None, None)
        assert dims is not None and order is not None
        return jnp.transpose(ops.dot_general(lhs, rhs, dims, out_dtype=dtype), order)


KINDS: dict[type, Kind] = {nn.DenseGeneral: DenseKind(), nn.Dense: DenseKind(), nn.Conv: _Conv(), Einsum: _Product()}


def kind_of(module: nn.Module) -> Kind | None:
    """The kind of a module that can be a site, or None."""
    return next((kind for cls, kind in KINDS.items() if isinstance(module, cls)), None)


def is_attention(context: nn.module.InterceptorContext) -> bool:
    """Whether a `DotProductAttention` is called: its two products are sites, which a float call has no need of."""
    return isinstance(context.module, DotProductAttention) and context.method_name == "__call__"


def inputs_of(module: nn.Module, args: tuple, kwargs: dict) -> tuple[jax.Array, ...]:
    """The arrays of a call, in the order of the signature, whether they came by position or by name."""
    return inspect.signature(type(module).__call__).bind(module, *args, **kwargs).args[1:]


def path_of(module: nn.Module) -> str:
    """The module's path as it is written in plans: `down_blocks_0/resnets_1/conv1`."""
    return "/".join(module.path)


def einsum_dims(spec: str) -> tuple[ops.DotDims, tuple[int, ...]] | None:
    """The `dot_general` dimension numbers of an einsum of two operands, and the transpose that follows it.

    Returns:
        None where the einsum is not one such contraction (repeated or dropped labels, an ellipsis, one operand).

    Example:
        >>> einsum_dims("bqd,bkd->bqk")
        ((((2,), (2,)), ((0,), (0,))), (0, 1, 2))
    """
    inputs, arrow, out = spec.replace(" ", "").partition("->")
    lhs, comma, rhs = inputs.partition(",")
    if not arrow or not comma or "," in rhs or "." in spec:
        return None
    if any(len(set(labels)) != len(labels) for labels in (lhs, rhs, out)) or not set(out) <= set(lhs) | set(rhs):
        return None
    batch = [label for label in lhs if label in rhs and label in out]
    contract = [label for label in lhs if label in rhs and label not in out]
    free = [label for label in lhs + rhs if label not in batch and label not in contract]
    if not contract or set(free) - set(out):
        return None
    dims = tuple((tuple(map(lhs.index, group)), tuple(map(rhs.index, group))) for group in (contract, batch))
    made = batch + free
    return (dims[0], dims[1]), tuple(made.index(label) for label in out)


def _bias(module: nn.Module) -> jax.Array | None:
    return module.get_variable("params", "bias") if getattr(module, "use_bias", False) else None


def _window(module: nn.Conv) -> tuple[int, ...]:
    return (module.kernel_size,) if isinstance(module.kernel_size, int) else tuple(module.kernel_size)


def _per_axis(value: int | Sequence[int] | None, module: nn.Conv) -> tuple[int, ...]:
    if value is None or isinstance(value, int):
        return (value or 1,) * len(_window(module))
    return tuple(value)
