"""Greedy and ordered rounding, held against brute force and against the equations in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdq.calibration.tools import compression
from jaxdq.calibration.tools.compression import damped, layer_error
from jaxdq.calibration.tools.compression import rounded_by_error as round_by_error
from jaxdq.grid import QParams, Scheme, fake_quantize

gptq = jax.jit(compression.gptq, static_argnames=("scheme", "block"))
obq = jax.jit(compression.obq, static_argnames=("scheme", "outputs_at_a_time"))
FOUR = Scheme(4, channel_axis=-1)
TWO = Scheme(2, symmetric=False, channel_axis=-1)


def problem(num_inputs, num_outputs, seed=0, scheme=FOUR):
    """Correlated rows, weights and a clipped grid."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((8 * num_inputs, num_inputs)) @ rng.standard_normal((num_inputs, num_inputs))
    w = rng.standard_normal((num_inputs, num_outputs))
    low, high = scheme.bounds
    scale = 1.6 * np.abs(w).max(0) / (high - low)
    zero_point = None if scheme.symmetric else jnp.full(num_outputs, (low + high) // 2, jnp.int32)
    return np.float32(w), np.float32(rows.T @ rows), QParams(jnp.float32(scale), zero_point)


def grid_of(qparams, scheme):
    """f64[codes, N]: every value that each output's grid has."""
    low, high = scheme.bounds
    zero_point = 0 if qparams.zero_point is None else np.asarray(qparams.zero_point)
    return np.float64(qparams.scale) * (np.arange(low, high + 1)[:, None] - zero_point)


def nearest_in(grid, value):
    return grid[np.argmin(np.abs(grid - value))]


def obq_by_hand(w, hessian, grid, order=None):
    """Algorithm 3 of arXiv 2208.11580 in float64, one output; in a fixed order where one is given."""
    w, inverse, free, result = np.float64(w).copy(), np.linalg.inv(np.float64(hessian)), list(range(len(w))), {}
    step = np.diff(grid).max()
    for turn in range(len(w)):
        residual = {p: w[p] - nearest_in(grid, w[p]) for p in free}
        outliers = [p for p in free if abs(residual[p]) > 0.5001 * step]
        if order is not None:
            p = order[turn]
        elif outliers:
            p = max(outliers, key=lambda p: abs(residual[p]))
        else:
            p = min(free, key=lambda p: residual[p] ** 2 / inverse[p, p])
        result[p] = nearest_in(grid, w[p])
        w -= inverse[p] * residual[p] / inverse[p, p]
        inverse -= np.outer(inverse[p], inverse[p]) / inverse[p, p]
        free.remove(p)
    return np.array([result[p] for p in range(len(w))])


@pytest.mark.parametrize("scheme", [FOUR, TWO], ids=str)
def test_oracle_gptq_is_obq_in_the_order_of_the_diagonal(scheme):
    w, hessian, qparams = problem(24, 3, scheme=scheme)
    found, grid = gptq(w, hessian, qparams, scheme, block=7), grid_of(qparams, scheme)
    order = np.argsort(-np.diag(hessian), kind="stable")
    for n in range(3):
        np.testing.assert_allclose(found[:, n], obq_by_hand(w[:, n], hessian, grid[:, n], order), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scheme", [FOUR, TWO], ids=str)
def test_oracle_obq_is_its_algorithm(scheme):
    w, hessian, qparams = problem(12, 3, scheme=scheme)
    found, grid = obq(w, hessian, qparams, scheme, outputs_at_a_time=2), grid_of(qparams, scheme)
    for n in range(3):
        np.testing.assert_allclose(found[:, n], obq_by_hand(w[:, n], hessian, grid[:, n]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_brute_force_of_six_inputs_is_between_nothing_and_nearest(seed):
    w, hessian, qparams = problem(6, 1, seed, TWO)
    every = np.array(list(itertools.product(grid_of(qparams, TWO)[:, 0], repeat=6)))
    change = every - w[:, 0]
    least = np.min(np.sum(change @ np.float64(hessian) * change, axis=1))
    nearest = layer_error(w - fake_quantize(w, qparams, TWO), hessian)[0]
    for greedy in (False, True):
        rounded, (before, after) = round_by_error(w, hessian, qparams, TWO, greedy=greedy, damping=0.0)
        np.testing.assert_allclose(after, layer_error(w - rounded, hessian), rtol=1e-4)
        np.testing.assert_allclose(before, nearest, rtol=1e-5)
        assert least * (1 - 1e-4) <= after[0] <= before[0]


def test_both_beat_nearest_by_far_where_inputs_are_correlated():
    w, hessian, qparams = problem(48, 16)
    ordered, greedy = (
        round_by_error(w, hessian, qparams, FOUR, greedy=greedy, damping=1e-4)[1].sum(1) for greedy in (False, True)
    )
    assert ordered[1] < 0.7 * ordered[0] and greedy[1] < 0.4 * greedy[0]


def test_every_entry_is_on_its_grid_and_blocks_make_no_difference():
    w, hessian, qparams = problem(30, 5, scheme=TWO)
    whole = gptq(w, hessian, qparams, TWO, block=32)
    for rounded in (whole, obq(w, hessian, qparams, TWO)):
        np.testing.assert_array_equal(rounded, fake_quantize(rounded, qparams, TWO))
    for block in (1, 8, 30):
        np.testing.assert_array_equal(whole, gptq(w, hessian, qparams, TWO, block=block))


def test_uncorrelated_inputs_are_rounded_to_nearest():
    w, _, qparams = problem(9, 4)
    for hessian in (jnp.eye(9), jnp.diag(jnp.arange(1.0, 10.0))):
        for method in (gptq, obq):
            np.testing.assert_allclose(method(w, hessian, qparams, FOUR), fake_quantize(w, qparams, FOUR), atol=1e-6)


def test_inputs_that_are_always_zero_leave_the_others_alone():
    w, hessian, qparams = problem(8, 3)
    alive = np.array([0, 1, 3, 4, 6])
    own = hessian[np.ix_(alive, alive)]
    dead = np.zeros_like(hessian)
    dead[np.ix_(alive, alive)] = own
    whole, _ = round_by_error(w, dead, qparams, FOUR)
    part, _ = round_by_error(w[alive], own, qparams, FOUR)
    np.testing.assert_allclose(whole[alive], part, atol=1e-6)
    others = np.setdiff1d(np.arange(8), alive)
    np.testing.assert_allclose(whole[others], fake_quantize(w, qparams, FOUR)[others], atol=1e-6)
    assert np.isfinite(round_by_error(w, np.zeros_like(hessian), qparams, FOUR)[0]).all()


def test_a_singular_hessian_is_damped():
    w, _, qparams = problem(16, 4)
    rows = np.random.default_rng(1).standard_normal((3, 16)).astype(np.float32)
    hessian = rows.T @ rows
    for greedy in (False, True):
        rounded, (before, after) = round_by_error(w, hessian, qparams, FOUR, greedy=greedy)
        assert np.isfinite(rounded).all() and (after <= before).all() and after.sum() < 0.5 * before.sum()


def test_float32_hessians_give_the_error_of_float64_ones():
    w, hessian, qparams = problem(64, 8, seed=3)
    found = round_by_error(w, hessian, qparams, FOUR)[1][1].sum()
    with jax.enable_x64(True):
        exact = round_by_error(jnp.float64(w), jnp.float64(hessian), qparams, FOUR)[1][1].sum()
    np.testing.assert_allclose(found, exact, rtol=0.02)


def test_golden_damping():
    found = damped(jnp.diag(jnp.array([2.0, 0.0, 4.0])), 0.1)
    np.testing.assert_allclose(np.diag(found), [2.3, 1.0, 4.3], rtol=1e-6)
