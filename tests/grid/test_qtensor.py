import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdq.grid import QParams, QTensor, Scheme, dequantize, quantize, stored_bytes


def make(bits, shape, symmetric=True):
    zero_point = None if symmetric else jnp.int32(0)
    return quantize(jnp.ones(shape), QParams(jnp.float32(1), zero_point), Scheme(bits, symmetric))


@pytest.mark.parametrize(
    ("dtype", "num_bytes"), [("int2", 2), ("int4", 3), ("int8", 5), ("bfloat16", 10), ("float32", 20), ("bool", 5)]
)
def test_golden_stored_bytes_of_five(dtype, num_bytes):
    assert stored_bytes(jnp.zeros(5, dtype)) == num_bytes
    assert stored_bytes(jax.ShapeDtypeStruct((5,), jnp.dtype(dtype))) == num_bytes


def test_stored_bytes_of_trees():
    assert stored_bytes({}) == 0
    assert stored_bytes({"a": jnp.zeros((3, 0)), "b": None}) == 0
    assert stored_bytes([np.zeros(3), {"b": jnp.float32(0)}]) == 24 + 4
    assert stored_bytes(make(4, (8, 8))) == 32 + 4  # codes and one scale
    assert stored_bytes(make(2, (8, 8), symmetric=False)) == 16 + 4 + 4  # and a zero point


def test_is_a_pytree_with_a_static_scheme():
    tensor = make(4, (2, 3))
    leaves, tree = jax.tree.flatten(tensor)
    assert [leaf.shape for leaf in leaves] == [(2, 3), ()]
    assert jax.tree.unflatten(tree, leaves).scheme == Scheme(4)
    assert (tensor.shape, tensor.ndim) == ((2, 3), 2)


def test_passes_through_jit_scan_and_vmap():
    tensor = make(8, (4, 3))
    np.testing.assert_array_equal(jax.jit(dequantize)(tensor), np.ones((4, 3)))
    in_axes = QTensor(0, QParams(None), Scheme(8))
    assert jax.vmap(lambda t: dequantize(t).sum(), in_axes=(in_axes,))(tensor).tolist() == [3, 3, 3, 3]
    carried, _ = jax.lax.scan(lambda t, _: (t, None), tensor, length=2)
    np.testing.assert_array_equal(carried.qvalue, tensor.qvalue)
