"""Which layers see nothing but the time, by data flow through the trace of a network."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
from jax.extend.core import Literal

from jaxdq._common.trees import unboxed
from jaxdq.linen._time import time_place
from jaxdq.linen._trace import Call, Found, Trace, body_of, trace

_TIME, _OTHER = 1, 2


def layers_of_time(module: nn.Module, params: Any, *args: Any) -> dict[str, bool]:
    """Path of each layer whose inputs depend on the time and the params alone -> whether its output is still read.

    Once the layers named here are replaced by tables, the outputs of those that only other ones read are not: of a
    UNet the time embedding's, where each block projects it for itself. Layers that are called twice, go through
    `nn.scan` or another transformation, or whose kernel is not their own, are not looked at.

    Args:
        module: A linen module.
        params: Its params tree; arrays or shapes.
        *args: Example arguments of the module's call, as in `find_sites`.
    """
    params = unboxed(params)
    traced = trace(module, params, *args)
    marks = [0] * len(jax.tree.leaves(params))
    place = time_place(module, args, {})
    for index, arg in enumerate(args):
        marks += [_TIME if index == place else _OTHER] * len(jax.tree.leaves(arg))
    jaxpr = traced.closed.jaxpr
    found: dict[int, Call] = {}
    _spread(jaxpr, marks, traced, found)
    paths = [call.path for call in traced.calls]
    of_time = {key: call.path for key, call in found.items() if paths.count(call.path) == 1}
    read: set[str] = set()
    _read(jaxpr, [True] * len(jaxpr.outvars), of_time, read)
    return {path: path in read for path in of_time.values()}


def _spread(jaxpr: Any, marks: Sequence[int], traced: Trace, found: dict[int, Call]) -> list[int]:
    """Spreads from the arguments what values depend on, and collects the layers that depend on the time alone."""
    known = dict(zip(jaxpr.invars, marks, strict=True))

    def mark_of(atom: Any) -> int:
        return 0 if isinstance(atom, Literal) else known.get(atom, 0)

    for equation in jaxpr.eqns:
        given = [mark_of(atom) for atom in equation.invars]
        mark = 0
        for one in given:
            mark |= one
        layer = traced.found.get(id(equation))
        if layer is not None and mark == _TIME and _is_plain(layer):
            found[id(equation)] = layer.call
        outs = [mark] * len(equation.outvars)
        if (inner := body_of(equation)) is not None and equation.primitive.name != "scan":
            outs = _spread(inner, given, traced, found)
        known.update(zip(equation.outvars, outs, strict=True))
    return [mark_of(atom) for atom in jaxpr.outvars]


def _is_plain(layer: Found) -> bool:
    return layer.is_own and layer.times == 1 and not layer.stacked and layer.call.kind.name != "product"


def _read(jaxpr: Any, wanted: Sequence[bool], of_time: dict[int, str], read: set[str]) -> list[bool]:
    """Goes back from the results; returns which of the jaxpr's arguments anything reads."""
    needed = {atom for atom, is_wanted in zip(jaxpr.outvars, wanted, strict=True) if is_wanted and _is_var(atom)}
    for equation in reversed(jaxpr.eqns):
        outs = [out in needed for out in equation.outvars]
        if not any(outs) and not equation.effects:
            continue
        if id(equation) in of_time:
            read.add(of_time[id(equation)])  # its table is, and nothing that it is called with
            continue
        inner = body_of(equation)
        is_body = inner is not None and equation.primitive.name != "scan"
        used = _read(inner, outs, of_time, read) if is_body else [True] * len(equation.invars)
        needed |= {atom for atom, is_used in zip(equation.invars, used, strict=True) if is_used and _is_var(atom)}
    return [var in needed for var in jaxpr.invars]


def _is_var(atom: Any) -> bool:
    return not isinstance(atom, Literal)
