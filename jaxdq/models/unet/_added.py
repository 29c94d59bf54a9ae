"""Conditions of a UNet other than the text's tokens: pooled texts, images, classes; each in the words of diffusers.

Every submodule carries the name it has in diffusers' PyTorch classes, as in ``_blocks``.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdq.models.unet._blocks import attend
from jaxdq.models.unet._transformer import layer_norm

HINT_CHANNELS = 4
"""What the image of a hint becomes, and joins the state with (Kandinsky 2.2's ControlNet)."""
_HINT_WIDTHS = ((16, 1), (16, 1), (32, 2), (32, 1), (96, 2), (96, 1), (256, 2), (HINT_CHANNELS, 1))
_IMAGE_TOKENS, _IMAGE_TOKENS_BESIDE_TEXT = 32, 10


class AttentionPool(nn.Module):
    """One token of many, by attention of their mean to all of them (CLIP's; DeepFloyd IF).

    With ``c = mean(x) + positional_embedding`` the result is ``softmax(q(c) k([c, x])^T / sqrt(d)) v([c, x])``.

    Attributes:
        num_heads: A divisor of the channels.
    """

    num_heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map x: float[B, M, K] to float[B, K]."""
        width = x.shape[-1]
        start = self.param("positional_embedding", nn.initializers.normal(width**-0.5), (1, width))
        mean = jnp.mean(x, axis=1, keepdims=True) + start.astype(x.dtype)
        tokens = jnp.concatenate([mean, x], axis=1)
        q = nn.Dense(width, name="q_proj")(mean)
        k, v = (nn.Dense(width, name=name)(tokens) for name in ("k_proj", "v_proj"))
        return attend(q, k, v, width // self.num_heads)[:, 0]


class TextTime(nn.Module):
    """``norm2(proj(pool(norm1(text))))``, added to the embedding of time (``TextTimeEmbedding``).

    Attributes:
        width: Width of the embedding of time.
        num_heads: Those of the pooling.
    """

    width: int
    num_heads: int

    @nn.compact
    def __call__(self, text: jax.Array) -> jax.Array:
        """Map text: float[B, M, K] to float[B, width]."""
        pooled = AttentionPool(self.num_heads, name="pool")(layer_norm("norm1")(text))
        return layer_norm("norm2")(nn.Dense(self.width, name="proj")(pooled))


class TextImageTime(nn.Module):
    """``image_proj(image) + text_norm(text_proj(text))`` (``TextImageTimeEmbedding``, Kandinsky 2.1)."""

    width: int

    @nn.compact
    def __call__(self, text: jax.Array, image: jax.Array) -> jax.Array:
        """Map text: float[B, K] and image: float[B, K'], pooled ones, to float[B, width]."""
        return nn.Dense(self.width, name="image_proj")(image) + layer_norm("text_norm")(
            nn.Dense(self.width, name="text_proj")(text)
        )


class ImageTime(nn.Module):
    """``image_norm(image_proj(image))`` (``ImageTimeEmbedding``, Kandinsky 2.2); a hint goes through convolutions.

    Attributes:
        width: Width of the embedding of time.
    """

    width: int

    @nn.compact
    def __call__(self, image: jax.Array, hint: jax.Array | None = None) -> tuple[jax.Array, jax.Array | None]:
        """Map image: float[B, K] and hint: float[B, 8H, 8W, 3], or None, to float[B, width] and float[B, H, W, 4]."""
        embedded = layer_norm("image_norm")(nn.Dense(self.width, name="image_proj")(image))
        if hint is None:
            return embedded, None
        for i, (channels, stride) in enumerate(_HINT_WIDTHS):
            # The odd entries of diffusers' list are activations.
            conv = nn.Conv(channels, (3, 3), (stride, stride), ((1, 1), (1, 1)), name=f"input_hint_block_{2 * i}")
            hint = conv(hint if i == 0 else nn.silu(hint))
        return embedded, hint


class ImageTokens(nn.Module):
    """Tokens of an image's embedding in place of a text's, or before them.

    ``norm(reshape(image_embeds(image)))`` (``ImageProjection``), or
    ``[reshape(image_embeds(image)), text_proj(text)]`` (``TextImageProjection``).

    Attributes:
        width: Width of a token.
    """

    width: int

    @nn.compact
    def __call__(self, image: jax.Array, text: jax.Array | None = None) -> jax.Array:
        """Map image: float[B, K] and text: float[B, M, K'], or None, to float[B, 32 or 10 + M, width]."""
        count = _IMAGE_TOKENS if text is None else _IMAGE_TOKENS_BESIDE_TEXT
        tokens = nn.Dense(count * self.width, name="image_embeds")(image).reshape(-1, count, self.width)
        if text is None:
            return layer_norm("norm")(tokens)
        return jnp.concatenate([tokens, nn.Dense(self.width, name="text_proj")(text)], axis=1)
