import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdq.linen._einsum import Einsum


@pytest.mark.parametrize(
    ("spec", "lhs", "rhs"),
    [("ij,jk->ik", (2, 3), (3, 4)), ("blhd,bmhd->bhlm", (2, 5, 3, 4), (2, 6, 3, 4)), ("bi,bi->b", (2, 3), (2, 3))],
)
def test_oracle_equals_numpy(spec, lhs, rhs):
    rng = np.random.default_rng(0)
    lhs, rhs = rng.normal(size=lhs).astype(np.float32), rng.normal(size=rhs).astype(np.float32)
    # At most a handful of float32 products per sum.
    np.testing.assert_allclose(Einsum(spec).apply({}, lhs, rhs), np.einsum(spec, lhs, rhs), rtol=1e-5, atol=1e-6)


def test_interception_sees_it_by_its_path_and_can_replace_it():
    class Product(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Einsum("ij,kj->ik", name="scores")(x, x)

    seen = []

    def replace(next_fun, args, kwargs, context):
        if isinstance(context.module, Einsum):
            seen.append((context.module.path, context.module.spec, [arg.shape for arg in args]))
            return next_fun(*args, **kwargs) + 1
        return next_fun(*args, **kwargs)

    with nn.intercept_methods(replace):
        result = Product().apply({}, jnp.eye(2))
    assert seen == [(("scores",), "ij,kj->ik", [(2, 2), (2, 2)])]
    np.testing.assert_array_equal(result, jnp.eye(2) + 1)
