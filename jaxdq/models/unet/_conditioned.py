"""Networks that a text, an image or something else conditions: the embedding of what they take, and the way down."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdq._common.errors import InputError
from jaxdq.models.unet._activations import ACTIVATIONS
from jaxdq.models.unet._added import ImageTime, ImageTokens, TextImageTime, TextTime
from jaxdq.models.unet._blocks import Style
from jaxdq.models.unet._conditions import Conditions
from jaxdq.models.unet._joint_attention import JointAttention
from jaxdq.models.unet._k_rows import KDownBlock
from jaxdq.models.unet._rows import Attentions, DownBlock, MidBlock
from jaxdq.models.unet._time import FourierTime, PositionalTime, TimeMlp
from jaxdq.models.unet._transformer import DualTransformer, Transformer


class ConditionedNet(Conditions):
    """What ``UNet2DCondition`` and ``ControlNet`` have in common: the embedding of what they take, and the way down."""

    def _read(self, x: jax.Array, t: Any, given: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
        """Run the first convolution, float[B, H, W, C], and embed the time and what else there is, float[B or 1, E]."""
        # Before all that reads a text: the layer that reads the image is known by being the first.
        early = None if self.addition_embed_type == "image_hint" else self._conv_in(x)
        temb, x = self._embed(x, jnp.atleast_1d(jnp.asarray(t)), given)
        return (self._conv_in(x) if early is None else early), temb

    def _embed(self, x: jax.Array, t: jax.Array, given: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
        """Embed the time and what else there is, float[B or 1, E]; and join to x what belongs there."""
        width = self._time_width
        if self.time_embedding_type == "fourier":
            time_proj: nn.Module = FourierTime(width // 2, False, self.flip_sin_to_cos, name="time_proj")
        else:
            time_proj = PositionalTime(
                self.block_out_channels[0], self.flip_sin_to_cos, self.freq_shift, name="time_proj"
            )
        settings = self.act_fn, self.timestep_post_act, self.time_cond_proj_dim
        temb = TimeMlp(width, *settings, name="time_embedding")(time_proj(t), given.get("timestep_cond"))
        label = self._embedded_class(given, time_proj)
        if label is not None and self.class_embeddings_concat:
            rows = max(len(temb), len(label))
            temb = jnp.concatenate([jnp.broadcast_to(part, (rows, part.shape[-1])) for part in (temb, label)], axis=-1)
        elif label is not None:
            temb = temb + label
        added, joined = self._added(given)
        temb = temb if added is None else temb + added
        x = x if joined is None else jnp.concatenate([x, joined.astype(x.dtype)], axis=-1)
        if self.time_embedding_act_fn is not None:
            temb = ACTIVATIONS[self.time_embedding_act_fn](temb)
        # In x's dtype: float32 here would make float32 of all that follows.
        return temb.astype(x.dtype), x

    def _embedded_class(self, given: Mapping[str, Any], time_proj: nn.Module) -> jax.Array | None:
        width, name = self._time_width, "class_embedding"
        if not self.has_classes:
            return None
        labels = given["class_labels"]
        if self.class_embed_type == "identity":
            return labels
        if self.class_embed_type == "projection":
            return TimeMlp(width, name=name)(labels)
        if self.class_embed_type == "simple_projection":
            return nn.Dense(width, name=name)(labels)
        if self.class_embed_type == "timestep":
            # ControlNet's is a silu whatever act_fn says.
            return TimeMlp(width, self._class_act, name=name)(time_proj(labels))
        return nn.Embed(self.num_class_embeds or 1, width, name=name)(labels)

    @property
    def _class_act(self) -> str:
        return self.act_fn

    def _added(self, given: Mapping[str, Any]) -> tuple[jax.Array | None, jax.Array | None]:
        """What is added to the embedding of time, and what joins x."""
        kind, width, name = self.addition_embed_type, self._time_width, "add_embedding"
        if kind == "text":
            return TextTime(width, self.addition_embed_type_num_heads, name=name)(given["encoder_hidden_states"]), None
        if kind == "text_image":
            return TextImageTime(width, name=name)(given["text_embeds"], given["image_embeds"]), None
        if kind in ("image", "image_hint"):
            return ImageTime(width, name=name)(given["image_embeds"], given.get("hint"))
        if kind != "text_time" or self.addition_time_embed_dim is None:
            return None, None
        text, ids = given["text_embeds"], given["time_ids"]
        total = text.shape[-1] + ids.shape[-1] * self.addition_time_embed_dim
        if total != self.projection_class_embeddings_input_dim:
            by_name = dict(zip(self.condition_names, self.abstract_conditions(), strict=True))
            expected = [[len(text), *by_name[key].shape[1:]] for key in ("text_embeds", "time_ids")]
            raise InputError(
                f"The UNet's text_embeds has shape {text.shape} and its time_ids {ids.shape}; give {expected[0]} and "
                f"{expected[1]}."
            )
        id_proj = PositionalTime(
            self.addition_time_embed_dim, self.flip_sin_to_cos, self.freq_shift, name="add_time_proj"
        )
        waves = id_proj(ids.reshape(-1)).reshape(ids.shape[0], -1)
        joined = jnp.concatenate([text, waves.astype(text.dtype)], axis=-1)
        return TimeMlp(width, name=name)(joined), None

    def _context(self, given: Mapping[str, Any]) -> tuple[jax.Array, ...]:
        """What attention takes besides the image: float[B, M, cross_attention_dim], or nothing."""
        kind, width, name = self.encoder_hid_dim_type, self.cross_attention_dim, "encoder_hid_proj"
        if width is None:
            return ()
        if kind == "text_proj":
            return (nn.Dense(width, name=name)(given["encoder_hidden_states"]),)
        if kind == "text_image_proj":
            return (ImageTokens(width, name=name)(given["image_embeds"], given["encoder_hidden_states"]),)
        if kind == "image_proj":
            return (ImageTokens(width, name=name)(given["image_embeds"]),)
        return (given["encoder_hidden_states"],)

    def _conv_in(self, x: jax.Array) -> jax.Array:
        size, pad = self.conv_in_kernel, (self.conv_in_kernel - 1) // 2
        conv = nn.Conv(self.block_out_channels[0], (size, size), padding=((pad, pad), (pad, pad)), name="conv_in")
        return conv(2 * x - 1 if self.center_input_sample else x)

    def _style(self, kind: str | None) -> Style:
        """Return what the residual blocks of a row of this type share."""
        own = kind is not None and kind.startswith(("Resnet", "SimpleCrossAttn"))
        return Style(
            self.norm_num_groups or 1,
            self.norm_eps,
            self.resnet_time_scale_shift == "scale_shift",
            self.act_fn,
            own and self.resnet_skip_time_act,
            self.resnet_out_scale_factor if own else 1.0,
        )

    def _attention(self, kind: str, level: int, layers: int | tuple[int, ...], only_text: bool) -> Attentions | None:
        """Return what makes the attention of a row of this type; level is that of its number of heads."""
        heads, groups = self.num_heads[level], self.norm_num_groups or 1
        if "SimpleCrossAttn" in kind:
            return partial(JointAttention, heads, groups, only_text, self.cross_attention_norm)
        if "CrossAttn" not in kind:
            return None
        if self.dual_cross_attention:
            return partial(DualTransformer, heads, groups, self.numerics)
        settings = groups, self.use_linear_projection, self.numerics, only_text
        if isinstance(layers, tuple):
            return tuple(partial(Transformer, heads, one, *settings) for one in layers)
        return partial(Transformer, heads, layers, *settings)

    def _down(self) -> list[nn.Module]:
        return [self._down_row(level, kind) for level, kind in enumerate(self.down_block_types)]

    def _down_row(self, level: int, kind: str) -> nn.Module:
        channels, num_layers = self.block_out_channels[level], self.layers_per_block[level]
        is_last, name = level == len(self.block_out_channels) - 1, f"down_blocks_{level}"
        if kind.startswith("K"):
            head_dim = self.num_heads[level] if "Attn" in kind else None
            return KDownBlock(channels, num_layers, self.act_fn, self.norm_eps, head_dim, not is_last, name=name)
        layers = self.transformer_layers_per_block[level]
        by_resnet = kind.startswith(("Resnet", "SimpleCrossAttn"))
        return DownBlock(
            channels=channels,
            num_layers=num_layers,
            style=self._style(kind),
            attention=self._attention(kind, level, layers, self.only_cross_attention[level]),
            downsample=None if is_last else "resnet" if by_resnet else "conv",
            downsample_padding=self.downsample_padding,
            name=name,
        )

    def _middle(self) -> MidBlock | None:
        kind = self.mid_block_type
        if kind is None:
            return None
        is_simple = "SimpleCrossAttn" in kind
        style = self._style(None)._replace(
            skip_time_act=is_simple and self.resnet_skip_time_act, output_scale=self.mid_block_scale_factor
        )
        layers = self.transformer_layers_per_block[-1]
        only_text = is_simple and self.mid_block_only_cross_attention
        attention = self._attention(kind, -1, layers, only_text)
        return MidBlock(style, attention, single=kind == "UNetMidBlock2D", name="mid_block")
