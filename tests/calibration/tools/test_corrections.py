import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import NUM_TIMESTEPS, tiny_quantized

from jaxdq import Calibration
from jaxdq.calibration.tools.corrections import (
    at_all_times,
    corrected,
    followed_by,
    linear_error,
    linear_error_as_published,
    masked_gain,
    normality,
)
from jaxdq.linen import Correction, Instead

RNG = np.random.default_rng(0)
MEANS = np.array([0.5, -1.0, 0.0])
EXACT = RNG.standard_normal((64, 8, 8, 3)) + MEANS
RESIDUAL = 0.2 * RNG.standard_normal(EXACT.shape)
MU = np.array([0.1, -0.3, 0.02])


@settings(deadline=None, max_examples=30)
@given(st.floats(-0.4, 0.6))
def test_a_synthetic_error_is_taken_apart(slope):
    """To 1 / sqrt(N) of N = 4,096 entries a channel, three standard deviations wide."""
    found = (1 + slope) * EXACT + MU + RESIDUAL
    error = linear_error(EXACT, found)
    assert abs(error.slope - slope) < 3 * 0.2 / 64 / 3**0.5
    np.testing.assert_allclose(error.bias, MU, atol=3 * 0.2 / 64 * 1.5)
    assert error.std == pytest.approx(0.2, rel=0.02)
    assert error.total == pytest.approx(np.sqrt(np.mean((found - EXACT) ** 2)))
    put_right = (found - error.bias) / (1 + error.slope)
    np.testing.assert_allclose(put_right.mean((0, 1, 2)), EXACT.mean((0, 1, 2)), atol=1e-6)


def test_the_published_estimator_has_its_known_faults():
    """The bias of the whole error, slopes of 0 at the least, no slope of a shift between channels taken out."""
    found = (1 - 0.2) * EXACT + MU
    error = linear_error_as_published(EXACT, found)
    assert error.slope == 0
    np.testing.assert_allclose(error.bias, (found - EXACT).mean((0, 1, 2)))
    ours = linear_error(EXACT, found)
    np.testing.assert_allclose([ours.slope, ours.std], [-0.2, 0], atol=1e-6)
    # The mean of the images' deviations is below their root mean square.
    uneven = EXACT + RESIDUAL * np.linspace(0, 2, 64)[:, None, None, None]
    assert linear_error_as_published(EXACT, uneven).std < 0.95 * linear_error(EXACT, uneven).std


def test_a_slope_never_takes_the_output_away():
    error = linear_error(EXACT, -3 * EXACT)
    assert error.slope == -0.5
    constant = linear_error(np.ones((2, 2, 2, 1)), np.full((2, 2, 2, 1), 3.0))
    assert (constant.slope, constant.bias.tolist(), constant.std) == (0, [2.0], 0)


def test_golden_factors():
    exact, found = np.array([1.0, 2.0, -4.0, 0.1]), np.array([2.0, 2.0, -2.0, 0.0])
    shape = (1, 4, 1, 1)
    # (2 + 4 + 8 + 0) / (4 + 4 + 4 + 0); where |exact| >= 1.775: (4 + 8) / (4 + 4).
    np.testing.assert_allclose(masked_gain(exact.reshape(shape), found.reshape(shape)), [14 / 12])
    np.testing.assert_allclose(masked_gain(exact.reshape(shape), found.reshape(shape), 1.0), [12 / 8])
    np.testing.assert_array_equal(masked_gain(exact.reshape(shape), np.zeros(shape)), [1])


def test_entries_near_0_decide_no_factor():
    """The unmasked relative loss of the paper would give 0.003 to 0.03 here."""
    exact = RNG.standard_normal((16, 8, 8, 1))
    found = 1.07 * exact + 0.1 * RNG.standard_normal(exact.shape)
    assert masked_gain(exact, found)[0] == pytest.approx(np.sum(exact * found) / np.sum(found**2))
    assert 0.9 < masked_gain(exact, found, 0.5)[0] < 0.95


def test_golden_times_between_steps_have_the_nearest_steps_row():
    rows = np.array([[1.0], [2.0], [3.0]])
    assert at_all_times(rows, np.array([8, 4, 1]), 10)[:, 0].tolist() == [3, 3, 3, 2, 2, 2, 1, 1, 1, 1]


@pytest.mark.parametrize("has", [(0, 1, 2), (0,), (1,), (2,), ()])
def test_two_corrections_after_one_another_are_one(has):
    def made(seed, parts):
        tables = np.random.default_rng(seed).standard_normal((3, NUM_TIMESTEPS, 2))
        return Correction(*(jnp.float32(table) if index in parts else None for index, table in enumerate(tables)))

    inner, outer = made(0, has), made(1, (0, 1, 2))
    x, t = jnp.float32(RNG.standard_normal((2, 4, 4, 2))), jnp.int32(7)

    def network(x):
        return jnp.sin(x)

    def around(correction, function):
        return lambda x: correction.on_output(function(correction.on_input(x, t)), t)

    both = around(followed_by(inner, outer), network)(x)
    np.testing.assert_allclose(both, around(outer, around(inner, network))(x), rtol=2e-5, atol=1e-6)
    of_time = Correction(
        jnp.float32(RNG.standard_normal(NUM_TIMESTEPS)), jnp.float32(RNG.standard_normal(NUM_TIMESTEPS))
    )
    for first, second in ((inner, of_time), (of_time, inner)):  # a number for each time beside one for each channel
        both = around(followed_by(first, second), network)(x)
        np.testing.assert_allclose(both, around(second, around(first, network))(x), rtol=2e-5, atol=1e-6)
    assert followed_by(None, outer) is outer
    left = followed_by(Correction(output_std=jnp.ones(3)), Correction())
    assert left.output_std.tolist() == [1, 1, 1]


def test_a_network_that_runs_instead_is_corrected_too():
    _, qparams = tiny_quantized()
    shift = Correction(output_shift=jnp.ones(NUM_TIMESTEPS))
    calib = Calibration({}, None, qparams.plan)
    at = np.arange(NUM_TIMESTEPS) < 5
    both = corrected(dataclasses.replace(calib, instead=Instead(calib, at)), shift)
    assert both.correction is shift and both.instead.calib.correction is shift
    assert corrected(dataclasses.replace(calib, instead=Instead(None, at)), shift).instead.calib is None


def test_normality_tells_tails_from_none():
    assert normality(RNG.standard_normal(5000)) > 0.01
    assert normality(RNG.standard_t(2, 5000)) < 1e-6
    assert normality(np.zeros(100)) == normality(RNG.standard_normal(5)) == 1
