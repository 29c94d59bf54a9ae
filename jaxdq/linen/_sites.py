"""Sites: the places of a linen module where a contraction happens.

`flax.linen.intercept_methods` shows every call of `Dense`, `DenseGeneral`, `Conv` and `Einsum` as it happens; the
user's module is neither edited nor subclassed. A call is a site where flax computes what the integer path would, on
the kernel that params have at its path; whatever can't be shown to is left to flax and named.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdq._common.trees import unboxed
from jaxdq.grid import QParams, QTensor, Scheme
from jaxdq.linen._einsum import Einsum
from jaxdq.linen._joined import joined_inputs
from jaxdq.linen._kinds import DenseKind, einsum_dims, plain
from jaxdq.linen._macs import count_macs
from jaxdq.linen._parts import unsplittable
from jaxdq.linen._trace import Call, Found, Trace, trace
from jaxdq.linen._tree import kernel_at, with_kernels


@dataclasses.dataclass(frozen=True)
class Site:
    """One contraction of the network, found by tracing it.

    Attributes:
        path: The module's path in the params tree, `a/b/c`.
        kind: "dense", "conv" or "product" (two arrays and no kernel).
        shape: Shape of the kernel; for a product, of its right-hand side.
        channel_axes: The kernel's output axes; () for a product.
        rows: Positions of one image at which the kernel is applied; 1 on the path of the time embedding.
        macs: Multiply-accumulates for one row of the batch.
        unsupported: Why it can't run on integers; "" where it can.
        takes_weights: Whether its kernel can be on a grid even so, since what computes there sees it in float.
        stacked: Axes of the kernel along which `nn.scan` stacks layers.
        channels: Those of its input; where that is a concatenation (a decoder's features and an encoder's shortcut,
            say), those of each array in it. () where the kernel can't be cut along them.
        dtype: Dtype of the kernel, which takes part in flax's type promotion.
        batch_first: Whether the leading axis of its inputs is the batch, so that a vector of times can reach it.
        reads: Path of the first site that is called with the very same array (keys and values have that of queries,
            say), so that one grid can serve all of them; "" where this is the first, or has nobody to share with, as
            products and kernels that are applied twice.
        is_condition: Whether it is called with an argument of the network itself other than the first, such as a text:
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
    takes_weights: bool = False
    stacked: tuple[int, ...] = ()
    channels: tuple[int, ...] = ()

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the tensors that are quantized as activations: one, or both sides of a product."""
        return (f"{self.path}:lhs", f"{self.path}:rhs") if self.kind == "product" else (self.path,)

    def array_of(self, name: str) -> str:
        """The array that the input `name` is: the first input of the network that is that very array."""
        return self.reads or name


OTHER = "(other contractions)"
_LIFTED = "inside a transformation (nn.jit, nn.vmap, nn.cond, nn.while_loop, a gradient)"
_COMPUTED = "its kernel is computed on the way from params to it (nn.map_variables, nn.WeightNorm, nn.SpectralNorm)"
_NO_CODES = "something that reads its kernel, or passes it on to the layer (nn.map_variables), takes no integer codes"
_READ = "its kernel is also read outside the layer"
_MORE = "it computes something else than its class in flax does"


def find_sites(module: nn.Module, params: Any, *args: Any) -> tuple[Site, ...]:
    """Traces the module once, without computing, and lists its sites in the order of execution.

    Args:
        module: A linen module.
        params: Its params tree; arrays or `jax.ShapeDtypeStruct`.
        *args: Example arguments of the module's call; the first has the batch as its leading axis, two rows or more: of
            one row, parts are the same array as the whole, so that no site is found to share its input. A wrapper
            that calls a linen module with another batch (guidance doubles it) is seen through.

    Returns:
        One Site for each layer that contracts; and, where the network contracts arrays in another way too (attention by
        `jnp.einsum`, say, or a layer that is called on a kernel which another module made), one more at the end for all
        of that, unsupported, so that no plan passes over it.
    """
    params = unboxed(params)
    traced = trace(module, params, *args)
    calls: dict[str, list[Call]] = {}
    for call in traced.calls:
        # A layer without a kernel in params is no layer of this network: it was called as a function.
        if call.kind.name == "product" or kernel_at(params, call.path) is not None:
            calls.setdefault(call.path, []).append(call)
    found: dict[str, list[Found]] = {path: [] for path in calls}
    joined: dict[str, set[tuple[int, ...]]] = {path: set() for path in calls}
    arrays = joined_inputs(traced.closed.jaxpr, traced.found)
    for equation, made in traced.found.items():
        if made.is_own:
            found[made.call.path].append(made)
            joined[made.call.path].add(arrays.get(equation, ()))
    sites = [_site_of(calls[path], found[path], traced, kernel_at(params, path), joined[path]) for path in calls]
    sites = _without_those_that_take_no_codes(sites, module, params, args)
    batch = traced.calls[-1].batch if traced.calls else args[0].shape[0]
    rest = count_macs(traced.closed.jaxpr) // batch - sum(site.macs for site in sites)
    if rest > 0:
        sites.append(Site(OTHER, "product", (), (), 1, rest, "no Dense, DenseGeneral, Conv or Einsum computes them"))
    if args[0].shape[0] == 1:
        return tuple(sites)
    read = {path: made[0].call.inputs[0] for path, made in found.items() if len(made) == 1}
    return tuple(_with_readers(sites, read, traced.conditions))


def _without_those_that_take_no_codes(sites: list[Site], module: nn.Module, params: Any, args: tuple) -> list[Site]:
    """The sites; those that codes in the place of their kernels don't reach as they are, are in float.

    A function that params go through on the way to a layer may leave a float kernel alone and not a `QTensor`
    (`nn.map_variables` with a cast of all leaves, say), and a module may ask a kernel what codes don't answer.
    """

    def reached(asked: list[Site]) -> set[str]:
        kernels = {site.path: _codes_like(site) for site in asked}
        found = trace(module, with_kernels(params, kernels), *args).found.values()
        return {made.call.path for made in found if made.is_own} & set(kernels)

    asked = [site for site in sites if site.kind != "product" and not site.unsupported]
    try:
        kept = reached(asked)
    except Exception:  # whatever a user's function raises: each by itself, to know whose it is
        kept = set()
        for site in asked:
            with contextlib.suppress(Exception):
                kept |= reached([site])
    lost = {site.path for site in asked} - kept
    return [dataclasses.replace(site, unsupported=_NO_CODES) if site.path in lost else site for site in sites]


def _codes_like(site: Site) -> Any:
    """The shapes of a kernel on its grid; a zero point for each tensor, so that there is a leaf without axes."""
    per_channel = tuple(size if axis in site.channel_axes else 1 for axis, size in enumerate(site.shape))

    def codes() -> QTensor:
        each = tuple(size if axis in site.stacked else 1 for axis, size in enumerate(site.shape))
        grid = QParams(jnp.ones(per_channel), jnp.zeros(each if site.stacked else (), jnp.int32))
        sums = jnp.zeros(per_channel, jnp.int32)
        return QTensor(jnp.zeros(site.shape, jnp.int8), grid, Scheme(8, symmetric=False), sums)

    return jax.eval_shape(codes)


def _with_readers(sites: Iterable[Site], read: dict[str, Any], conditions: list[Any]) -> Iterator[Site]:
    """The sites, each with the first that reads the same array; one that is called twice has a grid of its own."""
    first: dict[int, str] = {}
    constant = set(map(id, conditions))
    for site in sites:
        if site.kind == "product" or site.path not in read:
            yield site
            continue
        array = id(read[site.path])
        reader = first.setdefault(array, site.path)
        reads = "" if reader == site.path else reader
        yield dataclasses.replace(site, reads=reads, is_condition=array in constant)


def _site_of(calls: list[Call], found: list[Found], traced: Trace, kernel: Any, joined: set[tuple[int, ...]]) -> Site:
    """The site of all calls of one layer: a kernel that is applied twice is one site that works twice."""
    call = found[0].call if found else calls[0]
    reason, takes_weights = _unsupported(calls, found, traced)
    stacked = found[0].stacked if found else ()
    is_product = call.kind.name == "product"
    shape: tuple[int, ...] = tuple(call.inputs[1].shape if is_product else kernel.shape)
    channel_axes = () if is_product else _channel_axes(call, len(shape), stacked)
    features = math.prod(shape[axis] for axis in channel_axes if axis not in stacked) or 1
    return Site(
        path=call.path,
        kind=call.kind.name,
        shape=shape,
        channel_axes=channel_axes,
        rows=max(1, math.prod(call.out.shape) // (call.batch * features)),
        macs=_macs(calls, found, traced),
        unsupported=reason,
        dtype="float32" if is_product else kernel.dtype.name,
        batch_first=call.inputs[0].shape[0] == call.batch,
        takes_weights=takes_weights,
        stacked=stacked,
        channels=_channels(call, joined, stacked),
    )


def _channels(call: Call, joined: set[tuple[int, ...]], stacked: tuple[int, ...]) -> tuple[int, ...]:
    """Those of the arrays side by side, if all calls agree on them; () where the kernel can't be cut along them."""
    if not joined or stacked or unsplittable(call.module, call.inputs[0].ndim):
        return ()
    return (len(joined) == 1 and next(iter(joined))) or (call.inputs[0].shape[-1],)


