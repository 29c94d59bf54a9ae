import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdq._common.errors import InputError
from jaxdq.diffusion import check_groups, ddim, groups_of_steps, linear_schedule


def test_golden_groups_of_steps():
    # Sampled at 8, 4, 1: 6 is halfway between 4 and 8 and goes up; 2 is nearer to 1, 3 to 4.
    np.testing.assert_array_equal(groups_of_steps([8, 4, 1], [2, 1, 0], 10), [0, 0, 0, 1, 1, 1, 2, 2, 2, 2])


@settings(deadline=None)
@given(st.data())
def test_property_groups_of_steps_take_the_nearest(data):
    num_timesteps = data.draw(st.integers(1, 60))
    t = data.draw(st.lists(st.integers(0, num_timesteps - 1), min_size=1, unique=True))
    group = data.draw(st.lists(st.integers(0, num_timesteps - 1), min_size=len(t), max_size=len(t)))
    groups = groups_of_steps(t, group, num_timesteps)
    np.testing.assert_array_equal(groups[t], group)
    for any_t in range(num_timesteps):
        nearest = min(range(len(t)), key=lambda index: (abs(t[index] - any_t), -t[index]))
        assert groups[any_t] == group[nearest]


def test_groups_of_a_sampler_survive_the_way_back():
    t = ddim(50).coefficients(linear_schedule(1000)).t
    group_of_step = np.arange(50)[::-1] // 7
    np.testing.assert_array_equal(groups_of_steps(t, group_of_step, 1000)[t], group_of_step)


@pytest.mark.parametrize(
    ("t", "group", "word"),
    [
        ([3, 1], [0], "shape"),
        ([], [], "shape"),
        ([3, 3], [0, 1], "1 different values for 2 steps"),
        ([10], [0], "from 10 to 10"),
        ([-1], [0], "from -1 to -1"),
        ([3, 1], [0, -1], "runs from -1"),
        ([3, 1], [0.0, 1.0], "float64"),
        ([3, 1], [0, 10], "11 groups for 10 timesteps"),
    ],
)
def test_refuses_steps_that_do_not_fit(t, group, word):
    with pytest.raises(InputError, match=word):
        groups_of_steps(t, group, 10)


def test_check_groups():
    checked = check_groups(np.array([0, 2, 2]), 3, 3)
    assert checked.dtype == np.int32
    np.testing.assert_array_equal(checked, [0, 2, 2])
    for groups, num_groups, word in [
        ([0, 0], 1, "3 timesteps"),
        ([0.0, 0.0, 0.0], 1, "float64"),
        ([0, 1, 2], 2, "2 groups"),
        ([0, 0, 0], 0, "0 groups"),
        ([0, 0, 0], 4, "4 groups"),
    ]:
        with pytest.raises(InputError, match=word):
            check_groups(groups, 3, num_groups)
