import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import toy_params, toy_plan

from jaxdq import Rule, Scheme
from jaxdq.linen import kernel_from_matrix, kernel_matrix, layers_of, rows_of, without_rows

LAYERS = {
    "dense": (nn.Dense(5), (2, 3, 4)),
    "dense general, several axes": (nn.DenseGeneral((2, 3), axis=(-1, -2)), (2, 3, 4)),
    "conv": (nn.Conv(6, (3, 3)), (2, 5, 4, 3)),
    "conv strided, dilated": (nn.Conv(6, (3, 2), (2, 1), kernel_dilation=(1, 2)), (2, 7, 6, 3)),
    "conv VALID": (nn.Conv(6, (3, 3), padding="VALID"), (2, 5, 4, 3)),
    "conv CIRCULAR": (nn.Conv(6, (3, 3), padding="CIRCULAR"), (2, 5, 4, 3)),
    "conv REFLECT": (nn.Conv(6, (3, 3), padding="REFLECT"), (2, 5, 4, 3)),
    "conv CAUSAL": (nn.Conv(6, (3,), padding="CAUSAL"), (2, 5, 3)),
    "conv grouped": (nn.Conv(6, (3, 3), feature_group_count=3), (2, 5, 4, 6)),
    "conv depthwise": (nn.Conv(8, (3, 3), feature_group_count=4), (2, 5, 4, 4)),
    "conv in bfloat16": (nn.Conv(6, (3, 3), dtype=jnp.bfloat16), (2, 5, 4, 3)),
}


@pytest.mark.parametrize(("layer", "shape"), LAYERS.values(), ids=LAYERS)
def test_oracle_rows_times_the_kernel_are_the_layer(layer, shape):
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape).astype(np.float32)
    kernel = rng.standard_normal(layer.init(jax.random.key(0), x)["params"]["kernel"].shape).astype(np.float32)
    alone = layer.clone(use_bias=False, dtype=jnp.float32)
    wanted = np.asarray(alone.apply({"params": {"kernel": kernel}}, x))
    rows, matrix = rows_of(layer, x, kernel.shape), kernel_matrix(layer, kernel)
    found = np.moveaxis(np.matmul(rows, matrix), 0, -2)  # [R, G, N / G]
    np.testing.assert_allclose(found.reshape(wanted.shape), wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(kernel_from_matrix(layer, matrix, kernel.shape), kernel)


class Stacked(nn.Module):
    @nn.compact
    def __call__(self, x, t):
        def block(layer, carry, _):
            return layer(carry), None

        scanned = nn.scan(block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        x, _ = scanned(nn.Dense(4, name="many"), x, None)
        x = nn.DenseGeneral(4, axis=-1, batch_dims=(0,), name="batched")(x)
        return nn.Dense(4, name="one")(x)


def test_kernels_that_are_no_one_matrix_say_why():
    x, t = jnp.ones((2, 4)), jnp.int32(0)
    params = toy_params(Stacked(), x, t)
    plan = toy_plan(Stacked(), params, [Rule(".*", Scheme(8))], x, t)
    layers = layers_of(Stacked(), params, x, t)
    found = {site.path: without_rows(site, layers[site.path]) for site in plan.sites if site.weight is not None}
    assert found["one"] == ""
    assert "nn.scan" in found["many"]
    assert "batch_dims" in found.get("batched", "batch_dims")
