import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdq.observers import _histogram
from jaxdq.observers._histogram import HALF, NUM_BINS

update = jax.jit(_histogram.update)


def seen(*batches):
    state = _histogram.init()
    for batch in batches:
        state = update(state, jnp.asarray(batch, jnp.float32))
    return state


@pytest.mark.parametrize(
    ("largest", "exponent"),
    [(1.0, 0), (1.01, 1), (0.51, 0), (0.5, -1), (3.0, 2), (2.0**127, 127), (3e38, 128), (1e-36, -100)],
)
def test_golden_reach(largest, exponent):
    state = seen([largest / 4, -largest])
    assert int(state.exponent) == exponent
    assert float(state.counts.sum()) == 2


def test_golden_bins():
    # R = 1, bins of 1/1024: lower edge in, upper edge out, but for R itself.
    state = seen([0.0, 0.0, 1e-9, 1 / 1024, -1e-9, -1 / 1024, 0.5, 1.0, -1.0])
    filled = {int(i) - HALF: int(state.counts[i]) for i in jnp.flatnonzero(state.counts)}
    assert filled == {0: 1, 1: 1, -1: 2, 512: 1, 1023: 1, -1024: 1}
    assert float(state.zeros) == 2


def test_oracle_numpy():
    x = np.asarray(jax.random.normal(jax.random.key(0), (5000,)))
    state = seen(x)
    reach = 2.0 ** int(state.exponent)
    counts, _ = np.histogram(x.astype(np.float64), bins=NUM_BINS, range=(-reach, reach))
    np.testing.assert_array_equal(state.counts, counts)


@pytest.mark.parametrize("factor", [2.0, 3.7, 2.0**11, 1e25])
def test_growing_moves_no_value_to_a_wrong_bin(factor):
    x = jax.random.normal(jax.random.key(0), (5000,))
    grown, at_once = seen(x, factor * x), seen(jnp.concatenate([x, factor * x]))
    jax.tree.map(np.testing.assert_array_equal, grown, at_once)
    jax.tree.map(np.testing.assert_array_equal, seen(factor * x, x), at_once)
    assert float(grown.counts.sum()) == 10_000


def test_counts_go_on_past_two_to_the_24():
    state = seen(jnp.ones(1000))
    many = state._replace(counts=state.counts * 2.0**15)  # 32,768,000 in one bin
    grown = _histogram.merge(many, seen(jnp.ones(4096)))
    assert float(grown.counts.sum()) == 32_768_000 + 4096


def test_values_of_bins():
    state = seen([1.0])
    assert float(_histogram.values(state, 0.0)[HALF]) == 0
    assert float(_histogram.values(state, 1.0)[-1]) == 1
    assert float(_histogram.values(state, 0.5)[0]) == -1 + 0.5 / 1024


def test_nan_and_infinity_are_in_no_bin():
    state = seen([1.0, jnp.nan, jnp.inf, -jnp.inf, 0.0])
    assert (float(state.counts.sum()), float(state.zeros)) == (1, 1)
    assert jnp.isnan(state.low)
    assert (float(seen([1.0, jnp.inf]).high), float(seen([1.0, jnp.inf]).low)) == (jnp.inf, 1)
