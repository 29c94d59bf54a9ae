"""Tables over time: what a module that sees nothing but the time returns at each of a sampler's steps."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdq._common.errors import InputError
from jaxdq.linen._kinds import kind_of

TABLE = "(time table)"  # the only child of a module that a table stands for; no name that a network gives
_NEAR = 1e-3  # times that differ by less are one time: t as a solver computes it, and as a user types it


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TimeTable:
    """The outputs of one module at S times.

    Attributes:
        t: f32[S], model times, in any order.
        rows: float[S, ...], what the module returns at each of them for one row of the batch. Of a module whose output
            nothing reads any more, one row is enough.
    """

    t: jax.Array
    rows: jax.Array

    def check(self, path: str) -> None:
        """Refuses what is no table of numbers with a row for each time."""
        shape = getattr(self.rows, "shape", ())
        if getattr(self.t, "ndim", 0) != 1 or not self.t.shape[0] or shape[:1] != self.t.shape:
            raise InputError(
                f"the time table of '{path}' has times of shape {getattr(self.t, 'shape', ())} and rows of shape "
                f"{shape}; give t of shape [S >= 1] and a row for each."
            )

    def at(self, t: jax.Array | np.ndarray) -> jax.Array:
        """The row of the time, or one for each of a vector of times; of the nearest where there is none."""
        return self.rows[jnp.argmin(self._distance(t), -1)]

    def has(self, t: jax.Array | np.ndarray) -> jax.Array:
        """bool[] or bool[B]: whether the table has the time."""
        return jnp.min(self._distance(t), -1) < _NEAR

    def _distance(self, t: jax.Array | np.ndarray) -> jax.Array:
        return jnp.abs(jnp.asarray(t, jnp.float32)[..., None] - self.t)


def nan_at_unknown_times(tables: Mapping[str, TimeTable], t: jax.Array | np.ndarray, scale: jax.Array) -> jax.Array:
    """Scales of activations [A] or [B, A], NaN at times that tables do not have: nothing can be raised under jit.

    Rows of NaN would not do: the next layer's integer codes know no NaN.
    """
    return jnp.where(_longest(tables).has(t)[..., None], scale, jnp.nan) if tables else scale


def _longest(tables: Mapping[str, TimeTable]) -> TimeTable:
    """The table with all times: those of modules that nothing reads are shorter."""
    return max(tables.values(), key=lambda table: len(table.t))


def check_times(tables: Mapping[str, TimeTable], t: Any) -> None:
    """Refuses times that tables do not have, where both can be looked at.

    Raises:
        InputError: Names the first such time, and those that there are.
    """
    if not tables or isinstance(t, jax.core.Tracer):
        return
    known = _longest(tables).t
    if isinstance(known, jax.core.Tracer):
        return
    times, wanted = np.asarray(known, np.float32), np.atleast_1d(np.asarray(t, np.float32))
    missing = wanted[np.min(np.abs(wanted[:, None] - times), axis=1) >= _NEAR]
    if missing.size:
        raise InputError(
            f"t is {missing[0]:g} and the network's time path was replaced by tables for {len(times)} times from "
            f"{times.min():g} to {times.max():g}; use the sampler and the number of steps that it was calibrated with, "
            f"or quantize without time_tables."
        )


def with_tables(params: Any, tables: Mapping[str, TimeTable]) -> Any:
    """A copy of the tree in which a table stands in place of the params of each of these modules.

    Raises:
        InputError: A path at which the tree has no module; something that is no table.
    """
    left = dict(tables)
    for path, table in left.items():
        if not isinstance(table, TimeTable):
            raise InputError(f"the calibration's table for '{path}' is a {type(table).__name__}; give a TimeTable.")
        table.check(path)

    def walk(node: Any, path: str) -> Any:
        if path in left:
            return {TABLE: left.pop(path)}
        if not hasattr(node, "items"):
            return node
        return {key: walk(value, f"{path}/{key}" if path else key) for key, value in node.items()}

    out = walk(params, "") if tables else params
    if left:
        raise InputError(
            f"the calibration has tables for {sorted(left)} and params have no such module; pass the params of the "
            f"calibrated network."
        )
    return out


def tables_in(params: Any, path: str = "") -> dict[str, TimeTable]:
    """Path -> table of every module that one stands for."""
    if not hasattr(params, "items"):
        return {}
    if TABLE in params:
        return {path: params[TABLE]}
    children = (tables_in(node, f"{path}/{key}" if path else key) for key, node in params.items())
    return {where: table for child in children for where, table in child.items()}


def from_table(path: str, table: TimeTable, t: jax.Array | np.ndarray, dtype: str) -> Callable:
    """The handler of a module that a table stands for: its output for every row of its first input.

    Args:
        path: Path of the module.
        table: Its table.
        t: The model time of this call, a scalar or one for each row.
        dtype: Dtype of the kernel that was there, which took part in flax's type promotion; "" of other modules.
    """

    def handler(next_fun: Callable, module: nn.Module, args: tuple, kwargs: dict) -> Any:
        first, row = jax.tree.leaves((args, kwargs))[0], table.at(t)
        shape = jnp.shape(first)
        if dtype:
            row = row.astype(getattr(module, "dtype", None) or jnp.result_type(first, jnp.dtype(dtype)))
        if t.ndim == 0:
            # A layer that is called with a vector has no batch; a module of another kind may be called with its times.
            rows = () if kind_of(module) is not None and len(shape) == row.ndim else shape[:1]
            return jnp.broadcast_to(row, (*rows, *row.shape))
        if shape[:1] != t.shape:
            raise InputError(
                f"t has {t.shape[0]} entries and '{path}', which a table stands for, was called with an array of shape "
                f"{shape}; give one t per row of the batch."
            )
        return row

    return handler
