import functools
import itertools
import re

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from jax import lax

from jaxdq._common.errors import InputError
from jaxdq.grid import QParams, QTensor, Scheme
from jaxdq.ops import Window, conv_general_dilated, conv_general_dilated_float
from jaxdq.ops._conv import _pad_with_code

SYMMETRY = pytest.mark.parametrize(("lhs_symmetric", "rhs_symmetric"), list(itertools.product([True, False], repeat=2)))


def random_tensor(seed, shape, bits=8, *, symmetric=True, of_scale=()):
    """Codes over all of the grid; powers of two as scales, so that float64 is exact."""
    rng = np.random.default_rng(seed)
    scheme = Scheme(bits, symmetric)
    lo, hi = scheme.bounds
    scale = jnp.asarray(2.0 ** rng.integers(-6, 2, of_scale), jnp.float32)
    zero_point = None if symmetric else jnp.asarray(rng.integers(lo, hi + 1, of_scale), jnp.int32)
    qvalue = jnp.asarray(rng.integers(lo, hi + 1, shape), jnp.int8).astype(scheme.storage_dtype)
    return QTensor(qvalue, QParams(scale, zero_point), scheme)


def float64(tensor):
    zero_point = 0 if tensor.qparams.zero_point is None else np.asarray(tensor.qparams.zero_point, np.float64)
    return np.asarray(tensor.qparams.scale, np.float64) * (np.asarray(tensor.qvalue).astype(np.float64) - zero_point)


def oracle(lhs, rhs, strides, pads, dilation, groups):
    """Convolution by its definition, in float64: shift, multiply, add."""
    x, w = float64(lhs), float64(rhs)
    x = np.pad(x, [(0, 0), *pads, (0, 0)])
    window, (per_group, channels) = w.shape[:-2], w.shape[-2:]
    sizes = [
        (size - (k - 1) * d - 1) // s + 1
        for size, k, d, s in zip(x.shape[1:-1], window, dilation, strides, strict=True)
    ]
    out = np.zeros((x.shape[0], *sizes, channels))
    each = channels // groups
    for tap in np.ndindex(*window):
        cut = tuple(
            slice(i * d, i * d + (n - 1) * s + 1, s) for i, d, n, s in zip(tap, dilation, sizes, strides, strict=True)
        )
        part = x[(slice(None), *cut)]
        for g in range(groups):
            mine, theirs = slice(g * per_group, (g + 1) * per_group), slice(g * each, (g + 1) * each)
            out[..., theirs] += part[..., mine] @ w[tap][:, theirs]
    return out


@functools.partial(jax.jit, static_argnums=2)
def both(lhs, rhs, window):
    return conv_general_dilated(lhs, rhs, window), conv_general_dilated_float(lhs, rhs, window)


def check(lhs, rhs, window, pads):
    """The integer path is exact: sums of fewer than 2**24 units, times powers of two."""
    space = len(window.strides)
    exact = oracle(lhs, rhs, window.strides, pads, window.dilation or (1,) * space, window.groups)
    ours, twin = both(lhs, rhs, window)
    np.testing.assert_array_equal(ours, exact)
    np.testing.assert_allclose(twin, exact, rtol=1e-6, atol=1e-6 * np.abs(exact).max(initial=0))


# name: input, kernel, window, and the padding in numbers, by hand.
CASES = {
    "1d_same": ((2, 9, 3), (3, 3, 4), Window((1,)), [(1, 1)]),
    "2d_same": ((2, 5, 6, 3), (3, 3, 3, 4), Window((1, 1)), [(1, 1), (1, 1)]),
    "2d_same_strided_even": ((1, 6, 6, 2), (3, 3, 2, 3), Window((2, 2)), [(0, 1), (0, 1)]),
    "2d_pointwise": ((2, 4, 4, 5), (1, 1, 5, 3), Window((1, 1)), [(0, 0), (0, 0)]),
    "2d_valid": ((2, 5, 6, 3), (3, 2, 3, 4), Window((1, 2), "VALID"), [(0, 0), (0, 0)]),
    "2d_explicit_uneven": ((1, 4, 5, 3), (3, 3, 3, 2), Window((2, 1), ((0, 1), (2, 0))), [(0, 1), (2, 0)]),
    "2d_dilated": ((1, 7, 7, 2), (3, 2, 2, 3), Window((1, 1), "SAME", (2, 3)), [(2, 2), (1, 2)]),
    "2d_groups": ((2, 4, 4, 6), (3, 3, 2, 9), Window((1, 1), groups=3), [(1, 1), (1, 1)]),
    "2d_depthwise": ((1, 4, 4, 3), (3, 3, 1, 6), Window((1, 1), groups=3), [(1, 1), (1, 1)]),
    "3d_same": ((1, 3, 4, 3, 2), (2, 3, 3, 2, 3), Window((1, 1, 1)), [(0, 1), (1, 1), (1, 1)]),
}


