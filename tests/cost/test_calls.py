import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdq.cost import bytes_of, network_of
from jaxdq.linen import DotProductAttention, count_macs
from jaxdq.models.unet import load_denoiser


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, t):
        h = nn.silu(nn.LayerNorm(name="norm")(x))
        q = nn.Dense(8, name="to_q")(h).reshape(*x.shape[:2], 2, 4)
        h = DotProductAttention(name="attention")(q, q, q).reshape(x.shape)
        h = jnp.einsum("blc,bmc->blm", h, x) @ x  # products of its own
        return jnp.concatenate([x + nn.Dense(8, name="out")(h), x], axis=-1)


X = jax.ShapeDtypeStruct((2, 5, 8), jnp.float32)
PARAMS = jax.eval_shape(Block().init, jax.random.key(0), X, 0)["params"]


def test_leaves_in_order_with_their_shapes_and_the_products_of_nobody():
    calls = network_of(Block(), PARAMS, X, 0).calls
    assert [(call.path, call.kind) for call in calls] == [
        ("norm", "norms"),
        ("to_q", "dense layers"),
        ("attention", "attention"),
        ("out", "dense layers"),
        ("(a product of its own)", "attention"),
        ("(a product of its own)", "attention"),
    ]
    assert [shape.shape for shape in calls[2].inputs] == [(2, 5, 2, 4)] * 3
    assert calls[1].params["kernel"].shape == (8, 8)
    assert calls[0].output == X


def test_what_stands_between_is_the_second_term_of_the_sum_and_the_concatenation():
    found = network_of(Block(), PARAMS, X, 0)
    one = bytes_of(X)
    assert found.moved_bytes == one + 4 * one
    assert found.live_bytes == 3 * one  # the sum, and the two side by side; x is an argument


def test_a_whole_unet_loses_no_arithmetic():
    denoiser = load_denoiser("digits")
    args = (jnp.zeros((2, *denoiser.shape)), jnp.int32(3))
    found = network_of(denoiser.module, denoiser.params, *args)

    def macs(call):
        return count_macs(
            jax.make_jaxpr(lambda p, *x: call.module.apply({"params": p}, *x))(call.params, *call.inputs).jaxpr
        )

    def whole(params, *args):
        return denoiser.module.apply({"params": params}, *args)

    assert sum(map(macs, found.calls)) == count_macs(jax.make_jaxpr(whole)(denoiser.params, *args).jaxpr)
    assert found.live_bytes > 4 * bytes_of(args[0])


def test_functions_and_arithmetic_between_the_calls_are_counted_by_element():
    found = dict(network_of(Block(), PARAMS, X, 0).computed)
    elements = 2 * 5 * 8
    assert found == {("logistic", "float32"): elements, ("arithmetic", "float32"): 2 * elements}  # silu, and one sum
