"""Sites: the places of a linen module where a contraction happens, and how each kind of module makes one.

`flax.linen.intercept_methods` shows every call of `Dense`, `DenseGeneral`, `Conv` and `Einsum` as it happens; the
user's module is neither edited nor subclassed. What a kind of module needs to become an integer site is one function
here, `kind_of`, and one class with three methods.
"""

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core.tracers import current_trace

from jaxdq import ops
from jaxdq._errors import InputError
from jaxdq.grid import QTensor
from jaxdq.linen._attention import DotProductAttention
from jaxdq.linen._einsum import Einsum
from jaxdq.linen._macs import count_macs


@dataclasses.dataclass(frozen=True)
class Site:
    """One contraction of the network, found by tracing it.

    Attributes:
        path: the module's path in the params tree, `a/b/c`.
        kind: "dense", "conv" or "product" (two arrays and no kernel).
        shape: of the kernel; of a product, of its right-hand side.
        channel_axes: the kernel's output axes; () for a product.
        rows: positions of one image at which the kernel is applied; 1 on the path of the time embedding.
        macs: multiply-accumulates for one row of the batch.
        unsupported: why it can't run on integers; "" where it can.
        dtype: of the kernel, which flax's promotion takes part in.
        batch_first: whether the leading axis of its inputs is the batch, so that a vector of times can reach it.
        reads: path of the first site that is called with the very same array (keys and values have that of queries,
            say), so that one grid can serve all of them; "" where this is the first, or has nobody to share with, as
            products and kernels that are applied twice.
    """

    path: str
    kind: str
    shape: tuple[int, ...]
    channel_axes: tuple[int, ...]
    rows: int
    macs: int
    unsupported: str = ""
    dtype: str = "float32"
    batch_first: bool = True
    reads: str = ""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the tensors that are quantized as activations: one, or both sides of a product."""
        return (f"{self.path}:lhs", f"{self.path}:rhs") if self.kind == "product" else (self.path,)


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


class _Dense:
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


OTHER = "(other contractions)"
_LIFTED = "inside a lifted transformation (nn.remat, nn.jit, nn.scan or nn.vmap)"
_KINDS: dict[type, Kind] = {nn.DenseGeneral: _Dense(), nn.Dense: _Dense(), nn.Conv: _Conv(), Einsum: _Product()}


def kind_of(module: nn.Module) -> Kind | None:
    """The kind of a module that can be a site, or None."""
    return next((kind for cls, kind in _KINDS.items() if isinstance(module, cls)), None)


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


def find_sites(module: nn.Module, params: Any, *args: Any) -> tuple[Site, ...]:
    """Traces the module once, without computing, and lists its sites in the order of execution.

    Args:
        module: a linen module.
        params: its params tree; arrays or `jax.ShapeDtypeStruct`.
        *args: example arguments of the module's call; the first has the batch as its leading axis, two rows or more: of
            one row, parts are the same array as the whole, so that no site is found to share its input. A wrapper
            that calls a linen module with another batch (guidance doubles it) is seen through.

    Returns:
        One Site for each module that contracts; and, where the network contracts arrays without a module too (attention
        by `jnp.einsum`, say), one more at the end for all of that, unsupported, so that no plan passes over it.

    Raises:
        InputError: a site inside a lifted transformation (`nn.scan`, `nn.vmap`), whose kernel is not its own.
    """
    batch = args[0].shape[0]
    found: dict[str, Site] = {}
    read: dict[str, list[Any]] = {}  # path -> the arrays that the site was called with

    def visit(next_fun: Callable, call_args: tuple, call_kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        nonlocal batch
        if not context.module.path and context.method_name == "__call__" and call_args:
            batch = call_args[0].shape[0]
        if is_attention(context):
            return context.module.products(*call_args, **call_kwargs)
        kind = kind_of(context.module)
        out = next_fun(*call_args, **call_kwargs)
        if kind is None or context.method_name != "__call__":
            return out
        reason = _own_way(context.module) or (_LIFTED if current_trace() != outer else "")
        inputs = inputs_of(context.module, call_args, call_kwargs)
        site = _site_of(kind, context.module, inputs, out, batch, reason)
        earlier = found.get(site.path)
        # The same kernel applied twice in a forward pass is one site that works twice.
        found[site.path] = dataclasses.replace(site, macs=site.macs + earlier.macs) if earlier else site
        read.setdefault(site.path, []).append(inputs[0])
        return out

    outer: Any = None

    def forward(params: Any, *args: Any) -> Any:
        nonlocal outer
        outer = current_trace()
        with nn.intercept_methods(visit):
            return module.apply({"params": params}, *args)

    total = count_macs(jax.make_jaxpr(forward)(params, *args).jaxpr) // batch
    for site in found.values():
        kernel = kernel_at(params, site.path)
        if kernel is not None and kernel.shape != site.shape:
            raise InputError(
                f"the kernel of '{site.path}' has shape {kernel.shape} in params and {site.shape} where it is used: it "
                f"sits in nn.scan or nn.vmap; unroll that transformation before quantizing."
            )
    rest = total - sum(site.macs for site in found.values())
    if rest > 0:
        found[OTHER] = Site(OTHER, "product", (), (), 1, rest, "no Dense, DenseGeneral, Conv or Einsum computes them")
    return tuple(found.values() if args[0].shape[0] == 1 else _with_readers(found.values(), read))


def _with_readers(sites: Iterable[Site], read: dict[str, list[Any]]) -> Iterator[Site]:
    """The sites, each with the first that reads the same array; one that is called twice has a grid of its own."""
    first: dict[int, str] = {}
    for site in sites:
        if site.kind == "product" or len(read.get(site.path, ())) != 1:
            yield site
            continue
        reader = first.setdefault(id(read[site.path][0]), site.path)
        yield dataclasses.replace(site, reads="" if reader == site.path else reader)


def kernel_at(params: Any, path: str) -> Any:
    """The kernel of the module at `path` in a params tree, or None."""
    node = params
    for part in path.split("/") if path else ():
        if not hasattr(node, "get") or (node := node.get(part)) is None:
            return None
    return node.get("kernel") if hasattr(node, "get") else None


def _own_way(module: nn.Module) -> str:
    """Why this module may compute something else than its class of flax does, or ""."""
    base = next(cls for cls in _KINDS if isinstance(module, cls))
    if type(module).__call__ is not base.__call__:
        return f"a subclass of {base.__name__} with a __call__ of its own"
    hooks = ("dot_general", "dot_general_cls", "conv_general_dilated", "conv_general_dilated_cls")
    return next((f"a {hook} of its own" for hook in hooks if getattr(module, hook, None) is not None), "")


def _site_of(kind: Kind, module: nn.Module, inputs: tuple, out: jax.Array, batch: int, reason: str) -> Site:
    reason = reason or kind.unsupported(module, *inputs)
    shape: tuple[int, ...]
    channel_axes: tuple[int, ...]
    if kind.name == "product":
        assert isinstance(module, Einsum)
        found = einsum_dims(module.spec)
        terms = math.prod(inputs[0].shape[axis] for axis in found[0][0][0]) if found else 0
        shape, channel_axes = tuple(inputs[1].shape), ()
    else:
        shape = tuple(module.get_variable("params", "kernel").shape)
        contracted = kind.contracted(module, inputs[0].ndim) if isinstance(kind, _Dense) else len(shape) - 1
        batched = len(getattr(module, "batch_dims", ()))  # axes that the kernel has before those it contracts
        terms = math.prod(shape[batched : batched + contracted])
        channel_axes = tuple(range(batched + contracted, len(shape)))
    features = math.prod(shape[axis] for axis in channel_axes) or 1
    macs = math.prod(out.shape) * terms // batch
    rows = max(1, math.prod(out.shape) // (batch * features))
    dtype = "float32" if kind.name == "product" else module.get_variable("params", "kernel").dtype.name
    return Site(path_of(module), kind.name, shape, channel_axes, rows, macs, reason, dtype, inputs[0].shape[0] == batch)


def _bias(module: nn.Module) -> jax.Array | None:
    return module.get_variable("params", "bias") if getattr(module, "use_bias", False) else None


def _window(module: nn.Conv) -> tuple[int, ...]:
    return (module.kernel_size,) if isinstance(module.kernel_size, int) else tuple(module.kernel_size)


def _per_axis(value: int | Sequence[int] | None, module: nn.Conv) -> tuple[int, ...]:
    if value is None or isinstance(value, int):
        return (value or 1,) * len(_window(module))
    return tuple(value)
