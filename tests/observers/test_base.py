import jax.numpy as jnp

from jaxdq.grid import Scheme
from jaxdq.observers._base import search_range


def search(error_of, symmetric, low=-8.0, high=8.0, num_candidates=8):
    found = search_range(error_of, jnp.float32(low), jnp.float32(high), Scheme(8, symmetric), num_candidates)
    return tuple(float(end) for end in found)


def test_golden_search():
    def bowl(low, high):
        return (low + 2) ** 2 + (high - 5) ** 2

    assert search(bowl, symmetric=False) == (-2, 5)
    assert search(bowl, symmetric=True) in {(-3, 3), (-4, 4)}  # both ends together: error 5 either way


def test_search_keeps_the_full_range_on_ties_and_nan():
    assert search(lambda low, high: 0 * low, symmetric=False) == (-8, 8)
    assert search(lambda low, high: jnp.nan * low, symmetric=False) == (-8, 8)


def test_search_is_elementwise():
    low, high = jnp.array([-8.0, -8.0]), jnp.array([8.0, 8.0])
    targets = jnp.array([2.0, 7.0])
    _, found = search_range(lambda low, high: jnp.abs(high - targets), low, high, Scheme(8), 8)
    assert found.tolist() == [2, 7]
