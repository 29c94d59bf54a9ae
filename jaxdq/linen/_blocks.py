"""The blocks that a network is reconstructed by: which modules, in which order, and what each is called with.

A block is the outermost module of few kernels: a ResNet block, a transformer block, an attention layer; what belongs to
none is a block of one layer. A container (a level of a UNet) is none, however few kernels it has.
"""

import collections
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from flax.core.tracers import current_trace
from jax.extend.core import Literal

from jaxdq._common.errors import InputError, described
from jaxdq.linen._kinds import path_of
from jaxdq.linen._run import bind
from jaxdq.linen._trace import body_of
from jaxdq.linen._units import at_paths, at_units

_LIFTED = "it sits in nn.scan or another lifted transformation, out of which no values can be taken"
_CONTAINER = re.compile(r"(Down|Up|Mid|Cross)\w*Block|Sequential|UNet\w*|Encoder|Decoder")


class Blocks(NamedTuple):
    """A network cut into blocks.

    Attributes:
        blocks: In the order of execution.
        left: Path of a kernel that belongs to none -> why.
    """

    blocks: tuple["Block", ...]
    left: dict[str, str]


@dataclass(frozen=True, eq=False)
class Block:
    """One module, called alone: `block.apply({"params": own}, *arrays)` with the arrays that it was called with.

    Attributes:
        path: Path of the module in the params tree, `a/b/c`.
        kernels: Paths of its kernels, from the root of the network.
        module: Unbound.
        call: What is no array among the call's arguments, and how they are put together.
        variables: Its collections other than params.
    """

    path: str
    kernels: tuple[str, ...]
    module: nn.Module
    call: tuple[Any, tuple[Any, ...]]
    variables: Mapping[str, Any]

    def apply(self, variables: Any, *arrays: jax.Array) -> Any:
        """The module's own call, with these arrays in place of its own."""
        structure, fixed = self.call
        given = iter(arrays)
        leaves = [next(given) if leaf is _ARRAY else leaf for leaf in fixed]
        args, kwargs = jax.tree.unflatten(structure, leaves)
        return self.module.apply({**self.variables, **variables}, *args, **kwargs)

    def name_of(self, relative: str) -> str:
        """The name in the network of an array or a kernel that has this one in the block."""
        return f"{self.path}/{relative}".strip("/") if not relative.startswith(":") else self.path + relative

    def relative(self, name: str) -> str:
        """The name in the block of what has this one in the network."""
        return name[len(self.path) :].lstrip("/")

    def holds(self, name: str) -> bool:
        """Whether a kernel, an array or a piece of one by this name in the network is the block's."""
        return name == self.path or name.startswith((f"{self.path}/", f"{self.path}:", f"{self.path}["))

    def params_in(self, params: Any) -> Any:
        """Its own params in the tree of the network."""
        for part in self.path.split("/") if self.path else ():
            params = params[part]
        return params


def cut_into_blocks(
    module: nn.Module,
    params: Any,
    kernels: Collection[str],
    *args: Any,
    max_kernels: int = 10,
    chosen: Collection[str] = (),
) -> Blocks:
    """Cuts a network into blocks, without computing.

    Args:
        module: A linen module, or a wrapper whose `apply(variables, ...)` calls one.
        params: Its params.
        kernels: Paths of the kernels that are to be in a block.
        *args: The network's arguments; shapes welcome.
        max_kernels: The most kernels of a block; 1 makes every layer one.
        chosen: Patterns of paths (whole, as in `Rule`) of modules that are blocks whatever they hold; they come first.
    """
    called: list[tuple[str, str]] = []

    def visit(next_fun: Callable, call_args: tuple, call_kwargs: dict, context: Any) -> Any:
        if context.method_name == "__call__":
            called.append((path_of(context.module), type(context.module).__name__))
        return next_fun(*call_args, **call_kwargs)

    def forward(params: Any, *args: Any) -> Any:
        with nn.intercept_methods(visit):
            return module.apply({"params": params}, *args)

    jax.eval_shape(forward, params, *args)
    classes, patterns = dict(called), check_patterns(chosen)
    for pattern in patterns:
        if not any(path and pattern.fullmatch(path) for path in classes):
            raise InputError(f"blocks has the pattern '{pattern.pattern}' and no module has such a path; correct it.")
    apart: set[str] = set()  # what can't be called alone, so that its layers are
    while True:
        paths = _chosen(
            {path: name for path, name in classes.items() if path not in apart}, kernels, max_kernels, patterns
        )
        found, reasons = _in_order(module, params, paths, args)
        more = {path for path in reasons if path not in kernels} - apart
        if not more:
            break
        apart |= more
    held = {kernel: path for path, own in paths.items() for kernel in own}
    left = {kernel: reasons[path] for kernel, path in held.items() if path in reasons}
    return Blocks(found, left | {kernel: "nothing calls it" for kernel in kernels if kernel not in held})


