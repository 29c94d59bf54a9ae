"""Every observer under every scheme keeps the contract in `jaxdq/observers/_base.py`. A new one is one row."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdq.grid import Scheme, fake_quantize
from jaxdq.observers import ema, minmax, minmax_weights, mse, mse_weights, percentile, percentile_weights

OBSERVERS = {
    "minmax": minmax(),
    "ema": ema(0.9),
    "percentile": percentile(99.0),
    "mse": mse(2.4, num_candidates=20),
}
WEIGHTS = {
    "minmax_weights": minmax_weights(),
    "mse_weights": mse_weights(2.4, num_candidates=20),
    "percentile_weights": percentile_weights(99.0),
}
SCHEMES = {str(scheme): scheme for bits in (2, 4, 8) for scheme in (Scheme(bits), Scheme(bits, symmetric=False))}
ORDERED = {"ema"}  # merge is not the same as seeing both in turn, and says so

every_observer = pytest.mark.parametrize("name", OBSERVERS)
every_scheme = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
every_weight = pytest.mark.parametrize("name", WEIGHTS)


@functools.cache
def jitted(name):
    """One compiled program per observer and scheme; every test here goes through these, so all of it is under jit."""
    o = OBSERVERS[name]
    return jax.jit(o.update), jax.jit(o.merge), jax.jit(o.qparams, static_argnums=1)


@functools.cache
def jitted_weights(name):
    return jax.jit(WEIGHTS[name], static_argnums=1)


def values(seed, size=1000):
    """Positive tail longer than the negative one, and many zeros: much like an activation."""
    x = jax.random.normal(jax.random.key(seed), (size,))
    return jnp.where(x > 0, 3 * x, jnp.where(x < -1, x, 0))


def seen(name, *batches):
    state = OBSERVERS[name].init()
    for x in batches:
        state = jitted(name)[0](state, x)
    return state


def check_grid(qparams, scheme):
    assert qparams.scale.dtype == jnp.float32
    assert (qparams.scale > 0).all()
    assert (qparams.zero_point is None) == scheme.symmetric
    if qparams.zero_point is not None:
        assert qparams.zero_point.dtype == jnp.int32
        assert qparams.zero_point.shape == qparams.scale.shape
        assert scheme.bounds[0] <= qparams.zero_point.min()
        assert qparams.zero_point.max() <= scheme.bounds[1]
    assert (fake_quantize(jnp.zeros(qparams.scale.shape), qparams, scheme) == 0).all()


@every_scheme
@every_observer
def test_an_ordinary_tensor(name, scheme):
    x = values(0)
    qparams = jitted(name)[2](seen(name, x), scheme)
    assert qparams.scale.shape == ()
    check_grid(qparams, scheme)
    # No range is wider than what was seen.
    lo, hi = scheme.bounds
    assert qparams.scale <= 1.01 * (jnp.abs(x).max() / hi if scheme.symmetric else (x.max() - x.min()) / (hi - lo))


@every_scheme
@every_observer
def test_empty_and_all_zeros_have_scale_one(name, scheme):
    for state in (seen(name), seen(name, jnp.zeros(1000)), seen(name, jnp.zeros(0))):
        qparams = jitted(name)[2](state, scheme)
        assert float(qparams.scale) == 1.0
        check_grid(qparams, scheme)


@every_scheme
@every_observer
@pytest.mark.parametrize("value", [0.7, -1.0, 3e30, -2e-30])
def test_one_value_and_a_constant_are_kept(name, scheme, value):
    one = jitted(name)[2](seen(name, jnp.float32([value])), scheme)
    many = jitted(name)[2](seen(name, jnp.full(1000, value, jnp.float32)), scheme)
    for qparams in (one, many):
        check_grid(qparams, scheme)
        np.testing.assert_allclose(fake_quantize(jnp.float32(value), qparams, scheme), value, rtol=1e-6)


@every_scheme
@every_observer
@pytest.mark.parametrize("bad", [[jnp.nan], [jnp.inf], [-jnp.inf], [jnp.inf, -jnp.inf], [jnp.nan, jnp.inf]])
def test_nan_and_infinity_stay_visible(name, scheme, bad):
    x = values(0).at[jnp.arange(3, 3 + len(bad))].set(jnp.array(bad))
    for state in (seen(name, x), seen(name, values(1), x, values(2)), jitted(name)[1](seen(name, x), seen(name))):
        assert not jnp.isfinite(jitted(name)[2](state, scheme).scale)


@every_observer
def test_compiles_once_and_keeps_the_shapes(name):
    o, traces = OBSERVERS[name], []

    @jax.jit
    def update(state, x):
        traces.append(x)
        return o.update(state, x)

    before = o.init()
    state = update(update(update(before, values(0)), values(1)), 100 * values(2))
    assert len(traces) == 1
    jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype) or pytest.fail(f"{a} became {b}"), before, state)
    after, _ = jax.lax.scan(
        lambda s, x: (o.update(s, x), None), before, jnp.stack([values(0), values(1), 100 * values(2)])
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), after, state)


@every_observer
def test_takes_any_shape_and_float(name):
    x = values(0)
    jax.tree.map(np.testing.assert_array_equal, seen(name, x[::-1].reshape(10, 5, 20)), seen(name, x))
    jax.tree.map(np.testing.assert_array_equal, seen(name, jnp.bfloat16(0.5)), seen(name, jnp.float32([0.5])))


@every_observer
def test_vmaps_over_stacked_states(name):
    o, schemes = OBSERVERS[name], (Scheme(4), Scheme(4, symmetric=False))
    x = jnp.stack([values(0), 50 * values(1), jnp.zeros(1000)])

    @jax.jit
    def stacked(x):
        states = jax.vmap(o.update)(jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), o.init()), x)
        merged = jax.vmap(o.merge)(states, states)
        return [jax.vmap(functools.partial(o.qparams, scheme=scheme))(merged) for scheme in schemes]

    for scheme, qparams in zip(schemes, stacked(x), strict=True):
        for i in range(3):
            alone = jitted(name)[2](jitted(name)[1](seen(name, x[i]), seen(name, x[i])), scheme)
            np.testing.assert_allclose(qparams.scale[i], alone.scale, rtol=1e-6)
            if not scheme.symmetric:
                np.testing.assert_array_equal(qparams.zero_point[i], alone.zero_point)


@every_observer
def test_merge_is_seeing_both(name):
    merge = jitted(name)[1]
    x, y, z = values(0), 20 * values(1), 1e-3 * values(2)
    a, b, c = (seen(name, each) for each in (x, y, z))

    def same(left, right, rtol=0.0):
        jax.tree.map(lambda p, q: np.testing.assert_allclose(p, q, rtol=rtol), left, right)

    same(merge(a, seen(name)), a)
    same(merge(seen(name), a), a)
    same(merge(a, b), merge(b, a), rtol=1e-6)
    same(merge(merge(a, b), c), merge(a, merge(b, c)), rtol=1e-6)
    if name not in ORDERED:
        same(merge(a, b), seen(name, x, y))
        same(merge(merge(a, b), c), seen(name, x, y, z))


@every_scheme
@every_observer
@pytest.mark.parametrize("power", [-30, -1, 1, 40])
def test_property_scale_follows_powers_of_two(name, scheme, power):
    x, factor = values(0), 2.0**power
    state, larger = seen(name, x), seen(name, factor * x)
    qparams, of_larger = jitted(name)[2](state, scheme), jitted(name)[2](larger, scheme)
    np.testing.assert_array_equal(of_larger.scale, qparams.scale * factor)
    if not scheme.symmetric:
        np.testing.assert_array_equal(of_larger.zero_point, qparams.zero_point)


@every_scheme
@every_weight
def test_weights_of_every_channel(name, scheme):
    scheme = Scheme(scheme.bits, scheme.symmetric, -1)
    w = values(0, 1200).reshape(200, 6).at[:, 2].set(0.0)
    qparams = jitted_weights(name)(jnp.concatenate([w, 4 * w], 1), scheme)
    assert qparams.scale.shape == (1, 12)
    check_grid(qparams, scheme)
    small, large = qparams.scale[0, :6], qparams.scale[0, 6:]
    assert small[2] == large[2] == 1  # all zeros
    np.testing.assert_array_equal(jnp.delete(large, 2), 4 * jnp.delete(small, 2))


@pytest.mark.parametrize(
    ("name", "channel_axis", "shape"),
    [
        ("minmax_weights", None, (1, 1, 1)),
        ("minmax_weights", 0, (4, 1, 1)),
        ("minmax_weights", (0, 1, 2), (4, 5, 3)),
        ("mse_weights", (0, -1), (4, 1, 3)),
        ("mse_weights", None, (1, 1, 1)),
        ("percentile_weights", None, (1, 1, 1)),
        ("percentile_weights", (0, -1), (4, 1, 3)),
        ("percentile_weights", (0, 1, 2), (4, 5, 3)),
    ],
)
def test_weights_along_any_axes(name, channel_axis, shape):
    scheme = Scheme(4, symmetric=False, channel_axis=channel_axis)
    qparams = jitted_weights(name)(values(0, 60).reshape(4, 5, 3), scheme)
    assert qparams.scale.shape == shape
    check_grid(qparams, scheme)


@every_scheme
@every_weight
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_weights_with_nan_and_infinity_stay_visible(name, scheme, bad):
    scheme = Scheme(scheme.bits, scheme.symmetric, -1)
    w = values(0, 2400).reshape(200, 12).at[5, 1].set(bad)
    assert jnp.flatnonzero(~jnp.isfinite(jitted_weights(name)(w, scheme).scale[0])).tolist() == [1]
