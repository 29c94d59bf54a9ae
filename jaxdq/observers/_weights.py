"""Ranges of weights, which are seen whole: one for each channel, straight from the array."""

import math

import jax
import jax.numpy as jnp

from jaxdq._common.errors import InputError
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
        num_candidates: Ratios `i / num_candidates` per search.

    Returns:
        As `minmax_weights`.

    Raises:
        InputError: A p that is not positive, or no candidates.

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


def percentile_weights(p: float = 99.9) -> WeightQParams:
    """The range of each channel that leaves out at most a share `1 - p / 100` of its weights at each end.

    Of n weights in order, `low` and `high` are those at positions k and n - 1 - k, `k = floor(n (1 - p / 100))`. A
    channel of which that would leave nothing but zeros keeps its whole range: its few other weights are all it has.

    Args:
        p: Percentage in (50, 100]; 100 is `minmax_weights`, and so is 99.9 for channels of less than 1,000 weights.

    Returns:
        As `minmax_weights`.

    Raises:
        InputError: A p outside (50, 100].

    Example:
        >>> w = jnp.append(jnp.linspace(-7.0, 7.0, 999), 70.0)[:, None]
        >>> percentile_weights(99.9)(w, Scheme(4, channel_axis=-1)).scale.tolist()
        [[1.0]]
    """
    if not 50 < p <= 100:
        raise InputError(f"percentile is {p}; give a number above 50 and up to 100, such as 99.9.")

    def qparams(w: jax.Array, scheme: Scheme) -> QParams:
        low, high = _range(w, scheme)
        axes = scheme.reduced_axes(w.ndim)
        size = math.prod(w.shape[axis] for axis in axes)
        # Rounded, for 100 - 99.9 is a little less than 0.1 and would leave out none of 1,000.
        left_out = math.floor(round(size * (100 - p) / 100, 6))
        if left_out == 0:
            return qparams_from_range(low, high, scheme)
        behind = jnp.moveaxis(w.astype(jnp.float32), axes, range(-len(axes), 0))
        ordered = jnp.sort(behind.reshape(*behind.shape[: -len(axes)], size))
        inner_low = jnp.expand_dims(jnp.minimum(ordered[..., left_out], 0.0), axes)
        inner_high = jnp.expand_dims(jnp.maximum(ordered[..., size - 1 - left_out], 0.0), axes)
        # NaN and infinity must stay visible.
        cut = jnp.isfinite(low) & jnp.isfinite(high) & (inner_low < inner_high)
        return qparams_from_range(jnp.where(cut, inner_low, low), jnp.where(cut, inner_high, high), scheme)

    return qparams


def _range(w: jax.Array, scheme: Scheme) -> tuple[jax.Array, jax.Array]:
    """The range of each channel, widened to hold 0."""
    axes = scheme.reduced_axes(w.ndim)
    low = jnp.min(w.astype(jnp.float32), axis=axes, keepdims=True, initial=0.0)
    return low, jnp.max(w.astype(jnp.float32), axis=axes, keepdims=True, initial=0.0)
