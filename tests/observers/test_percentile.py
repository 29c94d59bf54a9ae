import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdq._common.errors import InputError
from jaxdq.grid import Scheme
from jaxdq.observers import _histogram, percentile
from jaxdq.observers._percentile import _without_tails


@jax.jit
def ends(x, tail):
    return _without_tails(_histogram.update(_histogram.init(), jnp.asarray(x, jnp.float32)), tail)


def without_tails(p, x):
    return tuple(float(end) for end in ends(x, (100 - p) / 100))


HUNDRED = np.arange(1, 101) / 64  # R = 2, bins of 1/512: each value is on the lower edge of a bin of its own


@pytest.mark.parametrize(
    ("p", "high"),
    [
        (100, 100 / 64),  # never past the largest
        (99.5, 100 / 64),  # half a value cannot be left out
        (99, 99 / 64 + 1 / 512),  # one is; outwards to the bin's edge
        (90, 90 / 64 + 1 / 512),
        (75, 75 / 64 + 1 / 512),
    ],
)
def test_golden_high(p, high):
    assert without_tails(p, HUNDRED)[1] == high
    # The other end: values on a lower edge need no step outwards.
    assert without_tails(p, -HUNDRED)[0] == -(high if p > 99.4 else high - 1 / 512)


def test_golden_both_ends():
    # 5 of 200 at each end.
    assert without_tails(97.5, np.concatenate([HUNDRED, -HUNDRED])) == (-95 / 64, 95 / 64 + 1 / 512)


def test_golden_zeros_hold_their_share():
    x = np.concatenate([np.zeros(900), HUNDRED])
    assert without_tails(99, x) == (0, 90 / 64 + 1 / 512)  # 1% is 10 values
    assert without_tails(90, x) == (0, 0)  # 10% is all that is not zero


def test_a_hundred_is_minmax():
    x = jax.random.normal(jax.random.key(0), (999,))
    assert without_tails(100, x) == (float(x.min()), float(x.max()))


def test_qparams_are_of_that_range():
    o = percentile(90)
    state = o.update(o.init(), jnp.concatenate([jnp.zeros(900), jnp.asarray(HUNDRED, jnp.float32)]))
    assert float(o.qparams(state, Scheme(8)).scale) == 1  # empty
    o = percentile(99)
    np.testing.assert_allclose(o.qparams(state, Scheme(8)).scale, (90 / 64 + 1 / 512) / 127, rtol=1e-6)


def test_property_never_leaves_out_more_than_the_tail():
    x = np.abs(np.asarray(jax.random.normal(jax.random.key(1), (20_000,))) ** 3)
    _, high = without_tails(99.9, x)
    assert (x > high).mean() <= 0.001
    # And hardly less: the next bin inwards would leave out too much.
    assert (x > high - x.max() / 512).mean() > 0.001


@pytest.mark.parametrize("p", [50, 0, 100.1, -1, float("nan")])
def test_a_percentile_that_is_none_is_refused(p):
    with pytest.raises(InputError, match=r"percentile is .*; give a number above 50 and up to 100"):
        percentile(p)
