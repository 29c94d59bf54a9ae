import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pair import PARAMS, STATES, work
from toys import NUM_TIMESTEPS, SHAPE, toy_denoiser

from jaxdq import InputError, InputWarning, Rule, Scheme, apply, ddim, linear_schedule, quantize
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