@SYMMETRY
@pytest.mark.parametrize("name", CASES)
def test_oracle_windows(name, lhs_symmetric, rhs_symmetric):
    lhs_shape, rhs_shape, window, pads = CASES[name]
    per_row = (lhs_shape[0],) + (1,) * (len(lhs_shape) - 1)
    per_channel = (1,) * (len(rhs_shape) - 1) + rhs_shape[-1:]
    lhs = random_tensor(0, lhs_shape, symmetric=lhs_symmetric, of_scale=per_row)
    rhs = random_tensor(1, rhs_shape, symmetric=rhs_symmetric, of_scale=per_channel)
    check(lhs, rhs, window, pads)


@SYMMETRY
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_oracle_narrow_kernels_per_tensor(bits, lhs_symmetric, rhs_symmetric):
    lhs = random_tensor(2, (2, 4, 4, 3), bits, symmetric=lhs_symmetric)
    rhs = random_tensor(3, (3, 3, 3, 2), bits, symmetric=rhs_symmetric)
    check(lhs, rhs, Window((1, 1)), [(1, 1), (1, 1)])


@settings(max_examples=6)
@given(st.data())
def test_oracle_any_shape(data):
    space = data.draw(st.integers(1, 2))
    size, kernel, strides, dilation, before, after = (
        tuple(data.draw(st.integers(low, high)) for _ in range(space))
        for low, high in ((5, 7), (1, 3), (1, 3), (1, 2), (0, 2), (0, 2))
    )
    groups, per_group, each = (data.draw(st.integers(1, 2)) for _ in range(3))
    symmetric = data.draw(st.tuples(st.booleans(), st.booleans()))
    pads = tuple(zip(before, after, strict=True))
    lhs = random_tensor(4, (2, *size, groups * per_group), symmetric=symmetric[0])
    rhs = random_tensor(5, (*kernel, per_group, groups * each), 4, symmetric=symmetric[1])
    check(lhs, rhs, Window(strides, pads, dilation, groups), pads)


def test_golden_border_means_zero():
    """One pixel of 2.0 at zero point 5 under a 3x3 kernel of ones: the border adds nothing."""
    scheme = Scheme(8, symmetric=False)
    lhs = QTensor(jnp.full((1, 1, 1, 1), 7, jnp.int8), QParams(jnp.float32(1), jnp.int32(5)), scheme)
    rhs = QTensor(jnp.ones((3, 3, 1, 1), jnp.int8), QParams(jnp.float32(1)), Scheme(8))
    np.testing.assert_array_equal(both(lhs, rhs, Window((1, 1), ((2, 2), (2, 2))))[0][0, :, :, 0], 2 * np.ones((3, 3)))


@pytest.mark.parametrize(
    ("side", "of_scale"),
    [("lhs", (1, 1, 1, 3)), ("lhs", (1, 4, 1, 1)), ("rhs", (1, 1, 3, 1)), ("rhs", (3, 1, 1, 2))],
)
def test_a_scale_along_the_contraction_is_refused(side, of_scale):
    lhs = random_tensor(0, (2, 4, 4, 3), of_scale=of_scale if side == "lhs" else ())
    rhs = random_tensor(1, (3, 3, 3, 2), of_scale=of_scale if side == "rhs" else ())
    with pytest.raises(InputError, match=f"the {side} scale .* varies along the contracted axes"):
        conv_general_dilated(lhs, rhs, Window((1, 1)))


def test_overflow_is_refused():
    lhs, rhs = random_tensor(0, (1, 3, 3, 3670), symmetric=False), random_tensor(1, (3, 3, 3670, 1), symmetric=False)
    with pytest.raises(InputError, match="33030 products of 8a and 8a bits"):
        conv_general_dilated(lhs, rhs, Window((1, 1)))


@pytest.mark.parametrize("padding", ["SAME", ((1, 1), (1, 1))])
def test_a_wrong_number_of_strides_is_refused(padding):
    lhs, rhs = random_tensor(0, (1, 4, 4, 2)), random_tensor(1, (3, 3, 2, 2))
    with pytest.raises(InputError, match=r"1 strides came for an input of shape \(1, 4, 4, 2\); give 2"):
        conv_general_dilated(lhs, rhs, Window((1,), padding))


@pytest.mark.parametrize("padding", ["SAME", "same_lower", "Valid"])
def test_padding_by_name_is_that_of_lax_in_any_case(padding):
    window = Window((2, 1), padding, (1, 2))
    expected = lax.padtype_to_pads((6, 5), (2, 3), (2, 1), padding.upper())  # two taps, two steps apart: a window of 3
    assert window.pads((1, 6, 5, 3), (2, 2, 3, 4)) == [tuple(map(int, pair)) for pair in expected]


