import jax.numpy as jnp
import numpy as np
import pytest

from jaxdq._common.errors import InputError
from jaxdq.grid import Scheme
from jaxdq.observers import ema


def after(decay, *batches):
    o = ema(decay)
    state = o.init()
    for batch in batches:
        state = o.update(state, jnp.array(batch, jnp.float32))
    return state


def test_golden_averages():
    state = after(0.75, [-4.0, 8.0], [0.0, 4.0], [-8.0, 12.0])
    # low: -4, then .75 * -4 = -3, then .75 * -3 + .25 * -8 = -4.25; high: 8, 7, 8.25.
    assert (int(state.num_batches), float(state.low), float(state.high)) == (3, -4.25, 8.25)
    np.testing.assert_allclose(ema(0.75).qparams(state, Scheme(4)).scale, 8.25 / 7, rtol=1e-6)


def test_the_first_batch_starts_the_averages():
    assert float(after(0.99, [5.0, 7.0]).low) == 5


def test_no_decay_is_the_last_batch():
    assert float(after(0.0, [1.0], [2.0], [3.0]).high) == 3


def test_an_empty_batch_is_no_batch():
    assert int(after(0.9, [1.0], []).num_batches) == 1


def test_merge_weighs_by_batches():
    merged = ema().merge(after(0.5, [0.0, 4.0], [0.0, 4.0], [0.0, 4.0]), after(0.5, [-4.0, 8.0]))
    assert (int(merged.num_batches), float(merged.low), float(merged.high)) == (4, -1, 5)


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2.0, float("nan")])
def test_a_decay_that_is_none_is_refused(decay):
    with pytest.raises(InputError, match=r"decay is .*; give a number from 0 up to"):
        ema(decay)
