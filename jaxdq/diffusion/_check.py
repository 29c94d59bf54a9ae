"""What people bring to a model, looked at before anything is made of it: one sentence in place of a traceback."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdq._common.checks import shown
from jaxdq._common.errors import InputError


def checked_conditions(conditions: Any) -> tuple[Any, ...]:
    """A tuple of finite arrays, each with at least one row.

    Raises:
        InputError: Something else; an array in place of a tuple of them would be taken for its rows.
    """
    if not isinstance(conditions, tuple | list):
        shape = f" of shape {tuple(conditions.shape)}" if hasattr(conditions, "shape") else ""
        raise InputError(
            f"conditions is a {type(conditions).__name__}{shape}; pass a tuple with one array for each argument of the "
            "model after x and t, such as (labels,)."
        )
    for index, condition in enumerate(conditions):
        dtype = _number_type(condition)
        if dtype is None:
            raise InputError(f"conditions[{index}] is {shown(condition)}; pass an array of numbers.")
        if not np.shape(condition) or np.shape(condition)[0] < 1:
            raise InputError(
                f"conditions[{index}] has shape {np.shape(condition)}; pass an array with one row per image to "
                "draw from, shape (P, ...) with P >= 1."
            )
        abstract = isinstance(condition, jax.core.Tracer | jax.ShapeDtypeStruct)
        if not abstract and jnp.issubdtype(dtype, jnp.inexact) and not np.isfinite(np.asarray(condition)).all():
            raise InputError(f"conditions[{index}] holds NaN or infinity; pass finite numbers.")
    return tuple(conditions)


def check_params(params: Any) -> None:
    """Refuse params that hold something else than numbers, and a dict of collections in their place."""
    if isinstance(params, Mapping) and isinstance(params.get("params"), Mapping):
        others = [name for name in params if name != "params"]
        more = f", and {', '.join(map(repr, others))} as variables={{...}}" if others else ""
        raise InputError(f"params is all that module.init returned; pass its 'params'{more}.")
    for keys, leaf in jax.tree_util.tree_leaves_with_path(params):
        if _number_type(leaf) is None:
            path = jax.tree_util.keystr(keys, simple=True, separator="/")
            where = f" at '{path}'" if path else ""
            raise InputError(f"params holds {shown(leaf)}{where}; pass a pytree of arrays, as module.init returns it.")


def check_sampler(sampler: Any) -> None:
    """Refuse what draws no images."""
    if isinstance(sampler, type) or not callable(getattr(sampler, "coefficients", None)):
        raise InputError(f"sampler is {shown(sampler)}; pass one such as jaxdq.ddim(50).")


def check_key(key: Any) -> None:
    """Refuse what is no random key of jax."""
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    is_typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key) and shape == ()
    if not is_typed and not (dtype == np.uint32 and shape is not None and len(shape) == 1):  # of jax.random.PRNGKey
        raise InputError(f"key is {shown(key)}; pass one random key, such as jax.random.key(0).")


def _number_type(value: Any) -> np.dtype | None:
    """The type of its numbers; None where it holds something else."""
    try:
        dtype = jax.eval_shape(jnp.asarray, value).dtype if not hasattr(value, "dtype") else value.dtype
    except (TypeError, ValueError, OverflowError):
        return None
    return dtype if jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool_) else None
