import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from ops.test_conv import CASES

from jaxdq.ops import Window
from jaxdq.ops._forms import FORMS, LANES


def codes(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.integers(-128, 128, shape), jnp.int8) for shape in shapes]


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_form_gives_the_same_int32(form, case):
    lhs_shape, rhs_shape, window, pads = case
    lhs, rhs = codes(0, lhs_shape, rhs_shape)
    out = form(lhs, rhs, window, pads)
    assert out.dtype == jnp.int32
    np.testing.assert_array_equal(out, FORMS["native"](lhs, rhs, window, pads))


@settings(max_examples=6, deadline=None)
@given(
    seed=st.integers(0, 99),
    size=st.integers(3, 6),
    channels=st.sampled_from([1, 5, LANES, LANES + 1]),
    taps=st.integers(1, 3),
    stride=st.integers(1, 2),
    pad=st.integers(0, 2),
)
def test_property_forms_agree(seed, size, channels, taps, stride, pad):
    lhs, rhs = codes(seed, (2, size, size, channels), (taps, taps, channels, 3))
    window, pads = Window((stride, stride)), [(pad, 0), (0, pad)]
    expected = np.asarray(FORMS["native"](lhs, rhs, window, pads))
    for form in FORMS.values():
        np.testing.assert_array_equal(form(lhs, rhs, window, pads), expected)


def test_float_valued_sums_are_exact_at_the_end_of_the_grid():
    """4,608 products of -128 and -128 exceed 2**24: summed in one float32 they would lose units."""
    lhs, rhs = jnp.full((1, 3, 3, 512), -128, jnp.int8), jnp.full((3, 3, 512, 2), -128, jnp.int8)
    lhs = lhs.at[0, 1, 1, 0].set(1)
    out = jax.jit(lambda lhs, rhs: FORMS["float_valued"](lhs, rhs, Window((1, 1)), [(0, 0), (0, 0)]))(lhs, rhs)
    assert int(out[0, 0, 0, 0]) == 4607 * 128 * 128 - 128
