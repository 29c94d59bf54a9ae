import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pair import PARAMS, STATES, work
from toys import NUM_TIMESTEPS, SHAPE, toy_denoiser

from jaxdq import InputError, InputWarning, Rule, Scheme, apply, ddim, linear_schedule, quantize, restore, save
from jaxdq.calibration import (
    Recipe,
    _rounding,
    compensate_rounding,
    fit_weights,
    measure_sensitivity,
    observe,
    run_recipe,
    share_uniformly,
)
from jaxdq.diffusion import Denoiser
from jaxdq.grid import QTensor
from jaxdq.linen import _stored
from jaxdq.observers import minmax, minmax_weights, mse_weights

KEY = jax.random.key(0)
BEFORE = (fit_weights(mse_weights()), observe(minmax()), measure_sensitivity(2, 1), share_uniformly(1))
W4, A8 = Scheme(4, channel_axis=-1), Scheme(8, symmetric=False)


def test_golden_hessians_are_sums_over_states(monkeypatch):
    monkeypatch.setattr(_rounding, "step_weights", lambda work: np.array([1.0, 3.0]))
    layers, left = _rounding._layers(fit_weights(minmax_weights())(work(), KEY))
    assert not left
    found = _rounding.gather_hessians(work(), layers, num_images=3)
    root = np.sqrt(np.repeat([1.0, 3.0], STATES[0].size // 2))[:, None]
    x = root * STATES.reshape(-1, 2)
    np.testing.assert_allclose(found["first"][0] / found["first"][0, 0, 0], x.T @ x / (x[:, 0] @ x[:, 0]), rtol=1e-5)
    t = np.repeat(np.array([10, 0]), x.shape[0] // 2)[:, None]
    second = np.maximum(x @ PARAMS["first"]["kernel"], 0) + root * t
    product = second.T @ second
    np.testing.assert_allclose(found["second"][0] / found["second"][0, 0, 0], product / product[0, 0], rtol=1e-5)


class Correlated(nn.Module):
    """A dense layer and a convolution whose inputs are copies of one another, so that errors can make up for errors."""

    @nn.compact
    def __call__(self, x, t):
        copies = jnp.concatenate([x * (1 + 0.1 * i) for i in range(4)], axis=-1)
        h = nn.Conv(8, (3, 3), name="conv")(copies)
        return x + 0.1 * nn.Dense(x.shape[-1], name="dense")(jnp.tanh(jnp.tile(h, 3)) + 0.01 * t)


@functools.cache
def correlated():
    module, x = Correlated(), jnp.zeros((2, *SHAPE))
    params = module.init(jax.random.key(3), x, jnp.int32(0))["params"]
    denoiser = Denoiser(module, params, linear_schedule(NUM_TIMESTEPS), SHAPE)
    rules = [Rule(".*", W4, A8)]
    recipe = Recipe(
        "toy",
        lambda sites: rules,
        (fit_weights(mse_weights()), observe(minmax()), measure_sensitivity(2, 1), share_uniformly(1)),
    )
    return run_recipe(denoiser, recipe, sampler=ddim(4), key=KEY, num_images=8)


def output_error(work):
    """Of the integer network, over the states that were sampled."""
    qparams, data = jax.jit(quantize)(work.denoiser.params, work.calib), work.data
    run = jax.jit(functools.partial(apply, work.denoiser.module))
    return sum(
        float(np.sum((run(qparams, x, t) - out) ** 2))
        for x, t, out in zip(data.states, data.t, data.outputs, strict=True)
    )


@pytest.mark.parametrize("method", ["gptq", "obq"])
def test_what_the_layers_return_comes_closer(method):
    before = correlated()
    after = compensate_rounding(method)(before, KEY)
    (name, log) = after.log[-1]
    assert (name, log["kept"], log["left"]) == ("compensate_rounding", method, {})
    assert log["tried"][method] < log["tried"]["nearest"]
    assert set(log["layer_error"]) == {"conv", "dense"} and max(log["layer_error"].values()) < 0.7
    assert output_error(after) < 0.5 * output_error(before)
    for path, codes in after.calib.weights.items():
        assert isinstance(codes, QTensor)
        np.testing.assert_array_equal(codes.qparams.scale, before.calib.weights[path].qparams.scale)


@pytest.mark.parametrize(("method", "sparsity", "words"), [("gptq", "2:4", "2:4"), ("obq", 0.5, "50% zeros")])
def test_pruned_codes_run_and_come_back_from_disk_smaller(method, sparsity, words, tmp_path):
    before = correlated()
    after = compensate_rounding(method, sparsity=sparsity)(before, KEY)
    assert {site.sparsity for site in after.plan.sites} == {words} and f"4, {words}" in str(after.plan)
    qparams, plain = (quantize(work.denoiser.params, work.calib) for work in (after, before))
    for path in after.calib.weights:
        codes = np.asarray(qparams.params[path]["kernel"].qvalue)
        assert (codes == 0).mean() >= 0.5
        if words == "2:4":  # in the order of the kernel's axes, for every output
            assert ((codes.reshape(-1, 4, codes.shape[-1]) == 0).sum(1) >= 2).all()
    # To put 0 in place of the smaller half of the codes is worse.
    naive = {}
    for path in after.calib.weights:
        dense = plain.params[path]["kernel"]
        size = np.abs(np.asarray(dense.qvalue, np.int8))
        codes = jnp.asarray(np.where(size > np.median(size), dense.qvalue, 0), dense.qvalue.dtype)
        naive[path] = dataclasses.replace(dense, qvalue=codes, code_sum=None)
    assert output_error(after) < output_error(before.deciding(weights={**before.calib.weights, **naive}))

    sizes = []
    for name, one in (("pruned", qparams), ("plain", plain)):
        save(tmp_path / name, one)
        sizes.append(sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(_stored.to_arrays(one)["params"])))
    assert sizes[0] < sizes[1]
    back = restore(tmp_path / "pruned")
    assert back.plan == qparams.plan
    jax.tree.map(np.testing.assert_array_equal, back.params, qparams.params)
    x = jnp.asarray(after.data.states[0, :2])
    run = jax.jit(functools.partial(apply, after.denoiser.module))
    np.testing.assert_array_equal(run(back, x, jnp.int32(5)), run(qparams, x, jnp.int32(5)))


def test_layers_with_fewer_inputs_than_the_pattern_keep_their_weights():
    after = compensate_rounding(sparsity="16:32")(correlated(), KEY)
    assert {site.path: site.sparsity for site in after.plan.sites} == {"conv": "16:32", "dense": ""}
    with pytest.raises(InputError, match="sparsity is 64:128 and no layer has more than 72 inputs; give a smaller"):
        compensate_rounding(sparsity="64:128")(correlated(), KEY)


class OfTime(nn.Module):
    """A network with a time path, whose layer is called with one row an image."""

    @nn.compact
    def __call__(self, x, t):
        shift = nn.Dense(8, name="time")(jnp.stack([jnp.sin(t * 0.1 * i) for i in range(8)])[None])
        return nn.Dense(x.shape[-1], name="out")(jnp.tanh(nn.Dense(8, name="in")(x) + shift))


def test_the_time_path_keeps_its_weights():
    rules = [Rule(".*", W4, A8)]
    recipe = Recipe("toy", lambda sites: rules, (*BEFORE, compensate_rounding(sparsity=0.5)))
    work = run_recipe(toy_denoiser(OfTime()), recipe, sampler=ddim(3), key=KEY, num_images=2)
    words = {site.path: site.sparsity for site in work.plan.sites}
    assert words == {"time": "", "in": "50% zeros", "out": "50% zeros"}
    codes = {path: np.asarray(work.calib.weights[path].qvalue) for path in words}
    assert (codes["time"] == 0).mean() < 0.4 and (codes["out"] == 0).mean() >= 0.5


def test_what_is_pruned_stays_so_even_where_images_come_no_closer(monkeypatch):
    errors = iter([1.0, 2.0])
    monkeypatch.setattr(_rounding, "image_error", lambda work: next(errors))
    assert compensate_rounding(sparsity="2:4")(correlated(), KEY).log[-1][1]["kept"] == "gptq"


def test_portions_of_hessians_make_no_difference():
    whole, parts = (compensate_rounding(portion_bytes=size)(correlated(), KEY).calib.weights for size in (2**30, 1))
    for path in whole:
        np.testing.assert_array_equal(whole[path].qvalue, parts[path].qvalue)


def test_nearest_stays_where_images_come_no_closer(monkeypatch):
    errors = iter([1.0, 2.0])
    monkeypatch.setattr(_rounding, "image_error", lambda work: next(errors))
    before = correlated()
    after = compensate_rounding()(before, KEY)
    assert after.calib is before.calib and after.log[-1][1]["kept"] == "nearest"


def test_decided_codes_stay_and_are_named():
    once = compensate_rounding()(correlated(), KEY)
    again = compensate_rounding()(once, KEY)
    assert again.calib is once.calib
    assert again.log[-1][1]["left"] == dict.fromkeys(("conv", "dense"), "it is decided already")
    assert again.log[-1][1]["tried"] == {}


class Scanned(nn.Module):
    """Two layers that nn.scan stacks, twice, and one that stands alone."""

    @nn.compact
    def __call__(self, x, t):
        def block(layer, carry, _):
            return layer(carry), None

        scanned = nn.scan(block, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
        h, _ = scanned(nn.Dense(x.shape[-1], name="many"), x, None)
        h, _ = scanned(nn.Dense(x.shape[-1], name="more"), h, None)
        return nn.Dense(x.shape[-1], name="one")(h)


def test_stacked_kernels_keep_nearest_rounding_and_are_named():
    rules = [Rule(".*", W4, A8)]
    recipe = Recipe(
        "toy",
        lambda sites: rules,
        (
            fit_weights(mse_weights()),
            observe(minmax()),
            measure_sensitivity(2, 1),
            share_uniformly(1),
            compensate_rounding(),
        ),
    )
    with pytest.warns(
        InputWarning, match="gptq rounded 1 of 3 kernels; the others keep nearest rounding: 'many' .nn.scan"
    ):
        work = run_recipe(toy_denoiser(Scanned()), recipe, sampler=ddim(3), key=KEY, num_images=2)
    log = work.log[-1][1]
    assert list(log["layer_error"]) == ["one"] and "nn.scan" in log["left"]["many"]
    assert not isinstance(work.calib.weights["many"], QTensor)


class Jitted(nn.Module):
    """A layer inside a transformation, whose inputs no visitor sees, and one beside it."""

    @nn.compact
    def __call__(self, x, t):
        return nn.Dense(x.shape[-1], name="seen")(nn.jit(nn.Dense)(x.shape[-1], name="unseen")(x))


def test_layers_whose_inputs_are_not_seen_are_named():
    recipe = Recipe("toy", lambda sites: [Rule(".*", W4, A8)], (*BEFORE, compensate_rounding()))
    work = run_recipe(toy_denoiser(Jitted()), recipe, sampler=ddim(3), key=KEY, num_images=2)
    log = work.log[-1][1]
    assert list(log["layer_error"]) == ["seen"] and log["left"] == {"unseen": "no inputs of it were seen"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "adaround"}, "method is 'adaround'; give one of 'gptq', 'obq'"),
        ({"damping": -1.0}, "damping is -1.0; give a finite number of at least 0"),
        ({"num_images": 0}, "num_images is 0; give a whole number of at least 1"),
        ({"portion_bytes": 0}, "portion_bytes is 0"),
        ({"sparsity": "4:2"}, "sparsity is '4:2'; give the share of weights"),
        ({"sparsity": 2}, "sparsity is 2; give the share of weights"),
    ],
)
def test_refuses_bad_settings(settings, message):
    with pytest.raises(InputError, match=message):
        compensate_rounding(**settings)


def test_networks_without_kernels_on_grids_are_left_alone():
    denoiser = toy_denoiser(Correlated())
    recipe = Recipe(
        "toy",
        lambda sites: [Rule(".*", reason="all of it stays in float")],
        (
            fit_weights(mse_weights()),
            observe(minmax()),
            measure_sensitivity(2, 1),
            share_uniformly(1),
            compensate_rounding(),
        ),
    )
    with pytest.raises(InputError, match="nothing"):
        run_recipe(denoiser, recipe, sampler=ddim(2), key=KEY, num_images=2)


def test_codes_replace_kernels_bit_for_bit():
    after = compensate_rounding()(correlated(), KEY)
    qparams = quantize(after.denoiser.params, after.calib)
    for path, codes in after.calib.weights.items():
        np.testing.assert_array_equal(qparams.params[path]["kernel"].qvalue, codes.qvalue)
