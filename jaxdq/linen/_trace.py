"""A network as one trace, in which every call of a layer is one named equation.

Whether a layer is a site, and what a visitor sees of it, are questions about data flow: does the kernel that the layer
multiplies by come from the params untouched, does anybody else read it, which arrays come in? The trace answers them
for any way of writing a module: inside `nn.remat` and `nn.scan` too, whose bodies are traces within the trace.
"""

import collections
import dataclasses
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from flax.errors import ModifyScopeVariableError, ScopeCollectionNotFound, ScopeVariableNotFoundError
from jax.extend.core import Literal

from jaxdq._common.errors import InputError
from jaxdq.grid import QTensor, dequantize
from jaxdq.linen._kinds import Kind, inputs_of, is_attention, kind_of, own_way, path_of
from jaxdq.linen._macs import count_macs

_PREFIX = "jaxdq_site_"


class Call(NamedTuple):
    """One call of a layer, as the module made it.

    Attributes:
        path: Path of the layer.
        kind: Kind of the layer.
        module: The layer, unbound.
        inputs: The arrays it was called with (tracers, to tell them apart by identity).
        params: Shapes of its own params.
        out: Shape of what it returned.
        batch: Rows of the network's batch.
        reason: Why the layer was left to itself; "" where its call is an equation.
    """

    path: str
    kind: Kind
    module: nn.Module
    inputs: tuple[Any, ...]
    params: Any
    out: jax.ShapeDtypeStruct
    batch: int
    reason: str

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its inputs, as in `Site.inputs`."""
        return (f"{self.path}:lhs", f"{self.path}:rhs") if self.kind.name == "product" else (self.path,)

    @property
    def leaves(self) -> list[str]:
        """The paths of its params in params, in the order of the equation's operands."""
        return [f"{self.path}/{name}".lstrip("/") for name in _leaf_paths(self.params)]


class Found(NamedTuple):
    """The equation of a call, where the trace (or a body within it) has it as it was made.

    Attributes:
        call: The call.
        jaxpr: What flax computes there.
        times: How often it runs.
        is_own: Whether the kernel is the one that params have at the layer's path, untouched; a product has none.
        stacked: Axes of that kernel that scans go through.
    """

    call: Call
    jaxpr: Any
    times: int
    is_own: bool
    stacked: tuple[int, ...]


class _Origin(NamedTuple):
    """A leaf of params, or the slice of it that a scan's body sees.

    Attributes:
        path: Path of the leaf.
        axes: Its axes that are left, in the order in which the slice has them.
        stacked: Its axes that scans go through.
    """

    path: str
    axes: tuple[int, ...]
    stacked: tuple[int, ...] = ()

    @property
    def is_in_order(self) -> bool:
        return self.axes == tuple(sorted(self.axes))

    def sliced(self) -> "_Origin":
        return _Origin(self.path, self.axes[1:], (*self.stacked, self.axes[0]))

    def transposed(self, permutation: Sequence[int]) -> "_Origin":
        return self._replace(axes=tuple(self.axes[axis] for axis in permutation))


@dataclasses.dataclass
class Trace:
    """What `trace` returns.

    Attributes:
        closed: The jaxpr of `(params, *args) -> leaves of the output`.
        out_tree: Structure of the output.
        calls: Calls in the order in which the module made them.
        conditions: The arrays of two axes or more that the network is called with, but for its first.
        found: Id of an equation -> what it is; those that are calls of layers.
        read: Paths of leaves of params that something else than their own layer reads.
        macs: Path of a layer -> multiply-accumulates of its calls, batches of them and derivatives included.
    """

    closed: Any
    out_tree: Any
    calls: list[Call]
    conditions: list[Any]
    found: dict[int, Found] = dataclasses.field(default_factory=dict)
    read: set[str] = dataclasses.field(default_factory=set)
    macs: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)


def trace(module: nn.Module, params: Any, *args: Any) -> Trace:
    """Traces the module once, without computing.

    Args:
        module: A linen module, or a wrapper whose `apply(variables, ...)` calls one.
        params: Its params tree; arrays, tracers or `jax.ShapeDtypeStruct`.
        *args: Its arguments.

    Raises:
        InputError: The module has collections other than params, which it was called without, or which it updates.
    """
    recorder = _Recorder(batch=args[0].shape[0] if args and jax.numpy.ndim(args[0]) else 1)

    def forward(params: Any, *args: Any) -> Any:
        with nn.intercept_methods(recorder.visit):
            return module.apply({"params": params}, *args)

    try:
        closed, out = jax.make_jaxpr(forward, return_shape=True)(params, *args)
    except (ScopeCollectionNotFound, ScopeVariableNotFoundError, ModifyScopeVariableError) as error:
        raise _about_collections(error) or error from None
    traced = Trace(closed, jax.tree.structure(out), recorder.calls, recorder.conditions)
    leaves = zip(_leaf_paths(params), jax.tree.leaves(params), strict=True)
    origins = [_Origin(path, tuple(range(jax.numpy.ndim(leaf)))) for path, leaf in leaves]
    jaxpr = closed.jaxpr
    outs = _follow(jaxpr, [*origins, *[None] * (len(jaxpr.invars) - len(origins))], 1, traced)
    traced.read.update(origin.path for origin in outs if origin)
    return traced


