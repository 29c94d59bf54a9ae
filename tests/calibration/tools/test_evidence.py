import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from toys import KNOWN_PARAMS, NUM_TIMESTEPS, SHAPE, Known, toy_work

from jaxdq import InputError, ddim, linear_schedule
from jaxdq.calibration import Evidence, observed_ranges, share
from jaxdq.calibration.tools.evidence import group_of_step
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
    arrays = tuple(name for name, _ in plan.columns)
    return toy_work(denoiser, ddim(4), plan, data, Evidence(minmax(), arrays, states))


def test_golden_a_group_s_grid_fits_the_union_of_its_steps():
    found = share(work(), np.array([0, 0, 1, 1]), 2)
    # Group 0: [-1, 4.1] / 255 and 7 / 7; group 1: [-3, 2.1] / 255 and 3.5 / 7.
    np.testing.assert_allclose(found.acts.scale, [[5.1 / 255, 1.0], [5.1 / 255, 0.5]], rtol=1e-6)
    # Zero lies at -128 - low / scale: -128 + 50 and -128 + 150; the symmetric column has none.
    np.testing.assert_array_equal(found.acts.zero_point, [[-78, 0], [22, 0]])
    assert found.acts.scale.dtype == jnp.float32 and found.acts.zero_point.dtype == jnp.int32
    # t between sampled times goes to the nearer one, halfway to the larger: 7 is nearer to 5, 8 to 10.
    np.testing.assert_array_equal(found.acts.group_of_t, [1] * 8 + [0] * 12)
    np.testing.assert_array_equal(group_of_step(found), [0, 0, 1, 1])
    assert found.acts.columns == PLAN.columns


def test_golden_an_array_that_is_the_same_at_every_step_has_one_grid():
    first, second = PLAN.sites
    told = dataclasses.replace(second, site=dataclasses.replace(second.site, is_condition=True))
    found = share(work(Plan((first, told))), np.array([0, 0, 1, 1]), 2)
    # Of the second column that of all steps, 7 / 7; of the first each group's own.
    np.testing.assert_allclose(found.acts.scale, [[5.1 / 255, 1.0], [5.1 / 255, 1.0]], rtol=1e-6)
    np.testing.assert_array_equal(found.acts.zero_point, [[-78, 0], [22, 0]])


def test_groups_need_not_be_spans_of_time():
    found = share(work(), np.array([1, 0, 1, 0]), 2)
    # Group 0 holds steps 1 and 3: [-0.5, 4.1], 3.5; group 1 steps 0 and 2: [-3, 2.1], 7.
    np.testing.assert_allclose(found.acts.scale, [[4.6 / 255, 0.5], [5.1 / 255, 1.0]], rtol=1e-6)
    assert found.acts.group_of_t[np.array([15, 10, 5, 0])].tolist() == [1, 0, 1, 0]


def test_a_group_without_steps_saw_nothing_and_has_scale_1():
    found = share(work(), np.array([0, 0, 2, 2]), 3)
    np.testing.assert_array_equal(found.acts.scale[1], [1.0, 1.0])
    assert 1 not in found.acts.group_of_t


def test_without_quantized_activations_the_tables_are_empty():
    site = PLAN.sites[0]
    plan = Plan((SitePlan(site.site, site.weight, None, "weights only"),))
    found = share(work(plan, LOW[:, :0], HIGH[:, :0]), np.array([0, 0, 1, 1]), 2)
    assert found.acts.scale.shape == found.acts.zero_point.shape == (2, 0)


def test_ranges_come_first():
    with pytest.raises(InputError, match=r"put observe\(mse\(\)\) before"):
        share(work()._replace(facts={}), np.array([0, 0, 1, 1]), 2)


def test_work_is_not_changed():
    before = work()
    after = share(before, np.zeros(4, int), 1)
    assert before.calib.acts is None and after.calib.acts is not None
    assert after.plan is before.plan and after.facts is before.facts


def test_ranges_are_those_observed_and_none_of_an_observer_that_keeps_no_ends():
    np.testing.assert_array_equal(observed_ranges(work()).high, HIGH)
    endless = work().knowing(Evidence(minmax(), ("one", "two"), {"sum": LOW}))
    assert observed_ranges(endless) is None


def test_a_bit_width_that_changes_after_observing_takes_no_neighbour_s_scale():
    """Columns are (array, scheme): with other bits they move, and evidence goes by the array's name."""
    names = ("one", "two", "three")
    sites = [SitePlan(Site(name, "dense", (2, 2), (1,), 1, 4), Scheme(8, channel_axis=(1,)), A8) for name in names]
    low, high = np.zeros((4, 3), np.float32), np.array([[1.0, 10.0, 100.0]] * 4, np.float32)
    observed = work(Plan(tuple(sites)), low, high)
    first, second, third = sites
    changed = dataclasses.replace(first, act=dataclasses.replace(A8, bits=4))
    for plan in (Plan((changed, second, third)), Plan((third, changed, second)), Plan((second, third))):
        found = share(observed.deciding(plan=plan), np.zeros(4, int), 1).acts
        spans = {"one": 1 / 15 if changed in plan.sites else None, "two": 10 / 255, "three": 100 / 255}
        assert found.columns == plan.columns
        for column, (name, _) in enumerate(plan.columns):
            assert found.scale[0, column] == pytest.approx(spans[name], rel=1e-6)


def test_an_array_that_was_not_observed_is_refused_by_name():
    new = SitePlan(Site("new", "dense", (2, 2), (1,), 1, 4), Scheme(8, channel_axis=(1,)), A8)
    later = work().deciding(plan=Plan((*PLAN.sites, new)))
    with pytest.raises(InputError, match="quantizes the input of 'new' and no range of it was taken"):
        share(later, np.zeros(4, int), 1)
