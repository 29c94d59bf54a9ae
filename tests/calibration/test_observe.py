import jax
import numpy as np
import pytest
from pair import SHAPE, STATES, by_hand, work

from jaxdq import InputError
from jaxdq.calibration import Evidence, observe
from jaxdq.calibration.tools.evidence import gather_evidence
from jaxdq.grid import Scheme
from jaxdq.linen import Rule
from jaxdq.observers import minmax

KEY = jax.random.key(0)


@pytest.mark.parametrize("batch_size", [32, 2, 1])
def test_oracle_ranges_are_those_of_the_activations(batch_size):
    low, high = observe(minmax())(work().with_machine(batch_size=batch_size), KEY).fact(Evidence).states
    for step, t in enumerate((10, 0)):
        for column, (lowest, highest) in enumerate(by_hand(STATES[step], t)):
            # One float32 product and one sum, each rounded once.
            np.testing.assert_allclose([low[step, column], high[step, column]], [lowest, highest], rtol=1e-6)


def test_conditions_belong_to_their_images():
    labels = np.array([0.0, 100.0], np.float32).reshape(2, 1, 1, 1)
    found = work(conditions=(labels,))
    data = found.data._replace(image_index=np.array([0, 0, 1], np.int32))
    found = found._replace(problem=found.problem._replace(data=data))
    states = observe(minmax())(found, KEY).fact(Evidence).states
    labels = labels[[0, 0, 1]]
    (lowest, highest), _ = by_hand(STATES[0], 10, labels)
    np.testing.assert_allclose([states.low[0, 0], states.high[0, 0]], [lowest, highest], rtol=1e-6)


def test_oracle_states_of_any_walk_are_observed():
    """Progressive calibration shows the network what its quantized twin walked through."""
    given, walked = work(), 3 * STATES
    found = gather_evidence(given, minmax(), given.data._replace(states=walked)).states
    for step, t in enumerate((10, 0)):
        for column, (lowest, highest) in enumerate(by_hand(walked[step], t)):
            np.testing.assert_allclose(
                [found.low[step, column], found.high[step, column]], [lowest, highest], rtol=1e-6
            )


def test_sites_in_float_are_not_observed():
    rules = [Rule("first"), Rule(".*", Scheme(8, channel_axis=-1), Scheme(8))]
    states = observe(minmax())(work(rules=rules), KEY).fact(Evidence).states
    assert states.low.shape == (2, 1)
    np.testing.assert_allclose(states.high[0, 0], by_hand(STATES[0], 10)[1][1], rtol=1e-6)
    nothing = observe(minmax())(work(rules=[Rule(".*")]), KEY).fact(Evidence).states
    assert nothing.low.shape == (2, 0)


def test_infinity_is_named_by_site_and_time():
    # 3 x 2e38 overflows in the first layer, at the second step and for one image.
    states = STATES.copy()
    states[1, 2, 0, 0, 0] = 2e38
    with pytest.raises(InputError, match="input of 'second' holds NaN or infinity at t = 0 "):
        observe(minmax())(work(states), KEY)
    states[0, 1, 0, 0, 0] = np.nan
    with pytest.raises(InputError, match="input of 'first' holds NaN or infinity at t = 10 "):
        observe(minmax())(work(states), KEY)


def test_compiles_once_for_all_batches_and_steps():
    observer, calls = minmax(), []
    counted = observer._replace(update=lambda state, x: calls.append(x.shape) or observer.update(state, x))
    observe(counted)(work().with_machine(batch_size=2), KEY)
    # Four batches, two sites: one trace sees each site once.
    assert calls == [(2, *SHAPE), (2, *SHAPE)]
