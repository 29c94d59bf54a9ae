import functools
import itertools
import re

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from jaxdq._common.errors import InputError
from jaxdq.grid import QParams, QTensor, Scheme
from jaxdq.ops import dot_general, dot_general_float

MATMUL = (((1,), (0,)), ((), ()))
SYMMETRY = pytest.mark.parametrize(("lhs_symmetric", "rhs_symmetric"), list(itertools.product([True, False], repeat=2)))


def random_tensor(seed, shape, bits=8, *, symmetric=True, kept=()):
    """Codes over all of the grid; powers of two as scales, so that float64 is exact."""
    rng = np.random.default_rng(seed)
    scheme = Scheme(bits, symmetric)
    lo, hi = scheme.bounds
    of_scale = tuple(size if axis in kept else 1 for axis, size in enumerate(shape)) if kept else ()
    scale = jnp.asarray(2.0 ** rng.integers(-6, 2, of_scale), jnp.float32)
    zero_point = None if symmetric else jnp.asarray(rng.integers(lo, hi + 1, of_scale), jnp.int32)
    qvalue = jnp.asarray(rng.integers(lo, hi + 1, shape), jnp.int8).astype(scheme.storage_dtype)
    return QTensor(qvalue, QParams(scale, zero_point), scheme)


def float64(tensor):
    zero_point = 0 if tensor.qparams.zero_point is None else np.asarray(tensor.qparams.zero_point, np.float64)
    return np.asarray(tensor.qparams.scale, np.float64) * (np.asarray(tensor.qvalue).astype(np.float64) - zero_point)


def oracle(lhs, rhs, dims):
    (lhs_contract, rhs_contract), (lhs_batch, rhs_batch) = dims
    names = iter("abcdefghijklmnopq")
    of_lhs = [next(names) for _ in range(lhs.ndim)]
    of_rhs = [next(names) for _ in range(rhs.ndim)]
    for mine, other in zip((*lhs_contract, *lhs_batch), (*rhs_contract, *rhs_batch), strict=True):
        of_rhs[other] = of_lhs[mine]
    out = [of_lhs[axis] for axis in lhs_batch]
    out += [of_lhs[axis] for axis in range(lhs.ndim) if axis not in (*lhs_contract, *lhs_batch)]
    out += [of_rhs[axis] for axis in range(rhs.ndim) if axis not in (*rhs_contract, *rhs_batch)]
    return np.einsum(f"{''.join(of_lhs)},{''.join(of_rhs)}->{''.join(out)}", float64(lhs), float64(rhs))


@functools.partial(jax.jit, static_argnums=2)
def both(lhs, rhs, dims):
    return dot_general(lhs, rhs, dims), dot_general_float(lhs, rhs, dims)


def check(lhs, rhs, dims):
    """The integer path is exact: sums of fewer than 2**24 units, times powers of two."""
    exact = oracle(lhs, rhs, dims)
    ours, twin = both(lhs, rhs, dims)
    assert ours.dtype == jnp.float32
    np.testing.assert_array_equal(ours, exact)
    np.testing.assert_allclose(twin, exact, rtol=1e-6, atol=1e-6 * np.abs(exact).max(initial=0))


@SYMMETRY
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_oracle_matmul_per_row_and_per_channel(bits, lhs_symmetric, rhs_symmetric):
    lhs = random_tensor(0, (5, 37), symmetric=lhs_symmetric, kept=(0,))
    rhs = random_tensor(1, (37, 3), bits, symmetric=rhs_symmetric, kept=(1,))
    check(lhs, rhs, MATMUL)


DIMS = {
    "vectors": ((7,), (7,), (((0,), (0,)), ((), ()))),
    "dense_on_rank_4": ((2, 3, 4, 7), (7, 5), (((3,), (0,)), ((), ()))),
    "dense_general_out": ((2, 3, 4, 5), (4, 5, 6), (((2, 3), (0, 1)), ((), ()))),
    "dense_general_in": ((2, 3, 7), (7, 4, 5), (((2,), (0,)), ((), ()))),
    "crossed_contraction": ((4, 5, 2), (5, 3, 4), (((0, 1), (2, 0)), ((), ()))),
    "attention_scores": ((2, 6, 3, 4), (2, 5, 3, 4), (((3,), (3,)), ((0, 2), (0, 2)))),
    "crossed_batch": ((5, 3, 4), (4, 3, 5), (((0,), (2,)), ((1, 2), (1, 0)))),
    "outer": ((3,), (4,), (((), ()), ((), ()))),
}


@SYMMETRY
@pytest.mark.parametrize("name", DIMS)
def test_oracle_contractions(name, lhs_symmetric, rhs_symmetric):
    lhs_shape, rhs_shape, dims = DIMS[name]
    (lhs_contract, rhs_contract), _ = dims
    lhs_kept = tuple(axis for axis in range(len(lhs_shape)) if axis not in lhs_contract)
    rhs_kept = tuple(axis for axis in range(len(rhs_shape)) if axis not in rhs_contract)
    # Scales along every axis that may have them, the batch axes included.
    check(
        random_tensor(2, lhs_shape, symmetric=lhs_symmetric, kept=lhs_kept),
        random_tensor(3, rhs_shape, 4, symmetric=rhs_symmetric, kept=rhs_kept),
        dims,
    )


