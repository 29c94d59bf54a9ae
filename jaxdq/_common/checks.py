"""Arguments of the wrong kind, in one sentence each: the library's doors."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxdq._common.errors import InputError


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number: a truth value is none, and an array is none either."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def is_count(value: Any) -> bool:
    """Whether a value is a whole number of at least 1."""
    return is_whole(value) and value >= 1


MOST_IMAGES = 10_000_000  # of one call, which keeps them all


def check_count(num_images: Any, batch_size: Any = 1) -> None:
    """Refuses numbers of images that can't be drawn, before anything of their size is made.

    Raises:
        InputError: What is no whole number of at least 1, or more than memory holds.
    """
    if not (is_whole(num_images) and is_whole(batch_size)) or num_images < 1 or batch_size < 1:
        raise InputError(f"num_images is {num_images!r} and batch_size {batch_size!r}; give at least 1 of each.")
    if max(num_images, batch_size) > MOST_IMAGES:
        raise InputError(
            f"num_images is {num_images:,} and batch_size {batch_size:,}; give at most {MOST_IMAGES:,} of each in one "
            f"call."
        )


def shown(value: Any) -> str:
    """A value in a few words: itself where it is short and plain, else its shape and type."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if value is None or isinstance(value, bool | int | float | str | bytes | np.number):
        return repr(value)[:60]
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"of shape {tuple(value.shape)} and type {value.dtype}"
    return f"a {type(value).__name__}"


def check_float_params(params: Any, remedy: str, *, may_be_empty: bool = True) -> None:
    """Refuses what is no params tree of flax, before flax looks for its first layer in it.

    Args:
        params: What came in the place of float params.
        remedy: What to pass.
        may_be_empty: Whether the network may have none.
    """
    if not isinstance(params, Mapping) or not (params or may_be_empty):
        came = "empty" if isinstance(params, Mapping) else shown(params)
        raise InputError(f"params is {came}; pass {remedy}.")


def check_array(name: str, value: Any) -> None:
    """Refuses what has no shape where a network takes an array."""
    if not hasattr(value, "shape") or isinstance(value, type):
        raise InputError(f"{name} is {shown(value)}; pass an array.")
