import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import Line, Told, toy_denoiser

from jaxdq import InputError, Rule, Scheme, apply, ddim, quantize
from jaxdq.calibration import (
    RangeSettings,
    Recipe,
    _ranges,
    fit_weights,
    learn_ranges,
    measure_sensitivity,
    observe,
    run_recipe,
    share_uniformly,
)
from jaxdq.calibration._ranges import Fixed, _make_loss, starting_from, with_ranges
from jaxdq.calibration.tools.evidence import group_of_step
from jaxdq.calibration.tools.rows import image_error, rows_of_steps, step_weights
from jaxdq.grid import Grid
from jaxdq.observers import minmax, minmax_weights

KEY = jax.random.key(0)
S, GROUPS = 5, 2
OBSERVED = (fit_weights(minmax_weights()), observe(minmax()), measure_sensitivity())
SHORT = RangeSettings(num_updates=4, judge_every=2)


def rules(sites):
    grids = {"weight": Scheme(4, channel_axis=-1), "act": Scheme(4, symmetric=False)}
    return [Rule("one|two", **grids), Rule(".*", reason="an end")]


@functools.cache
def work(rules=rules):
    recipe = Recipe("toy", rules, (*OBSERVED, share_uniformly(GROUPS)))
    return run_recipe(toy_denoiser(Line()), recipe, sampler=ddim(S), key=KEY, num_images=4)


def loss_at(work, learned, rows):
    fixed = Fixed(work.denoiser.params, work.calib.weights, jnp.asarray(group_of_step(work)))
    return jax.jit(_make_loss(work.denoiser.module, work.plan))(learned, fixed, rows)


@functools.cache
def learned():
    return learn_ranges(RangeSettings(num_updates=60, judge_every=20))(work(), KEY)


def test_oracle_the_loss_is_that_of_the_integer_path():
    rows = rows_of_steps(work(), step_weights(work()), S, KEY)(0)
    qparams = jax.jit(quantize)(work().denoiser.params, work().calib)
    output = apply(work().denoiser.module, qparams, rows.x, rows.t)
    by_hand = np.sum(rows.weight * np.sum((np.float64(rows.target) - output) ** 2, axis=(1, 2, 3)))
    assert by_hand > 0
    np.testing.assert_allclose(loss_at(work(), starting_from(work()), rows), by_hand, rtol=1e-4)


