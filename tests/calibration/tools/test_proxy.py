import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdq.calibration import Evidence
from jaxdq.calibration.tools.proxy import Proxy, _spans, best_contiguous, build_proxy, without_empty_groups
from jaxdq.grid import Scheme, qparams_from_range
from jaxdq.observers import Observer, mse
from jaxdq.observers import _histogram as histogram

S, A, C = 7, 3, 5
W4, A3 = Scheme(4), Scheme(3, symmetric=False)
COLUMNS = (("a0", W4), ("a1", A3))


def random_proxy(seed, num_steps=S):
    rng = np.random.default_rng(seed)
    table = rng.exponential(size=(num_steps, A, C))
    # Numbers that name their place, so that a grid tells which candidate it is.
    scale = 1.0 + np.arange(C)[:, None] + 10.0 * np.arange(A)
    return Proxy(table, scale.astype(np.float32), -np.arange(C * A, dtype=np.int32).reshape(C, A))


def cost_by_hand(table, group_of_step):
    """`sum_groups sum_a min_c sum_s`, one entry at a time."""
    num_steps, num_columns, num_candidates = table.shape
    total = 0.0
    for column in range(num_columns):
        for group in set(group_of_step.tolist()):
            members = [step for step in range(num_steps) if group_of_step[step] == group]
            total += min(sum(table[step, column, c] for step in members) for c in range(num_candidates))
    return total


def test_oracle_cost_is_the_sum_it_says():
    for seed in range(5):
        proxy = random_proxy(seed)
        groups = np.random.default_rng(seed).integers(0, 3, S)
        assert proxy.cost(groups) == pytest.approx(cost_by_hand(proxy.table, groups), rel=1e-12)


def test_property_a_finer_partition_never_costs_more():
    proxy = random_proxy(1)
    groups = np.array([0, 0, 1, 1, 0, 0, 1])
    finer = np.array([0, 2, 1, 1, 0, 2, 1])
    assert proxy.cost(np.arange(S)) <= proxy.cost(finer) <= proxy.cost(groups) <= proxy.cost(np.zeros(S, int))


def test_grids_are_the_candidates_of_least_error():
    proxy = random_proxy(2)
    groups = np.random.default_rng(2).integers(0, 2, S)
    scale, zero_point = proxy.grids(groups, 2)
    assert scale.shape == zero_point.shape == (2, A) and scale.dtype == np.float32 and zero_point.dtype == np.int32
    for group, column in itertools.product(range(2), range(A)):
        members = groups == group
        best = min(range(C), key=lambda c: proxy.table[members, column, c].sum())
        assert scale[group, column] == 1 + best + 10 * column
        assert zero_point[group, column] == -(best * A + column)


def test_the_cost_of_a_partition_is_that_of_its_grids():
    proxy = random_proxy(3)
    groups = np.array([0, 1, 1, 0, 2, 2, 2])
    scale, _ = proxy.grids(groups, 3)
    candidate = (scale - 1 - 10 * np.arange(A)).astype(int)
    paid = sum(proxy.table[step, column, candidate[groups[step], column]] for step in range(S) for column in range(A))
    assert proxy.cost(groups) == pytest.approx(paid, rel=1e-12)


def test_a_group_that_holds_no_step_gets_some_grid():
    scale, zero_point = random_proxy(0).grids(np.array([0, 0, 0, 2, 2, 2, 2]), 4)
    assert scale.shape == (4, A) and np.isfinite(scale).all() and (scale > 0).all() and zero_point.shape == (4, A)


def test_golden_an_empty_group_takes_a_part_of_the_group_that_gains_most():
    # One activation, two candidates. Steps 0 to 3 want the first at a loss of 1, steps 4 and 5 the second at one of 9.
    table = np.array([[[0.0, 1.0]]] * 4 + [[[9.0, 0.0]]] * 2)
    proxy = Proxy(table, np.ones((2, 1), np.float32), np.zeros((2, 1), np.int32))
    # Steps 4 and 5 share group 2 with steps 2 and 3: 2 are lost there, and a cut before step 4 saves them.
    groups = np.array([0, 0, 2, 2, 2, 2])
    np.testing.assert_array_equal(without_empty_groups(proxy, groups, 3), [0, 0, 2, 2, 1, 1])


