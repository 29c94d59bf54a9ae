import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.models.transformers.dual_transformer_2d import DualTransformer2DModel
from twins import compiled

from jaxdq.models.unet._activations import gelu
from jaxdq.models.unet._transformer import DUAL_TOKENS, FLAX, TORCH, CrossAttention, DualTransformer, Geglu, Transformer
from jaxdq.models.unet._weights import params_from_torch


def test_golden_the_gate_is_the_second_half():
    kernel = jnp.array([[2.0, 0.0, 0.0, 100.0]])
    params = {"proj": {"kernel": kernel, "bias": jnp.array([0.0, 5.0, 100.0, 0.0])}}
    y = Geglu(2, approximate=False).apply({"params": params}, jnp.ones((1, 1, 1)))
    np.testing.assert_array_equal(y, [[[200.0, 500.0]]])  # gelu(100) is 100 in float32


def test_invariant_attention_does_not_see_the_order_of_the_context():
    attention = CrossAttention(num_heads=2, head_dim=2)
    x, context = (jax.random.normal(jax.random.key(i), (2, 3 + i, 4 + 2 * i)) for i in range(2))
    variables = compiled(attention.init)(jax.random.key(2), x, context)
    apply = compiled(attention.apply)
    np.testing.assert_allclose(apply(variables, x, context[:, ::-1]), apply(variables, x, context), atol=1e-6)


def test_both_projections_compute_the_same():
    x, context = jax.random.normal(jax.random.key(0), (1, 2, 4, 4)), jnp.ones((1, 3, 5))
    dense, conv = (
        Transformer(num_heads=2, num_layers=1, num_groups=2, linear_projection=linear, numerics=TORCH)
        for linear in (True, False)
    )
    params = compiled(dense.init)(jax.random.key(1), x, context)["params"]
    as_conv = params | {
        name: params[name] | {"kernel": params[name]["kernel"][None, None]} for name in ("proj_in", "proj_out")
    }
    ours, theirs = (
        compiled(module.apply)({"params": p}, x, context) for module, p in ((dense, params), (conv, as_conv))
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("numerics", [TORCH, FLAX])
def test_a_silent_projection_leaves_the_shortcut(numerics):
    module = Transformer(num_heads=1, num_layers=2, num_groups=1, linear_projection=True, numerics=numerics)
    x, context = jnp.full((1, 2, 2, 4), 3.0), jnp.ones((1, 3, 5))
    params = compiled(module.init)(jax.random.key(0), x, context)["params"]
    params["proj_out"] = jax.tree.map(jnp.zeros_like, params["proj_out"])
    np.testing.assert_array_equal(compiled(module.apply)({"params": params}, x, context), x)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_gelu_in_16_bits_is_the_exact_one_rounded(dtype):
    x = jnp.linspace(-9, 9, 4001).astype(dtype)
    exact = [value * 0.5 * math.erfc(-value / math.sqrt(2)) for value in np.asarray(x, np.float64)]
    out = np.asarray(gelu(x, approximate=False), np.float64)
    half = np.finfo(np.float16).eps / 2 if dtype == jnp.float16 else 2.0**-8
    np.testing.assert_allclose(out, exact, rtol=1.01 * half, atol=4e-6)
    ends = gelu(jnp.asarray([-300.0, 300.0, jnp.inf], dtype), approximate=False)
    assert ends.tolist() == [0, 300, jnp.inf]


@pytest.mark.parametrize("approximate", [True, False])
def test_gelu_in_float32_is_flax_s_own(approximate):
    x = jnp.linspace(-9, 9, 101)
    np.testing.assert_allclose(
        gelu(x, approximate=approximate), nn.gelu(x, approximate=approximate), rtol=1e-6, atol=1e-6
    )


def test_two_transformers_read_two_parts_of_the_context():
    x, context = seeded((2, 4, 4, 8), 0), seeded((2, sum(DUAL_TOKENS), 6), 1)
    torch.manual_seed(0)
    theirs = DualTransformer2DModel(2, 4, 8, norm_num_groups=4, cross_attention_dim=6).eval()
    tensors = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    ours = DualTransformer(2, 4, TORCH)
    params = params_from_torch(tensors, jax.eval_shape(ours.init, jax.random.key(0), x, context)["params"], "the twin")
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(context)).sample
    out = compiled(ours.apply)({"params": params}, x, context)
    np.testing.assert_allclose(out, expected.permute(0, 2, 3, 1).numpy(), atol=1e-5)


def seeded(shape, seed):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
