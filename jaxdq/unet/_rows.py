"""Rows of blocks: what a UNet does at one resolution on the way down, at the bottom and on the way up.

Attention, where a row has it, is the maker of a layer: called as ``attention(name=...)`` it returns a module that takes
the image and then the row's ``context``, which is empty for attention over pixels alone.
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdq._errors import InputError
from jaxdq.unet._blocks import Downsample, ResnetBlock, Style, Upsample

AttentionMaker = Callable[..., nn.Module]


class DownBlock(nn.Module):
    """Residual blocks, each followed by attention if asked for, and then a downsampler unless it is the last row.

    Attributes:
        channels: output channels.
        num_layers: number of residual blocks.
        style: what all blocks of the network share.
        attention: makes the layer after each residual block (``AttnDownBlock2D``, ``CrossAttnDownBlock2D``), or None
            (``DownBlock2D``).
        downsample: "conv", "resnet" or None.
        downsample_padding: padding of the "conv" downsampler, 0 or 1.
    """

    channels: int
    num_layers: int
    style: Style
    attention: AttentionMaker | None
    downsample: str | None
    downsample_padding: int

    @nn.compact
    def __call__(self, x: jax.Array, temb: jax.Array, *context: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        """Map x: float[B, H, W, C] and temb: float[B or 1, E] to the result and all that the way up will need."""
        style = self.style
        skips = []
        for i in range(self.num_layers):
            x = ResnetBlock(self.channels, style, name=f"resnets_{i}")(x, temb)
            if self.attention is not None:
                x = self.attention(name=f"attentions_{i}")(x, *context)
            skips.append(x)
        if self.downsample == "conv":
            x = Downsample(self.downsample_padding, name="downsamplers_0")(x)
        elif self.downsample == "resnet":
            x = ResnetBlock(self.channels, style, resample="down", name="downsamplers_0")(x, temb)
        return x, skips if self.downsample is None else [*skips, x]


class MidBlock(nn.Module):
    """Residual block, attention if asked for, residual block, at the lowest resolution.

    Attributes:
        style: what all blocks of the network share.
        attention: makes the layer between the two residual blocks (``UNetMidBlock2D``, ``UNetMidBlock2DCrossAttn``),
            or None.
        output_scale: divisor of the sum of each residual block.
    """

    style: Style
    attention: AttentionMaker | None
    output_scale: float

    @nn.compact
    def __call__(self, x: jax.Array, temb: jax.Array, *context: jax.Array) -> jax.Array:
        """Map x: float[B, H, W, C] and temb: float[B or 1, E] to float[B, H, W, C]."""
        style, scale = self.style, self.output_scale
        x = ResnetBlock(x.shape[-1], style, scale, name="resnets_0")(x, temb)
        if self.attention is not None:
            x = self.attention(name="attentions_0")(x, *context)
        return ResnetBlock(x.shape[-1], style, scale, name="resnets_1")(x, temb)


class UpBlock(nn.Module):
    """Residual blocks that each take one skip, with attention if asked for, and an upsampler unless it is the last row.

    Attributes:
        channels: output channels.
        style: what all blocks of the network share.
        num_layers: number of residual blocks.
        attention: makes the layer after each residual block (``AttnUpBlock2D``, ``CrossAttnUpBlock2D``), or None
            (``UpBlock2D``).
        upsample: "conv", "resnet" or None.
    """

    channels: int
    num_layers: int
    style: Style
    attention: AttentionMaker | None
    upsample: str | None

    @nn.compact
    def __call__(self, x: jax.Array, skips: list[jax.Array], temb: jax.Array, *context: jax.Array) -> jax.Array:
        """Map x: float[B, H, W, C], its skips, the last first to be used, and temb to float[B, H', W', channels]."""
        style = self.style
        for i, skip in enumerate(reversed(skips)):
            x = ResnetBlock(self.channels, style, name=f"resnets_{i}")(jnp.concatenate([x, skip], axis=-1), temb)
            if self.attention is not None:
                x = self.attention(name=f"attentions_{i}")(x, *context)
        if self.upsample == "conv":
            x = Upsample(name="upsamplers_0")(x)
        elif self.upsample == "resnet":
            x = ResnetBlock(self.channels, style, resample="up", name="upsamplers_0")(x, temb)
        return x


def run_rows(
    x: jax.Array,
    temb: jax.Array,
    context: tuple[jax.Array, ...],
    rows: tuple[Sequence[DownBlock], MidBlock | None, Sequence[UpBlock]],
) -> jax.Array:
    """Run a UNet between its first and its last convolution.

    Args:
        x: float[B, H, W, C], after the first convolution.
        temb: float[B or 1, E], the embedding of time.
        context: what attention takes besides the image.
        rows: the way down, the middle and the way up; each row up has as many layers as it takes skips.

    Returns:
        float[B, H, W, C].
    """
    down, middle, up = rows
    skips = [x]
    for row in down:
        x, made = row(x, temb, *context)
        skips += made
    if middle is not None:
        x = middle(x, temb, *context)
    for row_up in up:
        taken = row_up.num_layers
        x = row_up(x, skips[-taken:], temb, *context)
        skips = skips[:-taken]
    return x


def check_inputs(x: jax.Array, t_shape: tuple[int, ...], in_channels: int, num_rows: int) -> None:
    """Raise InputError where the shapes of ``x`` and ``t`` do not fit a network of so many channels and rows."""
    multiple = 2 ** (num_rows - 1)
    if x.ndim != 4 or x.shape[-1] != in_channels or x.shape[1] % multiple or x.shape[2] % multiple:
        raise InputError(
            f"The UNet's x has shape {x.shape}; give [B, H, W, {in_channels}] with H and W multiples of {multiple}."
        )
    if t_shape not in ((), (1,), (x.shape[0],)):
        raise InputError(f"The UNet's t has shape {t_shape}; give a scalar or one time per image, [{x.shape[0]}].")
