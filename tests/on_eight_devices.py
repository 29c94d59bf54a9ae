"""What holds on eight devices; `test_devices.py` runs this file where there are that many."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import SHAPE, Tiny, tiny_quantized, toy_denoiser

import jaxdq
from jaxdq import calibrate, ddim, ddpm, recipes, sample
from jaxdq.calibration import RangeSettings, SearchSettings
from jaxdq.linen import shard_by_output
from jaxdq.sampling import batch_at, one_pass, trajectories

KEY = jax.random.key(0)
MESH = jax.make_mesh((8,), ("batch",))
DENOISER = toy_denoiser(Tiny(), (np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4),))


def assert_same(one, other, rtol):
    """Equal up to the order of float sums; a zero point, which is a rounded number, may be one code off."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=rtol, atol=1e-6), one.weights, other.weights)
    np.testing.assert_allclose(one.act_scale, other.act_scale, rtol=rtol)
    np.testing.assert_allclose(one.act_zero_point, other.act_zero_point, atol=1)
    np.testing.assert_array_equal(one.group_of_t, other.group_of_t)


# 11 images: eight are shared out, and three are on every device; 5 are fewer than there are devices.
@pytest.mark.parametrize("num_images", [5, 11, 16])
def test_ranges_are_those_of_one_device(num_images):
    run = functools.partial(calibrate, DENOISER, recipes.uniform_groups(8, 8, 2), sampler=ddim(2), key=KEY)
    one, eight = (run(num_images=num_images, mesh=mesh) for mesh in (None, MESH))
    assert_same(one, eight, 1e-5)


def test_a_search_and_learned_ranges_are_those_of_one_device():
    settings = {"search": SearchSettings(num_updates=3, rows=3), "ranges": RangeSettings(num_updates=3, rows=3)}
    run = functools.partial(calibrate, DENOISER, recipes.adpdm(8, 8, 2, **settings), sampler=ddim(4), key=KEY)
    one, eight = (run(num_images=11, mesh=mesh) for mesh in (None, MESH))
    # Adam divides a gradient by its own size: where it is near 0, a difference of sums is as large as a step.
    assert_same(one, eight, 1e-3)


def test_a_batch_lies_on_all_devices_and_its_rest_on_each():
    data = trajectories(DENOISER, DENOISER.params, sampler=ddim(2), num_images=11, key=KEY)
    head, tail = list(one_pass(DENOISER, data, 11, mesh=MESH))[:2]
    assert [shard.data.shape for shard in head.x.addressable_shards] == [(1, *SHAPE)] * 8
    assert [shard.data.shape for shard in head.args[0].addressable_shards] == [(1, 4)] * 8
    assert [shard.data.shape for shard in tail.x.addressable_shards] == [(3, *SHAPE)] * 8
    np.testing.assert_array_equal(np.concatenate([head.x, tail.x]), data.states[0])
    assert batch_at(DENOISER, data, 0, slice(0, 8)).x.devices() == {jax.devices()[0]}


def test_images_and_trajectories_are_those_of_one_device():
    denoiser, qparams = tiny_quantized()
    options = {"sampler": ddpm(3), "num_images": 11, "key": KEY, "batch_size": 5}
    for params in (denoiser.params, qparams):
        one, eight = (sample(denoiser, params, mesh=mesh, **options) for mesh in (None, MESH))
        # A code beside a tie may flip in another program.
        np.testing.assert_allclose(one, eight, atol=1e-5 if params is denoiser.params else 1e-2)
    one, eight = (trajectories(denoiser, denoiser.params, mesh=mesh, **options) for mesh in (None, MESH))
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), one, eight)


def test_pmap_takes_replicated_qparams():
    denoiser, qparams = tiny_quantized()
    x = jax.random.normal(KEY, (8, 2, *SHAPE))
    t = jnp.arange(8) * 2
    replicated = jax.tree.map(lambda leaf: jnp.stack([leaf] * 8), qparams)
    eps = jax.pmap(lambda q, x, t: jaxdq.apply(denoiser.module, q, x, t))(replicated, x, t)
    one = jax.jit(lambda q, x, t: jaxdq.apply(denoiser.module, q, x, t))
    for device in range(8):
        np.testing.assert_allclose(eps[device], one(qparams, x[device], t[device]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_network_split_by_output_channels_says_the_same(bits):
    calib = calibrate(DENOISER, recipes.uniform_groups(bits, 8, 2), sampler=ddim(2), key=KEY, num_images=2)
    qparams = jax.jit(jaxdq.quantize)(DENOISER.params, calib)
    mesh = jax.make_mesh((2, 4), ("data", "model"))
    split = jax.device_put(qparams, shard_by_output(qparams, mesh, "model"))
    conv, dense = split.params["conv"], split.params["dense"]
    assert conv["kernel"].qvalue.dtype == (jnp.int4 if bits == 4 else jnp.int8)
    shapes = {leaf.addressable_shards[0].data.shape for leaf in jax.tree.leaves((conv, dense))}
    # 8 output channels over 4 devices: kernels, biases, and scales (and code sums) that follow them.
    assert shapes == {(3, 3, 8, 2), (1, 1, 1, 2), (2,), (8, 2), (1, 2)}
    assert split.params["conv_in"]["kernel"].sharding.is_fully_replicated
    x, t, label = jax.random.normal(KEY, (2, *SHAPE)), 3, jnp.zeros((2, 4))
    apply = jax.jit(jaxdq.apply, static_argnums=0)
    one, other = (apply(DENOISER.module, q, x, t, label) for q in (qparams, split))
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
