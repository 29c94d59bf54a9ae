"""Kinds of modules that can be sites, and how each runs on integers.

What a kind of module needs to become an integer site is one line of `KINDS`, and one class with three methods.
"""

import dataclasses
import inspect
from collections.abc import Iterable, Mapping, Sequence
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

    def contraction(self, module: nn.Module, kernel: jax.ShapeDtypeStruct, *inputs: Any) -> Mapping[str, Any]:
        """What `lax` is told of the contraction, by the names of its parameters: to hold against what flax tells it."""
        ...

    def integer(self, module: nn.Module, lhs: QTensor, rhs: QTensor, dtype: Any) -> jax.Array:
        """The call on integers."""
        ...


class DenseKind:
    """`Dense` and `DenseGeneral`: kernels [*contracted, *features]."""

    name = "dense"

    @staticmethod
    def axes(module: nn.Module, ndim: int) -> tuple[int, ...]:
        """As flax has them: counted from the front, and in ascending order whatever order they came in."""
        return tuple(sorted(axis + ndim if axis < 0 else axis for axis in _as_tuple(getattr(module, "axis", -1))))

    def unsupported(self, module: nn.Module, *inputs: jax.Array) -> str:
        return "batch_dims of DenseGeneral" if self.batched(module) else ""

    def prepare(self, module: nn.Module, *inputs: jax.Array) -> tuple[jax.Array, ...]:
        return inputs

    def contracted(self, module: nn.Module, ndim: int) -> int:
        return len(self.axes(module, ndim))

    def batched(self, module: nn.Module) -> int:
        """How many axes the kernel has before those it contracts."""
        return len(_as_tuple(getattr(module, "batch_dims", ())))

    def _dims(self, module: nn.Module, ndim: int) -> ops.DotDims:
        axes = self.axes(module, ndim)
        return (axes, tuple(range(len(axes)))), ((), ())

    def contraction(self, module: nn.Module, kernel: jax.ShapeDtypeStruct, *inputs: Any) -> Mapping[str, Any]:
        return {"dimension_numbers": self._dims(module, inputs[0].ndim)}

    def integer(self, module: nn.Module, lhs: QTensor, rhs: QTensor, dtype: Any) -> jax.Array:
        return ops.dot_general(lhs, rhs, self._dims(module, lhs.ndim), bias=_bias(module), out_dtype=dtype)


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

    def _slides(self, module: nn.Module) -> ops.Window:
        assert isinstance(module, nn.Conv)
        padding: Any = module.padding
        if isinstance(padding, str):
            padding = "VALID" if padding in ("CIRCULAR", "REFLECT", "CAUSAL") else padding  # `prepare` has padded
        else:
            sides = (padding,) * len(_window(module)) if isinstance(padding, int) else padding
            padding = tuple((side, side) if isinstance(side, int) else tuple(side) for side in sides)
        return ops.Window(
            strides=_per_axis(module.strides, module),
            padding=padding,
            dilation=_per_axis(module.kernel_dilation, module),
            groups=module.feature_group_count,
        )

    def contraction(self, module: nn.Module, kernel: jax.ShapeDtypeStruct, *inputs: Any) -> Mapping[str, Any]:
        window = self._slides(module)
        (prepared,) = jax.eval_shape(lambda x: self.prepare(module, x), inputs[0])
        return {
            "window_strides": window.strides,
            "padding": tuple(window.pads(prepared.shape, kernel.shape)),
            "lhs_dilation": (1,) * len(window.strides),
            "rhs_dilation": window.dilation,
            "feature_group_count": window.groups,
            "batch_group_count": 1,
        }

    def integer(self, module: nn.Module, lhs: QTensor, rhs: QTensor, dtype: Any) -> jax.Array:
        return ops.conv_general_dilated(lhs, rhs, self._slides(module), bias=_bias(module), out_dtype=dtype)


