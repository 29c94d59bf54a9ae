"""What decides a measured number: digests of sources and of models, so that a row knows when it is out of date."""

import ast
import hashlib
import inspect
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np


def digest_of_sources(root: Path, files: Iterable[Path]) -> str:
    """A digest of what some sources compute, the same on every Python and for every layout, comment and docstring.

    Args:
        root: The folder that the files' places are told from.
        files: Python sources below it.
    """
    digest = hashlib.sha256()
    for file in sorted(files):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        digest.update(f"{file.relative_to(root).as_posix()}\n{_plain(tree)!r}\n".encode())
    return digest.hexdigest()[:16]


def sources_behind(root: Path, *first: Path) -> set[Path]:
    """The sources that numbers come from: those that are given, and all that they reach by imports.

    A name that a package only hands on leads to the module that defines it, and not to the package's other modules: a
    new method beside those that make some rows leaves the rows alone.

    Args:
        root: The folder that holds the packages.
        *first: Python sources, whose neighbours they may import too.

    Returns:
        Files, but for those that do nothing except hand on names.
    """
    found: set[Path] = set()
    waiting = list(first)
    while waiting:
        file = waiting.pop()
        if file in found:
            continue
        found.add(file)
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for module, name in _imported(tree):
            waiting += _defining((root, file.parent), module, name)
    return {file for file in found if not _hands_on(file)}


def _imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """(module, name) of what a source takes from others; of a module that is imported whole, what is read from it."""
    whole = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                yield node.module, alias.name
                whole[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                whole[alias.asname or alias.name] = alias.name
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in whole:
            yield whole[ast.unparse(node.value)], node.attr


def _defining(roots: tuple[Path, ...], module: str, name: str) -> list[Path]:
    """Where a module's name is defined; nothing where the module, or the name in it, is not below the roots."""
    for root in roots:
        place = root.joinpath(*module.split("."))
        if place.with_suffix(".py").is_file():
            return [place.with_suffix(".py")]
        init = place / "__init__.py"
        if not init.is_file():
            continue
        if not _hands_on(init):
            return [init]
        for node in ast.parse(init.read_text(encoding="utf-8")).body:
            for alias in node.names if isinstance(node, ast.ImportFrom) and node.module != module else ():
                if (alias.asname or alias.name) == name:
                    return _defining(roots, str(node.module), alias.name)
        # A module of the package; of a package within it, what is read from that leads on.
        inner = (place / name).with_suffix(".py")
        return [inner] if inner.is_file() else []
    return []


def _hands_on(file: Path) -> bool:
    """Whether a package's own module does nothing but import."""
    body = [node for node in ast.parse(file.read_text(encoding="utf-8")).body if not _is_docstring(node)]
    return file.name == "__init__.py" and all(isinstance(node, ast.ImportFrom) for node in body)


def digest_of_model(denoiser: Any) -> str:
    """A digest of a denoiser: all that it holds but its name, and the source of its module."""
    digest = hashlib.sha256()
    held = {name: value for name, value in vars(denoiser).items() if name not in ("module", "name")}
    for path, leaf in jax.tree_util.tree_leaves_with_path({**held, "schedule": vars(denoiser.schedule)}):
        array = np.asarray(leaf)
        content = array.tobytes() if array.dtype.kind in "biufcV" else repr(leaf).encode()
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode() + content)
    source = inspect.getsourcefile(type(denoiser.module))
    if source is not None:
        digest.update(digest_of_sources(Path(source).parent, [Path(source)]).encode())
    return digest.hexdigest()[:16]


def _plain(node: Any) -> Any:
    """A syntax tree as tuples, without positions, docstrings and fields that are empty (later Pythons add some)."""
    if isinstance(node, list):
        return [_plain(item) for item in node if not _is_docstring(item)]
    if not isinstance(node, ast.AST):
        return node
    fields = ((name, value) for name, value in ast.iter_fields(node) if value not in (None, []))
    return type(node).__name__, [(name, _plain(value)) for name, value in fields]


def _is_docstring(node: Any) -> bool:
    """A string that stands alone: Python makes nothing of it."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
