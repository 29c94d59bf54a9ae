import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import toy_plan, toy_work

from jaxdq import InputError, ddim, linear_schedule
from jaxdq.calibration import measure_sensitivity
from jaxdq.calibration.tools.propagation import sensitivity, squared_norms
from jaxdq.diffusion import PNDM, Denoiser, dpm_solver, left_by, pndm, step
from jaxdq.grid import Scheme
from jaxdq.linen import Rule
from jaxdq.sampling import trajectories

KEY = jax.random.key(0)
SHAPE = (1, 1, 2)
RULES = [Rule(".*", Scheme(8, channel_axis=-1), Scheme(8, symmetric=False))]
UNCLIPPED = linear_schedule(12, 0.05, 0.4, clip_range=None)
CLIPPED = linear_schedule(12, 0.05, 0.4, clip_range=0.4)


class Linear(nn.Module):
    """`out = (gain x) @ kernel / gain`, one activation: the same network for every gain."""

    gain: float = 1.0

    @nn.compact
    def __call__(self, x, t):
        return nn.Dense(2, use_bias=False, name="dense")(self.gain * x) / self.gain


class Shared(nn.Module):
    """`Linear` whose kernel is the sum of two: both layers are called with the same array."""

    @nn.compact
    def __call__(self, x, t):
        return sum(nn.Dense(2, use_bias=False, name=name)(x) for name in ("quarter", "rest"))


class Curved(nn.Module):
    """Two layers around a tanh that sees the time, a condition, and a layer whose output nobody reads."""

    @nn.compact
    def __call__(self, x, t, label):
        nn.Dense(3, name="dead")(2 * x)
        h = nn.tanh(nn.Dense(3, name="first")(x) + 0.1 * t + label)
        return nn.Dense(2, name="second")(h)


KERNEL = np.array([[0.5, -0.25], [0.75, 0.3]])
RNG = np.random.default_rng(0)
CURVED = {
    "dead": {"kernel": RNG.standard_normal((2, 3)), "bias": np.zeros(3)},
    "first": {"kernel": RNG.standard_normal((2, 3)), "bias": RNG.standard_normal(3)},
    "second": {"kernel": 1.5 * RNG.standard_normal((3, 2)), "bias": RNG.standard_normal(2)},
}
CURVED = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), CURVED)
LABELS = RNG.standard_normal((3, 1, 1, 1)).astype(np.float32)


def work_of(module, params, *, num_images, num_steps=3, schedule=UNCLIPPED, eta=0.0, conditions=(), sampler=None):
    denoiser = Denoiser(module, params, schedule, SHAPE, conditions)
    sampler = sampler or ddim(num_steps, eta=eta)
    data = trajectories(denoiser, params, sampler=sampler, num_images=num_images, key=KEY)
    plan = toy_plan(module, params, RULES, data.states[0], jnp.int32(0), *denoiser.args(data.image_index))
    return toy_work(denoiser, sampler, plan, data)


@functools.cache
def linear(gain=1.0, eta=0.0):
    return work_of(Linear(gain), {"dense": {"kernel": jnp.asarray(KERNEL, jnp.float32)}}, num_images=64, eta=eta)


def norms_by_hand(work):
    """(sites f64[S], output f64[S], Gram matrices of the sites' Jacobians): products of 2 x 2 matrices, in float64.

    With rows x, a step is `x A + (x K) B`, A and B the sampler's numbers: an error of the output is multiplied by B and
    by `A_j + B_j K` of every later step j; an error of the input of the dense layer by K before.
    """
    c = work.problem.sampler.coefficients(work.denoiser.schedule)
    to_x = np.float64(c.keep_x0) * c.x0_from_x + c.keep_x
    to_output = np.float64(c.keep_x0) * c.x0_from_output + c.keep_output
    sites, output, grams, later = [], [], [], np.eye(2)
    for a, b in zip(to_x[::-1], to_output[::-1], strict=True):
        of_output, of_site = b * later, b * KERNEL @ later
        output.append(np.sum(of_output**2))
        sites.append(np.sum(of_site**2))
        grams.append(of_site.T @ of_site)
        later = (a * np.eye(2) + b * KERNEL) @ later
    return np.array(sites[::-1]), np.array(output[::-1]), grams[::-1]


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_oracle_a_sweep_along_the_axes_is_the_norm_worked_by_hand(eta):
    # sum over axes e of |J^T e|^2 is |J|^2 exactly, and all images have the same J. Noise does not enter.
    work = linear(eta=eta)
    found = squared_norms(work, np.eye(2, dtype=np.float32).reshape(2, *SHAPE)).sum(axis=0)
    sites, output, _ = norms_by_hand(work)
    # Products of a dozen float32 numbers of size 1.
    np.testing.assert_allclose(found, np.stack([output, sites], axis=1), rtol=1e-5)