@pytest.mark.parametrize("num_groups", [1, 3, S])
def test_every_group_is_used_and_no_cost_rises(num_groups):
    proxy = random_proxy(4)
    groups = np.random.default_rng(4).integers(0, min(2, num_groups), S)
    filled = without_empty_groups(proxy, groups, num_groups)
    assert proxy.cost(filled) <= proxy.cost(groups) * (1 + 1e-12)
    np.testing.assert_array_equal(np.unique(filled), np.arange(num_groups))
    np.testing.assert_array_equal(without_empty_groups(proxy, filled, num_groups), filled)


@pytest.mark.parametrize("num_groups", [1, 2, 3, 4, S])
def test_oracle_best_contiguous_is_brute_force(num_groups):
    for seed in range(4):
        proxy = random_proxy(seed)
        partitions = []
        for starts in itertools.combinations(range(1, S), num_groups - 1):
            partitions.append(np.searchsorted(starts, np.arange(S), side="right"))
        costs = [cost_by_hand(proxy.table, groups) for groups in partitions]
        groups, cost = best_contiguous(proxy, num_groups)
        np.testing.assert_array_equal(groups, partitions[int(np.argmin(costs))])
        assert cost == pytest.approx(min(costs), rel=1e-12) and cost == pytest.approx(proxy.cost(groups), rel=1e-12)


def test_one_group_is_no_partition():
    proxy = random_proxy(0)
    groups, cost = best_contiguous(proxy, 1)
    np.testing.assert_array_equal(groups, np.zeros(S, int))
    assert cost == pytest.approx(proxy.table.sum(axis=0).min(axis=-1).sum(), rel=1e-12)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 8, 20])
def test_spans_hold_every_step_and_something_near_every_contiguous_group(num_steps):
    spans = _spans(num_steps)
    assert len(set(spans)) == len(spans) and all(0 <= start < stop <= num_steps for start, stop in spans)
    assert {(step, step + 1) for step in range(num_steps)} | {(0, num_steps)} <= set(spans)
    # Spans of L overlap by half, so one holds any group of up to L / 2 steps: less than 4 times as long as the group.
    for start, stop in itertools.combinations(range(num_steps + 1), 2):
        around = [last - first for first, last in spans if first <= start and stop <= last]
        assert min(around) < 4 * (stop - start)
    assert len(spans) <= 5 * num_steps


@pytest.mark.parametrize("num_steps", [65, 128, 250, 1000])
def test_many_steps_have_no_more_candidates_than_some_sixty(num_steps):
    spans = _spans(num_steps)
    assert len(spans) < 5 * 64
    assert set(range(num_steps)) == {step for first, last in spans for step in range(first, last)}
    assert (0, num_steps) in spans and min(last - first for first, last in spans) >= 1


def ranges() -> Observer:
    """Histograms as `mse` keeps them, and the full range as the grid: known by hand."""
    return mse()._replace(
        qparams=lambda state, scheme: qparams_from_range(*histogram.full_range(state), scheme),
    )


def evidence(observer, values):
    """values[step][column] -> evidence; histograms counted by numpy."""

    def histogram_of(x):
        exponent = int(np.ceil(np.log2(abs(x).max())))
        index = np.minimum(np.floor(x * histogram.HALF / 2.0**exponent) + histogram.HALF, histogram.NUM_BINS - 1)
        counts = np.bincount(index[x != 0].astype(int), minlength=histogram.NUM_BINS)
        fields = (np.int32(exponent), *map(np.float32, (counts, np.sum(x == 0), x.min(), x.max())))
        return histogram.HistogramState(*fields)

    rows = [[histogram_of(np.float32(seen)) for seen in row] for row in values]
    stacked = [jax.tree.map(lambda *leaves: np.stack(leaves), *row) for row in rows]
    arrays = tuple(f"a{column}" for column in range(len(rows[0])))
    return Evidence(observer, arrays, jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *stacked))


