"""Rounding learned block by block."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import NUM_TIMESTEPS, SHAPE

from jaxdq import InputError, InputWarning, Rule, Scheme, apply, ddim, linear_schedule, quantize
from jaxdq.calibration import (
    Recipe,
    ReconstructionSettings,
    _reconstruction,
    fit_weights,
    measure_sensitivity,
    observe,
    reconstruct,
    run_recipe,
    share_uniformly,
)
from jaxdq.calibration.tools import loop
from jaxdq.calibration.tools.reconstruction import start_logits
from jaxdq.diffusion import Denoiser
from jaxdq.grid import QTensor, dequantize, fake_quantize, round_learned
from jaxdq.linen import kernel_at
from jaxdq.observers import minmax, mse_weights

KEY = jax.random.key(0)
W4, A8 = Scheme(4, channel_axis=-1), Scheme(8, symmetric=False)
QUICK = {"num_updates": 60, "num_states": 24, "rows": 8}


class Half(nn.Module):
    """Inputs that are copies of one another, so that an error can make up for another."""

    @nn.compact
    def __call__(self, x, t):
        copies = jnp.concatenate([x * (1 + 0.1 * i) for i in range(4)], axis=-1)
        h = nn.Conv(8, (3, 3), name="conv")(copies)
        return x + 0.1 * nn.Dense(x.shape[-1], name="dense")(jnp.tanh(jnp.tile(h, 3)) + 0.01 * t)


class Both(nn.Module):
    @nn.compact
    def __call__(self, x, t):
        return Half(name="second")(Half(name="first")(x, t), t)


@functools.cache
def before(num_groups=1, module=Both()):  # noqa: B008
    x = jnp.zeros((2, *SHAPE))
    params = module.init(jax.random.key(3), x, jnp.int32(0))["params"]
    denoiser = Denoiser(module, params, linear_schedule(NUM_TIMESTEPS), SHAPE)
    calibrators = (
        fit_weights(mse_weights()),
        observe(minmax()),
        measure_sensitivity(2, 1),
        share_uniformly(num_groups),
    )
    recipe = Recipe("toy", lambda sites: [Rule(".*", W4, A8)], calibrators)
    return run_recipe(denoiser, recipe, sampler=ddim(4), key=KEY, num_images=8)


@functools.cache
def after(**settings):
    return reconstruct(ReconstructionSettings(**QUICK, **settings))(before(), KEY)


def output_error(work):
    denoiser, qparams = work.denoiser, jax.jit(quantize)(work.denoiser.params, work.calib)
    x = jax.random.normal(jax.random.key(7), (16, *SHAPE))
    float_, ours = (apply(denoiser.module, params, x, 3) for params in (denoiser.params, qparams))
    return float(jnp.mean((float_ - ours) ** 2))


@pytest.mark.parametrize("by", ["block", pytest.param("layer", marks=pytest.mark.slow)])
def test_outputs_come_closer_and_blocks_are_those_asked_for(by):
    work = after(by=by)
    name, log = work.log[-1]
    paths = (
        {"first", "second"}
        if by == "block"
        else {f"{half}/{one}" for half in ("first", "second") for one in ("conv", "dense")}
    )
    assert (name, log["kept"], log["left"]) == ("reconstruct", "reconstructed", {}) and set(log["block_error"]) == paths
    assert max(log["block_error"].values()) <= 1 and min(log["block_error"].values()) < 0.7
    assert output_error(work) < 0.6 * output_error(before())


def test_no_weight_leaves_its_two_neighbours():
    work = after(by="block")
    for path, codes in work.calib.weights.items():
        assert isinstance(codes, QTensor)
        w, scale = kernel_at(work.denoiser.params, path), codes.qparams.scale
        low, high = W4.bounds
        steps = np.clip(w / scale, low, high)
        moved = np.abs(np.asarray(dequantize(codes) / scale) - steps)
        assert moved.max() < 1 + 1e-5 and np.mean(moved > 0.5) > 0.02  # some are rounded away from the nearest


def test_soft_weights_at_the_start_are_the_float_ones():
    work = before()
    latents = _reconstruction._latents(work)
    for path, (value, grid) in latents.items():
        logits = start_logits(value, grid.qparams.scale)
        soft = fake_quantize(value, grid.qparams, grid.scheme, functools.partial(round_learned, logits=logits))
        low, high = grid.scheme.bounds
        inside = np.abs(value / grid.qparams.scale - np.clip(value / grid.qparams.scale, low, high)) == 0
        np.testing.assert_allclose(np.where(inside, soft, 0), np.where(inside, value, 0), rtol=1e-4, atol=1e-5)
        assert inside.mean() > 0.9, path


@pytest.mark.slow
def test_step_sizes_move_in_their_own_group_and_stay_where_they_are_not_learned():
    start = before(2)
    settings = {**QUICK, "act_rate": 0.05}
    learned = reconstruct(ReconstructionSettings(**settings))(start, KEY)
    fixed = reconstruct(ReconstructionSettings(**QUICK, acts=False))(start, KEY)
    np.testing.assert_array_equal(fixed.acts.scale, start.acts.scale)
    ratio = np.asarray(learned.acts.scale / start.acts.scale)
    assert np.all(ratio != 1) and np.all(np.abs(np.log(ratio)) < 1)
    assert not np.allclose(ratio[0], ratio[1])


def test_nearest_stays_where_images_come_no_closer(monkeypatch):
    errors = iter([1.0, 2.0])
    monkeypatch.setattr(_reconstruction, "image_error", lambda work: next(errors))
    work = reconstruct(ReconstructionSettings(**{**QUICK, "num_updates": 2}))(before(), KEY)
    assert work.calib is before().calib and work.log[-1][1]["kept"] == "before"


@pytest.mark.parametrize(
    "after_saves",
    [
        pytest.param(0, id="in the first block"),
        pytest.param(1, id="between", marks=pytest.mark.slow),
        pytest.param(3, id="in the second block", marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, monkeypatch, after_saves):
    monkeypatch.setattr(loop, "SAVE_EVERY", 5)
    calibrator = reconstruct(ReconstructionSettings(**{**QUICK, "num_updates": 8}))
    whole = calibrator(before(), KEY)
    saves, save = [], _reconstruction.save_state

    class Killed(Exception):
        pass

    def counted(*args):
        save(*args)
        saves.append(args)
        if len(saves) > after_saves:
            raise Killed

    monkeypatch.setattr(loop, "save_state", counted)
    monkeypatch.setattr(_reconstruction, "save_state", counted)
    with pytest.raises(Killed):
        calibrator(before().with_machine(folder=tmp_path), KEY)
    monkeypatch.setattr(loop, "save_state", save)
    monkeypatch.setattr(_reconstruction, "save_state", save)
    resumed = calibrator(before().with_machine(folder=tmp_path), KEY)
    for path, codes in whole.calib.weights.items():
        np.testing.assert_array_equal(codes.qvalue, resumed.calib.weights[path].qvalue)
    np.testing.assert_array_equal(whole.acts.scale, resumed.acts.scale)
    assert whole.log[-1] == resumed.log[-1]


def test_codes_that_were_decided_stay(monkeypatch):
    once = after(by="block")
    again = reconstruct(ReconstructionSettings(**{**QUICK, "num_updates": 2}))(once, KEY)
    assert again.calib is once.calib and again.log[-1][1]["tried"] == {}


class Hidden(nn.Module):
    """Two layers in nn.remat, two that nn.scan goes through, and one that stands alone."""

    @nn.compact
    def __call__(self, x, t):
        def step(layer, carry, _):
            return layer(carry), None

        over = nn.scan(step, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
        for name in ("one", "two", "three", "four"):
            x, _ = over(nn.Dense(x.shape[-1], name=name), x, None)
        return nn.Dense(x.shape[-1], name="out")(nn.remat(Half)(name="half")(x, t))


def test_layers_in_remat_are_learned_and_kernels_out_of_reach_are_named():
    work = before(module=Hidden())
    with pytest.warns(InputWarning, match=r"4 of 7 kernels are in no block .* nearest rounding: 'one' \(it sits"):
        after = reconstruct(ReconstructionSettings(**{**QUICK, "num_updates": 2}))(work, KEY)
    assert set(after.log[-1][1]["left"]) == {"one", "two", "three", "four"}
    assert set(after.log[-1][1]["block_error"]) == {"half", "out"}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"by": "unit"}, "by is 'unit'; give one of 'block', 'layer'"),
        ({"acts": "no"}, "acts is 'no'; give True or False"),
        ({"blocks": ("(",)}, "which is no regular expression"),
        ({"num_updates": 0}, "num_updates is 0; give a whole number of at least 1"),
        ({"warmup": 1.0}, "warmup is 1.0; give a share of the updates below 1"),
        ({"penalty": -1.0}, "penalty is -1.0; give a finite number of at least 0"),
    ],
)
def test_refuses_settings_that_cannot_work(settings, said):
    with pytest.raises(InputError, match=said):
        ReconstructionSettings(**settings)
