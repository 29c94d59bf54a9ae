"""Attention between the pixels of an image and the tokens of a text, as Stable Diffusion has it, in NHWC.

Every submodule carries the name it has in diffusers' PyTorch classes, as in ``_blocks``; diffusers' Flax classes have
the same names.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdq.models.unet._activations import gelu
from jaxdq.models.unet._blocks import attend, group_norm

# Fixed in diffusers' code; no configuration has them.
LAYER_NORM_EPS = 1e-5
FEED_FORWARD_FACTOR = 4
DUAL_TOKENS = (77, 257)  # of a text and of an image


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

    ``to_out_0(softmax(q k^T / sqrt(head_dim)) v)`` with ``q = to_q(x)`` and ``k, v`` linear in ``context``. The two
    products are ``attention/scores`` and ``attention/values``.

    Attributes:
        num_heads: Number of heads; where it does not divide the channels, the heads together are narrower than these.
        head_dim: Channels of one head.
        use_bias: Whether queries, keys and values have one; the output has it in any case.
        norm_context: Whether the other sequence goes through a LayerNorm first.
    """

    num_heads: int
    head_dim: int
    use_bias: bool = False
    norm_context: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
        """Map x: float[B, L, C] and context: float[B, M, K] to float[B, L, C]."""
        inner = self.num_heads * self.head_dim
        if self.norm_context:
            context = layer_norm("norm_cross")(context)
        q = nn.Dense(inner, self.use_bias, name="to_q")(x)
        k, v = (nn.Dense(inner, self.use_bias, name=name)(context) for name in ("to_k", "to_v"))
        return nn.Dense(x.shape[-1], name="to_out_0")(attend(q, k, v, self.head_dim))


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
        num_heads: At most the channels.
        approximate_gelu: Whether the feed-forward uses it.
        only_text: Attention to the text in the place of attention to each other too.
    """

    num_heads: int
    approximate_gelu: bool
    only_text: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array | None = None) -> jax.Array:
        """Map x: float[B, L, C] and context: float[B, M, K], or None for x itself, to float[B, L, C]."""
        heads = self.num_heads, x.shape[-1] // self.num_heads
        h = layer_norm("norm1")(x)
        x = x + CrossAttention(*heads, name="attn1")(h, context if self.only_text and context is not None else h)
        h = layer_norm("norm2")(x)
        x = x + CrossAttention(*heads, name="attn2")(h, h if context is None else context)
        return x + FeedForward(self.approximate_gelu, name="ff")(layer_norm("norm3")(x))


class Transformer(nn.Module):
    """Transformer blocks over an image's pixels, between two projections, with a shortcut (``Transformer2DModel``).

    Attributes:
        num_heads: At most the channels; where it does not divide them, the blocks are as wide as the heads together.
        num_layers: Number of transformer blocks.
        num_groups: Groups of the norm before the first projection.
        linear_projection: The projections are Dense on tokens (True) or 1x1 convolutions (False): the same numbers, and
            kernels of another shape.
        numerics: Those of diffusers' PyTorch or Flax class.
        only_text: Attention to the text in the place of attention between the pixels too.
    """

    num_heads: int
    num_layers: int
    num_groups: int
    linear_projection: bool
    numerics: Numerics
    only_text: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array | None = None) -> jax.Array:
        """Map x: float[B, H, W, C] and context: float[B, M, K], or None for x itself, to float[B, H, W, C]."""
        batch, height, width, channels = x.shape
        inner = channels // self.num_heads * self.num_heads

        def projection(to: int, name: str) -> nn.Module:
            return nn.Dense(to, name=name) if self.linear_projection else nn.Conv(to, (1, 1), name=name)

        h = projection(inner, "proj_in")(group_norm(self.num_groups, self.numerics.group_norm_eps, "norm")(x))
        tokens = h.reshape(batch, height * width, inner)
        settings = self.num_heads, self.numerics.approximate_gelu, self.only_text
        for i in range(self.num_layers):
            tokens = TransformerBlock(*settings, name=f"transformer_blocks_{i}")(tokens, context)
        return x + projection(channels, "proj_out")(tokens.reshape(batch, height, width, inner))


class DualTransformer(nn.Module):
    """Two transformers side by side, each for its own part of the context (``DualTransformer2DModel``).

    ``x + (f_1(x, context[:, :77]) + f_0(x, context[:, 77:334])) / 2``, f without the shortcuts: the first tokens are a
    text's and the others an image's (Xu et al. 2022, Versatile Diffusion).

    Attributes:
        num_heads: At most the channels.
        num_groups: Groups of the norm before the first projection.
        numerics: Those of diffusers' PyTorch class.
    """

    num_heads: int
    num_groups: int
    numerics: Numerics

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
        """Map x: float[B, H, W, C] and context: float[B, 334, K] to float[B, H, W, C]."""
        first, second = (
            Transformer(self.num_heads, 1, self.num_groups, False, self.numerics, name=f"transformers_{i}")
            for i in range(2)
        )
        text, end = DUAL_TOKENS
        return (second(x, context[:, :text]) + first(x, context[:, text : text + end])) / 2
