from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxdq import InputError
from jaxdq.calibration import _uniform, share_uniformly


@pytest.fixture
def asked(monkeypatch):
    """The partition that share_uniformly asks for, by number of steps and groups."""

    def share(work, group_of_step, num_groups):
        return np.asarray(group_of_step).tolist(), num_groups

    monkeypatch.setattr(_uniform, "share", share)
    return lambda num_steps, num_groups: share_uniformly(num_groups)(steps(num_steps), jax.random.key(0))


def steps(num_steps):
    return SimpleNamespace(data=SimpleNamespace(num_steps=num_steps, num_images=1), facts={})


@pytest.mark.parametrize(
    ("num_steps", "num_groups", "partition"),
    [
        (4, 1, [0, 0, 0, 0]),
        (4, 2, [0, 0, 1, 1]),
        (5, 2, [0, 0, 0, 1, 1]),
        (7, 3, [0, 0, 0, 1, 1, 2, 2]),
        (3, 3, [0, 1, 2]),
    ],
)
def test_golden_partitions(asked, num_steps, num_groups, partition):
    assert asked(num_steps, num_groups) == (partition, num_groups)


@pytest.mark.parametrize("num_steps", [1, 2, 9, 50])
def test_property_spans_are_equal_and_none_is_empty(asked, num_steps):
    for num_groups in range(1, num_steps + 1):
        lengths = np.bincount(asked(num_steps, num_groups)[0])
        assert len(lengths) == num_groups and lengths.min() >= 1 and lengths.max() - lengths.min() <= 1


@pytest.mark.parametrize("num_groups", [0, -1, 6])
def test_groups_that_steps_cannot_fill_are_refused(num_groups):
    with pytest.raises(InputError, match=f"{num_groups} groups were asked for and the sampler has 5 steps"):
        share_uniformly(num_groups)(steps(5), jax.random.key(0))
