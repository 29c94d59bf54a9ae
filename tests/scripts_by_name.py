"""The scripts as modules, for tests of what they compute; their folder is on the path (pyproject.toml)."""

import importlib
from types import ModuleType


def script(name: str) -> ModuleType:
    """The module that `scripts/NAME.py` makes."""
    return importlib.import_module(name)
