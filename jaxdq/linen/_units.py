"""Units: the calls of modules that a network is cut into, outermost first, and what goes in and comes out of them.

A unit is whatever a predicate says it is: a leaf layer for a cost model, a ResNet or a transformer block for
reconstruction, an attention layer for a loss of its own. Units within a unit are not looked at.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from flax.core.tracers import current_trace

from jaxdq._common.errors import InputError

IsUnit = Callable[[nn.Module], bool]


class Unit(NamedTuple):
    """One call of a unit.

    Attributes:
        path: Path of the module in the params tree, `a/b/c`.
        module: The module alone, unbound: `module.apply({"params": params}, *args, **kwargs)` is the call.
        params: Its own params.
        args: Positional arguments of the call.
        kwargs: Keyword arguments.
        output: What it returned.
    """

    path: str
    module: nn.Module
    params: Any
    args: tuple
    kwargs: dict
    output: Any


@contextlib.contextmanager
def at_units(is_unit: IsUnit, on_unit: Callable[[nn.Module, tuple, dict, Any], Any]) -> Iterator[None]:
    """Within, every call of an outermost unit is shown to `on_unit`, and returns what that returns.

    Args:
        is_unit: Predicate of bound modules.
        on_unit: (bound module, args, kwargs, output) -> output.
    """
    inside = 0

    def visit(next_fun: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        nonlocal inside
        if inside or context.method_name != "__call__" or not is_unit(context.module):
            return next_fun(*args, **kwargs)
        inside += 1
        try:
            out = next_fun(*args, **kwargs)
        finally:
            inside -= 1
        return on_unit(context.module, args, kwargs, out)

    with nn.intercept_methods(visit):
        yield


def tap(module: nn.Module, params: Any, is_unit: IsUnit, *args: Any) -> tuple[Any, tuple[Unit, ...]]:
    """Calls the network in float and keeps what goes in and comes out of its units. Pure; jit it as a whole.

    Args:
        module: A linen module, or a wrapper whose `apply(variables, ...)` calls one.
        params: Its params.
        is_unit: Which modules are units, such as `lambda m: isinstance(m, ResnetBlock)` or `at_paths("mid", "up_0")`.
        *args: The network's arguments.

    Returns:
        The network's output, and the calls of units in the order of execution; arrays, or tracers within a trace.

    Raises:
        InputError: A unit inside `nn.remat`, `nn.scan` or another lifted transformation, whose values can't leave it.

    Example:
        `output, (first, *_) = tap(module, params, lambda m: isinstance(m, nn.Conv), x, t)`
    """
    found: list[Unit] = []

    def keep(unit: nn.Module, call_args: tuple, call_kwargs: dict, out: Any) -> Any:
        path = "/".join(unit.path)
        if current_trace() != outer:
            raise InputError(
                f"'{path}' sits in a lifted transformation (nn.remat, nn.scan), out of which its values can't be "
                f"taken; choose a unit around it."
            )
        own = dict(unit.variables.get("params", {}))
        found.append(Unit(path, unit.clone(parent=None, name=None), own, call_args, call_kwargs, out))
        return out

    outer = current_trace()
    with at_units(is_unit, keep):
        out = module.apply({"params": params}, *args)
    return out, tuple(found)


def units_of(module: nn.Module, params: Any, is_unit: IsUnit, *args: Any) -> tuple[Unit, ...]:
    """The units of a network with shapes in place of arrays, without computing; args as in `tap`, shapes welcome."""
    found: list[Unit] = []

    def forward(params: Any, *args: Any) -> Any:
        out, units = tap(module, params, is_unit, *args)
        found.extend(unit._replace(**_shapes(unit)) for unit in units)
        return out

    jax.eval_shape(forward, params, *args)
    return tuple(found)


def at_paths(*paths: str) -> IsUnit:
    """A predicate: the modules at these paths."""
    wanted = set(paths)
    return lambda module: "/".join(module.path) in wanted


def _shapes(unit: Unit) -> dict[str, Any]:
    def of(leaf: Any) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if hasattr(leaf, "shape") else leaf

    return {name: jax.tree.map(of, getattr(unit, name)) for name in ("params", "args", "kwargs", "output")}
