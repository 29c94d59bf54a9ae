"""Which layers are called with several arrays side by side."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdq.linen import find_sites

KEY = jax.random.key(0)


def dense(features, name, x):
    return nn.Dense(features, name=name)(x)


class Inner(nn.Module):
    @nn.compact
    def __call__(self, x):
        return dense(4, "dense", x)


class Joins(nn.Module):
    """Concatenations in every place from which a layer may get one."""

    @nn.compact
    def __call__(self, x, t):
        a, b = dense(3, "a", x), dense(2, "b", x)
        both = jnp.concatenate([a, b], -1)
        outs = {
            "whole": dense(4, "whole", a),
            "plain": dense(4, "plain", both),
            "nested": dense(4, "nested", jnp.concatenate([both, x], -1)),
            "cast": dense(4, "cast", both.astype(jnp.bfloat16)),
            "rows": dense(4, "rows", jnp.concatenate([a, a], 1)),
            "after": dense(4, "after", nn.silu(both)),
            "conv": nn.Conv(4, (3, 3), padding="CIRCULAR", name="conv")(both),
            "inside": nn.remat(Inner)(name="inside")(both),
            "other axis": nn.DenseGeneral(4, axis=1, name="other_axis")(both),
            "several": nn.DenseGeneral(4, axis=(-2, -1), name="several")(jnp.concatenate([x, x], -1))[:, :, None],
            "grouped": nn.Conv(4, (1, 1), feature_group_count=2, name="grouped")(jnp.concatenate([b, b], -1)),
        }
        shared = nn.Dense(4, name="shared")
        outs["shared"] = shared(both) + shared(jnp.concatenate([b, a], -1))
        total = sum(jnp.mean(out.astype(jnp.float32), axis=(1, 2), keepdims=True) for out in outs.values())
        return dense(2, "out", jnp.broadcast_to(total, (*x.shape[:-1], 4)))


def test_concatenations_are_found_wherever_they_reach_a_layer_as_they_are():
    x = jnp.zeros((2, 4, 4, 2))
    params = Joins().init(KEY, x, 0)["params"]
    found = {site.path: site.channels for site in find_sites(Joins(), params, x, jnp.int32(0))}
    assert found == {
        "a": (2,),
        "b": (2,),
        "whole": (3,),
        "plain": (3, 2),
        "nested": (3, 2, 2),
        "cast": (3, 2),
        "rows": (3,),
        "after": (5,),
        "conv": (3, 2),
        "inside/dense": (3, 2),
        "other_axis": (),
        "several": (),
        "grouped": (),
        "shared": (5,),
        "out": (4,),
    }
