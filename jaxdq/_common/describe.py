"""Descriptions of values as plain JSON: for metrics.json, and to tell one run from another."""

import dataclasses
import functools
import hashlib
import inspect
import re
from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np

_PLAIN = (bool, int, float, str, type(None))


def describe(value: Any) -> Any:
    """The value as JSON could hold it; two values of one description do the same.

    A function that another one returned is described by the maker's name and by what it closed over, so that settings
    are found where they act and nobody has to list them. Arrays are described by their checksum.

    Args:
        value: Numbers, text, arrays, dataclasses, named tuples, functions, and containers of these. Anything else is
            described by its type and its attributes.

    Example:
        >>> def times(factor):
        ...     return lambda x: factor * x
        >>> describe({"by": times(3)})
        {'by': 'times(factor=3)'}
    """
    return _described(value, ())


def _described(value: Any, above: tuple[int, ...]) -> Any:
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if id(value) in above:  # a function that calls itself
        return "..."
    above = (*above, id(value))
    if isinstance(value, type):
        return value.__qualname__
    if isinstance(value, functools.partial):
        return {
            "partial": _described(value.func, above),
            **_described(value.keywords, above),
            "args": _described(value.args, above),
        }
    if callable(value) and hasattr(inspect.unwrap(value), "__code__"):
        return _of_function(inspect.unwrap(value), above)
    if hasattr(value, "__array__"):
        return _of_array(value)
    if dataclasses.is_dataclass(value):
        return {field.name: _described(getattr(value, field.name), above) for field in dataclasses.fields(value)}
    if hasattr(value, "_asdict"):
        return _of_named_tuple(value._asdict(), above)
    if isinstance(value, Mapping):
        return {str(key): _described(item, above) for key, item in value.items()}
    if isinstance(value, Sequence | Set) and not isinstance(value, bytes):
        return [_described(item, above) for item in (sorted(value, key=repr) if isinstance(value, Set) else value)]
    attributes = {name: _described(item, above) for name, item in sorted(getattr(value, "__dict__", {}).items())}
    return {"type": type(value).__qualname__, **attributes}


def _of_function(function: Any, above: tuple[int, ...]) -> str:
    """`maker(name=value, ...)` of a function made by another one; its own name where it closes over nothing."""
    maker, local, _ = function.__qualname__.partition(".<locals>")
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    closed = {name: _described(cell.cell_contents, above) for name, cell in cells if _is_set(cell)}
    defaults = {
        name: _described(parameter.default, above)
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    given = {**closed, **defaults} if local else {}
    return f"{maker}({', '.join(f'{name}={item}' for name, item in sorted(given.items()))})" if local else maker


def _is_set(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:  # a function described while its maker still runs
        return False
    return True


def _of_named_tuple(fields: Mapping[str, Any], above: tuple[int, ...]) -> Any:
    """A tuple of functions that one maker made, as that maker; any other by its fields."""
    described = {name: _described(item, above) for name, item in fields.items()}
    if fields and all(callable(item) for item in fields.values()):
        made = {_without_siblings(text) for text in described.values() if "(" in text}
        if made:
            return max(made, key=len) if len({text.partition("(")[0] for text in made}) == 1 else sorted(made)
    return described


def _without_siblings(text: str) -> str:
    """`minmax(merge=minmax())` as `minmax()`: functions that one maker made beside each other say nothing new."""
    maker = re.escape(text.partition("(")[0])
    return re.sub(rf"(, )?\w+={maker}\([^()]*\)", "", text)


def _of_array(value: Any) -> Any:
    try:
        array = np.asarray(value)
    except TypeError:  # random keys have no numbers
        return {"type": type(value).__qualname__}
    digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]
    return f"{array.dtype}{list(array.shape)} {digest}"
