import jax.numpy as jnp
import numpy as np
import pytest

from jaxdq._errors import InputError
from jaxdq.grid import Scheme
from jaxdq.observers import margin, minmax
from jaxdq.observers._base import search_range


def test_margin_widens_and_keeps_the_zero_point():
    plain, wide = minmax(), margin(margin(minmax(), 1.5), 2.0)
    state = plain.update(plain.init(), jnp.array([-1.0, 2.0]))
    for scheme in (Scheme(8), Scheme(4, symmetric=False)):
        narrow, wider = plain.qparams(state, scheme), wide.qparams(state, scheme)
        np.testing.assert_allclose(wider.scale, 3 * narrow.scale, rtol=1e-6)
        assert wider.zero_point == narrow.zero_point


@pytest.mark.parametrize("factor", [0.5, 0, -1, float("inf"), float("nan")])
def test_a_margin_that_narrows_is_refused(factor):
    with pytest.raises(InputError, match=r"margin is .*; give a factor of at least 1"):
        margin(minmax(), factor)


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
