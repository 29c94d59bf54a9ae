"""The text-conditional UNet of diffusers, ``UNet2DConditionModel``, in Flax and NHWC."""

from collections.abc import Mapping
from dataclasses import fields as fields_of
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdq._common.errors import InputError
from jaxdq.models.unet._blocks import Style, conv3x3, group_norm
from jaxdq.models.unet._config_condition import complete_condition_config
from jaxdq.models.unet._fields import per_row
from jaxdq.models.unet._rows import AttentionMaker, DownBlock, MidBlock, UpBlock, check_inputs, run_rows
from jaxdq.models.unet._time import PositionalTime, TimeMlp
from jaxdq.models.unet._transformer import FLAX, TORCH, Numerics, Transformer

# The number of tokens of CLIP's text encoders, which all of Stable Diffusion reads; the network itself takes any.
TEXT_TOKENS = 77


class UNet2DCondition(nn.Module):
    """The network of Stable Diffusion (Rombach et al. 2022; Podell et al. 2023) in the layout of diffusers.

    The fields are those of ``UNet2DConditionModel``, with one entry per resolution where diffusers allows one for all;
    ``attention_head_dim`` is the number of heads there and is called so here. Make one with
    ``unet2d_condition_from_config``, which checks them. With the same weights the output equals that of diffusers'
    PyTorch or Flax class, as ``numerics`` says, up to float32 rounding. There is no dropout: this is the network as it
    samples.

    Example:
        >>> module = unet2d_condition_from_config({"block_out_channels": [8, 8], "norm_num_groups": 4,
        ...     "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "cross_attention_dim": 6,
        ...     "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"]})
        >>> x, text = jnp.zeros((2, 16, 16, 4)), jnp.zeros((2, 77, 6))
        >>> module.apply(module.init(jax.random.key(0), x, 0, text), x, 500, text).shape
        (2, 16, 16, 4)
    """

    in_channels: int
    out_channels: int
    center_input_sample: bool
    time_embedding_dim: int | None
    freq_shift: float
    flip_sin_to_cos: bool
    down_block_types: tuple[str, ...]
    mid_block_type: str | None
    up_block_types: tuple[str, ...]
    block_out_channels: tuple[int, ...]
    layers_per_block: tuple[int, ...]
    mid_block_scale_factor: float
    downsample_padding: int
    norm_num_groups: int
    norm_eps: float
    resnet_time_scale_shift: str
    num_heads: tuple[int, ...]
    cross_attention_dim: int
    transformer_layers_per_block: tuple[int, ...]
    use_linear_projection: bool
    addition_embed_type: str | None
    addition_time_embed_dim: int | None
    projection_class_embeddings_input_dim: int | None
    numerics: Numerics

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        t: jax.Array | int,
        encoder_hidden_states: jax.Array,
        text_embeds: jax.Array | None = None,
        time_ids: jax.Array | None = None,
    ) -> jax.Array:
        """Predict the noise, or what the network was trained to predict, in ``x``.

        Args:
            x: float[B, H, W, in_channels], any H and W: what is rounded on the way down is undone on the way up.
            t: int[] or int[B], the model time. A scalar is embedded once.
            encoder_hidden_states: float[B, M, cross_attention_dim], what the text encoder says of M tokens.
            text_embeds: float[B, E], the pooled text; for an SDXL network, and absent for others.
            time_ids: float[B, 6], original size, crop and target size in pixels (5 for SDXL's refiner); likewise.

        Returns:
            float[B, H, W, out_channels].

        Raises:
            InputError: The shape of an argument does not fit, or text_embeds or time_ids is absent or superfluous.
        """
        check_inputs(x, jnp.shape(t), self.in_channels, multiple=1, smallest=self._smallest)
        self._check_text(x.shape[0], encoder_hidden_states, text_embeds, time_ids)
        # In x's dtype: float32 here would make float32 of all that follows.
        temb = self._embed(jnp.atleast_1d(jnp.asarray(t)), text_embeds, time_ids).astype(x.dtype)
        x = conv3x3(self.block_out_channels[0], "conv_in")(2 * x - 1 if self.center_input_sample else x)
        x = run_rows(x, temb, (encoder_hidden_states,), (self._down(), self._middle(), self._up()))
        x = nn.silu(group_norm(self.norm_num_groups, self.norm_eps, "conv_norm_out")(x))
        return conv3x3(self.out_channels, "conv_out")(x)

    @property
    def has_added_conditions(self) -> bool:
        """Whether the network takes text_embeds and time_ids."""
        return self.addition_embed_type is not None

    @property
    def _smallest(self) -> int:
        """The smallest side of an image: a downsampler that rounds halves down leaves nothing of a single pixel."""
        floors = [kind == "ResnetDownsampleBlock2D" or not self.downsample_padding for kind in self.down_block_types]
        return 2 ** (len(floors) - 1) if any(floors[:-1]) else 1

    @property
    def _style(self) -> Style:
        return Style(self.norm_num_groups, self.norm_eps, self.resnet_time_scale_shift == "scale_shift")

    def _embed(self, t: jax.Array, text_embeds: jax.Array | None, time_ids: jax.Array | None) -> jax.Array:
        """Embed the time, and what else there is: float[B or 1, E]."""
        channels = self.block_out_channels[0]
        width = self.time_embedding_dim or 4 * channels
        time_proj = PositionalTime(channels, self.flip_sin_to_cos, self.freq_shift, name="time_proj")
        temb = TimeMlp(width, name="time_embedding")(time_proj(t))
        if text_embeds is None or time_ids is None or self.addition_time_embed_dim is None:
            return temb
        id_proj = PositionalTime(
            self.addition_time_embed_dim, self.flip_sin_to_cos, self.freq_shift, name="add_time_proj"
        )
        ids = id_proj(time_ids.reshape(-1)).reshape(time_ids.shape[0], -1)
        added = jnp.concatenate([text_embeds, ids.astype(text_embeds.dtype)], axis=-1)
        return temb + TimeMlp(width, name="add_embedding")(added)

    def _attention(self, level: int) -> AttentionMaker:
        """Return what makes the attention at one resolution, 0 for the highest."""
        return partial(
            Transformer,
            num_heads=self.num_heads[level],
            num_layers=self.transformer_layers_per_block[level],
            num_groups=self.norm_num_groups,
            linear_projection=self.use_linear_projection,
            numerics=self.numerics,
        )

    def _down(self) -> list[DownBlock]:
        last = len(self.block_out_channels) - 1
        return [
            DownBlock(
                channels=self.block_out_channels[level],
                num_layers=self.layers_per_block[level],
                style=self._style,
                attention=self._attention(level) if kind == "CrossAttnDownBlock2D" else None,
                downsample=None if level == last else "resnet" if kind == "ResnetDownsampleBlock2D" else "conv",
                downsample_padding=self.downsample_padding,
                name=f"down_blocks_{level}",
            )
            for level, kind in enumerate(self.down_block_types)
        ]

    def _middle(self) -> MidBlock | None:
        if self.mid_block_type is None:
            return None
        return MidBlock(self._style, self._attention(-1), self.mid_block_scale_factor, name="mid_block")

    def _up(self) -> list[UpBlock]:
        last = len(self.block_out_channels) - 1
        return [
            UpBlock(
                channels=self.block_out_channels[last - i],
                num_layers=self.layers_per_block[last - i] + 1,
                style=self._style,
                attention=self._attention(last - i) if kind == "CrossAttnUpBlock2D" else None,
                upsample=None if i == last else "resnet" if kind == "ResnetUpsampleBlock2D" else "conv",
                name=f"up_blocks_{i}",
            )
            for i, kind in enumerate(self.up_block_types)
        ]

    def abstract_inputs(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Return the shapes of the smallest arguments that the network can be called with."""
        side = 2 ** (len(self.block_out_channels) - 1)
        x = jax.ShapeDtypeStruct((1, side, side, self.in_channels), jnp.float32)
        t = jax.ShapeDtypeStruct((1,), jnp.int32)
        return x, t, *self.abstract_conditions()

    def abstract_conditions(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Return the shapes of one row of what the network takes after (x, t)."""
        shapes: list[tuple[int, ...]] = [(1, TEXT_TOKENS, self.cross_attention_dim)]
        if self.addition_time_embed_dim is not None and self.projection_class_embeddings_input_dim is not None:
            width, total = self.addition_time_embed_dim, self.projection_class_embeddings_input_dim
            # SDXL's refiner has five time ids, and its pooled text is as wide as its tokens.
            num_ids = 5 if total - 5 * width == self.cross_attention_dim else 6
            shapes += [(1, total - num_ids * width), (1, num_ids)]
        return tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)

    def _check_text(
        self, batch: int, text: jax.Array, text_embeds: jax.Array | None, time_ids: jax.Array | None
    ) -> None:
        """Raise InputError where the conditions do not fit the network."""
        width = self.cross_attention_dim
        if jnp.ndim(text) != 3 or text.shape[0] != batch or text.shape[-1] != width:
            raise InputError(
                f"The UNet's encoder_hidden_states has shape {jnp.shape(text)}; give the text encoder's output for "
                f"every image, [{batch}, tokens, {width}]."
            )
        if not self.has_added_conditions:
            if text_embeds is not None or time_ids is not None:
                raise InputError("This UNet takes neither text_embeds nor time_ids; leave them out.")
            return
        if text_embeds is None or time_ids is None:
            raise InputError("This UNet was called without text_embeds or time_ids; pass both, one row per image.")
        total = text_embeds.shape[-1] + time_ids.shape[-1] * (self.addition_time_embed_dim or 0)
        leading = {text_embeds.shape[:-1], time_ids.shape[:-1]}
        if leading != {(batch,)} or total != self.projection_class_embeddings_input_dim:
            text_shape, ids_shape = (shape.shape[1:] for shape in self.abstract_conditions()[1:])
            raise InputError(
                f"The UNet's text_embeds has shape {text_embeds.shape} and its time_ids {time_ids.shape}; give "
                f"{[batch, *text_shape]} and {[batch, *ids_shape]}."
            )


def unet2d_condition_from_config(config: Mapping[str, Any]) -> UNet2DCondition:
    """Build the network that a diffusers ``UNet2DConditionModel`` configuration describes.

    Args:
        config: The fields of diffusers' config.json; what is left out has diffusers' default. The network computes as
            diffusers' Flax class does where ``_class_name`` is that class's, and as the PyTorch class does elsewhere.

    Returns:
        The module, without parameters.

    Raises:
        InputError: A field is unknown, unsupported or contradicts another; the sentence names it.
    """
    complete = complete_condition_config(config)
    num_rows = len(complete["block_out_channels"])
    for key in ("layers_per_block", "transformer_layers_per_block"):
        complete[key] = per_row(complete[key], num_rows)
    complete["num_heads"] = per_row(complete["attention_head_dim"], num_rows)
    complete["numerics"] = FLAX if str(config.get("_class_name", "")).startswith("Flax") else TORCH
    names = {field.name for field in fields_of(UNet2DCondition)} - {"parent", "name"}
    return UNet2DCondition(**{name: complete[name] for name in names})
