import dataclasses
import json

import flax.linen as nn
import jax
import numpy as np
import pytest
from toys import SHAPE, Tiny, given, toy_denoiser

from jaxdq import InputError, InputWarning, Rule, Scheme, calibrate, ddim, evaluate, guided, quantize, recipes
from jaxdq.calibration import (
    Recipe,
    _calibrate,
    fit_weights,
    learn_ranges,
    observe,
    plan_for,
    run_recipe,
    share_uniformly,
)
from jaxdq.grid import Grid, QParams
from jaxdq.observers import minmax, minmax_weights, mse

KEY = jax.random.key(0)
W8, A8 = Scheme(8, channel_axis=-1), Scheme(8, symmetric=False)


RULES = (Rule("time", W8), Rule(".*", W8, A8))


def recipe(*calibrators, rules=RULES):
    return Recipe("toy", lambda sites: rules, calibrators)


WEIGHTS = fit_weights(minmax_weights())
ONE_SCALE = recipe(WEIGHTS, observe(minmax()), share_uniformly(1))


def run(denoiser, recipe, key=KEY):
    return calibrate(denoiser, recipe, sampler=ddim(2), key=key, num_images=2)


@pytest.fixture(scope="module")
def denoiser():
    return toy_denoiser(Tiny())


@pytest.fixture(scope="module")
def calib(denoiser):
    return run(denoiser, ONE_SCALE)


def test_the_same_key_learns_the_same_and_another_does_not(denoiser, calib):
    again, other = run(denoiser, ONE_SCALE), run(denoiser, ONE_SCALE, jax.random.key(1))
    assert jax.tree.structure(again) == jax.tree.structure(calib)
    jax.tree.map(np.testing.assert_array_equal, again, calib)
    assert abs(other.acts.scale - calib.acts.scale).max() > 0
    # Weights are data-free.
    jax.tree.map(np.testing.assert_array_equal, other.weights, calib.weights)


def test_golden_weight_grids(denoiser, calib):
    assert set(calib.weights) == {"time", "conv_in", "conv", "dense", "conv_out"}
    kernel = np.asarray(denoiser.params["conv"]["kernel"])
    scale, zero_point = calib.weights["conv"].qparams
    np.testing.assert_allclose(scale, abs(kernel).max((0, 1, 2), keepdims=True) / 127, rtol=1e-6)
    assert zero_point is None


def test_the_calibration_fits_the_denoiser(denoiser, calib):
    assert calib.acts.scale.shape == (1, 4) and calib.acts.group_of_t.shape == (denoiser.schedule.num_timesteps,)
    assert calib.plan == plan_for(denoiser, ONE_SCALE)
    assert np.isfinite(calib.acts.scale).all() and (np.asarray(calib.acts.scale) > 0).all()
    jax.eval_shape(quantize, denoiser.params, calib)


def test_calibrators_run_in_order_with_keys_of_their_own(denoiser):
    seen = []

    def look(work, key):
        seen.append((work.calib.acts is not None, jax.random.key_data(key).tolist()))
        return work

    spy = given("spy", run=look)
    run(denoiser, recipe(spy, WEIGHTS, observe(minmax()), share_uniformly(2), spy))
    assert [has_calib for has_calib, _ in seen] == [False, True]
    assert seen[0][1] != seen[1][1]


ORDERS = {
    "no calibrators": ((), "ends without grids of weights; give it fit_weights"),
    "no activations": ((WEIGHTS, observe(minmax())), "ends without grids of activations; give it a calibrator that"),
    "no weights": ((observe(minmax()), share_uniformly(1)), "ends without grids of weights"),
    "too early": ((WEIGHTS, share_uniformly(1), observe(minmax())), r"'share_uniformly' needs ranges .* put observe"),
    "never": ((WEIGHTS, learn_ranges()), "'learn_ranges' needs grids of activations and nothing before it gives them"),
    "of one's own": ((WEIGHTS, given("mine")._replace(needs=(int,))), "needs facts of type int .* that gives int"),
    "no calibrator": ((WEIGHTS, lambda work, key: work), r"holds <function .*, which is no calibrator; decorate"),
}


