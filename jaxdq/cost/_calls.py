"""The calls that a network is made of: its leaf modules as they are called, and what stands between them.

The network is traced once, without computing. Every call of a leaf (`Dense`, `DenseGeneral`, `Conv`, `Einsum`,
`DotProductAttention`, a norm) is taken out and noted; what is left in the trace is what the modules do themselves:
residual sums, concatenations, activations, and products of arrays that belong to no module.
"""

import collections
import dataclasses
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend.core import jaxprs_in_params

from jaxdq.linen import DotProductAttention, Einsum, at_units, inputs_of

NORMS = (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
LEAVES = (nn.Dense, nn.DenseGeneral, nn.Conv, Einsum, DotProductAttention, *NORMS)
# What a TPU's compiler does by moving data; other operations of an element each ride with their neighbours.
_MOVES = {
    "concatenate",
    "pad",
    "gather",
    "reduce_window",
    "reduce_window_sum",
    "rev",
    "sort",
    "reduce_max",
    "reduce_sum",
}


# Functions of one element that take a chip's vector unit many cycles, and its arithmetic, which takes it one.
FUNCTIONS = ("cos", "erf", "erfc", "exp", "exp2", "expm1", "log", "log1p", "logistic", "sin", "tanh")
ARITHMETIC = ("add", "add_any", "mul", "sub", "max", "min")


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a leaf, or a product that belongs to none.

    Attributes:
        path: Path of the module.
        module: The leaf, unbound; None for a bare product.
        params: Its params, as shapes.
        inputs: Shapes of the arrays it is called with.
        output: The shape of what it returns.
        equation: For a bare product, its parameters for `lax.dot_general`.
    """

    path: str
    module: nn.Module | None
    params: Any
    inputs: tuple[jax.ShapeDtypeStruct, ...]
    output: jax.ShapeDtypeStruct
    equation: tuple = ()

    @property
    def kind(self) -> str:
        """One of "convolutions", "dense layers", "attention" and "norms"."""
        if isinstance(self.module, nn.Conv):
            return "convolutions"
        if isinstance(self.module, nn.Dense | nn.DenseGeneral):
            return "dense layers"
        return "norms" if isinstance(self.module, NORMS) else "attention"


class Network(NamedTuple):
    """What one call of a network consists of.

    Attributes:
        calls: Calls of leaves, in the order of execution.
        moved_bytes: Bytes moved from and to memory between them.
        live_bytes: The most that is alive between two calls: activations, no parameters.
        computed: (function, dtype) -> elements that what stands between them computes it of; functions are those of
            `FUNCTIONS`, and "arithmetic" for all of `ARITHMETIC`.
    """

    calls: tuple[Call, ...]
    moved_bytes: int
    live_bytes: int
    computed: tuple[tuple[tuple[str, str], int], ...] = ()


def network_of(module: nn.Module, params: Any, *args: Any) -> Network:
    """Traces one call of a network.

    Args:
        module: A linen module, or a wrapper whose `apply(variables, ...)` calls one.
        params: Its params, arrays or shapes, in the dtype to be priced.
        *args: Its arguments, arrays or shapes.
    """
    calls: list[Call] = []

    def cut(leaf: nn.Module, call_args: tuple, call_kwargs: dict, out: Any) -> Any:
        arrays = [value for value in inputs_of(leaf, call_args, call_kwargs) if hasattr(value, "shape")]
        own = jax.tree.map(_shape_of, dict(leaf.variables.get("params", {})))
        alone = leaf.clone(parent=None, name=None)
        calls.append(Call("/".join(leaf.path), alone, own, tuple(map(_shape_of, arrays)), _shape_of(out)))
        # What the leaf computes falls out of the trace; its inputs stay needed, and its result is one.
        return jax.lax.optimization_barrier((jnp.zeros(out.shape, out.dtype), *arrays))[0]

    def forward(params: Any, *args: Any) -> Any:
        with at_units(lambda module: isinstance(module, LEAVES), cut):
            return module.apply({"params": params}, *args)

    closed = jax.make_jaxpr(forward)(params, *args)
    equations = _alive(closed.jaxpr)
    products = [_product(equation) for equation in equations if equation.primitive.name == "dot_general"]
    moved = sum(map(_moved_bytes, equations))
    live = _live_bytes(equations, closed.jaxpr.outvars)
    return Network((*calls, *products), moved, live, tuple(_computed(equations).items()))


def bytes_of(*shapes: Any) -> int:
    """Bytes of these arrays; whole bytes for each element."""
    return sum(math.prod(shape.shape) * shape.dtype.itemsize for shape in shapes)


def _shape_of(value: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(value.shape, value.dtype)


def _alive(jaxpr: Any) -> list[Any]:
    """The equations that the result depends on, in order."""
    needed, kept = set(_variables(jaxpr.outvars)), []
    for equation in reversed(jaxpr.eqns):
        if needed.intersection(equation.outvars):
            needed.update(_variables(equation.invars))
            kept.append(equation)
    return kept[::-1]


def _variables(atoms: Any) -> list[Any]:
    return [atom for atom in atoms if not hasattr(atom, "val")]  # a literal has a value


def _product(equation: Any) -> Call:
    inputs = tuple(_shape_of(atom.aval) for atom in equation.invars)
    given = equation.params["dimension_numbers"]
    return Call("(a product of its own)", None, {}, inputs, _shape_of(equation.outvars[0].aval), given)


def _moved_bytes(equation: Any) -> int:
    """Bytes that an equation reads and writes beside what its neighbours do anyway."""
    name = equation.primitive.name
    if name in ("optimization_barrier", "dot_general"):
        return 0
    ends = [atom.aval for atom in (*equation.invars, *equation.outvars) if hasattr(atom.aval, "shape")]
    outputs = [atom.aval for atom in equation.outvars]
    if name in _MOVES or (name == "broadcast_in_dim" and ends[0].size > 1 and outputs[0].size > ends[0].size):
        return bytes_of(*ends)
    # Of a sum of two activations one is there already, and the other is read.
    wide = [aval for aval in ends[: len(equation.invars)] if aval.size == max(out.size for out in outputs)]
    return bytes_of(*wide[1:])


def _computed(equations: Iterable[Any]) -> collections.Counter[tuple[str, str]]:
    found: collections.Counter[tuple[str, str]] = collections.Counter()
    for equation in equations:
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for inner in jaxprs_in_params(equation.params):
            counted = _computed(getattr(inner, "jaxpr", inner).eqns)
            found.update({key: times * elements for key, elements in counted.items()})
        name = equation.primitive.name
        if name in FUNCTIONS or name in ARITHMETIC:
            out = equation.outvars[0].aval
            found["arithmetic" if name in ARITHMETIC else name, str(out.dtype)] += out.size
    return found


def _live_bytes(equations: list[Any], results: Any) -> int:
    """The most bytes of intermediate values that are needed at one time."""
    last = {variable: index for index, equation in enumerate(equations) for variable in _variables(equation.invars)}
    last |= {variable: len(equations) for variable in _variables(results)}
    live: dict[Any, int] = {}
    most = 0
    for index, equation in enumerate(equations):
        is_constant = equation.primitive.name == "broadcast_in_dim" and equation.invars[0].aval.size == 1
        for variable in () if is_constant else equation.outvars:
            if last.get(variable, -1) > index:
                live[variable] = bytes_of(variable.aval)
        most = max(most, sum(live.values()))
        live = {variable: size for variable, size in live.items() if last[variable] > index}
    return most
