import jax.numpy as jnp
import numpy as np
import pytest

from jaxdq._common.errors import InputError
from jaxdq.grid import QParams, QTensor, Scheme
from jaxdq.ops._epilogue import check_leaves_contraction, check_terms, finish


def codes(bits, symmetric):
    zero_point = None if symmetric else jnp.int32(0)
    return QTensor(jnp.zeros((1, 1), jnp.int8), QParams(jnp.float32(1), zero_point), Scheme(bits, symmetric))


# (2**31 - 1) over the largest |q_l - z_l| |q_r - z_r|: 127 symmetric, 255 asymmetric at 8 bits; 7 and 15 at 4.
@pytest.mark.parametrize(
    ("lhs", "rhs", "most"),
    [
        (codes(8, True), codes(8, True), 133_144),
        (codes(8, False), codes(8, True), 66_311),
        (codes(8, True), codes(8, False), 66_311),
        (codes(8, False), codes(8, False), 33_025),
        (codes(8, False), codes(4, True), 1_203_072),
        (codes(4, False), codes(4, False), 9_544_371),
    ],
)
def test_golden_terms_that_fit_int32(lhs, rhs, most):
    check_terms(most, lhs, rhs)
    with pytest.raises(InputError, match=f"over {most + 1} products of .* parts of at most {most}"):
        check_terms(most + 1, lhs, rhs)


@pytest.mark.parametrize("shape", [(), (1, 1, 1), (4, 1, 1), (4, 1, 5)])
def test_scales_that_leave_the_contraction(shape):
    check_leaves_contraction(jnp.ones(shape), 3, (1,), "lhs")


def test_scales_that_do_not_are_refused():
    with pytest.raises(InputError, match=r"lhs scale has shape \(4, 3, 1\) and varies along the contracted axes \[1\]"):
        check_leaves_contraction(jnp.ones((4, 3, 1)), 3, (1, 2), "lhs")
    with pytest.raises(InputError, match=r"rhs scale has shape \(3,\) for an operand of 2 axes"):
        check_leaves_contraction(jnp.ones(3), 2, (0,), "rhs")


def test_golden_finish():
    total = jnp.array([[3, -4]], jnp.int32)
    assert finish(total, 0, jnp.float32(0.5), None, None).tolist() == [[1.5, -2.0]]
    out = finish(total, 0, jnp.array([[0.5, 2.0]]), jnp.array([1.0, 0.25], jnp.float16), None)
    assert (out.tolist(), out.dtype) == ([[2.5, -7.75]], jnp.float32)
    corrected = finish(total, jnp.array([[1, -2]], jnp.int32), jnp.float32(0.5), jnp.array([1.0, 0.25]), None)
    assert corrected.tolist() == [[2.0, -0.75]]
    assert finish(total, jnp.int32(1), jnp.float32(0.5), None, None).tolist() == [[1.0, -2.5]]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, "bfloat16", np.dtype("bfloat16")])
def test_the_bias_is_added_before_the_one_cast(dtype):
    # 256 + 1 + 1 in bfloat16 steps of 2 would round 257 to 256 first; in float32 it is 258.
    out = finish(jnp.array([257], jnp.int32), 0, jnp.float32(1), jnp.array([1.0]), dtype)
    assert (out.dtype, float(out[0])) == (jnp.bfloat16, 258)


@pytest.mark.parametrize("leading", [0, 1, 2, 3])
@pytest.mark.parametrize("bias_leading", [0, 2])
def test_rows_are_the_same_however_many_axes_stand_before_them(leading, bias_leading):
    rng = np.random.default_rng(0)
    total = jnp.asarray(rng.integers(-99, 99, (2, 3, 4, 5)), jnp.int32)
    correction = rng.integers(-9, 9, (4, 5))
    scale, bias = (rng.uniform(0.5, 1.0, (4, 5)).astype(np.float32) for _ in range(2))
    rows = (jnp.asarray(x).reshape((1,) * leading + (4, 5)) for x in (correction, scale))
    out = finish(total, *rows, jnp.asarray(bias).reshape((1,) * bias_leading + (4, 5)), None)
    np.testing.assert_allclose(out, (total - correction) * scale + bias, rtol=1e-5, atol=1e-5)
    assert out.shape == total.shape