def test_property_the_mean_over_draws_is_the_norm():
    work = linear()
    draws = np.random.default_rng(7).standard_normal((8, 64, *SHAPE), np.float32)
    found = np.mean([squared_norms(work, directions) for directions in draws], axis=(0, 1))
    sites, output, grams = norms_by_hand(work)
    # |J^T v|^2 = v' G v with G = J J': its variance is 2 |G|^2 for gaussian v; 512 are averaged; 4 deviations.
    four_deviations = 4 * np.sqrt([2 * np.sum(gram**2) / 512 for gram in grams])
    assert found.shape == (3, 2)
    assert (abs(found[:, 1] - sites) < four_deviations).all()
    assert (four_deviations < 0.3 * sites).all()
    # G of the output at the last step is B^2 I, of variance 2 * 2 B^4 = output^2.
    assert abs(found[-1, 0] - output[-1]) < 4 * output[-1] / np.sqrt(512)


def test_every_draw_is_another():
    one, two = (sensitivity(curved(), KEY, num_draws=draws).sites for draws in (1, 2))
    assert abs(one - two).max() > 0.01 * one.max()


@functools.cache
def curved(sampler=None):
    return work_of(Curved(), CURVED, num_images=3, schedule=CLIPPED, conditions=(LABELS,), sampler=sampler)


@pytest.mark.parametrize("sampler", [ddim(3), dpm_solver(3, spacing="trailing"), pndm(2)], ids=repr)
def test_oracle_the_jacobian_of_the_whole_rollout(sampler):
    # Forward mode over a rollout written out, against the sweep's reverse mode; clipping and conditions take part, and
    # an error at one step also reaches the later ones that look back at it.
    work = curved(sampler)
    numbers = work.problem.sampler.coefficients(CLIPPED)

    def image(nudges, x, label):
        past = (jnp.zeros_like(x),) * numbers.num_past
        for index in range(3):
            c = numbers.at(index)
            first, second = CURVED["first"], CURVED["second"]
            h = (x + nudges["first"][index]) @ first["kernel"] + first["bias"]
            h = jnp.tanh(h + 0.1 * c.t + label) + nudges["second"][index]
            output = h @ second["kernel"] + second["bias"] + nudges["output"][index]
            left = (left_by(c, x, output), *past[:-1]) if past else ()
            x, past = step(c, x, output, None, past), left
        return x

    nothing = {"first": jnp.zeros((3, 2)), "second": jnp.zeros((3, 3)), "output": jnp.zeros((3, 2))}
    jacobian = jax.jit(jax.vmap(jax.jacfwd(image), in_axes=(None, 0, 0)))
    jacobians = jacobian(nothing, jnp.asarray(work.data.states[0]).reshape(3, 2), jnp.asarray(LABELS).reshape(3, 1))
    exact = {name: np.sum(np.float64(leaf) ** 2, axis=(1, 3)) for name, leaf in jacobians.items()}
    axes = [np.broadcast_to(axis.reshape(SHAPE), (3, *SHAPE)) for axis in np.eye(2, dtype=np.float32)]
    found = sum(squared_norms(work, axis) for axis in axes)
    assert tuple(name for name, _ in work.plan.columns) == ("dead", "first", "second")
    # Float32 through three steps of a smooth network, numbers of size 1 to 10; the largest sets the scale.
    for column, name in ((0, "output"), (2, "first"), (3, "second")):
        np.testing.assert_allclose(found[..., column], exact[name], rtol=1e-4, atol=1e-6 * exact[name].max())
    c = jax.tree.map(lambda leaf: leaf[:, None, None, None, None], numbers)
    inside = abs(c.x0_from_x * work.data.states + c.x0_from_output * work.data.outputs) < 0.4
    assert isinstance(sampler, PNDM) or (inside.any() and not inside.all())  # PNDM makes nothing of x_0


class Amplified(nn.Module):
    """A network that multiplies what it is given by its condition, step by step."""

    @nn.compact
    def __call__(self, x, t, gain):
        return nn.Dense(2, use_bias=False, name="dense")(x) * gain


def amplified(*gains):
    """Images of one network, each as sensitive as its gain makes it."""
    gains = np.float32(gains).reshape(-1, 1, 1, 1)
    params = {"dense": {"kernel": jnp.asarray(KERNEL, jnp.float32)}}
    return work_of(Amplified(), params, num_images=len(gains), conditions=(gains,))


