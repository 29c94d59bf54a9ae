import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdq._common.errors import InputError
from jaxdq.diffusion import (
    Coefficients,
    ddim,
    ddpm,
    image_keys,
    initial_noise,
    linear_schedule,
    sample,
    step,
    trajectory,
)

SHAPE = (4, 4, 2)
SCHEDULE = linear_schedule(20)
SAMPLERS = [ddim(5), ddpm(5)]


def toy_model(x, t):
    return jnp.tanh(x + 0.1 * jnp.roll(x, 1, 1)) * (1 + t / 20)


def draw(sampler, image_index, model=toy_model, run=sample):
    key = jax.random.key(3)
    x_init, keys = initial_noise(key, image_index, SHAPE), image_keys(key, image_index)
    return run(model, sampler, sampler.coefficients(SCHEDULE), x_init, keys)


def counted(traces):
    """The toy model; `traces` grows each time that it is traced."""

    def model(x, t):
        traces.append(x.shape)
        return toy_model(x, t)

    return model


@pytest.mark.parametrize(("sampler", "run"), [(ddim(5), sample), (ddpm(5), trajectory)])
def test_traces_the_model_once(sampler, run):
    traces = []
    draw(sampler, jnp.arange(2), counted(traces), run)
    assert len(traces) == 1


def test_new_coefficients_need_no_new_trace():
    traces = []
    run = jax.jit(lambda coefficients, x, keys: sample(counted(traces), ddim(5), coefficients, x, keys))
    keys, x = image_keys(jax.random.key(0), jnp.arange(2)), jnp.ones((2, *SHAPE))
    leading = run(ddim(5).coefficients(SCHEDULE), x, keys)
    trailing = run(ddim(5, spacing="trailing").coefficients(SCHEDULE), x, keys)
    assert len(traces) == 1
    assert not np.allclose(leading, trailing)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_invariant_an_image_does_not_depend_on_its_batch(sampler):
    together = draw(sampler, jnp.arange(5))
    np.testing.assert_allclose(draw(sampler, jnp.array([3])), together[3:4], rtol=1e-5, atol=1e-6)


def test_invariant_initial_noise_is_the_images_own():
    key = jax.random.key(0)
    together = initial_noise(key, jnp.arange(6), SHAPE)
    assert together.dtype == jnp.float32
    np.testing.assert_array_equal(initial_noise(key, jnp.array([5, 2]), SHAPE), together[jnp.array([5, 2])])
    assert len(np.unique(together)) > 0.99 * together.size


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_trajectory_records_what_sample_does(sampler):
    images, states, outputs = draw(sampler, jnp.arange(3), run=trajectory)
    np.testing.assert_allclose(images, draw(sampler, jnp.arange(3)), rtol=1e-5, atol=1e-6)
    assert states.shape == outputs.shape == (5, 3, *SHAPE)
    np.testing.assert_array_equal(states[0], initial_noise(jax.random.key(3), jnp.arange(3), SHAPE))
    t = sampler.coefficients(SCHEDULE).t
    for index in range(5):
        np.testing.assert_allclose(outputs[index], toy_model(states[index], t[index]), rtol=1e-5, atol=1e-6)


def test_oracle_loop_is_the_plain_python_loop():
    images, states, _ = draw(ddim(5), jnp.arange(2), run=trajectory)
    coefficients = ddim(5).coefficients(SCHEDULE)
    x = states[0]
    for index, t in enumerate(coefficients.t):
        x = step(coefficients.at(index), x, toy_model(x, t))
    np.testing.assert_allclose(images, x, rtol=1e-5, atol=1e-6)


def test_step_noise_differs_between_steps_and_images_and_from_the_initial_noise():
    # Steps that keep only their noise: the states are the noise itself.
    zero, one = np.zeros(4, np.float32), np.ones(4, np.float32)
    only_noise = Coefficients(np.arange(4, dtype=np.int32), zero, zero, one, zero, zero, zero, one)
    key = jax.random.key(0)
    x_init, keys = initial_noise(key, jnp.arange(3), SHAPE), image_keys(key, jnp.arange(3))
    images, states, _ = trajectory(toy_model, ddpm(4), only_noise, x_init, keys)
    draws = np.concatenate([np.asarray(states).ravel(), np.asarray(images).ravel()])
    assert len(np.unique(draws)) > 0.99 * draws.size
    assert abs(draws.mean()) < 0.2 and abs(draws.std() - 1) < 0.2


def test_model_may_compute_in_half_precision():
    images = draw(ddim(5), jnp.arange(2), lambda x, t: toy_model(x, t).astype(jnp.bfloat16))
    assert images.dtype == jnp.float32


def test_refuses_a_model_that_changes_the_shape():
    with pytest.raises(InputError, match=r"\(2, 4, 4, 2\) and returned \(2, 4, 4, 4\)"):
        draw(ddim(5), jnp.arange(2), lambda x, t: jnp.concatenate([x, x], -1))


@pytest.mark.parametrize("output", [{"sample": 1.0}, None, (1.0, 2.0)], ids=["dict", "None", "tuple"])
def test_a_model_that_returns_no_array_is_told(output):
    x, keys = jnp.zeros((1, 2, 2, 1)), jax.random.split(jax.random.key(0), 1)
    coefficients = ddim(2).coefficients(linear_schedule())
    with pytest.raises(InputError, match=f"The model returned a {type(output).__name__}; it must return one array"):
        trajectory(lambda x, t: output, ddim(2), coefficients, x, keys)