@settings(max_examples=12)
@given(
    st.lists(st.integers(0, 4), min_size=0, max_size=2),
    st.lists(st.integers(1, 6), min_size=1, max_size=2),
    st.lists(st.integers(1, 4), min_size=0, max_size=2),
    st.integers(2, 8),
    st.tuples(st.booleans(), st.booleans()),
)
def test_oracle_any_shape(rows, terms, columns, bits, symmetric):
    lhs = random_tensor(4, (*rows, *terms), symmetric=symmetric[0])
    rhs = random_tensor(5, (*terms, *columns), bits, symmetric=symmetric[1])
    contract = tuple(range(len(rows), len(rows) + len(terms))), tuple(range(len(terms)))
    check(lhs, rhs, (contract, ((), ())))


@SYMMETRY
def test_extreme_codes_do_not_overflow(lhs_symmetric, rhs_symmetric):
    """The largest sum that is let through: every term at its extreme, zero points at the other end."""
    tensors = []
    for symmetric, shape in ((lhs_symmetric, (1, 33_025)), (rhs_symmetric, (33_025, 1))):
        lo, hi = Scheme(8, symmetric).bounds
        qparams = QParams(jnp.float32(1), None if symmetric else jnp.int32(lo))
        tensors.append(
            (QTensor(jnp.full(shape, hi, jnp.int8), qparams, Scheme(8, symmetric)), hi - (0 if symmetric else lo))
        )
    (lhs, reach_lhs), (rhs, reach_rhs) = tensors
    np.testing.assert_array_equal(both(lhs, rhs, MATMUL)[0], np.float32(33_025 * reach_lhs * reach_rhs))


def test_overflow_is_refused():
    lhs, rhs = random_tensor(0, (1, 33_026), symmetric=False), random_tensor(1, (33_026, 1), symmetric=False)
    with pytest.raises(InputError, match=r"33026 products of 8a and 8a bits can overflow int32; .* at most 33025"):
        dot_general(lhs, rhs, MATMUL)


@pytest.mark.parametrize(
    ("lhs_kept", "rhs_kept", "side"), [((1,), (), "lhs"), ((), (0,), "rhs"), ((0, 1), (1,), "lhs")]
)
def test_a_scale_along_the_contraction_is_refused(lhs_kept, rhs_kept, side):
    lhs, rhs = random_tensor(0, (3, 4), kept=lhs_kept), random_tensor(1, (4, 5), kept=rhs_kept)
    with pytest.raises(InputError, match=f"the {side} scale .* varies along the contracted axes"):
        dot_general(lhs, rhs, MATMUL)


def with_sum(tensor, axes):
    total = jnp.sum(tensor.qvalue.astype(jnp.int32), axes, keepdims=True)
    return QTensor(tensor.qvalue, tensor.qparams, tensor.scheme, total)


def test_a_sum_made_ahead_changes_nothing():
    lhs, rhs = random_tensor(0, (5, 7), symmetric=False), random_tensor(1, (7, 3), symmetric=False, kept=(1,))
    np.testing.assert_array_equal(both(lhs, with_sum(rhs, (0,)), MATMUL)[0], both(lhs, rhs, MATMUL)[0])
    # Used indeed: a wrong sum of the right shape shows.
    wrong = QTensor(rhs.qvalue, rhs.qparams, rhs.scheme, jnp.full((1, 3), 1000))
    assert (both(lhs, wrong, MATMUL)[0] != both(lhs, rhs, MATMUL)[0]).any()


def test_a_sum_over_other_axes_is_not_used():
    lhs, rhs = random_tensor(0, (5, 7), symmetric=False), random_tensor(1, (7, 3), symmetric=False)
    np.testing.assert_array_equal(both(lhs, with_sum(rhs, (0, 1)), MATMUL)[0], both(lhs, rhs, MATMUL)[0])


def test_bias_and_out_dtype():
    lhs, rhs = random_tensor(0, (5, 7)), random_tensor(1, (7, 3), kept=(1,))
    bias = jnp.array([0.5, -1.0, 2.0])
    exact = oracle(lhs, rhs, MATMUL) + np.asarray(bias, np.float64)
    np.testing.assert_array_equal(dot_general(lhs, rhs, MATMUL, bias=bias), exact)
    for fn in (dot_general, dot_general_float):
        out = fn(lhs, rhs, MATMUL, bias=bias, out_dtype=jnp.bfloat16)
        np.testing.assert_array_equal(out, jnp.asarray(exact, jnp.float32).astype(jnp.bfloat16))
        assert out.dtype == jnp.bfloat16


@pytest.mark.parametrize("bits", [8, 4])
def test_the_program_holds_integer_dots_only(bits):
    lhs, rhs = random_tensor(0, (16, 64), symmetric=False), random_tensor(1, (64, 32), bits, symmetric=False, kept=(1,))
    text = jax.jit(lambda lhs, rhs: dot_general(lhs, rhs, MATMUL)).lower(lhs, rhs).as_text()
    dots = [line for line in text.splitlines() if "dot_general" in line]
    assert len(dots) == 1
    assert re.search(r"\(tensor<16x64xi8>, tensor<64x32xi8>\) -> tensor<16x32xi32>", dots[0])
    twin = jax.jit(lambda lhs, rhs: dot_general_float(lhs, rhs, MATMUL)).lower(lhs, rhs).as_text()
    assert re.search(r"dot_general.*-> tensor<16x32xf32>", twin)


@pytest.mark.optimized
@pytest.mark.parametrize("bits", [8, 4])
def test_the_compiled_program_multiplies_integers(bits):
    lhs, rhs = random_tensor(0, (16, 64)), random_tensor(1, (64, 32), bits, kept=(1,))
    text = jax.jit(lambda lhs, rhs: dot_general(lhs, rhs, MATMUL)).lower(lhs, rhs).compile().as_text()
    results = re.findall(r"= (\w+)\[[\d,]*\]\S* dot\(", text)
    assert results
    assert set(results) == {"s32"}
