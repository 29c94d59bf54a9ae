"""Kernels in a params tree, by the paths of their layers."""

from typing import Any


def kernel_at(params: Any, path: str) -> Any:
    """The kernel of the module at `path` in a params tree, or None."""
    node = params
    for part in path.split("/") if path else ():
        if not hasattr(node, "get") or (node := node.get(part)) is None:
            return None
    return node.get("kernel") if hasattr(node, "get") else None


def with_kernels(params: Any, kernels: dict[str, Any], path: str = "") -> Any:
    """A copy of the tree in which the kernel of the module at each given path is replaced."""
    if not hasattr(params, "items"):
        return params
    prefix = f"{path}/" if path else ""
    out = {key: with_kernels(value, kernels, f"{prefix}{key}") for key, value in params.items()}
    return {**out, "kernel": kernels[path]} if path in kernels else out
