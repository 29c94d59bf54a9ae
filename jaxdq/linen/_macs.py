"""Counting the multiply-accumulates of a traced function: of all it does, whether a module computes it or not."""

import math
from typing import Any


def count_macs(jaxpr: Any) -> int:
    """Multiply-accumulates of all dots and convolutions in a jaxpr and in those within it.

    A scan's body counts as often as it runs; a while loop's once, and every branch of a conditional.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> count_macs(jax.make_jaxpr(jnp.matmul)(jnp.ones((2, 3)), jnp.ones((3, 5))).jaxpr)
        30
    """
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            terms = math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
            total += terms * math.prod(eqn.outvars[0].aval.shape)
        elif eqn.primitive.name == "conv_general_dilated":
            kernel, features = eqn.invars[1].aval.shape, eqn.params["dimension_numbers"].rhs_spec[0]
            total += math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel) // kernel[features]
        times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        total += times * sum(count_macs(inner) for inner in _inner(eqn.params))
    return total


def _inner(params: dict[str, Any]) -> list[Any]:
    """The jaxprs among an equation's parameters, alone or in a sequence, closed or open."""
    values = [value for param in params.values() for value in (param if isinstance(param, list | tuple) else [param])]
    jaxprs = [getattr(value, "jaxpr", value) for value in values]
    return [jaxpr for jaxpr in jaxprs if hasattr(jaxpr, "eqns")]