@pytest.mark.parametrize(("padding", "words"), [("SOME", "'SOME'; give one of SAME,"), (((1, 1),), "give 2 pairs")])
def test_padding_that_is_not_known_is_refused(padding, words):
    with pytest.raises(InputError, match=words):
        Window((1, 1), padding).pads((1, 4, 4, 2), (3, 3, 2, 2))


def test_a_sum_made_ahead_changes_nothing():
    lhs = random_tensor(0, (2, 4, 4, 3), symmetric=False)
    rhs = random_tensor(1, (3, 3, 3, 2), of_scale=(1, 1, 1, 2))
    total = jnp.sum(rhs.qvalue.astype(jnp.int32), (0, 1, 2), keepdims=True)
    ahead, wrong = (QTensor(rhs.qvalue, rhs.qparams, rhs.scheme, value) for value in (total, total + 1000))
    window = Window((1, 1))
    np.testing.assert_array_equal(both(lhs, ahead, window)[0], both(lhs, rhs, window)[0])
    assert (both(lhs, wrong, window)[0] != both(lhs, rhs, window)[0]).any()


def test_bias_and_out_dtype():
    lhs, rhs = random_tensor(0, (2, 4, 4, 3)), random_tensor(1, (3, 3, 3, 2))
    bias = jnp.array([0.5, -1.0])
    exact = oracle(lhs, rhs, (1, 1), [(1, 1), (1, 1)], (1, 1), 1) + np.asarray(bias, np.float64)
    np.testing.assert_array_equal(conv_general_dilated(lhs, rhs, Window((1, 1)), bias=bias), exact)
    for fn in (conv_general_dilated, conv_general_dilated_float):
        out = fn(lhs, rhs, Window((1, 1)), bias=bias, out_dtype=jnp.bfloat16)
        np.testing.assert_array_equal(out, jnp.asarray(exact, jnp.float32).astype(jnp.bfloat16))


@pytest.mark.optimized
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_program_holds_integer_convolutions_only(bits, symmetric):
    lhs = random_tensor(0, (1, 8, 8, 16), symmetric=symmetric)
    rhs = random_tensor(1, (3, 3, 16, 32), bits, symmetric=symmetric, of_scale=(1, 1, 1, 32))
    lowered = jax.jit(lambda lhs, rhs: conv_general_dilated(lhs, rhs, Window((1, 1)))).lower(lhs, rhs)
    found = [line for line in lowered.as_text().splitlines() if "stablehlo.convolution" in line]
    assert len(found) == (1 if symmetric else 2)  # rhs' zero point takes the sum over each window
    assert all(re.search(r"xi8>, tensor<[\dx]+xi8>\) -> tensor<[\dx]+xi32>", line) for line in found)
    results = re.findall(r"= (\w+)\[[\d,]*\]\S* (?:convolution|dot)\(", lowered.compile().as_text())
    assert results
    assert set(results) == {"s32"}


@pytest.mark.parametrize("padding", [((1, 1), (1, 1)), ((0, 2), (1, 0)), ((-1, 1), (0, -1)), ((0, 0), (0, 0))])
def test_borders_mean_zero_on_a_cpu_as_elsewhere(padding):
    codes = jnp.asarray(np.random.default_rng(0).integers(-128, 128, (2, 3, 4, 5)), jnp.int8)
    expected = lax.pad(codes, jnp.int8(-7), [(0, 0, 0), *((a, b, 0) for a, b in padding), (0, 0, 0)])
    np.testing.assert_array_equal(jax.jit(_pad_with_code, static_argnums=2)(codes, jnp.int32(-7), padding), expected)


def test_borders_where_whole_numbers_have_64_bits():
    codes = jnp.ones((1, 3, 3, 2), jnp.int8)
    with jax.enable_x64(True):
        found = jax.jit(_pad_with_code, static_argnums=2)(codes, jnp.int32(-7), ((1, 0), (0, 1)))
    np.testing.assert_array_equal(found[:, 1:, :3], codes)


@pytest.mark.optimized
def test_borders_are_no_part_of_what_makes_the_codes_on_a_cpu():
    """XLA:CPU would compute the sigmoid element by element in one loop with a pad."""

    def call(x):
        return _pad_with_code(jnp.round(100 * jax.nn.sigmoid(x)).astype(jnp.int8), jnp.int32(3), [(1, 1), (1, 1)])

    text = jax.jit(call).lower(jnp.ones((2, 8, 8, 16))).compile().as_text()
    assert "dynamic-update-slice(" in text and " pad(" not in text
