import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pair import STATES, by_hand, work
from toys import toy_denoiser

from jaxdq import InputError, ddim
from jaxdq.calibration import (
    Evidence,
    Recipe,
    Selection,
    _timesteps,
    fit_weights,
    measure_sensitivity,
    normal_timesteps,
    observe,
    random_timesteps,
    run_recipe,
    search_groups,
    select_timesteps,
    share_optimally,
    share_uniformly,
    structural_risk,
    uniform_timesteps,
    visits_penalised,
)
from jaxdq.calibration.tools.propagation import sensitivity
from jaxdq.observers import minmax, minmax_weights
from jaxdq.recipes import default_rules

KEY = jax.random.key(0)
WEIGHTS = fit_weights(minmax_weights())
S, N = 10, 6
RISK = np.r_[np.ones(8), 3.0, 3.0]  # the last two steps are three times as risky
POLICIES = [uniform_timesteps(), random_timesteps(), normal_timesteps(), structural_risk(), visits_penalised()]


def plenty(num_steps=S, num_images=N):
    states = np.zeros((num_steps, num_images, 1, 2, 2), np.float32)
    whole = work()
    data = whole.data._replace(states=states, outputs=states, t=np.arange(num_steps)[::-1].astype(np.int32))
    return whole._replace(problem=whole.problem._replace(data=data))


@pytest.fixture
def pilot(monkeypatch):
    """Risk and features as told: steps 0..7 look alike, 8 and 9 each like nothing else."""
    features = np.zeros((S, 2))
    features[8], features[9] = (10, 0), (0, 10)
    monkeypatch.setattr(_timesteps, "_pilot", lambda work, num_images, key, priced: (RISK, features))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("budget", [1, 7, 23, S * N])
def test_a_policy_takes_its_budget_and_no_state_twice(pilot, policy, budget):
    counts = select_timesteps(policy, budget)(plenty(), KEY).fact(Selection).counts
    assert counts.shape == (S,) and counts.sum() == budget
    assert counts.min() >= 0 and counts.max() <= N


def test_uniform_timesteps_are_equally_spaced():
    np.testing.assert_array_equal(uniform_timesteps()(plenty(), 5, KEY), [1, 0] * 5)
    np.testing.assert_array_equal(uniform_timesteps()(plenty(), 20, KEY), [2] * 10)