class _Product:
    """`Einsum`: a contraction of two arrays, such as the two of attention."""

    name = "product"

    def unsupported(self, module: nn.Module, *inputs: jax.Array) -> str:
        assert isinstance(module, Einsum)
        return "" if einsum_dims(module.spec) else f"einsum {module.spec!r} is not one dot_general"

    def prepare(self, module: nn.Module, *inputs: jax.Array) -> tuple[jax.Array, ...]:
        return inputs

    def contraction(self, module: nn.Module, kernel: jax.ShapeDtypeStruct, *inputs: Any) -> Mapping[str, Any]:
        return {}  # `jnp.einsum` may swap its operands

    def integer(self, module: nn.Module, lhs: QTensor, rhs: QTensor, dtype: Any) -> jax.Array:
        assert isinstance(module, Einsum)
        dims, order = einsum_dims(module.spec) or (None, None)
        assert dims is not None and order is not None
        return jnp.transpose(ops.dot_general(lhs, rhs, dims, out_dtype=dtype), order)


KINDS: dict[type, Kind] = {nn.DenseGeneral: DenseKind(), nn.Dense: DenseKind(), nn.Conv: _Conv(), Einsum: _Product()}


def kind_of(module: nn.Module) -> Kind | None:
    """The kind of a module that can be a site, or None."""
    return next((kind for cls, kind in KINDS.items() if isinstance(module, cls)), None)


_HOOKS = ("dot_general", "dot_general_cls", "conv_general_dilated", "conv_general_dilated_cls")


def own_way(module: nn.Module) -> str:
    """Why this module may compute something else than its class of flax does, or "": what its attributes say."""
    base = _base(module)
    if type(module).__call__ is not base.__call__:
        return f"a subclass of {base.__name__} with a __call__ of its own"
    return next((f"a {hook} of its own" for hook in _HOOKS if getattr(module, hook, None) is not None), "")


def plain(module: nn.Module) -> nn.Module | None:
    """The layer of flax that this one derives from, with its settings; None where it is that already."""
    base = _base(module)
    if type(module) is base and getattr(module, "promote_dtype", None) is getattr(base, "promote_dtype", None):
        return None
    own = ("parent", "name", "promote_dtype", *_HOOKS)
    fields = [field.name for field in dataclasses.fields(base) if field.init and field.name not in own]
    return base(**{name: getattr(module, name) for name in fields}, parent=None)


def _base(module: nn.Module) -> type[nn.Module]:
    return next(cls for cls in KINDS if isinstance(module, cls))


def is_attention(context: nn.module.InterceptorContext) -> bool:
    """Whether a `DotProductAttention` is called: its two products are sites, which a float call has no need of."""
    return isinstance(context.module, DotProductAttention) and context.method_name == "__call__"


def inputs_of(module: nn.Module, args: tuple, kwargs: dict) -> tuple[jax.Array, ...]:
    """The arrays of a call, in the order of the signature, whether they came by position or by name."""
    return inspect.signature(type(module).__call__).bind(module, *args, **kwargs).args[1:]


def layer_fault(module: nn.Module, *inputs: jax.Array) -> str:
    """What of a bound layer's params is not as the layer itself would have made them, or ""."""
    kernel: Any = module.get_variable("params", "kernel")
    has_bias = module.has_variable("params", "bias")
    if isinstance(module, nn.Conv):
        own: tuple[int, ...] = (*_window(module), inputs[0].shape[-1] // module.feature_group_count, module.features)
    elif isinstance(module, nn.DenseGeneral | nn.Dense):
        axes = DenseKind.axes(module, inputs[0].ndim)
        own = (*(inputs[0].shape[axis] for axis in axes), *_as_tuple(module.features))
    else:
        return ""
    if tuple(kernel.shape) != own:
        return f"takes a kernel of shape {own} and is given {tuple(kernel.shape)}"
    if has_bias != getattr(module, "use_bias", False):
        return "is given a bias and has none" if has_bias else "has a bias and is given none"
    return ""


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


def _as_tuple(value: int | Iterable[int]) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, Iterable) else (value,)


def _window(module: nn.Conv) -> tuple[int, ...]:
    return (module.kernel_size,) if isinstance(module.kernel_size, int) else tuple(module.kernel_size)


def _per_axis(value: int | Sequence[int] | None, module: nn.Conv) -> tuple[int, ...]:
    value = 1 if value is None else value
    return (value,) * len(_window(module)) if isinstance(value, int) else tuple(value)
