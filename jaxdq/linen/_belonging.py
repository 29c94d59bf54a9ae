"""Whether params belong to a plan: by the names and shapes of all of them, and digests of what stays in float.

One check for all who bring the two together: `quantize`, `apply`, `sample`, `restore`. Names and shapes are looked at
under jit too, numbers only where they are concrete.
"""

import contextlib
import hashlib
import warnings
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import errors

from jaxdq._common.errors import InputError, InputWarning, described
from jaxdq._common.trees import unboxed
from jaxdq.grid import QTensor
from jaxdq.linen._parts import Parts
from jaxdq.linen._tables import TABLE, TimeTable
from jaxdq.linen._tree import has_values

if TYPE_CHECKING:
    from jaxdq.linen._plan import Plan

_NARROW = jnp.dtype("float16")


class Leaf(NamedTuple):
    """One array of the float params that a plan was made for.

    Attributes:
        path: `a/b/bias`.
        shape: Shape of the array.
        dtype: Its name.
        digest: Digest of its numbers; "" of an array that goes on a grid, or had no numbers when the plan was made.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    digest: str = ""


def leaves_of(params: Any, on_grid: Collection[str]) -> tuple[Leaf, ...]:
    """What `check_belongs` holds params against.

    Args:
        params: Arrays, shapes or tracers; of quantized ones, all that is in float.
        on_grid: Paths of the kernels that integers take the place of.
    """
    has_digest = {path: path not in on_grid and _has_values(leaf) for path, leaf in _named(params)}
    return tuple(
        Leaf(path, tuple(np.shape(leaf)), _dtype(leaf).name, _digest(leaf) if has_digest[path] else "")
        for path, leaf in _named(params)
    )


def check_belongs(params: Any, plan: "Plan", what: str, remedy: str, *, quantized: bool = False) -> None:
    """Refuses params that are not those of the plan's network.

    Args:
        params: A params tree; arrays, shapes or tracers.
        plan: Plan of the network.
        what: What to call the params in a sentence.
        remedy: What to do about it.
        quantized: Whether planned kernels are on their grids already.

    Raises:
        InputError: Arrays that are missing or superfluous, of another shape, integers in place of floats or the other
            way round; and, of numbers that can be looked at, NaN, infinity, or others than the plan was made for.
    """
    given, expected = dict(_named(params)), {leaf.path: leaf for leaf in plan.leaves or plan.kernels}
    if quantized:  # where a table stands for a module, the module's own params are gone
        tabled = tuple(path.removesuffix(TABLE) for path in given if path.rpartition("/")[2] == TABLE)
        given, expected = (
            {path: leaf for path, leaf in tree.items() if not path.startswith(tabled)} for tree in (given, expected)
        )
    missing = [path for path in expected if path not in given]
    superfluous = [path for path in given if path not in expected and plan.leaves]
    if missing or superfluous:
        parts = [
            f"{_listed(names)} {word}" for names, word in ((missing, "missing"), (superfluous, "unknown")) if names
        ]
        raise InputError(f"{what} and this calibration are of different networks ({' and '.join(parts)}); {remedy}.")
    on_grid = {leaf.path for leaf in plan.kernels} if quantized else set()
    for path, leaf in expected.items():
        fault = _fault(given[path], leaf, is_on_grid=path in on_grid)
        if fault:
            raise InputError(f"{what} and this calibration don't belong together ('{path}' {fault}); {remedy}.")


@contextlib.contextmanager
def calling(module: Any, plan: "Plan", called: Collection[str], *, is_whole: bool) -> Iterator[None]:
    """Refuses, around its call with quantized params, a module that is not the plan's network.

    Args:
        module: Module that is called.
        plan: Plan of the params.
        called: Paths of the integer sites that were called, filled in the meantime.
        is_whole: Whether all of the network is called.

    Raises:
        InputError: The module wants params of other names or shapes, or calls no integer site.
    """
    named, remedy = _name_of(module), "pass the module that was calibrated"
    try:
        yield
    except (errors.ScopeParamNotFoundError, errors.ScopeParamShapeError) as error:
        raise InputError(f"{named} and qparams are of different networks ({described(error)}); {remedy}.") from error
    planned = [site.path for site in plan.sites if site.is_integer]
    left = [path for path in planned if path not in called]
    if not is_whole or not left:
        return
    if len(left) == len(planned):
        raise InputError(
            f"{named} and qparams are of different networks ({named} calls none of the {len(planned)} integer layers, "
            f"such as '{left[0]}'); {remedy}."
        )
    # A network may leave out layers on purpose, as those of a condition that it is called without.
    warnings.warn(
        f"{named} did not call {_listed(left, verb=False)}, which ran on integers in calibration; if that is not on "
        f"purpose, {remedy}.",
        InputWarning,
        stacklevel=5,
    )


def _name_of(module: Any) -> str:
    """The name of the network's class, within whatever wraps it."""
    while not isinstance(module, nn.Module) and hasattr(module, "module"):
        module = module.module
    return type(module).__name__


