"""Ranges of weights, which are seen whole: one for each channel, straight from the array."""

import jax
import jax.numpy as jnp

from jaxdq.grid import SMALLEST_SCALE, QParams, Scheme, fake_quantize, qparams_from_range
from jaxdq.observers._base import WeightQParams, check_search, power, search_range


def minmax_weights() -> WeightQParams:
    """The range of each channel, from its smallest to its largest weight. Nothing clips.

    Returns:
        `(w: float[...], scheme) -> QParams` with a scale of w's number of axes, size 1 along
        `scheme.reduced_axes(w.ndim)`. Channels of zeros have scale 1; NaN and infinity stay visible in the scale.

    Example:
        >>> w = jnp.array([[7.0, 0.0], [-14.0, 0.0]])
        >>> minmax_weights()(w, Scheme(4, channel_axis=-1)).scale.tolist()
        [[2.0, 1.0]]
    """

    def qparams(w: jax.Array, scheme: Scheme) -> QParams:
        return qparams_from_range(*_range(w, scheme), scheme)

    return qparams


def mse_weights(p: float = 2.4, num_candidates: int = 80) -> WeightQParams:
    """The range of each channel that minimises `sum |w - fake_quantize(w)|**p` over the channel.

    The same search as `mse`, on the weights themselves: never of larger error than `minmax_weights`. Candidates are
    tried one after another, so that memory stays at a few copies of w.

    Args:
        p: > 0, the exponent.
        num_candidates: ratios `i / num_candidates` per search.

    Returns:
        As `minmax_weights`.

    Raises:
        InputError: a p that is not positive, or no candidates.

    Example:
        >>> w = jnp.append(jnp.linspace(-1.0, 1.0, 99), 1.5)[:, None]
        >>> mse_weights(p=2.0)(w, Scheme(2, channel_axis=-1)).scale.shape
        (1, 1)

    Source: as `mse`; per channel as in BRECQ.
    """
    check_search(p, num_candidates)

    def qparams(w: jax.Array, scheme: Scheme) -> QParams:
        w = w.astype(jnp.float32)
        low, high = _range(w, scheme)
        unit = jnp.maximum(jnp.maximum(-low, high), SMALLEST_SCALE)

        def error_of(low: jax.Array, high: jax.Array) -> jax.Array:
            rounded = fake_quantize(w, qparams_from_range(low, high, scheme), scheme)
            return jnp.sum(power((w - rounded) / unit, p), axis=scheme.reduced_axes(w.ndim), keepdims=True)

        return qparams_from_range(*search_range(error_of, low, high, scheme, num_candidates), scheme)

    return qparams


def _range(w: jax.Array, scheme: Scheme) -> tuple[jax.Array, jax.Array]:
    """The range of each channel, widened to hold 0."""
    axes = scheme.reduced_axes(w.ndim)
    low = jnp.min(w.astype(jnp.float32), axis=axes, keepdims=True, initial=0.0)
    return low, jnp.max(w.astype(jnp.float32), axis=axes, keepdims=True, initial=0.0)
