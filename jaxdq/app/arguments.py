"""Arguments of a function by name, as text: `budget=64`, and `search.num_updates=30` of a dataclass among them."""

import dataclasses
import inspect
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jaxdq._common.errors import InputError

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a finite number",
    bool: "true or false",
    str: "a text",
    types.NoneType: "none",
}
_NAMES: dict[Any, dict[str, Any]] = {
    bool: {"true": True, "True": True, "false": False, "False": False},
    types.NoneType: {"none": None, "None": None},
}


def pairs(words: Iterable[str]) -> dict[str, str]:
    """{"budget": "64"} of ["budget=64"].

    Raises:
        InputError: A word without name or value, or a name that comes twice.
    """
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = (part.strip() for part in word.partition("="))
        if not (name and equals and value):
            raise InputError(f"'{word}' was to be set; give it as name=value, such as learning.num_updates=30.")
        if name in found:
            raise InputError(f"{name} was set twice, to {found[name]} and to {value}; set it once.")
        found[name] = value
    return found


def typed(make: Callable[..., Any], given: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The values of these arguments, each of the type that it is annotated with.

    Args:
        make: A function with annotated arguments.
        given: Argument -> value, or its text; "argument.field" where the argument is a dataclass.
        what: The function, in an error's words.

    Raises:
        InputError: An argument that it doesn't have, or a value of another type.
    """
    hints = _hints(make)
    for name in given:
        if name not in hints:
            raise InputError(f"{what} has no argument '{name}'; it has {', '.join(hints)}.")
    return {name: _value(name, hints[name], value) for name, value in given.items()}


def with_fields(make: Callable[..., Any], values: Mapping[str, Any], unset: Callable[[Any], Any]) -> dict[str, Any]:
    """The arguments that are dataclasses, with these fields set.

    Args:
        make: The function.
        values: "argument.field" -> value, as `typed` returns them.
        unset: A dataclass -> its value where no field is set.
    """
    keywords: dict[str, Any] = {}
    hints = typing.get_type_hints(make)
    for name, value in values.items():
        argument, _, field = name.partition(".")
        settings = keywords[argument] if argument in keywords else unset(_dataclass_of(hints[argument]))
        keywords[argument] = dataclasses.replace(settings, **{field: value})
    return keywords


def _hints(make: Callable[..., Any]) -> dict[str, Any]:
    """Argument, or argument.field, -> its type, where that can be written as text."""
    types_of, found = typing.get_type_hints(make), dict[str, Any]()
    for name, parameter in inspect.signature(make).parameters.items():
        hint = types_of.get(name, parameter.annotation)
        cls = _dataclass_of(hint)
        if parameter.kind not in _NAMED:
            continue
        if cls is not None:
            fields = typing.get_type_hints(cls)
            nested = {f"{name}.{field.name}": fields[field.name] for field in dataclasses.fields(cls)}
            found |= {field: hint for field, hint in nested.items() if _readable(hint)}
        elif _readable(hint):
            found[name] = hint
    return found


def _choices(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _dataclass_of(hint: Any) -> Any:
    return next((choice for choice in _choices(hint) if dataclasses.is_dataclass(choice)), None)


def _readable(hint: Any) -> bool:
    def one(choice: Any) -> bool:
        return choice in _WORDS or typing.get_origin(choice) is typing.Literal

    return all(map(one, _choices(hint)))


def _value(name: str, hint: Any, value: Any) -> Any:
    """The value in the first of its types that takes it."""
    text = str(value).strip()
    for choice in _choices(hint):
        try:
            return _read(choice, text)
        except ValueError:
            continue
    raise InputError(f"{name} is '{value}'; give {' or '.join(map(_described, _choices(hint)))}.")


def _read(choice: Any, text: str) -> Any:
    if choice is str:
        return text
    if choice in (int, float):
        number = choice(text)
        if not math.isfinite(number):
            raise ValueError
        return number
    words = _NAMES[choice] if choice in _NAMES else {str(word): word for word in typing.get_args(choice)}
    if text not in words:
        raise ValueError
    return words[text]


def _described(choice: Any) -> str:
    return _WORDS[choice] if choice in _WORDS else f"one of {', '.join(map(str, typing.get_args(choice)))}"