def _about_collections(error: Exception) -> InputError | None:
    """A sentence about the collection that flax missed or would not change; None where it is params."""
    named = re.search(r'collection "(\w+)"', str(error))
    if named is None or named[1] == "params":
        return None
    if isinstance(error, ModifyScopeVariableError):
        return InputError(
            f"the network updates its collection '{named[1]}' when it is called; make it in inference mode (of "
            f"nn.BatchNorm: use_running_average=True) before quantizing it."
        )
    return InputError(
        f"the network has a collection '{named[1]}' beside params and was called without it; pass "
        f"jaxdq.Denoiser(..., variables={{'{named[1]}': ...}})."
    )


def _complex(*trees: Any) -> str:
    leaves = (leaf for leaf in jax.tree.leaves(trees) if hasattr(leaf, "dtype"))
    is_complex = any(jax.numpy.issubdtype(leaf.dtype, jax.numpy.complexfloating) for leaf in leaves)
    return "it computes with complex numbers" if is_complex else ""


def _leaf_paths(params: Any) -> list[str]:
    paths = jax.tree_util.tree_leaves_with_path(params)
    return ["/".join(str(getattr(key, "key", key)) for key in keys) for keys, _ in paths]


class _Recorder:
    """Makes an equation of every call of a layer that does what its class in flax does."""

    def __init__(self, batch: int) -> None:
        self.calls: list[Call] = []
        self.conditions: list[Any] = []
        self._batch = batch
        self._depth = 0
        self._is_within_layer = False
        self._left_alone: list[nn.Module] = []  # whose calls are going on, and may call what they derive from

    def visit(self, next_fun: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        if self._is_within_layer:
            return next_fun(*args, **kwargs)
        if not self._depth and context.method_name == "__call__":
            self._batch = args[0].shape[0] if args else self._batch
            self.conditions.extend(_conditions(context.module, args, kwargs))
        self._depth += 1
        try:
            return self._called(next_fun, args, kwargs, context)
        finally:
            self._depth -= 1

    def _called(self, next_fun: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        module = context.module
        if is_attention(context):
            return module.products(*args, **kwargs)
        kind = kind_of(module) if context.method_name == "__call__" else None
        if kind is None or any(module is one for one in self._left_alone):
            return next_fun(*args, **kwargs)
        inputs = inputs_of(module, args, kwargs)
        params = dict(module.variables.get("params", {}))
        reason = own_way(module) or _complex(inputs, params) or kind.unsupported(module, *inputs)
        alone = module.clone(parent=None, name=None)
        out = self._alone(next_fun, module, args, kwargs) if reason else self._as_equation(alone, params, inputs)
        own, made = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (params, out))
        self.calls.append(Call(path_of(module), kind, alone, inputs, own, made, self._batch, reason))
        return out

    def _alone(self, next_fun: Callable, module: nn.Module, args: tuple, kwargs: dict) -> Any:
        self._left_alone.append(module)
        try:
            return next_fun(*args, **kwargs)
        finally:
            self._left_alone.pop()

    def _as_equation(self, module: nn.Module, params: Any, inputs: tuple) -> Any:
        def layer(params: Any, *inputs: jax.Array) -> Any:
            kernel = params.get("kernel")
            if isinstance(kernel, QTensor):
                params = {**params, "kernel": dequantize(kernel)}
            return module.apply({"params": params}, *inputs)

        layer.__name__ = f"{_PREFIX}{len(self.calls)}"
        self._is_within_layer = True
        try:
            return jax.jit(layer)(params, *inputs)
        finally:
            self._is_within_layer = False


def _conditions(module: nn.Module, args: tuple, kwargs: dict) -> list[Any]:
    given = inspect.signature(type(module).__call__).bind(module, *args, **kwargs).arguments
    return [leaf for leaf in jax.tree.leaves(list(given.values())[1:]) if getattr(leaf, "ndim", 0) > 1][1:]


def _call_of(equation: Any, calls: list[Call]) -> Call | None:
    """The call whose equation this is, or what a transformation of it has become."""
    name = str(equation.params.get("name", ""))
    if equation.primitive.name not in ("jit", "pjit") or not name.startswith(_PREFIX):
        return None
    index = int(name.removeprefix(_PREFIX))
    return calls[index] if index < len(calls) else None


def _is_as_made(equation: Any, call: Call) -> bool:
    """Whether it is the call itself: a batch of it has more axes, its derivative more results."""
    made = [*jax.tree.leaves(call.params), *call.inputs, call.out]
    here = [atom.aval for atom in (*equation.invars, *equation.outvars)]
    return [tuple(value.shape) for value in made] == [tuple(value.shape) for value in here]


def _follow(jaxpr: Any, origins: Sequence[_Origin | None], times: int, traced: Trace) -> list[_Origin | None]:
    """Follows the leaves of params through a jaxpr; returns those that it hands on as its results."""
    env: dict[Any, _Origin] = {var: origin for var, origin in zip(jaxpr.invars, origins, strict=True) if origin}
    used = {atom for equation in jaxpr.eqns for atom in equation.invars if not isinstance(atom, Literal)}
    used |= {atom for atom in jaxpr.outvars if not isinstance(atom, Literal)}

    def origin_of(atom: Any) -> _Origin | None:
        return None if isinstance(atom, Literal) else env.get(atom)

    for equation in jaxpr.eqns:
        given = [origin_of(atom) for atom in equation.invars]
        call = _call_of(equation, traced.calls)
        as_made = call is not None and _is_as_made(equation, call)
        if call is not None and not as_made and not used.intersection(equation.outvars):
            continue  # nn.scan traces its body once more than it runs it, and drops what comes of it
        if call is not None:
            traced.macs[call.path] += times * count_macs(equation.params["jaxpr"].jaxpr)
        if call is not None and as_made:
            _meet(equation, call, given, times, traced)
        elif equation.primitive.name == "transpose" and given[0] is not None:  # nn.scan's axis comes first
            env[equation.outvars[0]] = given[0].transposed(equation.params["permutation"])
        elif (inner := body_of(equation)) is not None:
            outs = _follow(inner, _given_to_body(equation, given, traced), times * _length(equation), traced)
            if _length(equation) == 1 and equation.primitive.name != "scan":
                env |= {var: origin for var, origin in zip(equation.outvars, outs, strict=True) if origin}
            else:
                traced.read.update(origin.path for origin in outs if origin)
        else:
            traced.read.update(origin.path for origin in given if origin)
    return [origin_of(atom) for atom in jaxpr.outvars]


def _meet(equation: Any, call: Call, given: list[_Origin | None], times: int, traced: Trace) -> None:
    own = [*call.leaves, *("" for _ in call.inputs)]
    # A layer that is handed the params of another, as a functional call may be, reads them.
    traced.read.update(origin.path for origin, path in zip(given, own, strict=True) if origin and origin.path != path)
    kernel = f"{call.path}/kernel".lstrip("/")
    pairs = [pair for pair in zip(given, own, strict=True) if pair[1].startswith(kernel)]
    is_own = all(origin is not None and origin.path == path and origin.is_in_order for origin, path in pairs)
    stacked = next((origin.stacked for origin, _ in pairs if origin), ())
    closed = equation.params["jaxpr"]
    found = Found(call, closed.jaxpr, times, is_own, stacked)
    traced.found[id(equation)] = found


def body_of(equation: Any) -> Any:
    """The jaxpr within an equation that may hold sites: of `nn.remat` or `nn.scan`."""
    name = equation.primitive.name
    if name in ("remat2", "remat", "checkpoint"):
        return equation.params["jaxpr"]
    return equation.params["jaxpr"].jaxpr if name == "scan" else None


def scan_parts(equation: Any) -> tuple[int, int]:
    """Where the carry of a scan begins among its operands, and where what it goes through does."""
    params = equation.params
    if "num_consts" in params:
        return params["num_consts"], params["num_consts"] + params["num_carry"]
    consts, carry, _ = map(len, params["ft_in"].unpack())  # since JAX 0.12
    return consts, consts + carry


def _length(equation: Any) -> int:
    return equation.params["length"] if equation.primitive.name == "scan" else 1


def _given_to_body(equation: Any, given: list[_Origin | None], traced: Trace) -> list[_Origin | None]:
    if equation.primitive.name != "scan":
        return given
    first, after = scan_parts(equation)
    traced.read.update(origin.path for origin in given[first:after] if origin)  # they may change from step to step
    sliced = [origin and origin.sliced() for origin in given[after:]]
    return [*given[:first], *[None] * (after - first), *sliced]
