"""What holds on eight devices; `test_devices.py` runs this file where there are that many."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from toys import SHAPE, Tiny, toy_denoiser

import jaxdq
from jaxdq import ddpm, recipes
from jaxdq._common.devices import replicate, replicated, shard
from jaxdq.calibration import RangeSettings, SearchSettings
from jaxdq.linen import shard_by_output
from jaxdq.observers import minmax, mse
from jaxdq.sampling import batch_at, one_pass, trajectories

KEY = jax.random.key(0)
MESH = jax.make_mesh((8,), ("batch",))
DENOISER = toy_denoiser(Tiny(), (np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4),))
LABEL = jnp.full((2, 4), 0.5)
APPLY = jax.jit(jaxdq.apply, static_argnums=0)


@functools.cache
def calibrate(num_images=11, mesh=None, weight_bits=8, learns=False):
    settings = {"search": SearchSettings(num_updates=3, moves=1), "learning": RangeSettings(num_updates=3, rows=3)}
    recipe = recipes.adpdm(weight_bits, 8, 2, **settings) if learns else recipes.uniform_groups(weight_bits, 8, 2)
    return jaxdq.calibrate(DENOISER, recipe, sampler=ddpm(3), key=KEY, num_images=num_images, mesh=mesh)


@functools.cache
def quantize(weight_bits):
    return jax.jit(jaxdq.quantize)(DENOISER.params, calibrate(weight_bits=weight_bits))


# 11 images: eight are shared out, and three are on every device; 5 are fewer than there are devices. What learns takes
# 3 rows in an update and is given five that weigh nothing; Adam divides a gradient by its own size, and where that is
# near 0 a difference of sums is as large as a step.
@pytest.mark.parametrize(
    ("num_images", "learns", "rtol"),
    [
        (11, False, 1e-5),
        (5, False, 1e-5),
        (16, False, 1e-5),
        (11, True, 1e-3),
    ],
)
def test_a_calibration_is_that_of_one_device(num_images, learns, rtol):
    one, eight = (calibrate(num_images=num_images, mesh=mesh, learns=learns) for mesh in (None, MESH))
    assert jax.tree.structure(one) == jax.tree.structure(eight)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=rtol), one.weights, eight.weights)
    np.testing.assert_allclose(one.acts.scale, eight.acts.scale, rtol=rtol)
    # A zero point is a rounded number.
    np.testing.assert_allclose(one.acts.zero_point, eight.acts.zero_point, atol=1)
    np.testing.assert_array_equal(one.acts.group_of_t, eight.acts.group_of_t)


def test_a_batch_lies_on_all_devices_and_its_rest_on_each():
    data = trajectories(DENOISER, DENOISER.params, sampler=ddpm(3), num_images=11, key=KEY, mesh=MESH)
    head, tail = list(one_pass(DENOISER, data, 11, mesh=MESH))[:2]
    assert [shard.data.shape for shard in head.x.addressable_shards] == [(1, *SHAPE)] * 8
    assert [shard.data.shape for shard in head.args[0].addressable_shards] == [(1, 4)] * 8
    assert [shard.data.shape for shard in tail.x.addressable_shards] == [(3, *SHAPE)] * 8
    np.testing.assert_array_equal(np.concatenate([head.x, tail.x]), data.states[0])
    assert batch_at(DENOISER, data, 0, slice(0, 8)).x.devices() == {jax.devices()[0]}


@pytest.mark.parametrize("observer", [minmax(), mse()])
def test_devices_add_up_what_they_saw_and_send_no_activations(observer):
    states, x = replicate(observer.init(), MESH), shard(np.ones((16, 4, 4, 2), np.float32), MESH)
    program = jax.jit(observer.update, out_shardings=replicated(MESH)).lower(states, x).compile().as_text()
    assert "all-reduce(" in program
    assert not any(word in program for word in ("all-gather(", "all-to-all(", "collective-permute("))


def test_images_are_those_of_one_device():
    draw = functools.partial(jaxdq.sample, DENOISER, quantize(8), sampler=ddpm(3), num_images=11, key=KEY)
    one, eight = draw(), draw(batch_size=5, mesh=MESH)
    assert one.shape == eight.shape == (11, *SHAPE)
    # A code beside a tie may flip in another program.
    np.testing.assert_allclose(one, eight, atol=1e-2)


def test_pmap_takes_replicated_qparams():
    x, t = jax.random.normal(KEY, (8, 2, *SHAPE)), jnp.arange(8) * 2
    replicated = jax.tree.map(lambda leaf: jnp.stack([leaf] * 8), quantize(8))
    eps = jax.pmap(lambda q, x, t: jaxdq.apply(DENOISER.module, q, x, t, LABEL))(replicated, x, t)
    for device in range(8):
        one = APPLY(DENOISER.module, quantize(8), x[device], t[device], LABEL)
        np.testing.assert_allclose(eps[device], one, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_network_split_by_output_channels_says_the_same(bits):
    qparams, mesh = quantize(bits), jax.make_mesh((2, 4), ("data", "model"))
    split = jax.device_put(qparams, shard_by_output(qparams, mesh, "model"))
    conv, dense = split.params["conv"], split.params["dense"]
    assert conv["kernel"].qvalue.dtype == (jnp.int4 if bits == 4 else jnp.int8)
    shapes = {leaf.addressable_shards[0].data.shape for leaf in jax.tree.leaves((conv, dense))}
    # 8 output channels over 4 devices: kernels, biases, and scales (and code sums) that follow them.
    assert shapes == {(3, 3, 8, 2), (1, 1, 1, 2), (2,), (8, 2), (1, 2)}
    assert split.params["conv_in"]["kernel"].sharding.is_fully_replicated
    x = jax.random.normal(KEY, (2, *SHAPE))
    one, other = (APPLY(DENOISER.module, q, x, 3, LABEL) for q in (qparams, split))
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_a_mesh_whose_axes_are_explicit():
    mesh = jax.make_mesh((8,), ("images",), axis_types=(AxisType.Explicit,))
    x, label = (
        np.random.default_rng(0).standard_normal((8, *SHAPE)).astype(np.float32),
        np.full((8, 4), 0.5, np.float32),
    )
    qparams = quantize(8)
    expected = APPLY(DENOISER.module, qparams, x, 1, label)
    with jax.set_mesh(mesh):
        shared = jax.device_put((x, label), NamedSharding(mesh, PartitionSpec("images")))
        found = APPLY(DENOISER.module, qparams, shared[0], 1, shared[1])
        assert found.sharding.spec[0] == "images"
    np.testing.assert_allclose(found, expected, atol=1e-5)
