"""Leaves of a params tree, by path."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdq._common.errors import InputError


def params_at(params: Any, path: str) -> Any:
    """The params of the module at `path` in a params tree, or None."""
    node = params
    for part in path.split("/") if path else ():
        if not hasattr(node, "get") or (node := node.get(part)) is None:
            return None
    return node


def kernel_at(params: Any, path: str) -> Any:
    """The kernel of the module at `path` in a params tree, or None."""
    node = params_at(params, path)
    return node.get("kernel") if hasattr(node, "get") else None


def with_kernels(params: Any, kernels: dict[str, Any], path: str = "") -> Any:
    """A copy of the tree in which the kernel of the module at each given path is replaced."""
    if not hasattr(params, "items"):
        return params
    prefix = f"{path}/" if path else ""
    out = {key: with_kernels(value, kernels, f"{prefix}{key}") for key, value in params.items()}
    return {**out, "kernel": kernels[path]} if path in kernels else out


def has_values(leaf: Any) -> bool:
    """Whether the numbers of an array can be looked at: here, now, and all of them."""
    abstract = isinstance(leaf, jax.core.Tracer | jax.ShapeDtypeStruct)
    return not abstract and bool(getattr(leaf, "is_fully_addressable", True))


def check_numbers(array: Any, what: str) -> None:
    """Refuses what is no array of numbers and, where they can be looked at, infinity and NaN.

    Args:
        array: What a calibration brings.
        what: What to call it in a sentence.
    """
    dtype = getattr(array, "dtype", None)
    if dtype is None or not (jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)):
        came = f"an array of type {dtype}" if dtype is not None else f"a {type(array).__name__}"
        raise InputError(f"{what} is {came}; give an array of numbers.")
    if has_values(array):
        numbers = np.asarray(array).astype(np.float64)
        if not np.isfinite(numbers).all():
            raise InputError(f"{what} holds NaN or infinity; give finite numbers.")


def with_leaves(params: Any, leaves: Mapping[str, jax.Array]) -> Any:
    """A copy of the tree with these leaves, by path, in place of its own and in their dtypes.

    Raises:
        InputError: A path that the tree does not have, an array of another shape, or what is no array of numbers.
    """
    if not leaves:
        return params
    left = dict(leaves)

    def replaced(keys: Any, leaf: Any) -> Any:
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        if path not in left:
            return leaf
        new = left.pop(path)
        check_numbers(new, f"what the calibration puts in place of '{path}'")
        if tuple(new.shape) != tuple(leaf.shape):
            raise InputError(
                f"the calibration replaces '{path}' of shape {tuple(leaf.shape)} by an array of shape "
                f"{tuple(new.shape)}; pass one of the same shape."
            )
        return new.astype(leaf.dtype)

    out = jax.tree_util.tree_map_with_path(replaced, params)
    if left:
        raise InputError(
            f"the calibration replaces {sorted(left)} and params have no such leaf; pass the params of the calibrated "
            f"network."
        )
    return out
