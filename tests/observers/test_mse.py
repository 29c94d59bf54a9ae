import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdq._common.errors import InputError
from jaxdq.grid import Scheme, fake_quantize, qparams_from_range
from jaxdq.observers import minmax, mse

RNG = np.random.default_rng(0)
NORMAL = RNG.standard_normal(400_000).astype(np.float32)
FEWER = NORMAL[:20_000]
TENSORS = {
    "normal": FEWER,
    "uniform": RNG.uniform(-1.0, 1.0, 20_000),
    "relu": np.maximum(FEWER, 0),
    "silu": 3 * FEWER / (1 + np.exp(-3 * FEWER)),
    "heavy": RNG.standard_t(2.5, 20_000),
    "outlier": np.append(FEWER[1:], 100.0),
    "two_values": np.tile([0.0, 1.0], 10_000),
}
TENSORS = {name: tensor.astype(np.float32) for name, tensor in TENSORS.items()}
MSE, MINMAX = mse(2.4, 40), minmax()
SCHEMES = [Scheme(bits, symmetric) for bits in (2, 4, 8) for symmetric in (True, False)]


@functools.cache
def errors(o, scheme, p):
    """Of each tensor, on the values themselves."""

    def of(x):
        qparams = o.qparams(o.update(o.init(), x), scheme)
        return jnp.sum(jnp.abs(x - fake_quantize(x, qparams, scheme)) ** p)

    return dict(zip(TENSORS, jax.jit(jax.vmap(of))(np.stack(list(TENSORS.values()))).tolist(), strict=True))


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_never_worse_than_minmax(scheme):
    ours, theirs = errors(MSE, scheme, 2.4), errors(MINMAX, scheme, 2.4)
    for name in TENSORS:
        # 2%: a bin is up to a quarter of a step wide at 8 bits, and its values count as two points.
        assert ours[name] <= 1.02 * theirs[name] + 1e-6, name


def test_much_better_than_minmax_at_few_bits():
    ours, theirs = errors(MSE, Scheme(2), 2.4), errors(MINMAX, Scheme(2), 2.4)
    assert all(2 * ours[name] < theirs[name] for name in ("normal", "silu"))
    ours, theirs = errors(MSE, Scheme(4), 2.4), errors(MINMAX, Scheme(4), 2.4)
    assert all(1.2 * ours[name] < theirs[name] for name in ("normal", "relu", "silu", "heavy"))


# The symmetric quantizer of least squared error for the normal distribution with 2**b - 1 levels:
# 3 levels have step 1.224 (Max 1960, table II: N = 3), 7 levels 0.6508 (N = 7). Steps are 1/80 of the range apart.
@pytest.mark.parametrize(("bits", "step"), [(2, 1.2240), (3, 0.6508)])
def test_golden_normal(bits, step):
    o, scheme = mse(2.0), Scheme(bits)
    scale = jax.jit(lambda x: o.qparams(o.update(o.init(), x), scheme).scale)(NORMAL)
    apart = float(np.abs(NORMAL).max()) / scheme.bounds[1] / 80
    np.testing.assert_allclose(scale, step, atol=apart)


def test_each_end_is_searched_alone():
    """A long tail at one end is cut without cutting the other, which one ratio for both could not do."""
    scheme = Scheme(4, symmetric=False)

    @jax.jit
    def both(x):
        def error(qparams):
            return jnp.sum(jnp.abs(x - fake_quantize(x, qparams, scheme)) ** 2.4)

        def of_one_ratio(ratio):
            return error(qparams_from_range(ratio * x.min(), ratio * x.max(), scheme))

        ours = error(MSE.qparams(MSE.update(MSE.init(), x), scheme))
        return ours, jax.lax.map(of_one_ratio, jnp.arange(1, 41) / 40).min()

    ours, of_one_ratio = both(np.append(np.linspace(0, 1, 20_001, dtype=np.float32), np.full(20, -2, np.float32)))
    assert ours < 0.97 * of_one_ratio


def test_a_larger_p_clips_less():
    o = [mse(p) for p in (1.0, 2.0, 4.0, 16.0)]
    state = o[0].update(o[0].init(), TENSORS["normal"])
    scales = [float(each.qparams(state, Scheme(4)).scale) for each in o]
    assert scales == sorted(scales)
    assert scales[0] < scales[-1]


def test_one_candidate_is_minmax():
    x = TENSORS["normal"]
    ours, theirs = (o.qparams(o.update(o.init(), x), Scheme(4)).scale for o in (mse(2.0, 1), minmax()))
    assert ours == theirs


@pytest.mark.parametrize(("p", "num_candidates"), [(0, 80), (-1, 80), (float("nan"), 80), (2.0, 0)])
def test_a_search_that_is_none_is_refused(p, num_candidates):
    with pytest.raises(InputError, match="give"):
        mse(p, num_candidates)