def test_a_network_that_says_nothing_has_a_loss_of_one():
    power = np.mean(np.sum(work().data.outputs ** 2, axis=(2, 3, 4)), axis=1)
    assert np.sum(step_weights(work()) * power) == pytest.approx(1, rel=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:only:jaxdq.InputWarning")  # on purpose
def test_an_array_that_is_the_same_at_every_step_keeps_one_grid_while_it_is_learned():
    text = np.random.default_rng(0).standard_normal((4, 3, 5)).astype(np.float32)
    grids = {"weight": Scheme(4, channel_axis=-1), "act": Scheme(4, symmetric=False)}
    rules = [Rule("in|out", reason="an end"), Rule("q|k|v", **grids), Rule(".*", reason="no kernel")]
    recipe = Recipe("toy", lambda sites: rules, (*OBSERVED, share_uniformly(GROUPS), learn_ranges(SHORT)))
    found = run_recipe(toy_denoiser(Told(), (text,)), recipe, sampler=ddim(S), key=KEY, num_images=4)
    assert [name for name, _ in found.plan.columns] == ["q", "k"] and found.plan.step_invariant_columns == (1,)
    scale, zero_point = np.asarray(found.acts.scale), np.asarray(found.acts.zero_point)
    assert scale[0, 1] == scale[1, 1] and zero_point[0, 1] == zero_point[1, 1]
    assert scale[0, 0] != scale[1, 0]
    # Only the first group's is learned, since it is what runs.
    fixed = Fixed(found.denoiser.params, found.calib.weights, jnp.asarray(group_of_step(found)))
    rows = rows_of_steps(found, step_weights(found), S, KEY)(0)
    slope = jax.jit(jax.grad(_make_loss(found.denoiser.module, found.plan)))(starting_from(found), fixed, rows).act
    assert slope[0, 1] != 0 and slope[1, 1] == 0


def test_learning_lowers_the_error_of_the_output():
    _, log = learned().log[-1]
    assert np.mean(log["updates"]["loss"][-10:]) < 0.8 * np.mean(log["updates"]["loss"][:10])


def test_images_are_never_farther_than_before():
    _, log = learned().log[-1]
    assert list(log["tried"]) == ["before", "look 1", "look 2", "look 3"]
    assert (
        image_error(learned()) == pytest.approx(log["tried"][log["kept"]]) == pytest.approx(min(log["tried"].values()))
    )
    assert log["tried"]["before"] == pytest.approx(image_error(work()), rel=0.05)


def test_what_is_worse_is_not_kept(monkeypatch):
    errors = iter([1.0, 2.0, float("nan")])
    monkeypatch.setattr(_ranges, "image_error", lambda work: next(errors))
    found = learn_ranges(SHORT)(work(), KEY)
    kept = found.calib
    assert found.log[-1][1]["kept"] == "before"
    np.testing.assert_allclose(kept.acts.scale, work().acts.scale, rtol=1e-6)
    np.testing.assert_array_equal(kept.acts.zero_point, work().acts.zero_point)


def test_weights_stay_where_they_are_told_to(monkeypatch):
    errors = iter([3.0, 2.0, 1.0] * 2)
    monkeypatch.setattr(_ranges, "image_error", lambda work: next(errors))
    for weights in (True, False):
        settings = RangeSettings(num_updates=4, judge_every=2, weights=weights)
        found = learn_ranges(settings)(work(), KEY)
        moved = [
            bool((found.calib.weights[p].qparams.scale != work().calib.weights[p].qparams.scale).any())
            for p in work().calib.weights
        ]
        assert moved == [weights] * len(moved)
        assert (found.acts.scale != work().acts.scale).any()


def test_zero_points_stay_codes():
    wild = starting_from(work())._replace(zero_point=jnp.array([[-99.4, 3.6], [99.0, -2.4]]))
    np.testing.assert_array_equal(with_ranges(work(), wild).acts.zero_point, [[-8, 4], [7, -2]])


@pytest.mark.filterwarnings("ignore:only:jaxdq.InputWarning")  # on purpose
def test_without_quantized_activations_weights_learn_alone():
    weights_only = work(lambda sites: [Rule(".*", Scheme(4, channel_axis=-1))])
    found = learn_ranges(SHORT)(weights_only, KEY)
    assert found.acts.scale.shape == (GROUPS, 0)


def test_codes_that_were_decided_stay(monkeypatch):
    errors = iter([3.0, 2.0, 1.0])
    monkeypatch.setattr(_ranges, "image_error", lambda work: next(errors))
    path = next(iter(work().calib.weights))
    codes = jax.jit(quantize)(work().denoiser.params, work().calib).params[path]["kernel"]
    decided = work().deciding(weights={**work().calib.weights, path: codes})
    found = learn_ranges(SHORT)(decided, KEY).calib.weights
    assert found[path] is codes and all(isinstance(grid, Grid) for other, grid in found.items() if other != path)


def test_a_rate_that_breaks_the_ranges_is_named():
    with pytest.raises(InputError, match=r"^the loss became NaN or infinite in update .* of 'learn ranges'"):
        learn_ranges(RangeSettings(num_updates=4, learning_rate=1e4))(work(), KEY)


def test_the_site_and_the_step_where_it_broke_are_named():
    scale = jnp.array([[1.0, 1.0], [1.0, jnp.nan]])  # the second group's grid of "two"; groups are steps 0-2 and 3-4
    broken = work().deciding(acts=dataclasses.replace(work().acts, scale=scale))
    with pytest.raises(InputError, match=rf"first at 'two', step 3, t = {work().data.t[3]}\)"):
        learn_ranges(SHORT)(broken, KEY)
