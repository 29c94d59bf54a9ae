import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdq._common.errors import InputError
from jaxdq.grid import Scheme

# Written by hand, not recomputed by the formula under test.
BOUNDS = {
    2: ((-1, 1), (-2, 1)),
    3: ((-3, 3), (-4, 3)),
    4: ((-7, 7), (-8, 7)),
    5: ((-15, 15), (-16, 15)),
    6: ((-31, 31), (-32, 31)),
    7: ((-63, 63), (-64, 63)),
    8: ((-127, 127), (-128, 127)),
}


@pytest.mark.parametrize("bits", BOUNDS)
def test_golden_bounds(bits):
    assert (Scheme(bits).bounds, Scheme(bits, symmetric=False).bounds) == BOUNDS[bits]


@pytest.mark.parametrize(
    ("bits", "dtype"), [(2, "int2"), (3, "int4"), (4, "int4"), (5, "int8"), (6, "int8"), (7, "int8"), (8, "int8")]
)
def test_golden_storage_dtype(bits, dtype):
    assert Scheme(bits).storage_dtype == jnp.dtype(dtype)
    lo, hi = Scheme(bits, symmetric=False).bounds
    assert jnp.array([lo, hi], jnp.int8).astype(dtype).astype(jnp.int32).tolist() == [lo, hi]


@pytest.mark.parametrize("bits", [-8, 0, 1, 9, 16, 8.0, 4.5, True, None, "8", float("nan")])
def test_bits_outside_the_range_are_refused(bits):
    with pytest.raises(InputError, match=r"bits is .*; give a whole number from 2 to 8\."):
        Scheme(bits)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64])
@pytest.mark.parametrize(("bits", "bounds"), [(2, (-2, 1)), (8, (-128, 127))])
def test_numpy_bits_are_bits(dtype, bits, bounds):
    scheme = Scheme(dtype(bits), symmetric=False)
    assert scheme.bounds == bounds and type(scheme.bits) is int
    assert Scheme(dtype(bits)).bounds == (-bounds[1], bounds[1])


@pytest.mark.parametrize(
    ("channel_axis", "kept", "reduced"),
    [
        (None, (), (0, 1, 2, 3)),
        (-1, (3,), (0, 1, 2)),
        (0, (0,), (1, 2, 3)),
        ((-1, 1, 3), (1, 3), (0, 2)),
        ((), (), (0, 1, 2, 3)),
    ],
)
def test_axes(channel_axis, kept, reduced):
    scheme = Scheme(8, channel_axis=channel_axis)
    assert scheme.channel_axes(4) == kept
    assert scheme.reduced_axes(4) == reduced


@pytest.mark.parametrize(("channel_axis", "ndim"), [(2, 2), (-3, 2), ((0, 5), 3), (0, 0)])
def test_axes_that_do_not_exist_are_refused(channel_axis, ndim):
    with pytest.raises(InputError, match=f"does not exist in a tensor of {ndim} axes"):
        Scheme(8, channel_axis=channel_axis).channel_axes(ndim)


def test_is_a_static_value():
    assert hash(Scheme(8, channel_axis=(0, 1))) == hash(Scheme(8, channel_axis=(0, 1)))
    assert Scheme(8) != Scheme(8, symmetric=False)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Scheme(8).bits = 4


def test_says_itself_in_a_table():
    assert [str(Scheme(8)), str(Scheme(4, symmetric=False))] == ["8", "4a"]
