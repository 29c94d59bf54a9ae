"""Attention between the pixels of an image and the tokens of a text, as Stable Diffusion has it, in NHWC.

Every submodule carries the name it has in diffusers' PyTorch classes, as in ``_blocks``; diffusers' Flax classes have
the same names.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdq.models.unet._blocks import attend, group_norm

# Fixed in diffusers' code; no configuration has them.
LAYER_NORM_EPS = 1e-5
FEED_FORWARD_FACTOR = 4


class Numerics(NamedTuple):
    """Where diffusers' PyTorch and Flax classes differ for the same weights, by about 2e-4 of the output.

    Attributes:
        group_norm_eps: Added to the variance in the norm before the first projection.
        approximate_gelu: Gelu by its tanh approximation (True) or exactly (False).
    """

    group_norm_eps: float
    approximate_gelu: bool


TORCH = Numerics(1e-6, approximate_gelu=False)
FLAX = Numerics(1e-5, approximate_gelu=True)


def layer_norm(name: str) -> nn.LayerNorm:
    """Return a LayerNorm that takes the variance about the mean, in two passes, as torch does."""
    return nn.LayerNorm(epsilon=LAYER_NORM_EPS, use_fast_variance=False, name=name)


class CrossAttention(nn.Module):
    """Attention whose queries come from one sequence and whose keys and values come from another, or from the same.

    ``to_out_0(softmax(q k^T / sqrt(C / num_heads)) v)`` with ``q = to_q(x)`` and ``k, v`` linear in ``context``. The
    two products are ``attention/scores`` and ``attention/values``.

    Attributes:
        num_heads: A divisor of the channels.
    """

    num_heads: int

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
        """Map x: float[B, L, C] and context: float[B, M, K] to float[B, L, C]."""
        channels = x.shape[-1]
        q = nn.Dense(channels, use_bias=False, name="to_q")(x)
        k = nn.Dense(channels, use_bias=False, name="to_k")(context)
        v = nn.Dense(channels, use_bias=False, name="to_v")(context)
        return nn.Dense(channels, name="to_out_0")(attend(q, k, v, channels // self.num_heads))


# Phi(x) ~ (1 + tanh(x p(x^2))) / 2, p from its lowest power on: a least-squares fit with weights moved to where |error|
# of x Phi(x) was largest, in float64 over 0 <= x <= 8.
_GELU = (7.97828136e-01, 3.64687903e-02, -1.24861191e-04, -3.05810994e-05, 1.11908779e-06)


@functools.partial(jax.jit, static_argnames="approximate")
def gelu(x: jax.Array, *, approximate: bool) -> jax.Array:
    """``x Phi(x)``, Phi the normal distribution function (Hendrycks & Gimpel 2016).

    In 16 bits through a tanh of a polynomial, within 4e-6 of exact (half a unit of bfloat16 at 0.002): the error
    function takes TPU v5e five times as long, and twice as long as the dense layer that follows.

    Args:
        x: float[...].
        approximate: Whether to use the tanh of a cubic, 5e-4 off, as some networks were trained.

    Returns:
        float[...] of x's dtype.
    """
    if approximate or x.dtype not in (jnp.bfloat16, jnp.float16):
        return nn.gelu(x, approximate=approximate)
    wide = x.astype(jnp.float32)
    slope = jnp.full_like(wide, _GELU[-1])
    for coefficient in reversed(_GELU[:-1]):
        slope = slope * (wide * wide) + coefficient
    return (wide * 0.5 * (1 + jnp.tanh(wide * slope))).astype(x.dtype)


class Geglu(nn.Module):
    """``h * gelu(gate)`` with ``[h, gate] = proj(x)`` (Shazeer 2020).

    Attributes:
        width: Width of the result.
        approximate: Gelu by its tanh approximation (True) or exactly (False).
    """

    width: int
    approximate: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map x: float[B, L, C] to float[B, L, width]."""
        h, gate = jnp.split(nn.Dense(2 * self.width, name="proj")(x), 2, axis=-1)
        return h * gelu(gate, approximate=self.approximate)


class FeedForward(nn.Module):
    """``net_2(net_0(x))``: four times as wide in between, with a gate.

    Attributes:
        approximate_gelu: Whether the gate uses it.
    """

    approximate_gelu: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map x: float[B, L, C] to float[B, L, C]."""
        channels = x.shape[-1]
        h = Geglu(FEED_FORWARD_FACTOR * channels, self.approximate_gelu, name="net_0")(x)
        return nn.Dense(channels, name="net_2")(h)


class TransformerBlock(nn.Module):
    """Attention of the pixels to each other, then to the text, then a feed-forward; each added to its own input.

    ``x += attn1(norm1(x), norm1(x)); x += attn2(norm2(x), context); x += ff(norm3(x))`` (``BasicTransformerBlock``).

    Attributes:
        num_heads: A divisor of the channels.
        approximate_gelu: Whether the feed-forward uses it.
    """

    num_heads: int
    approximate_gelu: bool

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
        """Map x: float[B, L, C] and context: float[B, M, K] to float[B, L, C]."""
        h = layer_norm("norm1")(x)
        x = x + CrossAttention(self.num_heads, name="attn1")(h, h)
        x = x + CrossAttention(self.num_heads, name="attn2")(layer_norm("norm2")(x), context)
        return x + FeedForward(self.approximate_gelu, name="ff")(layer_norm("norm3")(x))


class Transformer(nn.Module):
    """Transformer blocks over an image's pixels, between two projections, with a shortcut (``Transformer2DModel``).

    Attributes:
        num_heads: A divisor of the channels.
        num_layers: Number of transformer blocks.
        num_groups: Groups of the norm before the first projection.
        linear_projection: The projections are Dense on tokens (True) or 1x1 convolutions (False): the same numbers, and
            kernels of another shape.
        numerics: Those of diffusers' PyTorch or Flax class.
    """

    num_heads: int
    num_layers: int
    num_groups: int
    linear_projection: bool
    numerics: Numerics

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
        """Map x: float[B, H, W, C] and context: float[B, M, K] to float[B, H, W, C]."""
        batch, height, width, channels = x.shape

        def projection(name: str) -> nn.Module:
            return nn.Dense(channels, name=name) if self.linear_projection else nn.Conv(channels, (1, 1), name=name)

        h = projection("proj_in")(group_norm(self.num_groups, self.numerics.group_norm_eps, "norm")(x))
        tokens = h.reshape(batch, height * width, channels)
        for i in range(self.num_layers):
            block = TransformerBlock(self.num_heads, self.numerics.approximate_gelu, name=f"transformer_blocks_{i}")
            tokens = block(tokens, context)
        return x + projection("proj_out")(tokens.reshape(x.shape))
