"""Params trees as people bring them."""

from typing import Any

import jax


def unboxed(tree: Any) -> Any:
    """The tree with the arrays themselves where flax keeps them in boxes that name their axes for sharding.

    `module.init` returns such boxes (`nn.Partitioned`, `nn.LogicallyPartitioned`) from modules whose initializers are
    wrapped in `nn.with_partitioning` or `nn.with_logical_partitioning`.

    Example:
        >>> unboxed({"kernel": 1.0})
        {'kernel': 1.0}
    """
    if not any(map(_is_box, jax.tree.leaves(tree, is_leaf=_is_box))):
        return tree
    return jax.tree.map(lambda leaf: _content(leaf) if _is_box(leaf) else leaf, tree, is_leaf=_is_box)


def _content(box: Any) -> Any:
    # `unbox` would also constrain the sharding, which shapes without values can't bear.
    return box.value if hasattr(box, "value") else box.unbox()


def _is_box(node: Any) -> bool:
    return callable(getattr(node, "unbox", None))
