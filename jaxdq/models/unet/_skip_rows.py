"""Rows of blocks in the manner of score-based models (Song et al. 2021), which carry the image itself along.

On the way down the image, made smaller row by row, joins what the network makes of it; on the way up each row draws an
image, and their sum is the result. Every submodule carries the name it has in diffusers' PyTorch classes, as in
``_blocks``.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdq.models.unet._blocks import Attention, ResnetBlock, Style, conv3x3, group_norm
from jaxdq.models.unet._filters import doubled, halved

# Fixed in diffusers' code; no configuration has them.
IMAGE_CHANNELS = 3
ATTENTION_GROUPS = 32
_OUTPUT_SCALE = math.sqrt(2.0)


def num_groups_of(channels: int) -> int:
    """Groups of a norm over so many channels: four channels in each, and 32 groups at most."""
    return min(channels // 4, ATTENTION_GROUPS)


class SkipDownBlock(nn.Module):
    """Residual blocks, each followed by attention if asked for; then both, features and image, are made smaller.

    Attributes:
        channels: Output channels.
        num_layers: Number of residual blocks.
        style: What all blocks of the network share.
        head_dim: Channels of a head, or None for a single one.
        attends: Whether there is attention (``AttnSkipDownBlock2D``) or not (``SkipDownBlock2D``).
        downsample: False in the last row.
    """

    channels: int
    num_layers: int
    style: Style
    head_dim: int | None
    attends: bool
    downsample: bool

    @nn.compact
    def __call__(self, x: jax.Array, temb: jax.Array, image: jax.Array) -> tuple[jax.Array, list[jax.Array], jax.Array]:
        """Map x: float[B, H, W, C], temb: float[B or 1, E] and image: float[B, H, W, 3] to the next row's and skips."""
        style, own = self.style._replace(output_scale=_OUTPUT_SCALE), num_groups_of(self.channels)
        skips = []
        for i in range(self.num_layers):
            groups = num_groups_of(x.shape[-1]), own
            x = ResnetBlock(self.channels, style, groups=groups, name=f"resnets_{i}")(x, temb)
            if self.attends:
                x = Attention(self.head_dim, ATTENTION_GROUPS, style.eps, _OUTPUT_SCALE, name=f"attentions_{i}")(x)
            skips.append(x)
        if not self.downsample:
            return x, skips, image
        block = ResnetBlock(self.channels, style, "filtered down", (own, own), project=True, name="resnet_down")
        image = halved(image, "constant")
        x = nn.Conv(self.channels, (1, 1), name="skip_conv")(image) + block(x, temb)
        return x, [*skips, x], image


class SkipUpBlock(nn.Module):
    """Residual blocks that each take one skip, then attention if asked for; then an image is drawn, and both grow.

    Attributes:
        channels: Output channels.
        num_layers: Number of residual blocks.
        style: What all blocks of the network share.
        head_dim: Channels of a head, or None for a single one.
        attends: Whether there is attention, once (``AttnSkipUpBlock2D``), or not (``SkipUpBlock2D``).
        upsample: False in the last row, which draws nothing.
    """

    channels: int
    num_layers: int
    style: Style
    head_dim: int | None
    attends: bool
    upsample: bool

    @nn.compact
    def __call__(
        self, x: jax.Array, skips: list[jax.Array], temb: jax.Array, image: jax.Array | None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Map x: float[B, H, W, C] and the image drawn so far, None at first, to the next row's."""
        style, own = self.style._replace(output_scale=_OUTPUT_SCALE), num_groups_of(self.channels)
        for i, skip in enumerate(reversed(skips)):
            joined = jnp.concatenate([x, skip], axis=-1)
            # With attention, diffusers divides the skip's channels alone by four.
            groups = min(x.shape[-1] + skip.shape[-1] // 4, 32) if self.attends else num_groups_of(joined.shape[-1])
            x = ResnetBlock(self.channels, style, groups=(groups, own), name=f"resnets_{i}")(joined, temb)
        if self.attends:
            x = Attention(self.head_dim, ATTENTION_GROUPS, style.eps, _OUTPUT_SCALE, name="attentions_0")(x)
        image = None if image is None else doubled(image, "constant")
        if not self.upsample:
            return x, image
        h = nn.silu(group_norm(own, style.eps, "skip_norm")(x))
        drawn = conv3x3(IMAGE_CHANNELS, "skip_conv")(h)
        block = ResnetBlock(self.channels, style, "filtered up", (own, own), project=True, name="resnet_up")
        return block(x, temb), drawn if image is None else image + drawn
