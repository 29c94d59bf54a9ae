"""Pruning of one layer, held against brute force and against least squares in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdq import InputError
from jaxdq.calibration.tools import pruning
from jaxdq.calibration.tools.compression import layer_error
from jaxdq.calibration.tools.compression import pruned_by_error as prune_by_error
from jaxdq.calibration.tools.compression import rounded_by_error as round_by_error
from jaxdq.calibration.tools.pruning import Sparsity
from jaxdq.grid import QParams, Scheme, fake_quantize, quantize

exact_obs = jax.jit(pruning.exact_obs, static_argnames=("sparsity", "outputs_at_a_time"))
one_shot = jax.jit(pruning.one_shot, static_argnames="sparsity")
least_squares = jax.jit(pruning.least_squares, static_argnames="iterations")
HALF, TWO_OF_FOUR = Sparsity(0.5), Sparsity.of("2:4")
PATTERNS = pytest.mark.parametrize("sparsity", [HALF, TWO_OF_FOUR, Sparsity.of("1:3"), Sparsity(0.9)], ids=str)


def problem(num_inputs, num_outputs, seed=0):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((8 * num_inputs, num_inputs)) @ rng.standard_normal((num_inputs, num_inputs))
    return np.float32(rng.standard_normal((num_inputs, num_outputs))), np.float32(rows.T @ rows / len(rows))


def loss_of(w, hessian, kept):
    """(the least loss in float64 with these weights alone, the weights)."""
    w, hessian, free = np.float64(w), np.float64(hessian), np.flatnonzero(kept)
    best = np.zeros(len(w))
    best[free] = np.linalg.solve(hessian[np.ix_(free, free)], (hessian @ w)[free])
    return (w - best) @ hessian @ (w - best), best


def exact_obs_by_hand(w, hessian, allowed):
    """The order in which greedy removal goes through one output, and what each costs: each loss by least squares."""
    kept, order, costs, before = np.ones(len(w), bool), [], [], 0.0
    while candidates := [p for p in np.flatnonzero(kept) if allowed(kept, p)]:
        losses = {p: loss_of(w, hessian, kept & (np.arange(len(w)) != p))[0] for p in candidates}
        p = min(losses, key=lambda p: losses[p])
        order.append(p)
        costs.append(losses[p] - before)
        before, kept[p] = losses[p], False
    return order, costs


def test_oracle_greedy_removal_in_one_pattern_is_least_squares_one_by_one():
    w, hessian = problem(8, 5)
    for group, quota in ((4, 2), (3, 2)):
        kept = exact_obs(w, hessian, Sparsity(quota / group, group))
        for n in range(5):
            whole = len(w) // group * group
            order, _ = exact_obs_by_hand(
                w[:, n],
                hessian,
                lambda kept, p, g=group, q=quota, whole=whole: (
                    p < whole and (~kept[p // g * g : p // g * g + g]).sum() < q
                ),
            )
            np.testing.assert_array_equal(np.flatnonzero(~np.asarray(kept[:, n])), sorted(order))


def test_oracle_a_share_is_taken_where_it_costs_least_in_all_outputs():
    w, hessian = problem(6, 4)
    w[:, 0] *= 0.1  # whose weights cost least
    traces = [exact_obs_by_hand(w[:, n], hessian, lambda kept, p: True) for n in range(4)]
    highest = np.array([np.maximum.accumulate(costs) for _, costs in traces])
    threshold = np.sort(highest.ravel())[12]
    kept = np.asarray(exact_obs(w, hessian, HALF))
    assert (~kept).sum() == 12 and (~kept[:, 0]).sum() >= 4
    for n, (order, _) in enumerate(traces):
        np.testing.assert_array_equal(np.flatnonzero(~kept[:, n]), sorted(order[: (highest[n] < threshold).sum()]))


@pytest.mark.parametrize("seed", range(4))
def test_brute_force_of_six_inputs_is_no_worse_and_magnitudes_are_no_better_on_average(seed):
    w, hessian = problem(6, 8, seed)
    kept = np.asarray(exact_obs(w, hessian, Sparsity.of("3:6")))
    greedy = [loss_of(w[:, n], hessian, kept[:, n])[0] for n in range(8)]
    choices = [np.isin(np.arange(6), free) for free in itertools.combinations(range(6), 3)]
    best = [min(loss_of(w[:, n], hessian, choice)[0] for choice in choices) for n in range(8)]
    largest = np.argsort(np.argsort(np.abs(w), axis=0), axis=0) >= 3
    by_size = [loss_of(w[:, n], hessian, largest[:, n])[0] for n in range(8)]
    assert all(greedy[n] >= best[n] * (1 - 1e-4) for n in range(8)) and np.mean(greedy) < np.mean(by_size)


@PATTERNS
def test_weights_that_stay_are_the_closed_form(sparsity):
    w, hessian = problem(12, 6)
    kept = exact_obs(w, hessian, sparsity, outputs_at_a_time=4)
    found = np.asarray(least_squares(w, hessian, kept))
    for n in range(6):
        np.testing.assert_allclose(found[:, n], loss_of(w[:, n], hessian, kept[:, n])[1], atol=2e-3)
    assert (found[~np.asarray(kept)] == 0).all()


@pytest.mark.parametrize("choose", [exact_obs, one_shot])
def test_masks_have_the_pattern(choose):
    w, hessian = problem(14, 10)
    for kept_of, group in ((2, 4), (4, 8), (1, 4)):
        kept = np.asarray(choose(w, hessian, Sparsity.of(f"{kept_of}:{group}")))
        whole = 14 // group * group
        assert (kept[:whole].reshape(-1, group, 10).sum(1) == kept_of).all() and kept[whole:].all()
    assert np.asarray(choose(w, hessian, Sparsity.of("8:16"))).all()
    for share in (0.25, 0.5, 0.9):
        assert (~np.asarray(choose(w, hessian, Sparsity(share)))).sum() == round(share * 140)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("greedy", [True, False], ids=["obq", "gptq"])
@PATTERNS
def test_joint_rounding_keeps_the_zeros_and_beats_masking_what_was_rounded(greedy, sparsity, symmetric):
    scheme = Scheme(4, symmetric=symmetric, channel_axis=-1)
    w, hessian = problem(24, 8)
    scale = jnp.float32(np.abs(w).max(0) / 7)
    qparams = QParams(scale, None if symmetric else jnp.full(8, 1, jnp.int32))
    pruned = prune_by_error(w, hessian, sparsity, greedy=greedy)
    made, (before, after) = round_by_error(w, hessian, qparams, scheme, greedy=greedy, pruned=pruned)
    kept = np.asarray(pruned.kept)
    assert (np.asarray(pruned.w)[~kept] == 0).all()
    assert (np.asarray(made)[~kept] == 0).all()
    np.testing.assert_allclose(fake_quantize(made, qparams, scheme), made, atol=1e-6)  # on the grid
    np.testing.assert_array_equal(quantize(made, qparams, scheme).qvalue[~kept], 0 if symmetric else 1)
    nearest = layer_error(w - fake_quantize(pruned.w, qparams, scheme), hessian)
    np.testing.assert_allclose(before, nearest, rtol=1e-3)
    assert (after <= before).all()
    assert after.sum() < before.sum() or sparsity.share > 0.8  # two weights an output leave nothing to make up with
    masked = layer_error(w - np.where(kept, fake_quantize(w, qparams, scheme), 0), hessian)
    assert after.sum() < (0.7 if sparsity.share < 0.8 else 0.95) * masked.sum()


@pytest.mark.parametrize(
    ("given", "expected"),
    [("2:4", (0.5, 4)), ("4:8", (0.5, 8)), ("1:4", (0.75, 4)), (0.5, (0.5, 0)), ("0.3", (0.3, 0)), (HALF, HALF)],
)
def test_patterns_in_words(given, expected):
    assert tuple(Sparsity.of(given)) == tuple(expected)


@pytest.mark.parametrize(
    "given", ["4:2", "0:4", "4:4", "half", "", 0, 1, 1.0, -0.5, True, float("nan"), "2:4:8", "nan", None, [2, 4]]
)
def test_refuses_what_is_no_pattern(given):
    with pytest.raises(InputError, match=r"sparsity is .*; give the share of weights that become 0"):
        Sparsity.of(given)
