import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdq._errors import InputError
from jaxdq.grid import Scheme, fake_quantize
from jaxdq.observers import minmax_weights, mse_weights

W = jax.random.normal(jax.random.key(0), (3, 3, 16, 8)) * jnp.logspace(-3, 3, 8)


def error(make, scheme, p):
    qparams = jax.jit(make, static_argnums=1)(W, scheme)
    units = jnp.abs(W).max((0, 1, 2))
    return jnp.sum(jnp.abs((W - fake_quantize(W, qparams, scheme)) / units) ** p, scheme.reduced_axes(4))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_mse_never_worse_than_minmax_in_any_channel(bits, symmetric):
    scheme = Scheme(bits, symmetric, channel_axis=-1)
    ours, theirs = error(mse_weights(2.4, 40), scheme, 2.4), error(minmax_weights(), scheme, 2.4)
    assert (ours <= theirs * (1 + 1e-5)).all()
    if bits < 8:
        assert ours.sum() < 0.9 * theirs.sum()


def test_oracle_search():
    """The same grid of ratios, one by one in float64."""
    w = np.asarray(W[..., 0], np.float64).ravel()
    errors = []
    for i in range(1, 41):
        scale = np.abs(w).max() * i / 40 / 7
        errors.append(np.sum(np.abs(w - scale * np.clip(np.round(w / scale), -7, 7)) ** 2.4))
    best = np.abs(w).max() * (1 + np.argmin(errors)) / 40 / 7
    ours = mse_weights(2.4, 40)(W, Scheme(4, channel_axis=-1)).scale
    assert ours.shape == (1, 1, 1, 8)
    np.testing.assert_allclose(ours[0, 0, 0, 0], best, rtol=1e-5)


def test_golden_minmax():
    w = jnp.array([[-2.0, 6.0], [13.0, -9.0]])
    scale, zero_point = minmax_weights()(w, Scheme(4, symmetric=False, channel_axis=1))
    np.testing.assert_allclose(scale, [[1.0, 1.0]], rtol=2.0**-22)  # (13 + 2) / 15, (6 + 9) / 15
    assert zero_point.tolist() == [[-6, 1]]
    np.testing.assert_allclose(minmax_weights()(7 * w, Scheme(4, channel_axis=0)).scale, [[6.0], [13.0]], rtol=2.0**-22)


def test_memory_does_not_grow_with_the_candidates():
    def bytes_of(num_candidates):
        make = mse_weights(2.4, num_candidates)
        lowered = jax.jit(lambda w: make(w, Scheme(4, channel_axis=-1))).lower(W)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert bytes_of(200) - bytes_of(10) < W.nbytes


def test_a_search_that_is_none_is_refused():
    with pytest.raises(InputError, match="p is 0; give the exponent"):
        mse_weights(0)
    with pytest.raises(InputError, match="num_candidates is 0; give at least 1"):
        mse_weights(2.0, 0)
