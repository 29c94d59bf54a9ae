"""Changes of resolution by a fixed filter, [1, 3, 3, 1] / 8 along both axes, instead of a mean or a repetition."""

import jax
import jax.numpy as jnp

_FILTER = (1 / 8, 3 / 8, 3 / 8, 1 / 8)


def halved(x: jax.Array, edges: str) -> jax.Array:
    """Every other pixel of ``x`` after the filter.

    Args:
        x: float[B, H, W, C], H and W of at least 2.
        edges: "reflect" or "constant" (zeros): what lies beyond the edges, as ``jnp.pad`` has it.

    Returns:
        float[B, H // 2, W // 2, C].
    """
    for axis in (1, 2):
        padded, count = _padded(x, axis, edges), x.shape[axis] // 2
        parts = [jax.lax.slice_in_dim(padded, k, k + 2 * count - 1, 2, axis) for k in range(len(_FILTER))]
        x = _FILTER[0] * (parts[0] + parts[3]) + _FILTER[1] * (parts[1] + parts[2])
    return x


def doubled(x: jax.Array, edges: str) -> jax.Array:
    """The transpose of ``halved``, twice as strong along both axes: pixels between those of ``x``.

    Args:
        x: float[B, H, W, C], H and W of at least 2.
        edges: As in ``halved``.

    Returns:
        float[B, 2H, 2W, C].
    """
    for axis in (1, 2):
        padded, count = _padded(x, axis, edges), x.shape[axis]
        before, own, after = (jax.lax.slice_in_dim(padded, k, k + count, 1, axis) for k in range(3))
        outer, inner = 2 * _FILTER[0], 2 * _FILTER[1]
        pairs = jnp.stack([outer * before + inner * own, inner * own + outer * after], axis=axis + 1)
        x = pairs.reshape(*x.shape[:axis], 2 * count, *x.shape[axis + 1 :])
    return x


def _padded(x: jax.Array, axis: int, edges: str) -> jax.Array:
    return jnp.pad(x, [(1, 1) if i == axis else (0, 0) for i in range(x.ndim)], mode=edges)
