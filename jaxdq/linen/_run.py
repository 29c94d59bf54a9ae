"""Running a trace with a visitor: each input of a layer is shown to it, and may come back changed."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import Literal

from jaxdq.linen._trace import Found, Trace, body_of, scan_parts

Visitor = Callable[[str, jax.Array], jax.Array]


def run(traced: Trace, visitor: Visitor, params: Any, args: tuple) -> Any:
    """The network's output, each input of a layer passed through the visitor on the way.

    Bodies are run as if they stood in the network itself, and a scan's as often as it says: the visitor sees every
    array at the top, so that it may keep it.

    Args:
        traced: Result of `trace`.
        visitor: (name, x) -> x, names as in `Site.inputs`.
        params: Params of the shapes that were traced.
        args: Arguments of the shapes that were traced.
    """
    leaves = jax.tree.leaves((params, *args))
    out = _run(traced.closed.jaxpr, traced.closed.consts, leaves, traced.found, visitor)
    return jax.tree.unflatten(traced.out_tree, out)


def _run(jaxpr: Any, consts: Any, values: list[Any], found: dict[int, Found], visitor: Visitor) -> list[Any]:
    """Evaluates a jaxpr, the inputs of the layers in it passed through the visitor."""
    env: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *values), strict=True))

    def value_of(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else env[atom]

    for equation in jaxpr.eqns:
        given = list(map(value_of, equation.invars))
        site = found.get(id(equation))
        if site is not None and site.is_own:
            first = len(site.call.leaves)
            shown = zip(site.call.names, given[first:], strict=True)
            given[first:] = [visitor(name, x) for name, x in shown]
        if (inner := body_of(equation)) is None or not _holds_sites(inner, found):
            outs = bind(equation, given)
        elif equation.primitive.name == "scan":
            outs = _run_scan(equation, given, found, visitor)
        else:
            outs = _run(inner, (), given, found, visitor)
        env.update(zip(equation.outvars, outs, strict=True))
    return [value_of(atom) for atom in jaxpr.outvars]


def bind(equation: Any, given: list[Any]) -> list[Any]:
    """One equation, evaluated as `jax.core.eval_jaxpr` would."""
    bound = equation.primitive.get_bind_params(equation.params)
    subfuns, params = bound if isinstance(bound, tuple) else ((), bound)  # a pair in some versions of JAX
    with equation.ctx.manager:
        outs = equation.primitive.bind(*subfuns, *given, **params)
    return list(outs) if equation.primitive.multiple_results else [outs]


def _run_scan(equation: Any, given: list[Any], found: dict[int, Found], visitor: Visitor) -> list[Any]:
    """A scan step by step."""
    body, length = equation.params["jaxpr"], equation.params["length"]
    first, after = scan_parts(equation)
    carry, made = given[first:after], []
    order = range(length)[::-1] if equation.params["reverse"] else range(length)
    for step in order:
        slices = [x[step] for x in given[after:]]
        outs = _run(body.jaxpr, body.consts, [*given[:first], *carry, *slices], found, visitor)
        carry = outs[: after - first]
        made.append(outs[after - first :])
    if equation.params["reverse"]:
        made.reverse()
    return [*carry, *map(jax.numpy.stack, zip(*made, strict=True))]


def _holds_sites(jaxpr: Any, found: dict[int, Found]) -> bool:
    return any(id(equation) in found for equation in _equations(jaxpr))


def _equations(jaxpr: Any) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        yield equation
        if (inner := body_of(equation)) is not None:
            yield from _equations(inner)
