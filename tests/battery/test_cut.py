"""Kernels that are cut along their input channels: where their input is a concatenation, or every so many channels."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import SHAPE, toy_denoiser

from jaxdq import InputError, Rule, Scheme, apply, ddim, quantize, restore, save
from jaxdq.calibration import (
    RangeSettings,
    Recipe,
    ReconstructionSettings,
    compensate_rounding,
    fit_weights,
    learn_ranges,
    measure_sensitivity,
    observe,
    reconstruct,
    run_recipe,
    share_uniformly,
    spend_budget,
)
from jaxdq.grid import Grid, QParams, dequantize
from jaxdq.linen import Parts, apply_visited, dequantize_params, on_pieces
from jaxdq.metrics import sqnr_db
from jaxdq.observers import minmax, minmax_weights, mse_weights

KEY = jax.random.key(0)
CUT = ("conv", "shortcut")
W4, W8, A8 = Scheme(4, channel_axis=-1), Scheme(8, channel_axis=-1), Scheme(8, symmetric=False)


class Shortcut(nn.Module):
    """Two arrays of very different ranges side by side, in a convolution and in a dense layer."""

    @nn.compact
    def __call__(self, x, t):
        deep = nn.Conv(6, (3, 3), name="deep")(x)
        both = jnp.concatenate([100 * jnp.tanh(deep), jnp.tanh(x)], -1)
        h = nn.Conv(6, (3, 3), name="conv")(both) + nn.Dense(6, name="shortcut")(both)
        time = jnp.broadcast_to(t, x.shape[:1])[:, None, None, None]
        return x + 0.1 * nn.Dense(x.shape[-1], name="out")(h + 0.01 * time)


@functools.cache
def denoiser():
    """Input channels a hundred times as large have kernels of a hundredth."""
    toy = toy_denoiser(Shortcut())
    narrow = {path: {**toy.params[path], "kernel": toy.params[path]["kernel"].at[..., :6, :].mul(0.01)} for path in CUT}
    return dataclasses.replace(toy, params={**toy.params, **narrow})


def recipe(cut, steps=(), weight=W8, groups=1):
    rules = lambda sites: [Rule("deep|out"), Rule(".*", weight, A8, cut=cut)]  # noqa: E731
    before = (fit_weights(minmax_weights()), observe(minmax()), measure_sensitivity(2, 1), share_uniformly(groups))
    return Recipe("cut", rules, before + steps)


STEPS: dict = {
    "nearest": (),
    "gptq": (compensate_rounding("gptq"),),
    "obq": (compensate_rounding("obq"),),
    "pruned": (compensate_rounding("gptq", sparsity=0.5, weight_range=mse_weights()),),
    "adaround": (reconstruct(ReconstructionSettings(num_updates=20, rows=4, num_states=16)),),
    "learned": (learn_ranges(RangeSettings(num_updates=20)),),
    "gptq, learned": (compensate_rounding("gptq"), learn_ranges(RangeSettings(num_updates=4, judge_every=2))),
    "budget": (spend_budget(0.5, mse_weights(), num_rows=4, tries=1), compensate_rounding("gptq")),
}


@functools.cache
def run(cut, steps="nearest", **kwargs):
    return run_recipe(
        denoiser(), recipe(cut, STEPS[steps], **kwargs), sampler=ddim(4), key=KEY, num_images=4, batch_size=4
    )


def error_of(work, t=3):
    """Relative error of the integer path on a state."""
    x = jax.random.normal(KEY, (4, *SHAPE))
    exact = denoiser().module.apply({"params": denoiser().params}, x, t) - x
    found = apply(denoiser().module, quantize(denoiser().params, work.calib), x, t) - x
    return float(jnp.linalg.norm(found - exact) / jnp.linalg.norm(exact))


def test_halves_have_grids_of_their_own_and_the_sum_of_their_dots_is_the_float_twin():
    work = run("joined", groups=2)
    qparams = quantize(denoiser().params, work.calib)
    for path in CUT:
        site, kernel = qparams.plan.by_path[path], qparams.params[path]["kernel"]
        assert isinstance(kernel, Parts) and site.parts == (6, 2) and site.has_own_inputs
        assert site.inputs == (f"{path}[0:6]", f"{path}[6:8]")
    wide, narrow = (work.acts.scale[:, work.plan.activations[f"conv[{span}]"][0]] for span in ("0:6", "6:8"))
    assert (wide > 10 * narrow).all(), "one grid would be as coarse as the wide half's"
    x, group = jax.random.normal(KEY, (4, *SHAPE)), int(qparams.acts.group_of_t[0])

    def on_grid(name, value):
        column, scheme = qparams.plan.activations[name]
        grid = QParams(qparams.acts.scale[group, column], qparams.acts.zero_point[group, column])
        low, high = scheme.bounds
        codes = jnp.clip(jnp.round(value / grid.scale) + grid.zero_point, low, high)
        return (codes - grid.zero_point) * grid.scale

    twin = apply_visited(
        denoiser().module,
        dequantize_params(qparams),
        lambda name, value: on_pieces(qparams.plan.activations, name, value, on_grid),
        x,
        jnp.int32(0),
    )
    found = apply(denoiser().module, qparams, x, 0)
    # Sums of float32 in another order move a value here and there to the next code.
    assert sqnr_db(twin - x, found - x) > 60
    np.testing.assert_allclose(apply(denoiser().module, qparams, x, np.zeros(4, np.int32)), found, rtol=1e-5, atol=1e-5)


def test_halves_lose_less_than_one_grid_where_their_ranges_differ():
    assert error_of(run("joined")) < 0.3 * error_of(run(None))


def test_every_so_many_channels_have_grids_of_weights_alone():
    work = run(3, weight=W4)
    site = work.plan.by_path["conv"]
    assert (site.parts, site.has_own_inputs, site.inputs) == ((3, 3, 2), False, ("conv",))
    kernel, params = quantize(denoiser().params, work.calib).params["conv"]["kernel"], denoiser().params
    for part, piece in zip(kernel.parts, jnp.split(params["conv"]["kernel"], [3, 6], axis=2), strict=True):
        assert (abs(dequantize(part) - piece) <= 0.5001 * part.qparams.scale).all()
    assert error_of(work) < error_of(run(None, weight=W4))


@pytest.mark.parametrize("name", list(STEPS)[1:])
def test_whatever_rounds_weights_or_learns_ranges_takes_kernels_that_are_cut(name, tmp_path):
    work = run("joined", name, weight=W4)
    qparams = quantize(denoiser().params, work.calib)
    assert [len(qparams.params[path]["kernel"].parts) for path in CUT] == [2, 2]
    left = {path: why for _, log in work.log for path, why in log.get("left", {}).items()}
    assert not left
    x = jax.random.normal(KEY, (2, *SHAPE))
    found = apply(denoiser().module, qparams, x, 3)
    assert np.isfinite(found).all()
    if name not in ("pruned", "budget"):
        assert error_of(work) <= 1.1 * error_of(run("joined", weight=W4))
    save(tmp_path / "q", qparams)
    np.testing.assert_array_equal(apply(denoiser().module, restore(tmp_path / "q"), x, 3), found)


def test_rounding_knows_each_parts_own_grid():
    """GPTQ's codes lie on the grid of their part, and lose less than nearest rounding in the layer."""
    work = run("joined", "gptq", weight=W4)
    (log,) = (log for name, log in work.log if name == "compensate_rounding")
    assert log["layer_error"]["conv"] < 0.9
    grid = fit_weights(minmax_weights())(run("joined", weight=W4), KEY).calib.weights["conv"]
    np.testing.assert_array_equal(work.calib.weights["conv"].qparams.scale, grid.qparams.scale)
    assert len(np.unique(np.asarray(grid.qparams.scale)[0, 0, :, 0])) == 2


