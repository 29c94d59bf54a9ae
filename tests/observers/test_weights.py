import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdq._common.errors import InputError
from jaxdq.grid import Scheme, fake_quantize
from jaxdq.observers import minmax_weights, mse_weights, percentile_weights

W = (np.random.default_rng(0).standard_normal((3, 3, 16, 8)) * np.logspace(-3, 3, 8)).astype(np.float32)


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


HUNDRED = np.random.default_rng(0).permutation(np.arange(1, 101, dtype=np.float32))


@pytest.mark.parametrize(("p", "high"), [(100, 100), (99.5, 100), (99, 99), (97.5, 98), (90, 90), (75, 75)])
def test_golden_percentile(p, high):
    """Of 1, ..., 100 the highest 100 - p are left out, as many of them as are whole."""
    w, ends = np.stack([HUNDRED, -HUNDRED], 1), Scheme(8, channel_axis=1)
    np.testing.assert_allclose(127 * percentile_weights(p)(w, ends).scale, [[high, high]], rtol=1e-6)
    # Each end loses its own: 5 of 200 at each.
    both, scheme = np.concatenate([HUNDRED, -HUNDRED])[:, None], Scheme(8, symmetric=False, channel_axis=1)
    np.testing.assert_allclose(255 * percentile_weights(97.5)(both, scheme).scale, [[95 + 95]], rtol=1e-6)


def test_percentile_of_a_thousand_leaves_one_out_and_of_fewer_none():
    scheme = Scheme(4, channel_axis=-1)
    for size, scale in ((1000, 1.0), (999, 10.0)):
        w = np.append(np.linspace(-7, 7, size - 1, dtype=np.float32), 70)[:, None]
        np.testing.assert_allclose(percentile_weights()(w, scheme).scale, [[scale]], rtol=1e-6)


def test_percentile_keeps_the_only_weights_of_a_channel():
    w = np.zeros((2000, 2), np.float32)
    w[7, 0] = w[9, 1] = 7.0
    w[:100, 1] = -3.5
    # The second channel has others, so that its one outlier goes.
    assert percentile_weights()(w, Scheme(4, channel_axis=-1)).scale.tolist() == [[1.0, 0.5]]


@pytest.mark.parametrize("p", [50, 0, 100.1, -1, float("nan")])
def test_a_percentile_that_is_none_is_refused(p):
    with pytest.raises(InputError, match=r"percentile is .*; give a number above 50 and up to 100"):
        percentile_weights(p)


@pytest.mark.optimized
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