@pytest.mark.parametrize("name", ORDERS)
def test_an_order_that_can_not_work_is_refused_before_any_work(name, denoiser, monkeypatch):
    calibrators, said = ORDERS[name]
    monkeypatch.setattr(_calibrate, "find_sites", None)
    with pytest.raises(InputError, match=f"recipe 'toy' .*{said}"):
        run(denoiser, recipe(*calibrators))


def test_two_calibrators_of_one_name_can_not_share_a_folder(denoiser, tmp_path):
    twice = recipe(WEIGHTS, observe(minmax()), observe(minmax()), share_uniformly(1))
    with pytest.raises(
        InputError, match=r"holds two calibrators of the name 'observe'.* give one of them another name"
    ):
        calibrate(denoiser, twice, sampler=ddim(2), key=KEY, num_images=2, checkpoint_dir=tmp_path / "state")
    assert not (tmp_path / "state").exists()


def test_weights_fitted_after_the_groups_are_those_that_run(denoiser, calib):
    """There is one truth: what a later calibrator decides is what `calibrate` returns."""

    def widen(work, key):
        wider = {
            path: Grid(QParams(100 * grid.qparams.scale), grid.scheme) for path, grid in work.calib.weights.items()
        }
        return work.deciding(weights=wider)

    found = run(denoiser, recipe(*ONE_SCALE.calibrators, given("widen", run=widen)))
    for path, grid in calib.weights.items():
        np.testing.assert_array_equal(found.weights[path].qparams.scale, 100 * grid.qparams.scale)


def test_settings_are_those_of_the_calibrators(denoiser):
    settings = recipe(WEIGHTS, observe(mse(2.0)), share_uniformly(2)).settings
    assert [one["name"] for one in settings["calibrators"]] == ["fit_weights", "observe", "share_uniformly"]
    assert settings["calibrators"][1]["observer"] == "mse(num_candidates=80, p=2.0)"
    assert settings["calibrators"][2]["num_groups"] == 2
    assert json.loads(json.dumps(recipes.adpdm(4, 8).settings)) == recipes.adpdm(4, 8).settings


def test_more_groups_than_steps_are_refused_before_any_work(denoiser, monkeypatch):
    monkeypatch.setattr(_calibrate, "trajectories", None)
    with pytest.raises(InputError, match="3 groups were asked for and the sampler has 2 steps"):
        run(denoiser, recipe(WEIGHTS, observe(minmax()), share_uniformly(3)))


def test_rules_that_do_not_fit_are_refused_before_any_work(denoiser):
    with pytest.raises(InputError, match="no rule matches 'time'"):
        run(denoiser, recipe(*ONE_SCALE.calibrators, rules=[Rule("conv.*", W8, A8), Rule("dense", W8, A8)]))


def test_a_network_without_sites_is_refused():
    class Nothing(nn.Module):
        @nn.compact
        def __call__(self, x, t):
            return x * self.param("gain", nn.initializers.ones, ())

    with pytest.raises(InputError, match="Nothing calls no Dense, DenseGeneral or Conv"):
        plan_for(toy_denoiser(Nothing()), ONE_SCALE)


class PerRow(Tiny):
    """A network that refuses one time for all rows without a word, after a site was called."""

    @nn.compact
    def __call__(self, x, t, label=None):
        nn.Dense(1, name="look")(x)
        assert t.shape == x.shape[:1]
        return Tiny.__call__(self, x, t, label)


@pytest.mark.slow
def test_a_network_that_takes_one_time_per_row_is_called_so_everywhere():
    labels = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)
    plain = toy_denoiser(Tiny(), (labels,))
    params = {**plain.params, "look": {"kernel": np.ones((SHAPE[-1], 1), np.float32), "bias": np.zeros(1, np.float32)}}
    per_row = dataclasses.replace(plain, module=PerRow(), params=params)
    one, other = (guided(model, (labels[:1],), guidance_scale=2.0) for model in (plain, per_row))
    calibs = [run(model, ONE_SCALE) for model in (one, other)]
    # The first layer's codes serve `look` too.
    np.testing.assert_allclose(calibs[1].acts.scale, calibs[0].acts.scale, rtol=1e-5)
    qparams = jax.jit(quantize)(other.params, calibs[1])
    found = evaluate(other, qparams, sampler=ddim(2), key=KEY, num_images=2)
    assert found.noise_sqnr_db.min() > 20


