import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import NUM_TIMESTEPS, SHAPE, Tiny, tiny_quantized, toy_denoiser

from jaxdq import InputError, ddim, ddpm, sample
from jaxdq.diffusion import dpm_solver, euler, euler_ancestral, lcm, pndm
from jaxdq.linen import Correction
from jaxdq.sampling import trajectories, walk

KEY = jax.random.key(3)
SAMPLERS = {
    "ddim": ddim(4),
    "eta": ddim(4, eta=1.0),
    "ddpm": ddpm(4),
    "dpm_solver": dpm_solver(5),
    "pndm": pndm(6),
    "euler": euler(4, spacing="linspace"),
    "euler_ancestral": euler_ancestral(3, spacing="trailing"),
    "lcm": lcm(3, original_steps=10),
}


def walked(denoiser, params, sampler, **settings):
    """(images, states before each step, outputs) of a walk by hand."""
    w = walk(denoiser, sampler, key=KEY, **settings)
    x, past, states, outputs = w.start(), (), [], []
    for step in range(w.num_steps):
        states.append(x)
        outputs.append(w.output(params, x, step))
        x, past = w.advance(x, outputs[-1], step, past, params=params)
    return w.images(x), np.stack(states), np.stack(outputs)


@pytest.mark.parametrize("name", SAMPLERS)
def test_oracle_a_walk_is_the_trajectory(name):
    denoiser = toy_denoiser(Tiny())
    images, states, outputs = walked(denoiser, denoiser.params, SAMPLERS[name], num_images=5, batch_size=2)
    data = trajectories(denoiser, denoiser.params, sampler=SAMPLERS[name], num_images=5, key=KEY, batch_size=5)
    for found, expected in ((images, data.images), (states, data.states), (outputs, data.outputs)):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpm_solver", "pndm", "euler"])
def test_oracle_drawing_is_sampling(name):
    denoiser = toy_denoiser(Tiny())
    settings = {"num_images": 5, "key": KEY, "batch_size": 2}
    drawn = walk(denoiser, SAMPLERS[name], **settings).draw(denoiser.params)
    expected = sample(denoiser, denoiser.params, sampler=SAMPLERS[name], **settings)
    np.testing.assert_allclose(drawn, expected, rtol=1e-4, atol=1e-5)


def test_conditions_belong_to_their_images():
    labels = np.arange(12, dtype=np.float32).reshape(3, 4) / 10
    denoiser = toy_denoiser(Tiny(), (labels,))
    images, *_ = walked(denoiser, denoiser.params, ddim(3), num_images=5, batch_size=4)
    expected = sample(denoiser, denoiser.params, sampler=ddim(3), num_images=5, key=KEY)
    np.testing.assert_allclose(images, expected, rtol=1e-4, atol=1e-5)


def test_a_quantized_network_brings_its_corrections():
    denoiser, qparams = tiny_quantized()
    shift = 0.01 * jnp.ones((NUM_TIMESTEPS, SHAPE[-1]))
    corrected = dataclasses.replace(
        qparams, correction=Correction(output_shift=shift, output_std=jnp.full(NUM_TIMESTEPS, 1e3))
    )
    images, *_ = walked(denoiser, corrected, ddim(3, eta=1.0), num_images=3)
    expected = sample(denoiser, corrected, sampler=ddim(3, eta=1.0), num_images=3, key=KEY)
    # A code that rounds the other way is a step of the grid, along three steps.
    np.testing.assert_allclose(images, expected, atol=0.05)
    assert abs(images - sample(denoiser, qparams, sampler=ddim(3, eta=1.0), num_images=3, key=KEY)).max() > 0.1


def test_two_networks_on_one_walk_compile_once_each():
    traces = []

    class Counted(Tiny):
        def __call__(self, x, t):
            traces.append(t)
            return super().__call__(x, t)

    denoiser = toy_denoiser(Counted())
    traces.clear()
    w = walk(denoiser, ddim(5), num_images=5, key=KEY, batch_size=2)
    x = w.start()
    for step in range(w.num_steps):
        x, _ = w.advance(x, w.output(denoiser.params, x, step), step)
    assert len(traces) == 1 and w.t.tolist() == ddim(5).coefficients(denoiser.schedule).t.tolist()


def test_a_step_beyond_the_walk_is_refused():
    w = walk(toy_denoiser(Tiny()), ddim(2), num_images=1, key=KEY)
    with pytest.raises(InputError, match="step is 2 and the walk has 2; give 0 to 1"):
        w.output({}, w.start(), 2)
    with pytest.raises(InputError, match="num_images is 0"):
        walk(toy_denoiser(Tiny()), ddim(2), num_images=0, key=KEY)