def test_random_timesteps_follow_the_key():
    first, again, other = (random_timesteps()(plenty(), 20, jax.random.key(k)) for k in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_normal_timesteps_lie_about_their_mean_counted_from_the_image():
    counts = normal_timesteps(0.2, 0.05)(plenty(100, 50), 200, KEY)
    mean = np.average(99 - np.arange(100), weights=counts)
    assert abs(mean - 20) < 2


def test_structural_risk_without_its_penalty_takes_the_most_off_the_risk(pilot):
    # By hand, in thirds of the largest risk: the gains of a risky step are 3, 1, 1/2, ..., those of another 1, 1/3, ...
    np.testing.assert_array_equal(structural_risk(0.0)(plenty(), 2, KEY), [0] * 8 + [1, 1])
    np.testing.assert_array_equal(structural_risk(0.0)(plenty(), 12, KEY), [1] * 8 + [2, 2])
    np.testing.assert_array_equal(structural_risk(0.0)(plenty(), 14, KEY), [1] * 8 + [3, 3])


def test_structural_risk_goes_to_what_is_typical_under_a_heavy_penalty(pilot):
    # By hand: 10 states that match 8 alike and two apart are 8 of the first kind and one of each other.
    counts = structural_risk(1e6)(plenty(), 10, KEY)
    assert counts[:8].sum() == 8 and counts[8] == counts[9] == 1


def test_structural_risk_prefers_the_riskier_of_two_alike(monkeypatch):
    risk = np.r_[np.ones(9), 1.5]
    monkeypatch.setattr(_timesteps, "_pilot", lambda *args, priced: (risk, np.zeros((S, 1))))
    assert structural_risk()(plenty(), 1, KEY)[9] == 1


def test_visits_penalised_leaves_out_the_first_steps_until_the_others_are_used_up(pilot):
    counts = visits_penalised()(plenty(), 7 * N, KEY)
    np.testing.assert_array_equal(counts, [0] * 3 + [N] * 7)
    assert visits_penalised()(plenty(), 7 * N + 1, KEY)[:3].sum() == 1


@functools.cache
def wide_and_narrow():
    """Two steps; at the second, activations are eight times as large, and so is the step of a static grid."""
    return work(np.stack([STATES[0], 8 * STATES[0]]))


def test_the_pilot_finds_the_step_that_a_static_grid_serves_worst():
    risk, features = _timesteps._pilot(wide_and_narrow(), 2, KEY, priced=False)
    assert risk[0] > 4 * risk[1]
    np.testing.assert_allclose(np.ravel(features[1] - features[0])[:1], np.log(8), atol=0.3)


def test_a_priced_risk_counts_what_an_error_costs_the_image():
    given = wide_and_narrow()
    cost = sensitivity(given, KEY, num_images=2)
    risk, _ = _timesteps._pilot(given, 2, KEY, priced=True)
    np.testing.assert_allclose(risk, _timesteps._pilot(given.knowing(cost), 2, KEY, priced=True)[0])
    only_last = cost._replace(sites=np.array([[0.0], [1.0]]) * np.ones_like(cost.sites))
    first, last = _timesteps._pilot(given.knowing(only_last), 2, KEY, priced=True)[0]
    assert first == 0 < last


def test_observe_looks_at_the_chosen_states_only():
    counts, images = np.array([1, 2]), [[0], [1, 2]]  # images take turns
    low, high = observe(minmax())(work().knowing(Selection(counts)), KEY).fact(Evidence).states
    for step, t in enumerate((10, 0)):
        for column, (lowest, highest) in enumerate(by_hand(STATES[step, images[step]], t)):
            np.testing.assert_allclose([low[step, column], high[step, column]], [lowest, highest], rtol=1e-6)


def test_a_step_without_states_borrows_from_the_nearest_step():
    evidence = observe(minmax())(work().knowing(Selection(np.array([0, 3]))), KEY).fact(Evidence)
    for leaf in jax.tree.leaves(evidence.states):
        np.testing.assert_array_equal(leaf[0], leaf[1])
        assert jnp.isfinite(leaf).all()


@pytest.mark.parametrize("budget", [0, -1, S * N + 1, 5.5])
def test_impossible_budgets_are_refused(budget):
    with pytest.raises(InputError, match=f"budget of {budget} states.*60 were sampled"):
        select_timesteps(uniform_timesteps(), budget)(plenty(), KEY)


@pytest.mark.parametrize(
    "counts", [[0] * S, [1] * (S - 1), np.ones(S), [N + 1] + [0] * (S - 2) + [S - N - 1], [-1, 1] + [1] * (S - 2), None]
)
def test_what_a_policy_of_ones_own_returns_is_checked(counts):
    with pytest.raises(InputError, match=f"the policy chose .* must return {S} whole numbers.* 0 to {N} .* {S} in all"):
        select_timesteps(lambda work, budget, key: counts, S)(plenty(), KEY)


def test_a_policy_may_return_a_list():
    np.testing.assert_array_equal(
        select_timesteps(lambda *args: [1] * S, S)(plenty(), KEY).fact(Selection).counts, [1] * S
    )


def test_a_choice_after_observing_is_refused():
    calibrators = (observe(minmax()), select_timesteps(uniform_timesteps(), 2), share_uniformly(1))
    with pytest.raises(InputError, match=r"'select_timesteps' comes after ranges of .*; put it before observe"):
        run_recipe(toy_denoiser(), Recipe("late", default_rules(8, 8), calibrators), sampler=ddim(5), key=KEY)


@pytest.mark.parametrize(
    ("policy", "settings", "said"),
    [
        (structural_risk, {"pilot_images": 0}, "pilot_images is 0"),
        (structural_risk, {"redundancy": float("nan")}, "redundancy is nan"),
        (visits_penalised, {"pilot_images": 0}, "pilot_images is 0"),
        (visits_penalised, {"weight": float("inf")}, "weight is inf"),
        (normal_timesteps, {"mean": float("nan")}, "mean is nan"),
    ],
)
def test_impossible_settings_of_a_policy_are_refused(policy, settings, said):
    with pytest.raises(InputError, match=said):
        policy(**settings)


def test_a_budget_at_fewer_steps_than_groups_is_observed_at_the_nearest():
    def at_the_ends(work, budget, key):
        return np.array([1, 0, 0, 0, 3])

    chosen = (WEIGHTS, select_timesteps(at_the_ends, 4), observe(minmax()), share_uniformly(4))
    recipe = Recipe("few", default_rules(8, 8), chosen)
    work = run_recipe(toy_denoiser(), recipe, sampler=ddim(5), key=KEY, num_images=3)
    first, second, third, last = np.asarray(work.acts.scale)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(third, last)
    assert (first != last).any()


@pytest.mark.parametrize("share", [share_uniformly, share_optimally, search_groups])
def test_a_budget_smaller_than_the_groups_is_refused(share):
    selected = (WEIGHTS, select_timesteps(uniform_timesteps(), 3), observe(minmax()), measure_sensitivity(1))
    recipe = Recipe("few", default_rules(8, 8), (*selected, share(4)))
    with pytest.raises(InputError, match="budget of 3 states was given and 4 groups"):
        run_recipe(toy_denoiser(), recipe, sampler=ddim(5), key=KEY, num_images=2)
