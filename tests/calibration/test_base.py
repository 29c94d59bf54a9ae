import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import KNOWN_PARAMS, NUM_TIMESTEPS, SHAPE, Known

from jaxdq import InputError, ddim, linear_schedule
from jaxdq.calibration import Evidence, Work, observed_ranges, share
from jaxdq.diffusion import Denoiser
from jaxdq.grid import Scheme
from jaxdq.linen import Plan, Site, SitePlan
from jaxdq.observers import minmax
from jaxdq.observers._minmax import MinMaxState
from jaxdq.sampling import Trajectories

A8, S4 = Scheme(8, symmetric=False), Scheme(4)
# Two activations, of which the second is symmetric with 4 bits; four steps at t = 15, 10, 5, 0.
PLAN = Plan(
    tuple(
        SitePlan(Site(name, "dense", (2, 2), (1,), 1, 4), Scheme(8, channel_axis=(1,)), act)
        for name, act in (("one", A8), ("two", S4))
    )
)
LOW = np.array([[-1.0, -7.0], [0.0, -0.7], [-3.0, -1.4], [-0.5, 0.0]], np.float32)
HIGH = np.array([[1.55, 0.0], [4.1, 0.1], [2.1, 2.8], [0.0, 3.5]], np.float32)


def work(plan=PLAN, low=LOW, high=HIGH):
    denoiser = Denoiser(Known(), KNOWN_PARAMS, linear_schedule(NUM_TIMESTEPS), SHAPE)
    t = np.array([15, 10, 5, 0], np.int32)
    nothing = np.zeros((4, 1, *SHAPE), np.float32)
    data = Trajectories(nothing, nothing, t, np.zeros(1, np.int32), nothing[0])
    states = MinMaxState(jnp.asarray(low), jnp.asarray(high))
    evidence = Evidence(minmax(), states)
    return Work(
        denoiser=denoiser,
        sampler=ddim(4),
        plan=plan,
        weights={},
        data=data,
        key=jax.random.key(0),
        evidence=evidence,
    )


def test_golden_a_group_s_grid_fits_the_union_of_its_steps():
    found = share(work(), np.array([0, 0, 1, 1]), 2)
    # Group 0: [-1, 4.1] / 255 and 7 / 7; group 1: [-3, 2.1] / 255 and 3.5 / 7.
    np.testing.assert_allclose(found.calib.act_scale, [[5.1 / 255, 1.0], [5.1 / 255, 0.5]], rtol=1e-6)
    # Zero lies at -128 - low / scale: -128 + 50 and -128 + 150; the symmetric column has none.
    np.testing.assert_array_equal(found.calib.act_zero_point, [[-78, 0], [22, 0]])
    assert found.calib.act_scale.dtype == jnp.float32 and found.calib.act_zero_point.dtype == jnp.int32
    # t between sampled times goes to the nearer one, halfway to the larger: 7 is nearer to 5, 8 to 10.
    np.testing.assert_array_equal(found.calib.group_of_t, [1] * 8 + [0] * 12)
    np.testing.assert_array_equal(found.group_of_step, [0, 0, 1, 1])


@pytest.mark.parametrize("is_per_activation", [False, True])
def test_golden_an_array_that_is_the_same_at_every_step_has_one_grid(is_per_activation):
    first, second = PLAN.sites
    told = dataclasses.replace(second, site=dataclasses.replace(second.site, is_condition=True))
    partition = np.array([0, 0, 1, 1])
    partition = np.stack([partition, partition], axis=1) if is_per_activation else partition
    found = share(work(Plan((first, told))), partition, 2)
    # Of the second column that of all steps, 7 / 7; of the first each group's own.
    np.testing.assert_allclose(found.calib.act_scale, [[5.1 / 255, 1.0], [5.1 / 255, 1.0]], rtol=1e-6)
    np.testing.assert_array_equal(found.calib.act_zero_point, [[-78, 0], [22, 0]])


def test_groups_need_not_be_spans_of_time():
    found = share(work(), np.array([1, 0, 1, 0]), 2)
    # Group 0 holds steps 1 and 3: [-0.5, 4.1], 3.5; group 1 steps 0 and 2: [-3, 2.1], 7.
    np.testing.assert_allclose(found.calib.act_scale, [[4.6 / 255, 0.5], [5.1 / 255, 1.0]], rtol=1e-6)
    assert found.calib.group_of_t[np.array([15, 10, 5, 0])].tolist() == [1, 0, 1, 0]


def test_each_activation_may_have_a_partition_of_its_own():
    both = np.array([[0, 1], [0, 0], [1, 1], [1, 0]])
    found = share(work(), both, 2).calib
    np.testing.assert_allclose(found.act_scale, [[5.1 / 255, 0.5], [5.1 / 255, 1.0]], rtol=1e-6)
    assert found.group_of_t.shape == (NUM_TIMESTEPS, 2)
    for column, partition in enumerate(both.T):
        alone = share(work(), partition, 2).calib
        np.testing.assert_array_equal(found.act_scale[:, column], alone.act_scale[:, column])
        np.testing.assert_array_equal(found.act_zero_point[:, column], alone.act_zero_point[:, column])
        np.testing.assert_array_equal(found.group_of_t[:, column], alone.group_of_t)


def test_a_group_without_steps_saw_nothing_and_has_scale_1():
    found = share(work(), np.array([0, 0, 2, 2]), 3).calib
    np.testing.assert_array_equal(found.act_scale[1], [1.0, 1.0])
    assert 1 not in found.group_of_t


def test_without_quantized_activations_the_tables_are_empty():
    site = PLAN.sites[0]
    plan = Plan((SitePlan(site.site, site.weight, None, "weights only"),))
    found = share(work(plan, LOW[:, :0], HIGH[:, :0]), np.array([0, 0, 1, 1]), 2).calib
    assert found.act_scale.shape == found.act_zero_point.shape == (2, 0)


def test_ranges_come_first():
    with pytest.raises(InputError, match=r"put observe\(\.\.\.\) before"):
        share(work()._replace(evidence=None), np.array([0, 0, 1, 1]), 2)


def test_work_is_not_changed():
    before = work()
    after = share(before, np.zeros(4, int), 1)
    assert before.calib is None and before.group_of_step is None
    assert after.plan is before.plan and after.evidence is before.evidence


def test_ranges_are_those_observed_and_none_of_an_observer_that_keeps_no_ends():
    np.testing.assert_array_equal(observed_ranges(work()).high, work().evidence.states.high)
    endless = work()._replace(evidence=Evidence(minmax(), {"sum": LOW}))
    assert observed_ranges(endless) is None
