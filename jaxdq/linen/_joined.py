"""Which layers are called with several arrays side by side, such as a decoder's features and an encoder's shortcut."""

from collections.abc import Container, Sequence
from typing import Any

from jax.extend.core import Literal

from jaxdq.linen._trace import body_of, scan_parts

_KEEPS = ("convert_element_type", "copy", "sharding_constraint", "optimization_barrier", "stop_gradient")


def joined_inputs(jaxpr: Any, layers: Container[int], given: Sequence[tuple[int, ...]] = ()) -> dict[int, tuple]:
    """Id of a layer's equation -> channels of each array that its last operand is a concatenation of.

    Concatenations along the last axis are followed through casts, through one another and into the bodies of `nn.remat`
    and `nn.scan`; whatever computes with the values ends them: what comes out is one array with one distribution.

    Args:
        jaxpr: Trace of the network.
        layers: Ids of the equations to look at.
        given: Channels of what the jaxpr's arguments are made of; () for one array.
    """
    known = {var: sizes for var, sizes in zip(jaxpr.invars, given, strict=False) if sizes}
    found: dict[int, tuple] = {}

    def sizes_of(atom: Any) -> tuple[int, ...]:
        return () if isinstance(atom, Literal) else known.get(atom, ())

    for equation in jaxpr.eqns:
        name, operands = equation.primitive.name, equation.invars
        if id(equation) in layers:
            if sizes := sizes_of(operands[-1]):
                found[id(equation)] = sizes
        elif name == "concatenate" and equation.params["dimension"] == operands[0].aval.ndim - 1:
            each = (sizes_of(atom) or (atom.aval.shape[-1],) for atom in operands)
            known[equation.outvars[0]] = tuple(size for sizes in each for size in sizes if size)
        elif name in _KEEPS:
            known.update({out: sizes_of(atom) for out, atom in zip(equation.outvars, operands, strict=True)})
        elif (inner := body_of(equation)) is not None:
            handed = list(map(sizes_of, operands))
            if name == "scan":  # what a scan carries or goes through is another array at every step
                handed[scan_parts(equation)[0] :] = [()] * (len(handed) - scan_parts(equation)[0])
            found |= joined_inputs(inner, layers, handed)
    return found