def _fault(given: Any, leaf: Leaf, *, is_on_grid: bool) -> str:
    """What is wrong with an array, or ""."""
    has_codes = isinstance(given, QTensor | Parts)
    if has_codes != is_on_grid:
        return "is quantized already" if has_codes else "is in float and not on its grid"
    if isinstance(given, Parts):
        return ""
    if tuple(np.shape(given)) != leaf.shape:
        return f"has shape {tuple(np.shape(given))} and was calibrated with {leaf.shape}"
    if is_on_grid:
        return "" if jnp.issubdtype(given.qvalue.dtype, jnp.integer) else f"has codes of type {given.qvalue.dtype}"
    dtype = _dtype(given)
    if any(jnp.issubdtype(leaf.dtype, kind) != jnp.issubdtype(dtype, kind) for kind in (jnp.inexact, jnp.floating)):
        return f"holds {dtype.name} and was calibrated with {leaf.dtype}"
    if not _has_values(given):
        return ""
    if jnp.issubdtype(dtype, jnp.inexact) and not np.isfinite(np.asarray(given)).all():
        return "holds NaN or infinity"
    # float16 has other numbers than bfloat16, which digests are made of.
    is_comparable = leaf.digest and (dtype == _NARROW) == (leaf.dtype == _NARROW.name)
    return "holds other numbers than were calibrated" if is_comparable and _digest(given) != leaf.digest else ""


def _named(params: Any) -> Iterator[tuple[str, Any]]:
    tree = jax.tree_util.tree_leaves_with_path(unboxed(params), is_leaf=_is_leaf)
    return ((jax.tree_util.keystr(keys, simple=True, separator="/"), leaf) for keys, leaf in tree)


def _is_leaf(node: Any) -> bool:
    return isinstance(node, QTensor | Parts | TimeTable)


def _dtype(leaf: Any) -> np.dtype:
    if isinstance(leaf, QTensor | Parts | TimeTable):
        return np.dtype(np.float32)  # what its codes stand for
    return np.dtype(leaf.dtype if hasattr(leaf, "dtype") else np.result_type(leaf))


def _has_values(leaf: Any) -> bool:
    """Whether the numbers can be looked at: here, now, and all of them."""
    return not _is_leaf(leaf) and has_values(leaf)


def _digest(leaf: Any) -> str:
    """Of the numbers as bfloat16 has them: the same for an array and for a cast of it, here or under jit."""
    values = np.asarray(leaf)
    if jnp.issubdtype(values.dtype, jnp.floating):
        with np.errstate(over="ignore"):
            values = values.astype(np.float32)
        # XLA may flush what is smaller; so there is one zero.
        values = np.where(np.abs(values) < 2 * np.finfo(np.float32).tiny, 0, values).astype(jnp.bfloat16)
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()[:16]


def _listed(paths: Sequence[str], *, verb: bool = True) -> str:
    shown = ", ".join(f"'{path}'" for path in paths[:3])
    shown = shown if len(paths) <= 3 else f"{shown} and {len(paths) - 3} more"
    return f"{shown} {'is' if len(paths) == 1 else 'are'}" if verb else shown
