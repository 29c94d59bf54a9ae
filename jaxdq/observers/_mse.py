"""The range of least error."""

import jax
import jax.numpy as jnp

from jaxdq.grid import SMALLEST_SCALE, QParams, Scheme, fake_quantize, qparams_from_range
from jaxdq.observers import _histogram
from jaxdq.observers._base import Observer, check_search, power, search_range
from jaxdq.observers._histogram import HistogramState


def mse(p: float = 2.4, num_candidates: int = 80) -> Observer:
    """The range `(r_low * low, r_high * high)` that minimises `sum |x - fake_quantize(x)|**p` over what was seen.

    Ratios are `i / num_candidates`. Both ends shrink by one ratio; an asymmetric scheme then searches each end alone,
    which suits a SiLU with its short negative tail. The full range is a candidate and wins ties, so the sum is never
    above that of `minmax`, up to the histogram's resolution (two points to a bin, 1/512 to 1/1024 of max|x| wide).

    Args:
        p: > 0, the exponent; 2 is the mean squared error, more punishes clipping more.
        num_candidates: Ratios per search.

    Returns:
        Observer; merge is exact and associative (see `_histogram`).

    Raises:
        InputError: A p that is not positive, or no candidates.

    Example:
        >>> o = mse(p=2.0)
        >>> state = o.update(o.init(), jnp.append(jnp.linspace(-1.0, 1.0, 9999), 2.0))
        >>> round(7 * float(o.qparams(state, Scheme(4)).scale), 1)  # one 2 is not worth half the grid
        0.9

    Source: Nahshan et al. 2021 (LAPQ) for the L_p norm; p = 2.4 as in BRECQ's and Q-Diffusion's code. They shrink both
    ends together.
    """
    check_search(p, num_candidates)

    def qparams(state: HistogramState, scheme: Scheme) -> QParams:
        low, high = _histogram.full_range(state)
        low, high = jnp.minimum(low, 0.0), jnp.maximum(high, 0.0)
        points, counts = _points(state, low, high)
        # In parts of the largest value: powers of tiny values would vanish and those of huge ones overflow.
        unit = jnp.maximum(jnp.maximum(-low, high), SMALLEST_SCALE)

        def error_of(low: jax.Array, high: jax.Array) -> jax.Array:
            rounded = fake_quantize(points, qparams_from_range(low, high, scheme), scheme)
            return jnp.sum(counts * power((points - rounded) / unit, p))

        return qparams_from_range(*search_range(error_of, low, high, scheme, num_candidates), scheme)

    return Observer(_histogram.init, _histogram.update, _histogram.merge, qparams)


def _points(state: HistogramState, low: jax.Array, high: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two values for each bin, at its quarters, and what each counts for. Zeros are left out: they have no error.

    Two, because at 8 bits a shrunk step is only a few bins wide. None lies beyond the values that were seen.
    """
    points = jnp.concatenate([_histogram.values(state, 0.25), _histogram.values(state, 0.75)])
    return jnp.clip(points, low, high), jnp.tile(0.5 * state.counts, 2)