def _unsupported(calls: list[Call], found: list[Found], traced: Trace) -> tuple[str, bool]:
    """(why a layer can't run on integers, or ""; whether its kernel can be on a grid all the same)."""
    reason = next((call.reason for call in calls if call.reason), "")
    if reason:
        return reason, False
    kernel = f"{calls[0].path}/kernel".lstrip("/")
    if not found and any(made.call.path == calls[0].path for made in traced.found.values()):
        return _COMPUTED, False
    if kernel in traced.read:
        return (_READ, False) if found else (_LIFTED, True)
    if not found:
        return _LIFTED, True
    if len({made.stacked for made in found}) > 1:
        return "its kernel is scanned over here and whole there", False
    return next((why for why in map(_differs, found) if why), ""), False


def _differs(made: Found) -> str:
    """Why flax computes something else there than the integer path would, or ""."""
    call = made.call
    shapes = [jax.ShapeDtypeStruct(value.shape, value.dtype) for value in call.inputs]
    usual = plain(call.module)
    if usual is not None:
        traced = jax.make_jaxpr(lambda params, *inputs: usual.apply({"params": params}, *inputs))(call.params, *shapes)
        if str(traced.jaxpr) != str(made.jaxpr):
            return _MORE
    expected = call.kind.contraction(call.module, call.params.get("kernel"), *shapes)
    names = ("dot_general", "conv_general_dilated")
    contractions = [equation for equation in made.jaxpr.eqns if equation.primitive.name in names]
    given = [{name: equation.params.get(name) for name in expected} for equation in contractions]
    return "" if not expected or given == [dict(expected)] else _MORE


