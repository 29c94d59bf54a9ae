import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import NUM_TIMESTEPS, SHAPE, Line, ToyUNet, toy_denoiser, toy_params, toy_plan

from jaxdq import InputError, Rule, Scheme, apply, ddim, quantize
from jaxdq.calibration import (
    Evidence,
    Recipe,
    SearchSettings,
    Sensitivity,
    _groups,
    fit_weights,
    measure_sensitivity,
    observe,
    run_recipe,
    search_groups,
    share_by_price,
    share_optimally,
    share_uniformly,
)
from jaxdq.calibration._groups import price
from jaxdq.calibration.tools.evidence import group_of_step
from jaxdq.calibration.tools.rows import image_error
from jaxdq.grid import Grid, qparams_from_range
from jaxdq.linen import Acts, Calibration, kernel_at
from jaxdq.observers import _histogram as histogram
from jaxdq.observers import minmax_weights, mse
from jaxdq.recipes import default_rules
from jaxdq.sampling import sample

KEY = jax.random.key(0)
S, A, STEPS = 5, 2, ddim(5)
SHORT = SearchSettings(num_updates=3)
CALIBRATORS = {"price": share_by_price, "optimally": share_optimally, "search": lambda g: search_groups(g, SHORT)}


RULES = default_rules(8, 4)
# Histograms, as the price of a grid needs them, and grids that compile in no time.
RANGES = mse()._replace(
    qparams=lambda state, scheme: qparams_from_range(*histogram.full_range(state), scheme),
)


@functools.cache
def work(rules=RULES):
    """Ranges by step of a small network, and a calibration that calibrators under test replace."""
    calibrators = (fit_weights(minmax_weights()), observe(RANGES), measure_sensitivity(), share_uniformly(1))
    recipe = Recipe("toy", rules, calibrators)
    return run_recipe(toy_denoiser(Line()), recipe, sampler=STEPS, key=KEY, num_images=4)


def without(kind):
    return work()._replace(facts={known: fact for known, fact in work().facts.items() if known is not kind})


@functools.cache
def priced():
    return price(work())


@pytest.fixture
def table(monkeypatch):
    """The proxy, made once: calibrators under test look it up."""
    monkeypatch.setattr(_groups, "price", lambda work: priced())
    return priced()


def logits_of(groups, num_groups):
    return np.moveaxis(np.eye(num_groups)[np.asarray(groups)], -1, 1)


def test_the_price_covers_every_step_activation_and_candidate():
    proxy = priced()
    assert proxy.table.shape[:2] == (S, A)
    assert np.isfinite(proxy.table).all() and (proxy.table >= 0).all()
    # The grid of a step's own serves it better than a candidate at random.
    own = proxy.table[np.arange(S), :, np.arange(S)]
    assert (own <= np.median(proxy.table, axis=-1)).all()


@pytest.mark.parametrize("num_groups", [1, 2, S])
def test_share_by_price_gives_equal_spans_the_proxy_s_grids(num_groups, table):
    found = share_by_price(num_groups)(work(), KEY)
    spans = np.arange(S) * num_groups // S
    scale, zero_point = table.grids(spans, num_groups)
    np.testing.assert_array_equal(group_of_step(found), spans)
    np.testing.assert_array_equal(found.acts.scale, scale)
    np.testing.assert_array_equal(found.acts.zero_point, zero_point)
    np.testing.assert_array_equal(found.acts.group_of_t[work().data.t], spans)
    assert found.calib.plan == work().plan and found.acts.group_of_t.shape == (NUM_TIMESTEPS,)


