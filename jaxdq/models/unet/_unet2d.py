"""The unconditional and class-conditional UNet of diffusers, ``UNet2DModel``, in Flax and NHWC."""

from collections.abc import Mapping
from dataclasses import fields as fields_of
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdq._common.errors import InputError
from jaxdq.models.unet._blocks import Attention, Size, Style, conv3x3, group_norm
from jaxdq.models.unet._config import complete_config
from jaxdq.models.unet._rows import AttentionMaker, DownBlock, MidBlock, UpBlock, check_inputs, run_down, run_up
from jaxdq.models.unet._skip_rows import SkipDownBlock, SkipUpBlock, num_groups_of
from jaxdq.models.unet._time import FourierTime, PositionalTime, TimeMlp


class UNet2D(nn.Module):
    """The network of DDPM (Ho et al. 2020) in the layout of diffusers' ``UNet2DModel``.

    The fields are diffusers' and mean the same; make one with ``unet2d_from_config``, which checks them. With the same
    weights the output equals that of diffusers' PyTorch class up to float32 rounding. There is no dropout: this is the
    network as it samples.

    Example:
        >>> module = unet2d_from_config({"block_out_channels": [8, 8], "down_block_types": ["DownBlock2D"] * 2,
        ...                              "up_block_types": ["UpBlock2D"] * 2, "norm_num_groups": 4})
        >>> x = jnp.zeros((2, 16, 16, 3))
        >>> module.apply(module.init(jax.random.key(0), x, 0), x, 500).shape
        (2, 16, 16, 3)
    """

    in_channels: int
    out_channels: int
    center_input_sample: bool
    time_embedding_type: str
    time_embedding_dim: int | None
    freq_shift: float
    flip_sin_to_cos: bool
    down_block_types: tuple[str, ...]
    mid_block_type: str | None
    up_block_types: tuple[str, ...]
    block_out_channels: tuple[int, ...]
    layers_per_block: int
    mid_block_scale_factor: float
    downsample_padding: int
    downsample_type: str
    upsample_type: str
    attention_head_dim: int | None
    norm_num_groups: int | None
    attn_norm_num_groups: int | None
    norm_eps: float
    act_fn: str
    resnet_time_scale_shift: str
    add_attention: bool
    class_embed_type: str | None
    num_class_embeds: int | None
    num_train_timesteps: int | None

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array | int, class_labels: jax.Array | None = None) -> jax.Array:
        """Predict the noise in ``x``, or what else the network was trained to predict.

        Args:
            x: float[B, H, W, in_channels], H and W multiples of 2 ** (number of resolutions - 1).
            t: int[] or int[B], the model time; float where time_embedding_type is "fourier". A scalar is embedded once.
            class_labels: int[B] for a table of num_class_embeds rows or a "timestep" class embedding; float[B, E] for
                "identity"; absent for a network without classes.

        Returns:
            float[B, H, W, out_channels].

        Raises:
            InputError: The shape of ``x`` or ``t`` does not fit, or class_labels is absent or superfluous.
        """
        multiple = 2 ** (len(self.block_out_channels) - 1)
        check_inputs(x, jnp.shape(t), self.in_channels, multiple=multiple, smallest=multiple)
        t = jnp.atleast_1d(jnp.asarray(t))
        # In x's dtype: float32 here would make float32 of all that follows.
        temb = self._embed(t, class_labels).astype(x.dtype)
        image = 2 * x - 1 if self.center_input_sample else x
        x, drawn = conv3x3(self.block_out_channels[0], "conv_in")(image), None
        if self._is_skip:
            x, drawn = self._run_skip_rows(x, temb, image)
        else:
            x, skips = run_down(x, temb, (), (self._down(), self._middle()))
            x = run_up(x, skips, temb, (), self._up())
        groups = self.norm_num_groups or num_groups_of(self.block_out_channels[0])
        # diffusers hands act_fn to the residual blocks alone.
        x = nn.silu(group_norm(groups, self.norm_eps, "conv_norm_out")(x))
        x = conv3x3(self.out_channels, "conv_out")(x)
        x = x if drawn is None else x + drawn
        return x / t[:, None, None, None] if self.time_embedding_type == "fourier" else x

    @property
    def has_classes(self) -> bool:
        """Whether the network takes class_labels."""
        return self.class_embed_type is not None or self.num_class_embeds is not None

    @property
    def _is_skip(self) -> bool:
        return any("Skip" in kind for kind in self.down_block_types)

    def _run_skip_rows(self, x: jax.Array, temb: jax.Array, image: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """Run rows that carry the image along: what they make of it, and the image that they draw."""
        last, skips = len(self.block_out_channels) - 1, [x]
        for i, (kind, channels) in enumerate(zip(self.down_block_types, self.block_out_channels, strict=True)):
            attends, settings = "Attn" in kind, (self._style, self.attention_head_dim)
            down = SkipDownBlock(channels, self.layers_per_block, *settings, attends, i < last, name=f"down_blocks_{i}")
            x, made, image = down(x, temb, image)
            skips += made
        middle = self._middle()
        x = x if middle is None else middle(x, temb)
        drawn: jax.Array | None = None
        for i, (kind, channels) in enumerate(zip(self.up_block_types, reversed(self.block_out_channels), strict=True)):
            count, attends = self.layers_per_block + 1, "Attn" in kind
            up = SkipUpBlock(
                channels, count, self._style, self.attention_head_dim, attends, i < last, name=f"up_blocks_{i}"
            )
            x, drawn = up(x, skips[-count:], temb, drawn)
            skips = skips[:-count]
        return x, drawn

    @property
    def _style(self) -> Style:
        scale_shift = self.resnet_time_scale_shift == "scale_shift"
        groups = self.norm_num_groups or num_groups_of(self.block_out_channels[-1])
        return Style(groups, self.norm_eps, scale_shift, self.act_fn)

    def _attention(self, kind: str) -> AttentionMaker | None:
        """Return what makes the attention of a row of this type."""
        if not kind.startswith("Attn"):
            return None
        return partial(Attention, self.attention_head_dim, self.norm_num_groups, self.norm_eps)

    def _embed(self, t: jax.Array, class_labels: jax.Array | None) -> jax.Array:
        """Embed the time, and the class where there is one: float[B or 1, E]."""
        channels = self.block_out_channels[0]
        width = self.time_embedding_dim or 4 * channels
        if self.time_embedding_type == "fourier":
            time_proj: nn.Module = FourierTime(channels, name="time_proj")
        elif self.time_embedding_type == "learned" and self.num_train_timesteps is not None:
            time_proj = nn.Embed(self.num_train_timesteps, channels, name="time_proj")
        else:
            time_proj = PositionalTime(channels, self.flip_sin_to_cos, self.freq_shift, name="time_proj")
        temb = TimeMlp(width, name="time_embedding")(time_proj(t))
        if self.has_classes != (class_labels is not None):
            raise InputError(
                "This UNet is class-conditional and was called without class_labels; pass one label per image."
                if self.has_classes
                else "This UNet has no classes and was called with class_labels; leave them out."
            )
        if class_labels is None:
            return temb
        if self.class_embed_type == "identity":
            return temb + class_labels
        if self.class_embed_type is None and self.num_class_embeds is not None:
            return temb + nn.Embed(self.num_class_embeds, width, name="class_embedding")(class_labels)
        return temb + TimeMlp(width, name="class_embedding")(time_proj(class_labels))

    def _down(self) -> list[DownBlock]:
        last = len(self.block_out_channels) - 1
        rows = []
        for i, (kind, channels) in enumerate(zip(self.down_block_types, self.block_out_channels, strict=True)):
            attention = self._attention(kind)
            # diffusers hands downsample_type to the blocks with attention only; the others are of one type each.
            own = "resnet" if kind == "ResnetDownsampleBlock2D" else "conv"
            downsample = None if i == last else self.downsample_type if attention else own
            row = DownBlock(
                channels=channels,
                num_layers=self.layers_per_block,
                style=self._style,
                attention=attention,
                downsample=downsample,
                downsample_padding=self.downsample_padding,
                name=f"down_blocks_{i}",
            )
            rows.append(row)
        return rows

    def _middle(self) -> MidBlock | None:
        if self.mid_block_type is None:
            return None
        style, scale = self._style, self.mid_block_scale_factor
        groups = self.attn_norm_num_groups
        if groups is None and not style.scale_shift:
            groups = style.num_groups
        attention = partial(Attention, self.attention_head_dim, groups, self.norm_eps, scale)
        style = style._replace(output_scale=scale)
        return MidBlock(style, attention if self.add_attention else None, name="mid_block")

    def _up(self) -> list[UpBlock]:
        last = len(self.block_out_channels) - 1
        rows = []
        for i, (kind, channels) in enumerate(zip(self.up_block_types, reversed(self.block_out_channels), strict=True)):
            attention = self._attention(kind)
            own = "resnet" if kind == "ResnetUpsampleBlock2D" else "conv"
            upsample = None if i == last else self.upsample_type if attention else own
            row = UpBlock(
                channels=channels,
                num_layers=self.layers_per_block + 1,
                style=self._style,
                attention=attention,
                upsample=upsample,
                name=f"up_blocks_{i}",
            )
            rows.append(row)
        return rows

    @property
    def x_channels(self) -> int:
        """Channels of x."""
        return self.in_channels

    @property
    def condition_names(self) -> tuple[str, ...]:
        """What the network takes after (x, t)."""
        return ("class_labels",) if self.has_classes else ()

    def abstract_conditions(self, size: Size | None = None) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Return the shapes of one row of what the network takes after (x, t)."""
        return self.abstract_inputs()[2:]

    def abstract_inputs(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Return the shapes of the smallest arguments that the network can be called with."""
        side = 2 ** (len(self.block_out_channels) - 1)
        x = jax.ShapeDtypeStruct((1, side, side, self.in_channels), jnp.float32)
        t = jax.ShapeDtypeStruct((1,), jnp.int32)
        if self.class_embed_type == "identity":
            width = self.time_embedding_dim or 4 * self.block_out_channels[0]
            return x, t, jax.ShapeDtypeStruct((1, width), jnp.float32)
        return (x, t, t) if self.has_classes else (x, t)


def unet2d_from_config(config: Mapping[str, Any]) -> UNet2D:
    """Build the network that a diffusers ``UNet2DModel`` configuration describes.

    Args:
        config: The fields of diffusers' config.json; what is left out has diffusers' default.

    Returns:
        The module, without parameters.

    Raises:
        InputError: A field is unknown, unsupported or contradicts another; the sentence names it.
    """
    complete = complete_config(config)
    names = {field.name for field in fields_of(UNet2D)} - {"parent", "name"}
    return UNet2D(**{name: complete[name] for name in names})