def _channel_axes(call: Call, ndim: int, stacked: tuple[int, ...] = ()) -> tuple[int, ...]:
    """The output axes of a kernel of `ndim` axes, and those that transformations have put in: a layer each."""
    own = call.params["kernel"].ndim
    first = own - 1
    if isinstance(call.kind, DenseKind):
        first = call.kind.batched(call.module) + call.kind.contracted(call.module, call.inputs[0].ndim)
    added = stacked or tuple(range(ndim - own))
    left = [axis for axis in range(ndim) if axis not in added]
    return tuple(sorted((*added, *left[first:])))


def _macs(calls: list[Call], found: list[Found], traced: Trace) -> int:
    """Multiply-accumulates for one row of the batch: of the equations, or of a layer that was left to itself."""
    path, batch = calls[0].path, calls[0].batch
    if found:
        return sum(made.times * count_macs(made.jaxpr) for made in found) // batch
    return traced.macs[path] // batch if path in traced.macs else sum(map(_macs_of, calls))


def _macs_of(call: Call) -> int:
    if isinstance(call.module, Einsum):
        found = einsum_dims(call.module.spec)
        terms = math.prod(call.inputs[0].shape[axis] for axis in found[0][0][0]) if found else 0
    else:
        kernel = call.params["kernel"]
        axes = _channel_axes(call, kernel.ndim)
        batched = call.kind.batched(call.module) if isinstance(call.kind, DenseKind) else 0
        terms = math.prod(size for axis, size in enumerate(kernel.shape) if axis not in axes and axis >= batched)
    return math.prod(call.out.shape) * terms // call.batch