def test_every_image_has_the_same_say():
    # Errors of the last image are amplified thousands of times more than those of the others.
    work = amplified(-1.0, 0.5, -40.0)
    directions = np.asarray(jax.random.normal(jax.random.fold_in(KEY, 0), work.data.images.shape))
    norms = squared_norms(work, directions)
    total = norms[..., 1].sum(axis=1)
    assert total[2] > 1000 * total[:2].max()
    power = np.sum(np.float64(work.data.outputs) ** 2, axis=(2, 3, 4)).T
    shares = norms / np.sum(norms[..., 0] * power, axis=1)[:, None, None]
    found = sensitivity(work, KEY, num_draws=1)
    np.testing.assert_allclose(found.sites, shares[..., 1:].mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found.output, shares[..., 0].mean(axis=0), rtol=1e-5)


def test_an_image_that_nothing_moves_has_no_say():
    work = amplified(0.0, 0.5)
    found, norms = sensitivity(work, KEY), squared_norms(work, np.ones(work.data.images.shape, np.float32))
    assert norms[0, :, 1].max() == 0.0  # its dense layer is multiplied by 0
    assert np.isfinite(found.output).all() and (found.sites > 0).all()
    still = sensitivity(amplified(0.0, 0.0), KEY)  # a network that says nothing
    assert (still.sites == 0).all() and (still.output > 0).all()


def test_an_activation_that_does_not_reach_the_image_costs_nothing():
    found = sensitivity(curved(), KEY)
    np.testing.assert_array_equal(found.sites[:, 0], 0.0)
    assert (found.sites[:, 1:] > 0).all() and (found.output > 0).all()


def test_property_an_activation_g_times_as_large_costs_g_squared_less():
    # A power of two: float32 is exact about it.
    one, four = sensitivity(linear(), KEY), sensitivity(linear(gain=4.0), KEY)
    np.testing.assert_array_equal(four.sites, one.sites / 16)
    np.testing.assert_array_equal(four.output, one.output)


def test_an_error_of_shared_codes_is_the_same_wherever_they_are_read():
    kernels = {"quarter": 0.25 * KERNEL, "rest": 0.75 * KERNEL}
    params = {name: {"kernel": jnp.asarray(kernel, jnp.float32)} for name, kernel in kernels.items()}
    work = work_of(Shared(), params, num_images=64)
    assert [name for name, _ in work.plan.columns] == ["quarter"]
    found, expected = sensitivity(work, KEY), sensitivity(linear(), KEY)
    # The same trajectories and directions up to the order of float32 sums.
    np.testing.assert_allclose(found.sites, expected.sites, rtol=1e-4)
    np.testing.assert_allclose(found.output, expected.output, rtol=1e-4)


def test_only_images_that_exist_are_averaged():
    few, many = sensitivity(curved(), KEY, num_images=3), sensitivity(curved(), KEY, num_images=8)
    np.testing.assert_array_equal(few.sites, many.sites)


def test_without_quantized_activations_the_output_remains():
    work = linear()
    plan = toy_plan(Linear(), work.denoiser.params, [Rule(".*")], work.data.states[0], jnp.int32(0))
    found = sensitivity(work.deciding(plan=plan), KEY)
    assert found.sites.shape == (3, 0)
    np.testing.assert_allclose(found.output, sensitivity(work, KEY).output, rtol=1e-6)


def test_images_at_a_time_change_nothing():
    # Three images two by two: the second pair is filled up with one that adds nothing.
    whole, parts = (sensitivity(curved().with_machine(batch_size=size), KEY) for size in (32, 2))
    for name in ("sites", "output"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-5)


class Twice(nn.Module):
    """One layer that is called twice, on all of x and on a part of it; or two layers of the same params."""

    shared: bool = True

    @nn.compact
    def __call__(self, x, t):
        one = nn.Dense(2, use_bias=False, name="one")
        two = one if self.shared else nn.Dense(2, use_bias=False, name="two")
        return one(x) + jnp.tanh(two(x[:1, :, :, ::-1])) * 0.3


def test_a_layer_that_is_called_twice_costs_what_its_calls_cost():
    kernel = {"kernel": jnp.asarray(KERNEL, jnp.float32)}
    shared = work_of(Twice(), {"one": kernel}, num_images=2)
    apart = work_of(Twice(False), {"one": kernel, "two": kernel}, num_images=2)
    found, expected = sensitivity(shared, KEY), sensitivity(apart, KEY)
    np.testing.assert_allclose(found.sites[:, 0], expected.sites.sum(axis=1), rtol=1e-5)


@pytest.mark.parametrize("setting", ["num_images", "num_draws"])
def test_nothing_to_measure_on_is_refused(setting):
    with pytest.raises(InputError, match=f"{setting} is 0; give a whole number of at least 1"):
        measure_sensitivity(**{setting: 0})