def check_patterns(patterns: Collection[str]) -> list[re.Pattern]:
    """Patterns of paths, compiled.

    Raises:
        InputError: No collection of texts, or one that is no regular expression.
    """
    if isinstance(patterns, str) or not all(isinstance(pattern, str) and pattern for pattern in patterns):
        raise InputError(f"blocks is {patterns!r}; give a tuple of patterns of paths, such as ('mid_block', 'up_.*').")
    try:
        return [re.compile(pattern) for pattern in patterns]
    except re.error as error:
        raise InputError(
            f"blocks has {error.pattern!r}, which is no regular expression ({error}); correct it."
        ) from None


def _chosen(
    classes: Mapping[str, str], kernels: Collection[str], max_kernels: int, patterns: list[re.Pattern]
) -> dict[str, tuple[str, ...]]:
    """Path of a block -> its kernels."""
    below = {path: tuple(k for k in kernels if k == path or not path or k.startswith(f"{path}/")) for path in classes}
    # A module whose kernels no called module below it holds is as far as a network can be cut there.
    paths = sorted((path for path in classes if below[path]), key=lambda path: path.count("/") + bool(path))

    def is_block(path: str) -> bool:
        own = below[path]
        if path in own or (path and any(pattern.fullmatch(path) for pattern in patterns)):
            return True
        deeper = [other for other in paths if other != path and (not path or other.startswith(f"{path}/"))]
        if set(own) - {kernel for other in deeper for kernel in below[other]}:
            return bool(path)
        return bool(path) and len(own) <= max_kernels and _CONTAINER.search(classes[path]) is None

    found: dict[str, tuple[str, ...]] = {}
    for path in paths:
        if not any(path == other or path.startswith(f"{other}/") for other in found) and is_block(path):
            found[path] = below[path]
    return found


class _Array:
    """Stands for an array among the arguments of a call."""

    def __repr__(self) -> str:
        return "array"


_ARRAY = _Array()


def _in_order(
    module: nn.Module, params: Any, paths: Mapping[str, tuple[str, ...]], args: tuple
) -> tuple[tuple[Block, ...], dict[str, str]]:
    """The blocks that can be taken alone, in the order of execution; path -> why another one can't."""
    found: dict[str, Block] = {}
    reasons: dict[str, str] = {}

    def forward(params: Any, *args: Any) -> Any:
        outer = current_trace()

        def on_unit(unit: nn.Module, call_args: tuple, call_kwargs: dict, out: Any) -> Any:
            leaves, structure = jax.tree.flatten((call_args, call_kwargs))
            fixed = tuple(_ARRAY if _is_array(leaf) else leaf for leaf in leaves)
            path, own = path_of(unit), unit.variables.get("params", {})
            others = {name: tree for name, tree in unit.variables.items() if name != "params"}
            block = Block(path, paths[path], unit.clone(parent=None, name=None), (structure, fixed), others)
            given = current_trace() == outer and block.params_in(params)
            if (reason := _why_not_alone(block, own, given or own, leaves, out)) and path not in reasons:
                reasons[path] = reason
            found[path] = block
            return _marked(path, leaves, out)

        with at_units(at_paths(*paths), on_unit):
            return module.apply({"params": params}, *args)

    seen = [path for path, *_ in _marks(jax.make_jaxpr(forward)(params, *args).jaxpr)]
    times = collections.Counter(seen)
    reasons |= {path: f"'{path}' is called more than once" for path in seen if times[path] > 1}
    reasons |= dict.fromkeys((path for path in paths if path not in times), _LIFTED)
    return tuple(found[path] for path in seen if path not in reasons), reasons


