"""Rows of blocks: what a UNet does at one resolution on the way down, at the bottom and on the way up.

Attention, where a row has it, is the maker of a layer: called as ``attention(name=...)`` it returns a module that takes
the image and then the row's ``context``, which is empty for attention over pixels alone.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdq._common.errors import InputError
from jaxdq.models.unet._blocks import Downsample, ResnetBlock, Size, Style, Upsample

AttentionMaker = Callable[..., nn.Module]
Attentions = AttentionMaker | tuple[AttentionMaker, ...]
"""One maker for all layers of a row, or one for each."""


class DownBlock(nn.Module):
    """Residual blocks, each followed by attention if asked for, and then a downsampler unless it is the last row.

    Attributes:
        channels: Output channels.
        num_layers: Number of residual blocks.
        style: What all blocks of the network share.
        attention: Makes the layer after each residual block (``AttnDownBlock2D``, ``CrossAttnDownBlock2D``), or None
            (``DownBlock2D``).
        downsample: "conv", "resnet" or None.
        downsample_padding: Padding of the "conv" downsampler, 0 or 1.
    """

    channels: int
    num_layers: int
    style: Style
    attention: Attentions | None
    downsample: str | None
    downsample_padding: int

    @nn.compact
    def __call__(
        self, x: jax.Array, temb: jax.Array, *context: jax.Array, added: jax.Array | None = None
    ) -> tuple[jax.Array, list[jax.Array]]:
        """Map x: float[B, H, W, C] and temb: float[B or 1, E] to the result and all that the way up will need.

        What is ``added`` (a T2I-Adapter's features) joins the last layer's output where there is attention to a text,
        and the row's result elsewhere.
        """
        style, inside = self.style, bool(context) and self.attention is not None
        skips = []
        for i in range(self.num_layers):
            x = ResnetBlock(self.channels, style, name=f"resnets_{i}")(x, temb)
            if self.attention is not None:
                x = _layer(self.attention, i)(x, *context)
            if added is not None and inside and i == self.num_layers - 1:
                x = x + added
            skips.append(x)
        if self.downsample == "conv":
            x = Downsample(self.downsample_padding, name="downsamplers_0")(x)
        elif self.downsample == "resnet":
            x = ResnetBlock(self.channels, style, resample="down", name="downsamplers_0")(x, temb)
        skips = skips if self.downsample is None else [*skips, x]
        if added is not None and not inside:
            x = x + added
            skips[-1] = x
        return x, skips


class MidBlock(nn.Module):
    """Residual block, attention if asked for, residual block, at the lowest resolution.

    Attributes:
        style: What all blocks of the network share.
        attention: Makes the layer between the two residual blocks (``UNetMidBlock2D``, ``UNetMidBlock2DCrossAttn``,
            ``UNetMidBlock2DSimpleCrossAttn``), or None.
        single: There is the first residual block alone.
    """

    style: Style
    attention: Attentions | None
    single: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, temb: jax.Array, *context: jax.Array) -> jax.Array:
        """Map x: float[B, H, W, C] and temb: float[B or 1, E] to float[B, H, W, C]."""
        x = ResnetBlock(x.shape[-1], self.style, name="resnets_0")(x, temb)
        if self.single:
            return x
        if self.attention is not None:
            x = _layer(self.attention, 0)(x, *context)
        return ResnetBlock(x.shape[-1], self.style, name="resnets_1")(x, temb)


class UpBlock(nn.Module):
    """Residual blocks that each take one skip, with attention if asked for, and an upsampler unless it is the last row.

    Attributes:
        channels: Output channels.
        style: What all blocks of the network share.
        num_layers: Number of residual blocks.
        attention: Makes the layer after each residual block (``AttnUpBlock2D``, ``CrossAttnUpBlock2D``), or None
            (``UpBlock2D``).
        upsample: "conv", "resnet" or None.
    """

    channels: int
    num_layers: int
    style: Style
    attention: Attentions | None
    upsample: str | None

    @nn.compact
    def __call__(
        self, x: jax.Array, skips: list[jax.Array], temb: jax.Array, *context: jax.Array, size: Size | None = None
    ) -> jax.Array:
        """Map x and its skips to the next row's input.

        Args:
            x: float[B, H, W, C].
            skips: float[B, H, W, ...], the last first to be used.
            temb: float[B or 1, E].
            *context: What attention takes besides the image.
            size: (H', W') that the upsampler goes to; None is (2H, 2W).

        Returns:
            float[B, H', W', channels].
        """
        style = self.style
        for i, skip in enumerate(reversed(skips)):
            x = ResnetBlock(self.channels, style, name=f"resnets_{i}")(jnp.concatenate([x, skip], axis=-1), temb)
            if self.attention is not None:
                x = _layer(self.attention, i)(x, *context)
        if self.upsample == "conv":
            x = Upsample(name="upsamplers_0")(x, size)
        elif self.upsample == "resnet":
            x = ResnetBlock(self.channels, style, resample="up", name="upsamplers_0")(x, temb, size)
        return x


class Residuals(NamedTuple):
    """What other networks add to a UNet on its way.

    Attributes:
        skips: To what goes across from the way down to the way up, one for each (a ControlNet's); empty for none.
        middle: float[B, h, w, C] to the middle's result (a ControlNet's), or None.
        rows: To each row on the way down, as many as there are (a T2I-Adapter's).
    """

    skips: Sequence[jax.Array] = ()
    middle: jax.Array | None = None
    rows: Sequence[jax.Array] = ()


NO_RESIDUALS = Residuals()


def run_down(
    x: jax.Array,
    temb: jax.Array,
    context: tuple[jax.Array, ...],
    rows: tuple[Sequence[nn.Module], nn.Module | None],
    residuals: Residuals = NO_RESIDUALS,
) -> tuple[jax.Array, list[Any]]:
    """Run a UNet from its first convolution to its middle.

    Args:
        x: float[B, H, W, C], after the first convolution.
        temb: float[B or 1, E], the embedding of time.
        context: What attention takes besides the image.
        rows: The way down and the middle.
        residuals: What is added.

    Returns:
        The middle's result, and what goes across to the way up.

    Raises:
        InputError: There are more or fewer residuals than places for them.
    """
    down, middle = rows
    skips = [x]
    if len(residuals.rows) > len(down):
        raise InputError(f"The UNet has {len(down)} rows and was given {len(residuals.rows)} adapter_residuals.")
    added = (*residuals.rows, *[None] * (len(down) - len(residuals.rows)))
    for row, one in zip(down, added, strict=True):
        x, made = row(x, temb, *context) if one is None else row(x, temb, *context, added=one)
        skips += made
    if residuals.skips:
        if len(residuals.skips) != len(skips):
            raise InputError(
                f"The UNet takes {len(skips)} down_residuals and was given {len(residuals.skips)}; pass what the "
                "ControlNet of a UNet with the same block_out_channels and layers_per_block returns."
            )
        skips = [skip + more for skip, more in zip(skips, residuals.skips, strict=True)]
    if middle is not None:
        x = middle(x, temb, *context)
    return (x if residuals.middle is None else x + residuals.middle), skips


def run_up(
    x: jax.Array, skips: list[Any], temb: jax.Array, context: tuple[jax.Array, ...], up: Sequence[nn.Module]
) -> jax.Array:
    """Run a UNet from its middle to its last convolution.

    Args:
        x: float[B, h, w, C], the middle's result.
        skips: What ``run_down`` returned.
        temb: float[B or 1, E], the embedding of time.
        context: What attention takes besides the image.
        up: The way up; each row has as many layers as it takes skips.

    Returns:
        float[B, H, W, C].
    """
    for row_up in up:
        own, skips = skips[-row_up.num_layers :], skips[: -row_up.num_layers]
        # An odd size was rounded on the way down: the way up goes back to what the next row's skips have.
        size = (skips[-1].shape[1], skips[-1].shape[2]) if skips else None
        x = row_up(x, own, temb, *context, size=size)
    return x


def _layer(attention: Attentions, i: int) -> nn.Module:
    """The attention after residual block i of a row."""
    maker = attention[i] if isinstance(attention, tuple) else attention
    return maker(name=f"attentions_{i}")


def check_inputs(x: jax.Array, t_shape: tuple[int, ...], in_channels: int, *, multiple: int, smallest: int) -> None:
    """Raise InputError where the shapes of ``x`` and ``t`` do not fit a network.

    Args:
        x: What should be float[B, H, W, in_channels].
        t_shape: Shape of the time.
        in_channels: Input channels of the network.
        multiple: A divisor of H and W.
        smallest: H and W, at least.
    """
    height_width = x.shape[1:3]
    if x.ndim != 4 or x.shape[-1] != in_channels or any(n % multiple or n < smallest for n in height_width):
        sizes = f"multiples of {multiple}" if multiple > 1 else f"at least {smallest}"
        raise InputError(f"The UNet's x has shape {x.shape}; give [B, H, W, {in_channels}] with H and W {sizes}.")
    if t_shape not in ((), (1,), (x.shape[0],)):
        raise InputError(f"The UNet's t has shape {t_shape}; give a scalar or one time per image, [{x.shape[0]}].")
