"""Rows of blocks in the manner of k-diffusion (Karras et al. 2022), as Stable Diffusion's latent upscaler has them.

A row goes across to the way up with its last layer alone, the time scales every norm, and resolutions change by fixed
filters. Every submodule carries the name it has in diffusers' PyTorch classes, as in ``_blocks``.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdq.models.unet._activations import ACTIVATIONS
from jaxdq.models.unet._blocks import Size, conv3x3
from jaxdq.models.unet._config_condition import K_GROUP_SIZE
from jaxdq.models.unet._filters import doubled, halved
from jaxdq.models.unet._transformer import CrossAttention

# Fixed in diffusers' code; no configuration has them.
_NORM_EPS = 1e-5


class TimedGroupNorm(nn.Module):
    """``norm(x) * (1 + scale) + shift`` with ``[scale, shift] = linear(temb)`` (``AdaGroupNorm``).

    Attributes:
        num_groups: Groups of the norm.
        eps: Added to the variance.
    """

    num_groups: int
    eps: float

    @nn.compact
    def __call__(self, x: jax.Array, temb: jax.Array) -> jax.Array:
        """Map x: float[B, H, W, C] and temb: float[B or 1, E] to float[B, H, W, C]."""
        scale, shift = jnp.split(nn.Dense(2 * x.shape[-1], name="linear")(temb)[:, None, None, :], 2, axis=-1)
        norm = nn.GroupNorm(self.num_groups, epsilon=self.eps, use_bias=False, use_scale=False, use_fast_variance=False)
        return norm(x) * (1 + scale) + shift


class TimedResnetBlock(nn.Module):
    """``shortcut(x) + conv2(act(norm2(conv1(act(norm1(x))))))``, both norms with the time (``ResnetBlockCondNorm2D``).

    Attributes:
        channels: Channels between the convolutions.
        out_channels: Output channels; where the input has others, the shortcut is a 1x1 convolution without bias.
        groups_between: Groups of the norm between the convolutions.
        act: Name of the activation.
        eps: Added to the variance in the norms.
    """

    channels: int
    out_channels: int
    groups_between: int
    act: str
    eps: float

    @nn.compact
    def __call__(self, x: jax.Array, temb: jax.Array) -> jax.Array:
        """Map x: float[B, H, W, C] and temb: float[B or 1, E] to float[B, H, W, out_channels]."""
        act = ACTIVATIONS[self.act]
        h = act(TimedGroupNorm(x.shape[-1] // K_GROUP_SIZE, self.eps, name="norm1")(x, temb))
        h = conv3x3(self.channels, "conv1")(h)
        h = act(TimedGroupNorm(self.groups_between, self.eps, name="norm2")(h, temb))
        h = conv3x3(self.out_channels, "conv2")(h)
        if x.shape[-1] != self.out_channels:
            x = nn.Conv(self.out_channels, (1, 1), use_bias=False, name="conv_shortcut")(x)
        return x + h


class TimedAttention(nn.Module):
    """Attention of the pixels to each other if asked for, then to the text, and no more (``KAttentionBlock``).

    Attributes:
        head_dim: Channels of one head; C // head_dim heads.
        between_pixels: Whether there is the first of the two.
    """

    head_dim: int
    between_pixels: bool

    @nn.compact
    def __call__(self, x: jax.Array, temb: jax.Array, text: jax.Array) -> jax.Array:
        """Map x: float[B, H, W, C], temb: float[B or 1, E] and text: float[B, M, K] to float[B, H, W, C]."""
        channels = x.shape[-1]
        heads, groups = channels // self.head_dim, max(1, channels // K_GROUP_SIZE)

        def tokens(name: str) -> jax.Array:
            return TimedGroupNorm(groups, _NORM_EPS, name=name)(x, temb).reshape(len(x), -1, channels)

        if self.between_pixels:
            h = tokens("norm1")
            x = x + CrossAttention(heads, self.head_dim, use_bias=True, name="attn1")(h, h).reshape(x.shape)
        attention = CrossAttention(heads, self.head_dim, use_bias=True, norm_context=True, name="attn2")
        return x + attention(tokens("norm2"), text).reshape(x.shape)


class KDownBlock(nn.Module):
    """Residual blocks, each followed by attention if asked for, and a fixed filter unless it is the last row.

    Attributes:
        channels: Output channels.
        num_layers: Number of residual blocks.
        act: Name of the activation.
        eps: Added to the variance in the residual blocks' norms.
        head_dim: Channels of a head, or None for a row without attention.
        downsample: False in the last row, whose attention is between the pixels too and which has no skips.
    """

    channels: int
    num_layers: int
    act: str
    eps: float
    head_dim: int | None
    downsample: bool

    @nn.compact
    def __call__(self, x: jax.Array, temb: jax.Array, text: jax.Array) -> tuple[jax.Array, list[jax.Array | None]]:
        """Map x: float[B, H, W, C] and temb: float[B or 1, E] to the result and what the way up may need."""
        skips: list[jax.Array | None] = []
        widths = self.channels, self.channels, self.channels // K_GROUP_SIZE
        for i in range(self.num_layers):
            x = TimedResnetBlock(*widths, self.act, self.eps, name=f"resnets_{i}")(x, temb)
            if self.head_dim is not None:
                attention = TimedAttention(self.head_dim, not self.downsample, name=f"attentions_{i}")
                x = attention(x, temb, text)
            skips.append(x if self.downsample or self.head_dim is None else None)
        return halved(x, "reflect") if self.downsample else x, skips


class KUpBlock(nn.Module):
    """Residual blocks, the first of which takes a skip, with attention if asked for, and a fixed filter at the end.

    Attributes:
        channels: Channels of the row.
        out_channels: Those of the next row.
        num_layers: Number of residual blocks, and of the skips that belong to the row: it takes the last.
        act: Name of the activation.
        eps: Added to the variance in the residual blocks' norms.
        head_dim: Channels of a head, or None for a row without attention.
        between_pixels: Whether attention is between the pixels too.
        upsample: False in the last row.
    """

    channels: int
    out_channels: int
    num_layers: int
    act: str
    eps: float
    head_dim: int | None
    between_pixels: bool
    upsample: bool

    @nn.compact
    def __call__(
        self, x: jax.Array, skips: list[jax.Array | None], temb: jax.Array, text: jax.Array, size: Size | None = None
    ) -> jax.Array:
        """Map x: float[B, H, W, C] and its skips to the next row's input, float[B, 2H, 2W, out_channels]."""
        del size  # the filters know no other
        if skips[-1] is not None:
            x = jnp.concatenate([x, skips[-1]], axis=-1)
        for i in range(self.num_layers):
            last = i == self.num_layers - 1
            # Without attention it is the first convolution that changes the width, with attention the second.
            out = self.out_channels if last else self.channels
            inside = out if self.head_dim is None else self.channels
            widths = inside, out, self.channels // K_GROUP_SIZE
            x = TimedResnetBlock(*widths, self.act, self.eps, name=f"resnets_{i}")(x, temb)
            if self.head_dim is not None:
                attention = TimedAttention(self.head_dim, self.between_pixels, name=f"attentions_{i}")
                x = attention(x, temb, text)
        return doubled(x, "reflect") if self.upsample else x