def test_the_plan_says_what_is_cut():
    rows = {row[0]: row[3] for row in run("joined").plan.rows()}
    assert (rows["conv"], rows["deep"]) == ("8, cut 6+2", "float")
    assert {row[0]: row[3] for row in run(3, weight=W4).plan.rows()}["conv"] == "4, cut 3+3+2"
    assert {row[0]: row[3] for row in run(4, weight=W4).plan.rows()}["conv"] == "4, cut 2x4"
    assert run(8, weight=W4).plan.by_path["conv"].parts == (), "eight channels are one part"


def test_a_grid_that_changes_within_a_part_is_refused():
    work = run("joined")
    grid = work.calib.weights["conv"]
    uneven = Grid(grid.qparams._replace(scale=grid.qparams.scale.at[0, 0, 0].mul(2)), grid.scheme)
    calib = dataclasses.replace(work.calib, weights={**work.calib.weights, "conv": uneven})
    with pytest.raises(InputError, match=r"'conv' into parts of \(6, 2\) input channels .* not one scale for each"):
        quantize(denoiser().params, calib)


@pytest.mark.parametrize("cut", ["halves", 0, -3, 2.5, True, ""])
def test_a_cut_that_nobody_knows_is_refused(cut):
    with pytest.raises(InputError, match="give 'joined', channels of a part, or None"):
        Rule(".*", W8, A8, cut=cut)