def test_golden_table_of_a_few_values():
    seen = evidence(ranges(), [[[7.0, 3.0, -1.0, 0.0], [3.5, -3.5]], [[3.5], [0.0, 1.0, 7.0]]])
    proxy = build_proxy(seen, np.array([[1.0, 10.0], [100.0, 1.0]]), COLUMNS)
    # Candidates are step 0, step 1, and both. Symmetric 4 bits, codes to 7: scales 7 / 7, 3.5 / 7, 7 / 7.
    np.testing.assert_allclose(proxy.scale[:, 0], [1.0, 0.5, 1.0], rtol=1e-6)
    # Asymmetric 3 bits, 7 intervals from -4: [-3.5, 3.5] -> 1 and zero at -4 + 4 (3.5 rounds to even), [0, 7] -> 1
    # at -4, [-3.5, 7] -> 1.5 at -4 + 2 (7 / 3 rounds to 2).
    np.testing.assert_allclose(proxy.scale[:, 1], [1.0, 1.0, 1.5], rtol=1e-6)
    np.testing.assert_array_equal(proxy.zero_point, [[0, 0], [0, -4], [0, -2]])
    # Column 0. Step 0 on 0.5: 7 -> 3.5 is 12.25 off, in a mean of 4. Step 1 on 1: 3.5 is half a step off, weight 100.
    # Column 1. Step 0 on [-4, 3]: 0.5 off at either end; on [0, 7]: 3.5 to the even 4, -3.5 to 0; on [-3, 7.5]:
    # 3.5 -> 3 and -3.5 -> -3; weight 10. Step 1: 1 is on the grid and 7 is 4 away; nothing; 1 -> 1.5 and 7 -> 7.5.
    expected = [
        [[0.0, 12.25 / 4, 0.0], [10 * 0.25, 10 * (0.25 + 12.25) / 2, 10 * 0.25]],
        [[100 * 0.25, 0.0, 100 * 0.25], [16 / 3, 0.0, (0.25 + 0.25) / 3]],
    ]
    # A histogram knows a value to 3/4 of a bin, 1/1024 of the largest power of two: 8 here, so 0.006 = d. An error e
    # becomes at most (e + d)^2: 2 e d + d^2 more, of values weighed as above, with the largest e of each entry.
    d = 0.75 * 8 / 1024
    largest = np.array([[[0.0, 3.5, 0.0], [0.5, 3.5, 0.5]], [[0.5, 0.0, 0.5], [4.0, 0.0, 0.5]]])
    weight = np.array([[[1.0], [10.0]], [[100.0], [1.0]]])
    assert (abs(proxy.table - expected) <= weight * (2 * largest * d + d**2) + 1e-6).all()
    assert proxy.table.dtype == np.float64


def test_oracle_the_table_is_the_mean_squared_error_of_the_raw_values():
    rng = np.random.default_rng(5)
    values = [[rng.standard_normal(400) * (1 + step), np.abs(rng.standard_normal(300))] for step in range(3)]
    proxy = build_proxy(evidence(ranges(), values), np.ones((3, 2)), COLUMNS)
    assert proxy.table.shape == (3, 2, len(_spans(3)))
    # The candidates are the observer's grids of what a span's steps saw together.
    for candidate, (start, stop) in enumerate(_spans(3)):
        one, two = (np.concatenate([values[step][column] for step in range(start, stop)]) for column in (0, 1))
        by_hand = [abs(one).max() / 7, (max(two.max(), 0) - min(two.min(), 0)) / 7]
        np.testing.assert_allclose(proxy.scale[candidate], by_hand, rtol=1e-6)
    for (step, column, c), found in np.ndenumerate(proxy.table):
        scheme, x = (W4, A3)[column], values[step][column]
        low, high = scheme.bounds
        scale, zero_point = np.float64(proxy.scale[c, column]), proxy.zero_point[c, column]
        error = abs(x - scale * (np.clip(np.round(x / scale) + zero_point, low, high) - zero_point))
        # As above, for each value: its distance from the grid changes by d at most, in a bin as wide as its step's.
        d = 0.75 * 2.0 ** np.ceil(np.log2(abs(x).max())) / 1024
        assert abs(found - np.mean(error**2)) <= np.mean(2 * error * d + d**2) + 1e-6


def test_without_activations_the_table_is_empty():
    seen = evidence(ranges(), [[[1.0]], [[2.0]]])
    proxy = build_proxy(seen, np.ones((2, 0)), ())
    assert proxy.table.shape[:2] == (2, 0) and proxy.cost(np.array([0, 1])) == 0.0
