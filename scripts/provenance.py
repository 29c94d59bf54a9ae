"""What decides a measured number: digests of sources and of models, so that a row knows when it is out of date."""

import ast
import hashlib
import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np


def digest_of_sources(root: Path, names: Iterable[str]) -> str:
    """A digest of what some sources compute, the same on every Python and for every layout, comment and docstring.

    Args:
        root: The folder that the names start from.
        names: Packages (folders, with all modules below) and modules, such as `jaxdq/grid` or `jaxdq/metrics.py`.

    Raises:
        FileNotFoundError: A name that is neither: a source that was moved must not drop out silently.
    """
    digest = hashlib.sha256()
    for name in sorted(names):
        path = root / name
        files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
        if not files:
            raise FileNotFoundError(f"'{path}' has no Python sources")
        for file in files:
            tree = ast.parse(file.read_text(encoding="utf-8"))
            digest.update(f"{file.relative_to(root).as_posix()}\n{_plain(tree)!r}\n".encode())
    return digest.hexdigest()[:16]


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
        digest.update(digest_of_sources(Path(source).parent, [Path(source).name]).encode())
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
