"""A histogram of a stream whose range is not known ahead; what `percentile` and `mse` remember.

The bins are 2N equal parts of [-R, R], R a power of two. When R doubles, pairs of neighbouring bins become one, so that
growing loses no count and moves none to a wrong bin. Zero is an edge; exact zeros (most of what a ReLU leaves) are
counted apart, for they have no error and no bin of positive width could say so.

Counts of one batch are exact integers. They are added up in float32: exact up to 2**24 in a bin, and beyond that within
a relative 2**-24 per batch. (int32 would overflow after a few hundred batches of a large activation; a float32 that
counts one by one stops at 2**24; sums of whole batches do neither.)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

NUM_BINS = 2048
HALF = NUM_BINS // 2
_LOG2_HALF = HALF.bit_length() - 1
# Values below 2**-100 fall into the bins next to zero: narrower bins would have subnormal edges.
_SMALLEST_EXPONENT = -100


class HistogramState(NamedTuple):
    """What was seen, sorted into bins.

    Attributes:
        exponent: int32[], R = 2**exponent.
        counts: f32[NUM_BINS], values in [(i - N) R / N, (i + 1 - N) R / N), N = NUM_BINS / 2; R itself is in the last.
        zeros: f32[], values that are exactly 0.
        low: f32[], the smallest value, exact; +inf where nothing was seen, NaN where NaN was seen.
        high: f32[], the largest; -inf where nothing was seen.
    """

    exponent: jax.Array
    counts: jax.Array
    zeros: jax.Array
    low: jax.Array
    high: jax.Array


def init() -> HistogramState:
    """The histogram of nothing."""
    return HistogramState(
        exponent=jnp.full((), _SMALLEST_EXPONENT, jnp.int32),
        counts=jnp.zeros(NUM_BINS, jnp.float32),
        zeros=jnp.zeros((), jnp.float32),
        low=jnp.full((), jnp.inf, jnp.float32),
        high=jnp.full((), -jnp.inf, jnp.float32),
    )


def update(state: HistogramState, x: jax.Array) -> HistogramState:
    """The histogram with `x: float[...]` in it. NaN and infinity are in no bin: they show in low and high."""
    x = x.astype(jnp.float32).ravel()
    finite = jnp.where(jnp.isfinite(x), x, 0.0)
    # |x| = mantissa * 2**exponent, mantissa in [1/2, 1): R = 2**exponent, or half of it where |x| is a power of two.
    mantissa, exponent = jnp.frexp(jnp.max(jnp.abs(finite), initial=0.0))
    exponent = jnp.maximum(jnp.where(mantissa == 0.5, exponent - 1, exponent), _SMALLEST_EXPONENT).astype(jnp.int32)
    # Dividing by a power of two is exact, so floor is too.
    index = jnp.clip(jnp.floor(finite / _width(exponent)).astype(jnp.int32) + HALF, 0, NUM_BINS - 1)
    is_zero = finite == 0
    counts = jnp.zeros(NUM_BINS, jnp.int32).at[index].add(jnp.where(is_zero, 0, 1))
    zeros = jnp.sum(is_zero & jnp.isfinite(x))
    low, high = jnp.min(x, initial=jnp.inf), jnp.max(x, initial=-jnp.inf)
    return merge(state, HistogramState(exponent, counts.astype(jnp.float32), zeros.astype(jnp.float32), low, high))


def merge(a: HistogramState, b: HistogramState) -> HistogramState:
    """The histogram of what both saw; associative and commutative (exactly so up to 2**24 counts in a bin)."""
    exponent = jnp.maximum(a.exponent, b.exponent)
    return HistogramState(
        exponent,
        _regrid(a, exponent) + _regrid(b, exponent),
        a.zeros + b.zeros,
        jnp.minimum(a.low, b.low),
        jnp.maximum(a.high, b.high),
    )


def full_range(state: HistogramState) -> tuple[jax.Array, jax.Array]:
    """(low, high), which are 0 where nothing was seen."""
    nothing = state.low > state.high
    return jnp.where(nothing, 0.0, state.low), jnp.where(nothing, 0.0, state.high)


def values(state: HistogramState, fraction: float) -> jax.Array:
    """f32[NUM_BINS]: a value of each bin, at 0 its lower edge, at 1 its upper."""
    return (jnp.arange(-HALF, HALF, dtype=jnp.float32) + fraction) * _width(state.exponent)


def _width(exponent: jax.Array) -> jax.Array:
    return jnp.ldexp(jnp.float32(1), exponent - _LOG2_HALF)


def _regrid(state: HistogramState, exponent: jax.Array) -> jax.Array:
    """The counts on the bins of a larger R: bin i (counted from zero) goes to bin floor(i / 2**doublings)."""
    doublings = jnp.minimum(exponent - state.exponent, _LOG2_HALF)
    index = jnp.right_shift(jnp.arange(-HALF, HALF), doublings) + HALF
    return jnp.zeros_like(state.counts).at[index].add(state.counts)


def points_and_shares(state: HistogramState) -> tuple[jax.Array, jax.Array]:
    """Two values for each bin, at its quarters, and the share of all that was seen that each stands for.

    Two, because at 8 bits a shrunk step is only a few bins wide. None lies beyond the values that were seen. The shares
    of exact zeros are missing from their sum: zeros have no error.

    Args:
        state: State of a histogram observer (`mse`, `percentile`).

    Returns:
        points: f32[P], and shares: f32[P] >= 0, which sum to at most 1.
    """
    low, high = full_range(state)
    points = jnp.concatenate([values(state, 0.25), values(state, 0.75)])
    total = jnp.sum(state.counts) + state.zeros
    return jnp.clip(points, low, high), jnp.tile(0.5 * state.counts / jnp.maximum(total, 1.0), 2)
