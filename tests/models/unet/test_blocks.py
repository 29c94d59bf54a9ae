import jax
import jax.numpy as jnp
import numpy as np
import pytest
from twins import compiled

from jaxdq.models.unet._blocks import Attention, Downsample, ResnetBlock, Style, group_norm, upsample_nearest

STYLE = Style(num_groups=2, eps=1e-5, scale_shift=False)


def test_golden_upsampling_repeats_every_pixel():
    x = jnp.arange(8.0).reshape(1, 2, 2, 2)
    np.testing.assert_array_equal(upsample_nearest(x), np.asarray(x).repeat(2, axis=1).repeat(2, axis=2))


def test_golden_downsampling_pads_where_it_says():
    x = jnp.ones((1, 4, 4, 1))
    params = {"conv": {"kernel": jnp.ones((3, 3, 1, 1)), "bias": jnp.zeros(1)}}
    both_sides = Downsample(1).apply({"params": params}, x)[0, ..., 0]
    after_only = Downsample(0).apply({"params": params}, x)[0, ..., 0]
    np.testing.assert_array_equal(both_sides, [[4, 6], [6, 9]])
    np.testing.assert_array_equal(after_only, [[9, 6], [6, 4]])


def test_the_norm_keeps_its_digits_far_from_zero():
    x = 1000 + np.random.default_rng(0).normal(size=(1, 8, 8, 2)).astype(np.float32)
    norm = group_norm(1, 1e-5, "norm")
    y = norm.apply({"params": {"scale": jnp.ones(2), "bias": jnp.zeros(2)}}, x)
    exact = (x - x.mean(dtype=np.float64)) / np.sqrt(x.var(dtype=np.float64) + 1e-5)
    # x itself is rounded to 6e-5; the variance as E[x^2] - E[x]^2 would be off by a tenth.
    np.testing.assert_allclose(y, exact, atol=5e-4)


def test_invariant_attention_does_not_see_the_order_of_pixels():
    attention = Attention(head_dim=4, num_groups=2, eps=1e-5)
    x = jax.random.normal(jax.random.key(0), (2, 2, 4, 8))
    variables = compiled(attention.init)(jax.random.key(1), x)
    swapped = compiled(attention.apply)(variables, x.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)
    np.testing.assert_allclose(compiled(attention.apply)(variables, x), swapped, atol=1e-5)


def test_attention_without_norm_has_no_norm_parameters():
    attention = Attention(head_dim=None, num_groups=None, eps=1e-5)
    variables = jax.eval_shape(attention.init, jax.random.key(0), jnp.zeros((1, 2, 2, 4)))
    assert set(variables["params"]) == {"to_q", "to_k", "to_v", "to_out_0"}


@pytest.mark.parametrize(("resample", "side"), [(None, 4), ("up", 8), ("down", 2)])
def test_a_silent_residual_block_is_its_resampled_shortcut(resample, side):
    block = ResnetBlock(4, STYLE._replace(output_scale=2.0), resample=resample)
    x, temb = jnp.full((1, 4, 4, 4), 6.0), jnp.zeros((1, 8))
    params = compiled(block.init)(jax.random.key(0), x, temb)["params"]
    params["conv2"] = jax.tree.map(jnp.zeros_like, params["conv2"])
    y = compiled(block.apply)({"params": params}, x, temb)
    np.testing.assert_allclose(y, jnp.full((1, side, side, 4), 3.0), rtol=1e-6)