def test_an_error_without_words_is_shown_by_its_line():
    class Wants(nn.Module):
        @nn.compact
        def __call__(self, x, t):
            if x.ndim != 3:
                raise AssertionError  # pytest gives those of `assert` a message
            return nn.Dense(2)(x)

    denoiser = dataclasses.replace(toy_denoiser(Tiny()), module=Wants())
    with pytest.raises(InputError, match=r"Wants can't be called .*\(AssertionError at `raise AssertionError.*`\)"):
        plan_for(denoiser, ONE_SCALE)


@pytest.mark.parametrize("boxed", [nn.with_partitioning, nn.with_logical_partitioning])
def test_params_boxed_for_sharding_are_those_without(denoiser, calib, boxed):
    def box(leaf):
        return boxed(lambda: leaf, ("a",) * leaf.ndim)()

    in_boxes = jax.tree.map(box, denoiser.params)
    again = run(dataclasses.replace(denoiser, params=in_boxes), ONE_SCALE)
    jax.tree.map(np.testing.assert_array_equal, again, calib)
    made, expected = (jax.jit(quantize)(params, calib) for params in (in_boxes, denoiser.params))
    assert jax.tree.structure(made) == jax.tree.structure(expected)


def test_a_float_model_that_returns_nan_is_named_with_its_time():
    class Breaks(nn.Module):
        @nn.compact
        def __call__(self, x, t):
            return nn.Dense(SHAPE[-1], name="dense")(x) / (t != 0)

    with pytest.raises(InputError, match="returns NaN or infinity at t = 0;"):
        run(toy_denoiser(Breaks()), recipe(*ONE_SCALE.calibrators, rules=[Rule(".*", W8, A8)]))


def test_the_plan_needs_no_arrays(denoiser):
    abstract = dataclasses.replace(denoiser, params=jax.eval_shape(lambda: denoiser.params))
    assert plan_for(abstract, ONE_SCALE).sites == plan_for(denoiser, ONE_SCALE).sites


class Wrapped:
    """As a bridge from another library looks: `apply`, and no layer of flax.linen within."""

    def apply(self, variables, x, t):
        return x @ variables["params"]["kernel"]


def test_a_network_of_which_nothing_can_be_quantized_is_refused(denoiser):
    params = {"kernel": np.ones((SHAPE[-1], SHAPE[-1]), np.float32)}
    bridged = dataclasses.replace(denoiser, module=Wrapped(), params=params)
    with pytest.raises(InputError, match=r"nothing of 'toy' would be quantized: 100\.0% in \(other contractions\)"):
        run(bridged, recipe(*ONE_SCALE.calibrators, rules=[Rule(".*", W8, A8)]))
    with pytest.raises(InputError, match=r"nothing of 'toy' would be quantized: .*\(left in float by rule\)"):
        run(denoiser, recipe(*ONE_SCALE.calibrators, rules=[Rule(".*")]))


def test_less_than_half_on_integers_is_a_warning_and_in_the_log(denoiser):
    little = recipe(WEIGHTS, observe(minmax()), share_uniformly(1), rules=[Rule("dense", W8, A8), Rule(".*", W8)])
    with pytest.warns(
        InputWarning, match=r"only .*% of the arithmetic of 'toy' runs on integers; in float: .*'time' and 3 more"
    ):
        work = run_recipe(denoiser, little, sampler=ddim(2), key=KEY, num_images=2)
    ((name, log),) = work.log
    assert name == "coverage" and log["warning"].startswith("only")


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"rules": [Rule(".*", None, None, reason="none")]}, r"the rules of recipe 'toy' are a list; pass a function"),
        ({"calibrators": [fit_weights(minmax_weights())]}, r"the calibrators of recipe 'toy' are a list; pass a tuple"),
    ],
    ids=["rules", "calibrators"],
)
def test_a_recipe_of_the_wrong_parts_is_refused_when_it_is_made(fields, sentence):
    with pytest.raises(InputError, match=sentence):
        Recipe(**{"name": "toy", "rules": lambda sites: [], "calibrators": (), **fields})
