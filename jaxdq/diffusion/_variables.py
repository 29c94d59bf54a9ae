"""A network together with its collections other than params, such as the running statistics of `nn.BatchNorm`."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxdq._common.errors import InputError


@dataclass(frozen=True, eq=False)
class WithVariables:
    """A network that is called with params alone; its other collections, which nothing trains, come along.

    Attributes:
        module: The network.
        variables: Name of a collection -> pytree of arrays, read-only; those that a call brings itself come first.

    Example:
        >>> from types import SimpleNamespace
        >>> module = SimpleNamespace(apply=lambda variables, x, t: x * variables["statistics"]["scale"])
        >>> WithVariables(module, {"statistics": {"scale": 2.0}}).apply({"params": {}}, 3.0, 0)
        6.0
    """

    module: Any
    variables: Mapping[str, Any]

    def __post_init__(self) -> None:
        def apply(variables: Any, *args: Any, **kwargs: Any) -> Any:
            return self.module.apply({**self.variables, **variables}, *args, **kwargs)

        # Its arguments are the network's own, by whose names the time is found.
        call = type(self.module).__call__ if callable(self.module) else self.module.apply
        apply.__signature__ = inspect.signature(call)  # type: ignore[attr-defined]
        object.__setattr__(self, "apply", apply)

    def __repr__(self) -> str:
        """The network's own, with the names of the collections: arrays are known by a digest elsewhere."""
        return f"WithVariables({self.module!r}, {sorted(self.variables)})"


def with_variables(module: Any, variables: Mapping[str, Any]) -> Any:
    """The network with these collections around it; itself where there are none, or it has them already.

    A network with a list among its attributes has no hash, by which compiled programs are found again: the wrapper has.
    """
    if not variables and _has_hash(module):
        return module
    inner = module
    while inner is not None:
        if isinstance(inner, WithVariables) and inner.variables is variables:
            return module
        inner = getattr(inner, "module", None)
    return WithVariables(module.module if isinstance(module, WithVariables) else module, variables)


def _has_hash(module: Any) -> bool:
    try:
        hash(module)
    except TypeError:
        return False
    return True


def checked_variables(variables: Any) -> Mapping[str, Any]:
    """The collections of a network but for its params, which have a place of their own.

    Raises:
        InputError: They are no mapping from names to trees of arrays.
    """
    if not isinstance(variables, Mapping) or not all(
        isinstance(name, str) and isinstance(tree, Mapping) for name, tree in variables.items()
    ):
        shown = sorted(map(repr, variables)) if isinstance(variables, Mapping) else type(variables).__name__
        raise InputError(
            f"variables is {shown}; pass the collections that module.init returned beside params, such as "
            "variables={'batch_stats': batch_stats}."
        )
    if "params" in variables:
        return {name: tree for name, tree in variables.items() if name != "params"}
    return variables
