import itertools

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis.extra import numpy as hnp

from jaxdq import InputError
from jaxdq.calibration.tools.allocation import allocate

LOSSES = np.array([[9.0, 4.0, 1.0], [5.0, 4.5, 4.0], [2.0, 1.0, 0.0]])
COSTS = np.array([[1.0, 2.0, 4.0], [1.0, 2.0, 4.0], [3.0, 6.0, 12.0]])


def total(table, levels):
    return table[np.arange(len(levels)), levels].sum()


@pytest.mark.parametrize("budget", [5, 6, 8, 11, 14, 20])
def test_golden_the_best_of_all_choices(budget):
    every = itertools.product(range(3), repeat=3)
    best = min(total(LOSSES, levels) for levels in map(np.array, every) if total(COSTS, levels) <= budget)
    assert total(LOSSES, allocate(LOSSES, COSTS, budget)) == best


@hypothesis.given(
    hnp.arrays(float, (4, 3), elements=st.floats(0, 100)),
    hnp.arrays(float, (4, 3), elements=st.floats(0.5, 1000)),
    st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_property_the_budget_is_met_and_more_of_it_is_never_worse(losses, costs, shares):
    least, most = costs.min(axis=1).sum(), costs.max(axis=1).sum()
    low, high = sorted(least * 1.001 + share * (most - least) for share in shares)
    poor, rich = (allocate(losses, costs, budget) for budget in (low, high))
    assert total(costs, poor) <= low and total(costs, rich) <= high
    if low > least * 1.01:
        assert total(losses, rich) <= total(losses, poor) + 1e-9


def test_all_that_could_be_spent_takes_the_least_losses():
    assert allocate(LOSSES, COSTS, 1e9).tolist() == [2, 2, 2]


def test_too_little_is_refused():
    with pytest.raises(InputError, match="the budget is 4 and the least that can be spent is 5; give more"):
        allocate(LOSSES, COSTS, 4)
