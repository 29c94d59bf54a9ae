"""The time of a call: which argument it is, what a module makes of it, and which scales belong to it."""

import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdq._common.checks import shown
from jaxdq._common.errors import InputError
from jaxdq.linen._acts import Acts

TIME_NAMES = ("t", "timestep", "timesteps", "time")
# A switch's program grows with its branches: of 1,000 rows it has 6,227 lines where a gather has 226.
_MOST_BRANCHES = 16


def time_argument(module: nn.Module, args: tuple, kwargs: dict) -> jax.Array | np.ndarray:
    """The value of the module's time argument in this call: a tracer, or a NumPy array where it is concrete.

    Raises:
        InputError: No such argument, or one that is neither a scalar nor a vector of numbers.
    """
    place = time_place(module, args, kwargs)
    given = kwargs[place] if isinstance(place, str) else args[place]
    # NumPy, because inside a trace jax.numpy makes tracers of constants too, and nothing can be said of their values.
    traced = isinstance(given, jax.core.Tracer) or not getattr(given, "is_fully_addressable", True)
    try:
        t = given if traced else np.asarray(given)
        is_number = jnp.issubdtype(t.dtype, jnp.integer) or jnp.issubdtype(t.dtype, jnp.floating)
    except (TypeError, ValueError, OverflowError):
        is_number = False
    if not is_number or t.ndim > 1:
        raise InputError(f"t is {shown(given)}; pass a number, or one for each row of the batch.")
    return t


def with_time_per_row(call: Callable, module: Any, args: tuple, kwargs: dict) -> Any:
    """`call(*args, **kwargs)`; if a module can't take t as it came, the same call with an array of one for each row.

    Many modules are written for t of shape [B] and say so only by failing. What `call` does besides returning must bear
    being done twice.

    Raises:
        Exception: Whatever the call raised with t as it came, if one t for each row is no remedy.
    """
    try:
        return call(*args, **kwargs)
    except InputError:
        raise
    except Exception as error:
        of_rows = _with_time_of_rows(module, args, kwargs)
        if of_rows is None:
            raise
        try:
            return call(*of_rows[0], **of_rows[1])
        except InputError:
            raise
        except Exception:
            raise error from None


def grids_at(acts: Acts, t: jax.Array | np.ndarray) -> tuple[jax.Array, jax.Array]:
    """(scale, zero_point) of every quantized activation at t: [A], or [B, A] where t is a vector.

    Args:
        acts: Grids over T timesteps.
        t: Any number type, scalar or [B]; a t in [0, T] has the group of the nearest whole time from 0 to T-1.

    Raises:
        InputError: A concrete t outside [0, T]; a traced one makes the scales NaN.
    """
    num_timesteps = acts.group_of_t.shape[0]
    numpy: Any = np if isinstance(t, np.ndarray) else jnp
    # Types that hold T: uint8 ends at 255, and bfloat16 has no 999.
    wide = numpy.result_type(t.dtype, numpy.int32 if numpy.issubdtype(t.dtype, numpy.integer) else numpy.float32)
    t = t.astype(wide)
    inside = (t >= 0) & (t <= num_timesteps)
    if isinstance(t, np.ndarray) and not np.all(inside):
        first = t[~inside].flat[0]
        raise InputError(f"t is {first}; the network was calibrated for times from 0 to {num_timesteps}.")
    nearest = numpy.clip(numpy.round(numpy.where(inside, t, 0)), 0, num_timesteps - 1).astype(numpy.int32)
    if t.ndim == 0 and acts.num_groups <= _MOST_BRANCHES:
        # A sum of one term and a row that holds both numbers: half of a TPU's cycles of a slice and of two rows.
        group = jnp.sum(jnp.where(jnp.arange(num_timesteps) == nearest, acts.group_of_t, 0))
        tables = jnp.stack([acts.scale, acts.zero_point.astype(jnp.float32)], axis=1)
        scale, zero_point = jax.lax.switch(group, [lambda g=g: tables[g] for g in range(acts.num_groups)])
        zero_point = zero_point.astype(jnp.int32)
    else:
        group = acts.group_of_t[jnp.asarray(nearest)]
        scale, zero_point = acts.scale[group], acts.zero_point[group]
    return jnp.where(inside[..., None], scale, jnp.nan), zero_point


def per_row(value: jax.Array, x: jax.Array) -> jax.Array:
    """A scalar as it is; one value for each row of x with as many axes as x."""
    if value.ndim == 0:
        return value
    if value.shape[0] != x.shape[0]:
        raise InputError(
            f"t has {value.shape[0]} entries and a site's input has shape {x.shape}; pass one t per row of the batch, "
            f"or a scalar t where the network makes several rows of each, as a guided one does."
        )
    return value.reshape(value.shape + (1,) * (x.ndim - 1))


def argument_names(module: Any) -> list[str]:
    """The names of the module's arguments, in order."""
    # A wrapper is called by its `apply`, whose first argument is the variables, as a module's `__call__` has its self.
    call = type(module).__call__ if isinstance(module, nn.Module) else module.apply
    return list(inspect.signature(call).parameters)[1:]


def time_place(module: nn.Module, args: tuple, kwargs: dict) -> str | int:
    """Where the time argument stands in this call: its name among the keywords, or its position."""
    names = argument_names(module)
    position = next((index for index, name in enumerate(names) if name in TIME_NAMES), 1)
    name = names[position] if position < len(names) else "t"
    if name not in kwargs and position >= len(args):
        raise InputError(
            f"{type(module).__name__} was called without its time argument '{name}' (argument {position + 1}); a "
            f"quantized network needs it to choose its scales."
        )
    return name if name in kwargs else position


def _with_time_of_rows(module: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
    """(args, kwargs) with t as an array [B] where it was a scalar or a list; None where there is no other form.

    Raises:
        InputError: A vector of another length than B.
    """
    batch = next((leaf.shape[0] for leaf in jax.tree.leaves((args, kwargs)) if getattr(leaf, "ndim", 0) > 1), None)
    try:
        t, place = time_argument(module, args, kwargs), time_place(module, args, kwargs)
    except (InputError, ValueError):  # no time among the arguments, or a callable without a signature
        return None
    if batch is not None and t.ndim and t.shape[0] not in (1, batch):
        raise InputError(f"t has {t.shape[0]} entries and the batch {batch} rows; pass one t per row, or a scalar t.")
    given = kwargs[place] if isinstance(place, str) else args[place]
    if batch is None or (t.ndim and hasattr(given, "dtype")):
        return None
    rows = t if t.ndim else jnp.broadcast_to(t, (batch,))
    if isinstance(place, str):
        return args, {**kwargs, place: rows}
    return (*args[:place], rows, *args[place + 1 :]), kwargs
