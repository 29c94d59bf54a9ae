import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdq.grid import (
    init_rounding_logits,
    rectified_sigmoid,
    round_learned,
    round_learned_hard,
    round_nearest,
    round_stochastic,
    rounding_penalty,
)

STEPS = jnp.linspace(-4.0, 4.0, 1601)


def gradients(fn, x):
    return jax.vmap(jax.grad(fn))(x)


def test_golden_nearest_ties_to_even():
    ties = jnp.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 0.49999997, -0.50000006])
    assert round_nearest(ties).tolist() == [-2, -2, 0, 0, 2, 2, 0, -1]


def test_grad_nearest_is_one_ties_included():
    assert set(gradients(round_nearest, STEPS).tolist()) == {1.0}


def test_stochastic_is_unbiased(key):
    draws = jax.vmap(lambda k: round_stochastic(STEPS, k))(jax.random.split(key, 4000))
    np.testing.assert_array_equal(draws, jnp.round(draws))
    assert ((draws == jnp.floor(STEPS)) | (draws == jnp.ceil(STEPS))).all()
    # The mean of n Bernoulli draws has standard deviation <= 0.5 / sqrt(n) = 0.0079: five of them.
    assert jnp.abs(draws.mean(0) - STEPS).max() < 0.04


@pytest.mark.parametrize("whole", [-127.0, 0.0, 1.0, 127.0])
def test_stochastic_leaves_whole_numbers(key, whole):
    # So many that a draw next to 1, which float32 would round up to the next whole number, is among them.
    assert (jax.jit(round_stochastic)(jnp.full(2**22, whole), key) == whole).all()


def test_stochastic_is_reproducible(key):
    assert (round_stochastic(STEPS, key) == round_stochastic(STEPS, key)).all()
    assert (round_stochastic(STEPS, key) != round_stochastic(STEPS, jax.random.key(1))).any()


def test_grad_stochastic_is_one(key):
    assert set(jax.grad(lambda x: round_stochastic(x, key).sum())(STEPS).tolist()) == {1.0}


def test_golden_rectified_sigmoid():
    # h is clipped where 1.2 sigmoid - 0.1 leaves [0, 1]: at logits of +-log(11) = +-2.3979.
    h = rectified_sigmoid(jnp.array([-100.0, -2.3980, 0.0, 2.3980, 100.0]))
    np.testing.assert_allclose(h, [0, 0, 0.5, 1, 1], atol=1e-6)
    np.testing.assert_allclose(rectified_sigmoid(jnp.float32(1.0)), 1.2 * 0.73105858 - 0.1, rtol=1e-6)


def test_property_rectified_sigmoid_is_a_share_and_rises():
    h = rectified_sigmoid(jnp.linspace(-10.0, 10.0, 1001))
    assert (h >= 0).all()
    assert (h <= 1).all()
    assert (jnp.diff(h) >= 0).all()


def test_grad_rectified_sigmoid():
    grads = gradients(rectified_sigmoid, jnp.array([-3.0, 0.0, 3.0]))
    np.testing.assert_allclose(grads, [0, 1.2 / 4, 0], rtol=1e-6)


def test_learned_changes_nothing_at_first():
    np.testing.assert_allclose(round_learned(STEPS, init_rounding_logits(STEPS)), STEPS, atol=2e-6)


def test_learned_hard_rounds_to_nearest_at_first():
    away_from_ties = STEPS[jnp.abs(STEPS - jnp.floor(STEPS) - 0.5) > 1e-3]
    hard = round_learned_hard(away_from_ties, init_rounding_logits(away_from_ties))
    np.testing.assert_array_equal(hard, jnp.round(away_from_ties))


def test_learned_goes_where_the_logits_say():
    steps = jnp.array([0.3, -1.7])
    np.testing.assert_array_equal(round_learned(steps, jnp.array([9.0, -9.0])), [1, -2])
    np.testing.assert_array_equal(round_learned_hard(steps, jnp.array([0.0, -1e-6])), [1, -2])


def test_grad_learned():
    to_steps, to_logits = jax.grad(round_learned, argnums=(0, 1))(jnp.float32(0.3), jnp.float32(0.0))
    assert (float(to_steps), round(float(to_logits), 6)) == (0.0, 0.3)
    to_steps, to_logits = jax.grad(round_learned_hard, argnums=(0, 1))(jnp.float32(0.3), jnp.float32(0.0))
    assert (float(to_steps), float(to_logits)) == (1.0, 0.0)


@pytest.mark.parametrize("sharpness", [2.0, 20.0])
def test_penalty_is_zero_only_where_binary(sharpness):
    assert float(rounding_penalty(jnp.array([-3.0, 3.0, 9.0]), sharpness)) == 0
    for soft in (-2.0, -0.5, 0.0, 0.5, 2.0):
        assert float(rounding_penalty(jnp.array([soft]), sharpness)) > 0
    assert float(rounding_penalty(jnp.zeros(5), sharpness)) == 5


def test_grad_penalty_pushes_apart_and_is_finite():
    grads = jax.grad(rounding_penalty)(jnp.array([-1.0, 0.0, 1.0]), jnp.float32(2.0))
    assert grads[0] > 0 > grads[2]  # descending, down below the middle and up above it
    assert float(grads[1]) == 0
