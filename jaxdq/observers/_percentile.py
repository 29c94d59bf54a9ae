"""The range without its tails."""

import jax
import jax.numpy as jnp

from jaxdq._common.errors import InputError
from jaxdq.grid import QParams, Scheme, qparams_from_range
from jaxdq.observers import _histogram
from jaxdq.observers._base import Observer
from jaxdq.observers._histogram import HALF, HistogramState


def percentile(p: float = 99.99) -> Observer:
    """The range that leaves out at most a share `1 - p / 100` of the values at each end.

    `high` is the smallest v with `share(x <= v) >= p / 100`, `low` the largest v with `share(x >= v) >= p / 100`, each
    rounded outwards to an edge of the histogram's bins (by at most max|x| / 512) but never past the largest or
    smallest value. A tail of zeros ends exactly at 0.

    Args:
        p: Percentage in (50, 100]; 100 is `minmax`.

    Returns:
        Observer; merge is exact and associative (see `_histogram`).

    Raises:
        InputError: A p outside (50, 100].

    Example:
        >>> o = percentile(90.0)
        >>> state = o.update(o.init(), jnp.array([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 64.0]))
        >>> round(127 * float(o.qparams(state, Scheme(8)).scale), 4)  # 1.0, outwards to the next edge
        1.0625
    """
    if not 50 < p <= 100:
        raise InputError(f"percentile is {p}; give a number above 50 and up to 100, such as 99.99.")
    tail = (100 - p) / 100

    def qparams(state: HistogramState, scheme: Scheme) -> QParams:
        return qparams_from_range(*_without_tails(state, tail), scheme)

    return Observer(_histogram.init, _histogram.update, _histogram.merge, qparams)


def _without_tails(state: HistogramState, tail: float) -> tuple[jax.Array, jax.Array]:
    # Zeros are a bin of their own, of no width, between the negative and the positive bins.
    counts = jnp.insert(state.counts, HALF, state.zeros)
    lower, upper = (jnp.insert(_histogram.values(state, fraction), HALF, 0.0) for fraction in (0.0, 1.0))
    allowed = jnp.float32(tail) * jnp.sum(counts)
    # Summed from the outside in: a thin tail is then exact, where 1 - a share close to 1 would not be.
    low = lower[jnp.argmax(jnp.cumsum(counts) > allowed)]
    high = upper[::-1][jnp.argmax(jnp.cumsum(counts[::-1]) > allowed)]
    full_low, full_high = _histogram.full_range(state)
    low, high = jnp.clip(low, full_low, full_high), jnp.clip(high, full_low, full_high)
    # NaN and infinity are in no bin, and must not be lost here.
    sound = jnp.isfinite(full_low) & jnp.isfinite(full_high)
    return jnp.where(sound, low, full_low), jnp.where(sound, high, full_high)
