import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp

from jaxdq._common.errors import InputError
from jaxdq.grid import Scheme, pack, unpack

BITS = range(2, 9)


@pytest.mark.parametrize("bits", BITS)
def test_exhaustive_codes_round_trip(bits):
    codes = np.arange(-(2 ** (bits - 1)), 2 ** (bits - 1)).astype(np.int8)
    packed = pack(codes, bits)
    assert packed.nbytes == bits * -(-codes.size // 8)
    np.testing.assert_array_equal(unpack(packed, bits, codes.shape), codes)


@given(st.data())
def test_roundtrip_any_shape(data):
    bits = data.draw(st.integers(2, 8))
    shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9))
    half = 2 ** (bits - 1)
    codes = data.draw(hnp.arrays(np.int8, shape, elements=st.integers(-half, half - 1)))
    packed = pack(codes, bits)
    assert packed.dtype == np.uint8
    assert packed.shape == (bits, -(-codes.size // 8))
    np.testing.assert_array_equal(unpack(packed, bits, shape), codes, strict=True)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_takes_narrow_device_arrays(bits):
    lo, hi = Scheme(bits, symmetric=False).bounds
    codes = jnp.arange(lo, hi + 1).astype(Scheme(bits).storage_dtype)
    np.testing.assert_array_equal(unpack(pack(codes, bits), bits, codes.shape), np.arange(lo, hi + 1))
    # A narrow array may be packed wider, too.
    np.testing.assert_array_equal(unpack(pack(codes, 8), 8, codes.shape), np.arange(lo, hi + 1))


def test_golden_bytes():
    # -3 = 101, 2 = 010, from the highest bit down; first code in the highest bit of a byte.
    assert pack(np.array([-3, 2]), bits=3).tolist() == [[0b10000000], [0b01000000], [0b10000000]]
    assert pack(np.array([], np.int8), bits=4).shape == (4, 0)


@pytest.mark.parametrize(("code", "bits"), [(2, 2), (-3, 2), (8, 4), (-129, 8), (128, 8), (65536, 8), (2**40, 3)])
def test_codes_that_do_not_fit_are_refused(code, bits):
    with pytest.raises(InputError, match=f"do not fit {bits} bits; clip to"):
        pack(np.array([0, code]), bits)


def test_wrong_shapes_are_refused():
    packed = pack(np.zeros(9, np.int8), 4)
    with pytest.raises(InputError, match=r"shape \(4, 2\); 4-bit codes of shape \(4, 5\) take \(4, 3\)"):
        unpack(packed, 4, (4, 5))
    with pytest.raises(InputError, match="3-bit codes"):
        unpack(packed, 3, (9,))
