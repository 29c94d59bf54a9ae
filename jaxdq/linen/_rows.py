"""The inputs of a layer as rows of a matrix: rounding its kernel is a least-squares problem.

A layer is linear in its kernel, so that called with the identity for a kernel it returns the very numbers that it
contracts: the patches of a convolution, whatever its padding, strides and dilation, or the inputs of a dense layer.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdq.linen._kinds import DenseKind, kind_of
from jaxdq.linen._plan import SitePlan
from jaxdq.linen._trace import trace


def layers_of(module: nn.Module, params: Any, *args: Any) -> dict[str, nn.Module]:
    """Path -> layer alone, unbound, of every call of a layer; args as in `find_sites`, traced without computing."""
    return {call.path: call.module for call in trace(module, params, *args).calls}


def without_rows(site: SitePlan, layer: nn.Module) -> str:
    """Why the kernel of a site is not one matrix that multiplies rows, or ""."""
    kind = kind_of(layer)
    if kind is None or kind.name == "product":
        return "a product of two arrays has no kernel"
    if site.site.stacked:
        return "nn.scan goes through its kernel"
    if isinstance(kind, DenseKind) and kind.batched(layer):
        return "batch_dims of DenseGeneral"
    return "a masked kernel" if getattr(layer, "mask", None) is not None else ""


def rows_of(layer: nn.Module, x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The rows that the kernel multiplies: `layer(x) = rows @ kernel_matrix(kernel) + bias`, for each feature group.

    Args:
        layer: Unbound, one for which `without_rows` has no reason.
        x: float[...], what the layer is called with.
        shape: Shape of its kernel, [*contracted, *features].

    Returns:
        f32[G, R, K]: G feature groups (1 but for grouped convolutions), R positions, K products in each.
    """
    groups, contracted = _groups(layer), shape[: -len(_features(layer))]
    length = math.prod(contracted)
    identity = jnp.tile(jnp.eye(length, dtype=jnp.float32), groups).reshape(*contracted, groups * length)
    alone = layer.clone(
        features=groups * length, use_bias=False, dtype=jnp.float32, precision=jax.lax.Precision.HIGHEST
    )
    rows: Any = alone.apply({"params": {"kernel": identity}}, x.astype(jnp.float32))
    return jnp.swapaxes(rows.reshape(-1, groups, length), 0, 1)


def kernel_matrix(layer: nn.Module, kernel: jax.Array) -> jax.Array:
    """A kernel [*contracted, *features] as [G, K, N / G], which `rows_of` multiplies."""
    groups, width = _groups(layer), math.prod(kernel.shape[-len(_features(layer)) :])
    return jnp.swapaxes(kernel.reshape(-1, groups, width // groups), 0, 1)


def kernel_from_matrix(layer: nn.Module, matrix: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The inverse of `kernel_matrix`."""
    return jnp.swapaxes(matrix, 0, 1).reshape(shape)


def _groups(layer: nn.Module) -> int:
    return getattr(layer, "feature_group_count", 1)


def _features(layer: nn.Module) -> tuple[int, ...]:
    features: Any = getattr(layer, "features", ())
    return (features,) if isinstance(features, int) else tuple(features)
