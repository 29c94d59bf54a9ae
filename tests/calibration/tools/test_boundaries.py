import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdq.calibration.tools.boundaries import move_boundaries


def distance_to(target):
    return lambda groups: float(np.sum(groups != np.asarray(target)))


@pytest.mark.parametrize(
    ("start", "target"),
    [
        ([0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 1, 1]),
        ([0, 0, 0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 1, 1]),
        ([0, 0, 1, 1, 2, 2, 0, 0], [0, 1, 1, 1, 2, 2, 2, 0]),  # spans apart
        ([0, 0, 0, 0], [0, 0, 0, 0]),
    ],
)
def test_boundaries_go_where_the_error_is_least(start, target):
    error_of = distance_to(target)
    found, error = move_boundaries(np.array(start), error_of(np.array(start)), error_of, most=50)
    np.testing.assert_array_equal(found, target)
    assert error == 0.0


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=20), st.integers(0, 2**32 - 1), st.integers(0, 12))
def test_property_never_worse_no_group_lost_and_no_more_tries_than_allowed(start, seed, most):
    start, random, tried = np.array(start), np.random.default_rng(seed), {}

    def error_of(groups):
        tried.setdefault(tuple(groups.tolist()), []).append(random.choice([0.0, 1.0, 2.0, np.nan]))
        return tried[tuple(groups.tolist())][-1]

    found, error = move_boundaries(start, 1.5, error_of, most)
    assert sum(map(len, tried.values())) <= most
    assert error <= 1.5 and set(found) == set(start) and found.shape == start.shape
    if error < 1.5:
        assert error in tried[tuple(found.tolist())]
    else:
        np.testing.assert_array_equal(found, start)
