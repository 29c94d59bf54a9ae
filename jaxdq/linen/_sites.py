"""Sites: the places of a linen module where a contraction happens.

`flax.linen.intercept_methods` shows every call of `Dense`, `DenseGeneral`, `Conv` and `Einsum` as it happens; the
user's module is neither edited nor subclassed.
"""

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import flax.linen as nn
import jax
from flax.core.tracers import current_trace

from jaxdq._errors import InputError
from jaxdq.linen._einsum import Einsum
from jaxdq.linen._kinds import KINDS, DenseKind, Kind, einsum_dims, inputs_of, is_attention, kind_of, path_of
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
        is_condition: whether it is called with an argument of the network itself other than the first, such as a text:
            the same at every step.
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
    is_condition: bool = False

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the tensors that are quantized as activations: one, or both sides of a product."""
        return (f"{self.path}:lhs", f"{self.path}:rhs") if self.kind == "product" else (self.path,)


OTHER = "(other contractions)"
_LIFTED = "inside a lifted transformation (nn.remat, nn.jit, nn.scan or nn.vmap)"


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
    conditions: list[Any] = []

    def visit(next_fun: Callable, call_args: tuple, call_kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        nonlocal batch
        if not context.module.path and context.method_name == "__call__":
            batch = call_args[0].shape[0] if call_args else batch
            conditions.extend(_conditions(context.module, call_args, call_kwargs))
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
    return tuple(found.values() if args[0].shape[0] == 1 else _with_readers(found.values(), read, conditions))


def _conditions(module: nn.Module, args: tuple, kwargs: dict) -> list[Any]:
    """The arrays of two axes or more that a network is called with, but for its first: images or states."""
    given = inspect.signature(type(module).__call__).bind(module, *args, **kwargs).arguments
    return [leaf for leaf in jax.tree.leaves(list(given.values())[1:]) if getattr(leaf, "ndim", 0) > 1][1:]


def _with_readers(sites: Iterable[Site], read: dict[str, list[Any]], conditions: list[Any]) -> Iterator[Site]:
    """The sites, each with the first that reads the same array; one that is called twice has a grid of its own."""
    first: dict[int, str] = {}
    constant = set(map(id, conditions))
    for site in sites:
        if site.kind == "product" or len(read.get(site.path, ())) != 1:
            yield site
            continue
        array = id(read[site.path][0])
        reader = first.setdefault(array, site.path)
        reads = "" if reader == site.path else reader
        yield dataclasses.replace(site, reads=reads, is_condition=array in constant)


def kernel_at(params: Any, path: str) -> Any:
    """The kernel of the module at `path` in a params tree, or None."""
    node = params
    for part in path.split("/") if path else ():
        if not hasattr(node, "get") or (node := node.get(part)) is None:
            return None
    return node.get("kernel") if hasattr(node, "get") else None


def _own_way(module: nn.Module) -> str:
    """Why this module may compute something else than its class of flax does, or ""."""
    base = next(cls for cls in KINDS if isinstance(module, cls))
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
        contracted = kind.contracted(module, inputs[0].ndim) if isinstance(kind, DenseKind) else len(shape) - 1
        batched = len(getattr(module, "batch_dims", ()))  # axes that the kernel has before those it contracts
        terms = math.prod(shape[batched : batched + contracted])
        channel_axes = tuple(range(batched + contracted, len(shape)))
    features = math.prod(shape[axis] for axis in channel_axes) or 1
    macs = math.prod(out.shape) * terms // batch
    rows = max(1, math.prod(out.shape) // (batch * features))
    dtype = "float32" if kind.name == "product" else module.get_variable("params", "kernel").dtype.name
    return Site(path_of(module), kind.name, shape, channel_axes, rows, macs, reason, dtype, inputs[0].shape[0] == batch)