def test_share_optimally_never_costs_more_than_equal_spans(table):
    for num_groups in range(1, S + 1):
        found = group_of_step(share_optimally(num_groups)(work(), KEY))
        assert (np.diff(found) >= 0).all() and len(np.unique(found)) == num_groups
        assert table.cost(found) <= table.cost(np.arange(S) * num_groups // S)


@pytest.mark.parametrize("name", CALIBRATORS)
@pytest.mark.parametrize("num_groups", [0, S + 1])
def test_groups_that_steps_cannot_fill_are_refused(name, num_groups):
    with pytest.raises(InputError, match=f"{num_groups} groups were asked for and the sampler has {S} steps"):
        CALIBRATORS[name](num_groups)(work(), KEY)


@pytest.mark.parametrize("name", CALIBRATORS)
def test_what_it_needs_comes_first(name):
    with pytest.raises(InputError, match=r"put observe\(mse\(\)\) before"):
        CALIBRATORS[name](2)(without(Evidence), KEY)
    with pytest.raises(InputError, match=r"put measure_sensitivity\(\) before"):
        CALIBRATORS[name](2)(without(Sensitivity), KEY)


@pytest.mark.parametrize("name", CALIBRATORS)
def test_one_group_is_the_cheapest_grid_for_all_steps(name, table):
    found = CALIBRATORS[name](1)(work(), KEY)
    np.testing.assert_array_equal(found.acts.scale, table.grids(np.zeros(S, int), 1)[0])
    np.testing.assert_array_equal(group_of_step(found), np.zeros(S, int))


@pytest.mark.parametrize("name", CALIBRATORS)
@pytest.mark.filterwarnings("ignore:only:jaxdq.InputWarning")  # on purpose
def test_without_quantized_activations_groups_are_empty(name):
    weights_only = work(weights_only_rules)
    found = CALIBRATORS[name](2)(weights_only, KEY)
    assert found.acts.scale.shape == (2, 0)
    jax.eval_shape(quantize, found.denoiser.params, found.calib)


def weights_only_rules(sites):
    return [Rule(".*", Scheme(8, channel_axis=-1))]


# --- The search ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("errors", "kept"), [((2.0, 1.0), "search"), ((1.0, 2.0), "equal spans"), ((1.0, 1.0), None)])
def test_the_better_of_both_is_kept(errors, kept, table, monkeypatch):
    groups, measured = np.array([0, 1, 1, 1, 1]), []
    monkeypatch.setattr(_groups, "_search", lambda *args: (logits_of(groups, 2), []))

    def fake_error(work):
        measured.append(group_of_step(work).tolist())
        return errors[0] if measured[-1] == [0, 0, 0, 1, 1] else errors[1]

    monkeypatch.setattr(_groups, "image_error", fake_error)
    found = search_groups(2)(work(), KEY)
    assert sorted(measured[:2]) == [[0, 0, 0, 1, 1], [0, 1, 1, 1, 1]]  # moved boundaries come after
    expected = [0, 0, 0, 1, 1] if kept == "equal spans" else groups
    np.testing.assert_array_equal(group_of_step(found), expected)
    np.testing.assert_array_equal(found.acts.scale, table.grids(np.asarray(expected), 2)[0])
    # What was measured is reported, whichever way it went.
    name, log = found.log[-1]
    assert name == "search_groups" and kept in (None, log["kept"])


@pytest.mark.parametrize("moves", [0, 12])
def test_boundaries_move_where_images_come_closer(moves, table, monkeypatch):
    monkeypatch.setattr(_groups, "_search", lambda *args: (logits_of([0, 1, 1, 1, 1], 2), []))
    best = np.array([0, 0, 0, 0, 1])
    monkeypatch.setattr(_groups, "image_error", lambda work: float(np.sum(group_of_step(work) != best)))
    found = search_groups(2, SearchSettings(moves=moves))(work(), KEY)
    expected, kept = (best, "moved") if moves else ([0, 0, 0, 1, 1], "equal spans")
    np.testing.assert_array_equal(group_of_step(found), expected)
    np.testing.assert_array_equal(found.acts.scale, table.grids(np.asarray(expected), 2)[0])
    _, log = found.log[-1]
    assert log["kept"] == kept and log["tried"][kept] == float(not moves)


def test_a_group_that_no_step_chose_is_used_all_the_same(table, monkeypatch):
    monkeypatch.setattr(_groups, "_search", lambda *args: (logits_of([0, 0, 2, 2, 2], 3), []))
    monkeypatch.setattr(_groups, "image_error", lambda work: float(group_of_step(work).tolist() == [0, 0, 1, 1, 2]))
    found = search_groups(3)(work(), KEY)
    assert found.log[-1][1]["kept"] == "search" and set(group_of_step(found)) == {0, 1, 2}


def test_nan_images_of_the_search_are_not_kept(table, monkeypatch):
    monkeypatch.setattr(_groups, "_search", lambda *args: (logits_of([0, 1, 1, 1, 1], 2), []))
    monkeypatch.setattr(_groups, "image_error", lambda work: 1.0 if group_of_step(work)[1] == 0 else np.nan)
    np.testing.assert_array_equal(group_of_step(search_groups(2)(work(), KEY)), [0, 0, 0, 1, 1])


def test_image_error_is_that_of_integer_images_from_the_same_noise():
    calib = share_uniformly(2)(work(), KEY)
    qparams = jax.jit(quantize)(calib.denoiser.params, calib.calib)
    judge = calib.problem.judge
    images = sample(calib.denoiser, qparams, sampler=STEPS, num_images=4, key=judge.key)
    exact = sample(calib.denoiser, calib.denoiser.params, sampler=STEPS, num_images=4, key=judge.key)
    np.testing.assert_allclose(judge.images, exact, atol=1e-6)
    assert abs(judge.images - calib.data.images).max() > 0.1, "nothing is judged by what it learned from"
    by_hand = np.prod(np.mean((np.float64(images) - judge.images) ** 2, axis=(1, 2, 3))) ** (1 / 4)
    assert 0 < by_hand and image_error(calib) == pytest.approx(by_hand, rel=1e-5)


# --- The program -----------------------------------------------------------------------------------------------------


def test_eight_groups_are_the_program_of_one_and_a_switch():
    x, t = jnp.zeros((2, *SHAPE)), jnp.zeros((), jnp.int32)
    params = toy_params(ToyUNet(), x, t)
    rules = [Rule(".*", kind="product"), Rule(".*", Scheme(8, channel_axis=-1), Scheme(8))]
    plan = toy_plan(ToyUNet(), params, rules, x, t)
    kernels = {site.path: (kernel_at(params, site.path), site.weight) for site in plan.sites if site.weight is not None}
    weights = jax.eval_shape(lambda: {p: Grid(minmax_weights()(*kernel), kernel[1]) for p, kernel in kernels.items()})
    programs = {}
    for num_groups in (1, 8):
        tables = (jax.ShapeDtypeStruct((num_groups, len(plan.columns)), dtype) for dtype in (jnp.float32, jnp.int32))
        acts = Acts(*tables, jax.ShapeDtypeStruct((NUM_TIMESTEPS,), jnp.int32), plan.columns)
        calib = Calibration(weights, acts, plan)
        run = jax.jit(functools.partial(apply, ToyUNet()))
        programs[num_groups] = run.lower(jax.eval_shape(quantize, params, calib), x, t).as_text()
    for op in ("stablehlo.dot_general", "stablehlo.convolution"):
        assert programs[8].count(op) == programs[1].count(op) > 0
    # The choice of each convolution's form, of one branch, is in both; XLA takes it away.
    assert programs[8].count("stablehlo.case") == programs[1].count("stablehlo.case") + 1