def _why_not_alone(block: Block, own: Any, given: Any, leaves: Sequence[Any], out: Any) -> str:
    """Why a block called alone would be another function than in the network, or none; "" if it is the same.

    Args:
        block: The block.
        own: Params that its module has in the network.
        given: Those of the network at its path.
        leaves: What it was called with.
        out: What it returned.
    """
    if leaves and (block.call[1][0] is not _ARRAY or not leaves[0].ndim):
        return "its first argument is no array with a batch"
    if not all(map(_is_array, jax.tree.leaves(out))):
        return "it returns something that is no array"
    if any(one is not other for one, other in zip(jax.tree.leaves(own), jax.tree.leaves(given), strict=False)):
        return "its params are changed on their way to it"
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(block.variables)):
        return "it has collections other than params inside a lifted transformation"
    shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves if _is_array(leaf)]
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), own)
    try:
        made = jax.eval_shape(lambda params, *arrays: block.apply({"params": params}, *arrays), params, *shapes)
    except Exception as error:  # whatever a module raises that needs what stands around it
        return f"it can't be called alone ({described(error)})"
    same = [leaf.shape for leaf in jax.tree.leaves(made)] == [leaf.shape for leaf in jax.tree.leaves(out)]
    return "" if same else "called alone it returns something else"


_MARK = "jaxdq_block:"


def _marked(path: str, given: Sequence[Any], out: Any) -> Any:
    """What a block returns, through an equation that names it and has what went in and came out as its operands."""
    leaves, structure = jax.tree.flatten(out)
    if not all(map(_is_array, leaves)):
        return out  # no block: see `_why_not_alone`
    arrays = [leaf for leaf in given if _is_array(leaf)]

    def mark(*operands: Any) -> tuple:
        return tuple(jax.lax.optimization_barrier(operands)[len(arrays) :])

    mark.__name__ = mark.__qualname__ = f"{_MARK}{len(arrays)}:{len(leaves)}:{path}"
    return jax.tree.unflatten(structure, jax.jit(mark)(*arrays, *leaves))


def _mark_of(equation: Any) -> tuple[str, int] | None:
    """(path of a block, how many of the operands went in), of an equation that is a mark."""
    name = str(equation.params.get("name", "")) if equation.primitive.name in ("pjit", "jit") else ""
    if not name.startswith(_MARK):
        return None
    given, made, path = name.removeprefix(_MARK).split(":", 2)
    # A scan's body is evaluated as far as it can be before it runs, and may leave a part of a mark outside.
    return (path, int(given)) if len(equation.invars) == int(given) + int(made) else None


def _marks(jaxpr: Any) -> Iterator[tuple[str, int]]:
    """The marks that values can be taken at: at the top, and in the bodies of `nn.remat`."""
    for equation in jaxpr.eqns:
        if (mark := _mark_of(equation)) is not None:
            yield mark
        elif equation.primitive.name != "scan" and (inner := body_of(equation)) is not None:
            yield from _marks(inner)


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray)


def values_at_blocks(blocks: Sequence[Block], call: Callable[[], Any]) -> list[tuple[tuple, tuple]]:
    """What goes into each block, and what comes out of it, while a network is called. Pure; jit it as a whole.

    Args:
        blocks: Of the network, from `cut_into_blocks`.
        call: Calls the network, in float or on integers.

    Returns:
        For each block (the arrays it was called with, as `Block.apply` takes them; the arrays it returned).
    """

    def on_unit(unit: nn.Module, call_args: tuple, call_kwargs: dict, out: Any) -> Any:
        return _marked(path_of(unit), jax.tree.leaves((call_args, call_kwargs)), out)

    def marked() -> Any:
        # Around the call: the interceptors that put layers on integers are nearer to them.
        with at_units(at_paths(*(block.path for block in blocks)), on_unit):
            return call()

    closed = jax.make_jaxpr(marked)()
    seen: dict[str, tuple[tuple, tuple]] = {}
    _run(closed.jaxpr, closed.consts, [], seen)
    return [seen[block.path] for block in blocks]


def _run(jaxpr: Any, consts: Sequence[Any], given: Sequence[Any], seen: dict[str, tuple[tuple, tuple]]) -> list[Any]:
    """Evaluates a jaxpr, the bodies of `nn.remat` that hold marks as if they stood in it, and keeps what marks show."""
    values: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *given), strict=True))

    def value_of(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for equation in jaxpr.eqns:
        operands = list(map(value_of, equation.invars))
        inner = body_of(equation) if equation.primitive.name != "scan" else None
        if (mark := _mark_of(equation)) is not None:
            path, count = mark
            seen[path] = tuple(operands[:count]), tuple(operands[count:])
            outs: Any = operands[count:]
        elif inner is not None and any(True for _ in _marks(inner)):
            outs = _run(inner, (), operands, seen)
        else:
            outs = bind(equation, operands)
        values.update(zip(equation.outvars, outs, strict=True))
    return [value_of(atom) for atom in jaxpr.outvars]
