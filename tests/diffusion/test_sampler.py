import diffusers
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdq._common.errors import InputError
from jaxdq.diffusion import Coefficients, ddim, ddpm, linear_schedule, step
from jaxdq.diffusion._sampler import spaced_timesteps

SCHEDULES = {num_timesteps: linear_schedule(num_timesteps) for num_timesteps in (1, 2, 7, 50, 1000)}


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
def test_oracle_timesteps_are_those_of_diffusers(spacing):
    theirs = diffusers.DDIMScheduler(timestep_spacing=spacing)
    for num_steps in (1, 2, 3, 7, 10, 16, 20, 48, 50, 100, 250, 333, 999, 1000):
        theirs.set_timesteps(num_steps)
        ours = spaced_timesteps(SCHEDULES[1000], num_steps, spacing)
        np.testing.assert_array_equal(ours, theirs.timesteps.numpy()[:num_steps])


def test_golden_quadratic_timesteps():
    # T = 1000: (i sqrt(800) / 4)^2 = 50 i^2.
    np.testing.assert_array_equal(spaced_timesteps(SCHEDULES[1000], 5, "quadratic"), [800, 450, 200, 50, 0])
    # T = 7, S = 4: (i sqrt(5.6) / 3)^2 = 0, 0.62, 2.49, 5.6; the second 0 moves up to 1.
    np.testing.assert_array_equal(spaced_timesteps(SCHEDULES[7], 4, "quadratic"), [5, 2, 1, 0])


@settings(deadline=None, max_examples=200)
@given(
    st.sampled_from(sorted(SCHEDULES)),
    st.floats(0, 1),
    st.sampled_from(["linspace", "leading", "trailing", "quadratic"]),
)
def test_property_timesteps_decrease_within_range(num_timesteps, share, spacing):
    num_steps = 1 + int(share * (num_timesteps - 1))
    t = spaced_timesteps(SCHEDULES[num_timesteps], num_steps, spacing)
    assert len(t) == num_steps
    assert np.all(np.diff(t) < 0)
    assert t[0] < num_timesteps and t[-1] >= 0


@pytest.mark.parametrize("sampler", [ddim, ddpm])
def test_refuses_impossible_step_counts_and_spacings(sampler):
    with pytest.raises(InputError, match="at least 1"):
        sampler(0)
    with pytest.raises(InputError, match="51 steps but the noise schedule has 50"):
        sampler(51).coefficients(SCHEDULES[50])
    with pytest.raises(InputError, match="'logspace'"):
        sampler(5, spacing="logspace")
    with pytest.raises(InputError, match="steps_offset=1"):
        sampler(50).coefficients(linear_schedule(50, steps_offset=1))


@pytest.mark.parametrize("sampler", [ddim, ddpm])
def test_refuses_timesteps_that_leave_nothing_of_the_image(sampler):
    with pytest.raises(InputError, match=r"alphas_cumprod is \S+ at timestep 900, which leaves too little"):
        sampler(10).coefficients(linear_schedule(1000, 1e-4, 0.5))


@pytest.mark.parametrize("sampler", [ddim(5), ddim(5, eta=1.0), ddpm(5)])
def test_coefficients_are_single_precision_and_samplers_hash(sampler):
    coefficients = sampler.coefficients(SCHEDULES[50])
    assert coefficients.t.dtype == np.int32
    assert all(field.dtype == np.float32 and field.shape == (5,) for field in coefficients[1:] if field is not None)
    assert hash(sampler) == hash(type(sampler)(**vars(sampler)))


def test_golden_step():
    coefficients = Coefficients(
        t=0,
        x0_from_x=1.0,
        x0_from_output=-1.0,
        clip_range=2.0,
        keep_x0=3.0,
        keep_x=0.5,
        keep_output=0.25,
        noise_std=10.0,
    )
    # x_0 = clip(8 - 4, 2) = 2; 3 * 2 + 0.5 * 8 + 0.25 * 4 = 11; plus 10 * 0.1.
    assert step(coefficients, jnp.array(8.0), jnp.array(4.0)) == 11
    assert step(coefficients, jnp.array(8.0), jnp.array(4.0), jnp.array(0.1)) == 12
