import dataclasses
import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import SHAPE, Tiny, toy_denoiser

from jaxdq import InputError, apply, calibrate, ddim, guided, quantize
from jaxdq.calibration import RangeSettings, SearchSettings, Selection, run_recipe
from jaxdq.calibration.tools.rows import apply_by_row, rows_of_steps, step_weights
from jaxdq.grid import QTensor, Scheme
from jaxdq.linen import Site
from jaxdq.observers import mse_weights
from jaxdq.recipes import adpdm

SITES = [Site(name, "dense", (4, 4), (1,), 9, 144) for name in ("a", "b", "c")]
STEPS, NUM_GROUPS = 3, 2


class Line(nn.Module):
    """Three dense layers, of which the recipe leaves both ends in float."""

    @nn.compact
    def __call__(self, x, t):
        h = nn.silu(nn.Dense(8, name="in")(x) + jnp.cos(0.3 * jnp.broadcast_to(t, x.shape[:1]))[:, None, None, None])
        return nn.Dense(x.shape[-1], name="out")(nn.silu(nn.Dense(8, name="middle")(h)))


@functools.cache
def denoiser():
    return toy_denoiser(Line())


@functools.cache
def run(seed=0, again=False):
    short = {"search": SearchSettings(num_updates=3), "learning": RangeSettings(num_updates=3)}
    recipe = adpdm(4, 8, NUM_GROUPS, **short)
    return calibrate(denoiser(), recipe, sampler=ddim(STEPS), key=jax.random.key(seed), num_images=4)


def test_settings_name_the_figures_of_the_report():
    assert adpdm(4, 6, 3).num_groups == 3
    settings = [json.dumps(adpdm(*bits).settings) for bits in ((4, 6), (6, 6), (4, 8))]
    assert len(set(settings)) == 3
    assert adpdm().num_groups == 8  # the paper's
    assert adpdm().name == "adpdm"


def test_settings_of_the_search_are_reported():
    search = SearchSettings(num_updates=7)
    calibrators = {one["name"]: one for one in json.loads(json.dumps(adpdm(search=search).settings))["calibrators"]}
    assert calibrators["search_groups"]["settings"] == dataclasses.asdict(search)


def test_bits_reach_the_rules():
    rule = adpdm(4, 6).rules(SITES)[-1]
    assert (rule.weight.bits, rule.act.bits) == (4, 6)


def test_golden_weight_grid_cuts_an_outlier_that_is_not_worth_its_grid():
    # 99 weights of 1/2 beside one of 4: on 7 steps that reach 4, each is 0.07 off; where a step is near 1/2, the
    # outlier loses as much and all others almost nothing.
    kernel = np.full((100, 1), 0.5, np.float32)
    kernel[0] = 4.0
    fit = next(one for one in adpdm(4).calibrators if one.name == "fit_weights")
    assert fit.settings["weight_range"].startswith("mse_weights")
    scale = mse_weights()(kernel, Scheme(4, channel_axis=-1)).scale
    assert 0.49 < float(scale[0, 0]) < 0.54 < 4 / 7


@pytest.mark.slow
def test_a_budget_chooses_timesteps_first():
    short = {"search": SearchSettings(num_updates=1), "learning": RangeSettings(num_updates=1)}
    recipe = adpdm(4, 8, NUM_GROUPS, budget=4, **short)
    work = run_recipe(denoiser(), recipe, sampler=ddim(STEPS), key=jax.random.key(0), num_images=4)
    assert [name for name, _ in work.log] == [
        "select_timesteps",
        "search_groups",
        "compensate_rounding",
        "learn_ranges",
    ]
    assert work.fact(Selection).counts.sum() == 4 < work.data.num_steps * work.data.num_images


@pytest.mark.parametrize("budget", [0, 7, 8.5, "9"])
def test_a_budget_that_can_not_fill_the_groups_is_refused_at_once(budget):
    with pytest.raises(InputError, match=f"budget of {budget} states was given and 8 groups were asked for; give .* 8"):
        adpdm(budget=budget)


@pytest.mark.slow
def test_the_same_key_finds_the_same_bits():
    one, two = run(), run(again=True)
    assert one is not two and jax.tree.structure(one) == jax.tree.structure(two)
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        assert left.dtype == right.dtype and np.asarray(left).tobytes() == np.asarray(right).tobytes()


def test_what_it_finds_quantizes_and_runs():
    calib = run()
    assert calib.acts.scale.shape == (NUM_GROUPS, 1) and set(np.asarray(calib.acts.group_of_t)) <= set(
        range(NUM_GROUPS)
    )
    assert np.isfinite(calib.acts.scale).all() and (np.asarray(calib.acts.scale) > 0).all()
    qparams = jax.jit(quantize)(denoiser().params, calib)
    assert isinstance(qparams.params["middle"]["kernel"], QTensor)
    x = jax.random.normal(jax.random.key(1), (2, *SHAPE))
    call = jax.jit(functools.partial(apply, denoiser().module))
    for t in (0, 19):
        exact, found = (np.float64(call(params, x, jnp.int32(t))) for params in (denoiser().params, qparams))
        # 4-bit weights of one layer: steps of a 7th of a channel's largest, which is 3 deviations at most among 8:
        # errors 20 log10(7 sqrt(12) / 3) = 18 dB below its output. The other layers pass both alike, give or take 6.
        assert 10 * np.log10(np.sum(exact**2) / np.sum((exact - found) ** 2)) > 12


@pytest.mark.parametrize("bits", [1, 9])
def test_bits_outside_are_refused(bits):
    with pytest.raises(ValueError, match=f"bits is {bits}; give a whole number from 2 to 8"):
        adpdm(bits, 8)


class ScalarTime(nn.Module):
    """A network that would take a vector of times for channels."""

    @nn.compact
    def __call__(self, x, t):
        h = nn.silu(nn.Dense(2, name="in")(x) + 0.1 * t)
        return nn.Dense(x.shape[-1], name="out")(nn.silu(nn.Dense(8, name="middle")(h)))


def guided_denoiser():
    labels = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
    return guided(toy_denoiser(Tiny(), (labels,)), (np.full((1, 4), 5.0, np.float32),))


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: toy_denoiser(ScalarTime()), id="scalar t", marks=pytest.mark.slow),
        pytest.param(guided_denoiser, id="guided", marks=pytest.mark.slow),
    ],
)
@pytest.mark.filterwarnings("ignore:only:jaxdq.InputWarning")  # on purpose
def test_networks_that_take_one_time_are_learned_too(make):
    # Two rows in an update, as many as the first layer has channels: a vector t would broadcast over those.
    recipe = adpdm(
        4, 8, 2, search=SearchSettings(num_updates=2, moves=1), learning=RangeSettings(num_updates=2, rows=2)
    )
    work = run_recipe(make(), recipe, sampler=ddim(STEPS), key=jax.random.key(0), num_images=4)
    rows = rows_of_steps(work, step_weights(work), 2, jax.random.key(0))(0)
    output = apply_by_row(work.denoiser.module, work.denoiser.params, lambda step: lambda name, x: x, rows)
    np.testing.assert_allclose(output, rows.target, rtol=1e-4, atol=1e-5)
    assert np.isfinite(work.calib.acts.scale).all()
