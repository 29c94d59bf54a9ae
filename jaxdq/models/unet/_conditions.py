"""Networks that a text, an image or something else conditions: their fields, and what they take."""

from collections.abc import Mapping
from dataclasses import fields as fields_of
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdq._common.errors import InputError
from jaxdq.models.unet._added import HINT_CHANNELS
from jaxdq.models.unet._blocks import Size
from jaxdq.models.unet._fields import per_row
from jaxdq.models.unet._rows import check_inputs
from jaxdq.models.unet._transformer import DUAL_TOKENS, FLAX, TORCH, Numerics

# The number of tokens of CLIP's text encoders, which all of Stable Diffusion reads; the network itself takes any.
TEXT_TOKENS = 77
# Downsamplings of a hint, and of nothing else that a network takes besides the state.
_HINT_SCALE = 8


class Conditions(nn.Module):
    """The fields of ``UNet2DCondition`` and ``ControlNet``, and what they take besides the image and the time.

    The fields are those of ``UNet2DConditionModel``, with one entry per resolution where diffusers allows one for all,
    and no ``cross_attention_dim`` where the transformers read no text but their own pixels again (AudioLDM);
    ``attention_head_dim`` is the number of heads there, but in ``SimpleCrossAttn`` and ``K`` blocks, and is called both
    here.
    """

    in_channels: int
    center_input_sample: bool
    time_embedding_type: str
    time_embedding_dim: int | None
    time_embedding_act_fn: str | None
    timestep_post_act: str | None
    time_cond_proj_dim: int | None
    freq_shift: float
    flip_sin_to_cos: bool
    down_block_types: tuple[str, ...]
    mid_block_type: str | None
    block_out_channels: tuple[int, ...]
    layers_per_block: tuple[int, ...]
    mid_block_scale_factor: float
    downsample_padding: int
    act_fn: str
    norm_num_groups: int | None
    norm_eps: float
    resnet_time_scale_shift: str
    resnet_skip_time_act: bool
    resnet_out_scale_factor: float
    num_heads: tuple[int, ...]
    cross_attention_dim: int | None
    cross_attention_norm: str | None
    only_cross_attention: tuple[bool, ...]
    mid_block_only_cross_attention: bool
    dual_cross_attention: bool
    transformer_layers_per_block: tuple[int | tuple[int, ...], ...]
    use_linear_projection: bool
    conv_in_kernel: int
    encoder_hid_dim: int | None
    encoder_hid_dim_type: str | None
    class_embed_type: str | None
    num_class_embeds: int | None
    class_embeddings_concat: bool
    addition_embed_type: str | None
    addition_embed_type_num_heads: int
    addition_time_embed_dim: int | None
    projection_class_embeddings_input_dim: int | None
    numerics: Numerics

    @property
    def condition_names(self) -> tuple[str, ...]:
        """What the network takes after (x, t), in this order."""
        added, tokens = self.addition_embed_type, self.encoder_hid_dim_type
        has = {
            "encoder_hidden_states": tokens != "image_proj" and self.cross_attention_dim is not None,
            "text_embeds": added in ("text_time", "text_image"),
            "time_ids": added == "text_time",
            "image_embeds": added in ("text_image", "image", "image_hint")
            or tokens in ("text_image_proj", "image_proj"),
            "hint": added == "image_hint",
            "class_labels": self.has_classes,
            "timestep_cond": self.time_cond_proj_dim is not None,
        }
        return tuple(name for name, there in has.items() if there)

    @property
    def has_classes(self) -> bool:
        """Whether the network takes class_labels."""
        return self.class_embed_type is not None or self.num_class_embeds is not None

    @property
    def x_channels(self) -> int:
        """Channels of x: what joins it inside is not among them."""
        return self.in_channels - (HINT_CHANNELS if self.addition_embed_type == "image_hint" else 0)

    def abstract_inputs(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Return the shapes of the smallest arguments that the network can be called with."""
        x = jax.ShapeDtypeStruct((1, self._side, self._side, self.x_channels), jnp.float32)
        t = jax.ShapeDtypeStruct((1,), jnp.int32)
        return x, t, *self.abstract_conditions()

    def abstract_conditions(self, size: Size | None = None) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Return the shapes of one row of what the network takes after (x, t), for an x of this size."""
        shapes = self._shapes(size or (self._side, self._side))
        dtypes = {"class_labels": jnp.float32 if self._label_shape else jnp.int32}
        return tuple(
            jax.ShapeDtypeStruct((1, *shapes[name]), dtypes.get(name, jnp.float32)) for name in self.condition_names
        )

    def _shapes(self, size: Size) -> dict[str, tuple[Any, ...]]:
        """Condition -> shape of one image's, also of conditions that this network does not take."""
        shapes: dict[str, tuple[Any, ...]] = {
            "encoder_hidden_states": (self._num_tokens, self._text_width),
            "image_embeds": (self._image_width,),
            "hint": (_HINT_SCALE * size[0], _HINT_SCALE * size[1], 3),
            "class_labels": self._label_shape,
            "timestep_cond": (self.time_cond_proj_dim,),
            "text_embeds": (self.cross_attention_dim,),
        }
        if self.addition_time_embed_dim is not None and self.projection_class_embeddings_input_dim is not None:
            of_id, total = self.addition_time_embed_dim, self.projection_class_embeddings_input_dim
            # SDXL's refiner has five time ids, and its pooled text is as wide as its tokens.
            num_ids = 5 if total - 5 * of_id == self.cross_attention_dim else 6
            if self.addition_embed_type == "text_time":
                shapes |= {"text_embeds": (total - num_ids * of_id,), "time_ids": (num_ids,)}
        return shapes

    @property
    def _side(self) -> int:
        # The fixed filters of k-diffusion mirror two pixels at least.
        return 2 ** (len(self.block_out_channels) - 1) * (2 if self._is_k else 1)

    @property
    def _is_k(self) -> bool:
        return any(kind.startswith("K") for kind in self.down_block_types)

    @property
    def _num_tokens(self) -> int:
        return sum(DUAL_TOKENS) if self.dual_cross_attention else TEXT_TOKENS

    @property
    def _text_width(self) -> int | None:
        projected = self.encoder_hid_dim_type in ("text_proj", "text_image_proj")
        return self.encoder_hid_dim if projected and self.encoder_hid_dim else self.cross_attention_dim

    @property
    def _image_width(self) -> int | None:
        of_text = self.addition_embed_type == "text_image" or self.encoder_hid_dim_type == "text_image_proj"
        return self.cross_attention_dim if of_text or self.encoder_hid_dim is None else self.encoder_hid_dim

    @property
    def _time_width(self) -> int:
        factor = 2 if self.time_embedding_type == "fourier" else 4
        return self.time_embedding_dim or factor * self.block_out_channels[0]

    @property
    def _label_shape(self) -> tuple[int, ...]:
        """Shape of one image's label: () for a number."""
        if self.class_embed_type == "identity":
            return (self._time_width,)
        if self.class_embed_type in ("projection", "simple_projection"):
            return (self.projection_class_embeddings_input_dim or 1,)
        return ()

    @property
    def _smallest(self) -> int:
        """The smallest side of an image: a downsampler that rounds halves down leaves nothing of a single pixel."""
        rounds_down = ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D")
        floors = [kind in rounds_down or not self.downsample_padding for kind in self.down_block_types]
        return self._side if self._is_k else 2 ** (len(floors) - 1) if any(floors[:-1]) else 1

    def _given(self, x: jax.Array, t: Any, conditions: tuple[Any, ...], named: Mapping[str, Any]) -> dict[str, Any]:
        """Check the arguments and return the conditions by name."""
        multiple = self._side if self._is_k else 1
        check_inputs(x, jnp.shape(t), self.x_channels, multiple=multiple, smallest=self._smallest)
        names = self.condition_names
        unknown = sorted(set(named) - set(names)) + [f"{len(conditions)} conditions"] * (len(conditions) > len(names))
        if unknown:
            raise InputError(f"This UNet takes {', '.join(names)} after x and t, and was called with {unknown[0]}.")
        given = dict(zip(names, conditions, strict=False)) | {k: v for k, v in named.items() if v is not None}
        absent = [name for name in names if given.get(name) is None and name != "timestep_cond"]
        if absent:
            raise InputError(
                f"This UNet was called without {' or '.join(absent)}; pass {', '.join(names)}, one row for each image."
            )
        for name, expected in zip(names, self.abstract_conditions((x.shape[1], x.shape[2])), strict=True):
            if name in given:
                self._check_condition(name, given[name], (len(x), *expected.shape[1:]))
        return given

    def _check_condition(self, name: str, rows: Any, expected: tuple[int, ...]) -> None:
        """Raise InputError where a condition does not fit the network."""
        shape = tuple(jnp.shape(rows))
        free = {"encoder_hidden_states": 1, "time_ids": 1}.get(name)  # an axis of any length
        fits = len(shape) == len(expected) and all(
            a == b or i == free for i, (a, b) in enumerate(zip(shape, expected, strict=True))
        )
        if name in ("text_embeds", "time_ids") and self.addition_embed_type == "text_time":
            fits = len(shape) == 2 and shape[0] == expected[0]  # their widths are looked at together
        if not fits:
            shown = [*expected] if name != "encoder_hidden_states" else [expected[0], "tokens", expected[2]]
            listed = f"[{', '.join(map(str, shown))}]"
            raise InputError(f"The UNet's {name} has shape {shape}; give one row for each image, {listed}.")


def spread_fields(complete: dict[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a complete configuration as fields of a module: one per resolution, and what the class's name says."""
    num_rows = len(complete["block_out_channels"])
    fields = dict(complete)
    for key in ("layers_per_block", "transformer_layers_per_block", "only_cross_attention"):
        fields[key] = per_row(fields[key], num_rows)
    fields["num_heads"] = per_row(fields["attention_head_dim"], num_rows)
    if isinstance(fields["cross_attention_dim"], tuple):
        fields["cross_attention_dim"] = None  # each resolution's own channels: it reads no text
    if fields["mid_block_only_cross_attention"] is None:
        everywhere = complete["only_cross_attention"]
        fields["mid_block_only_cross_attention"] = everywhere if isinstance(everywhere, bool) else False
    if fields["encoder_hid_dim"] is not None and fields["encoder_hid_dim_type"] is None:
        fields["encoder_hid_dim_type"] = "text_proj"
    fields["numerics"] = FLAX if str(config.get("_class_name", "")).startswith("Flax") else TORCH
    return fields


def own_fields(cls: type[nn.Module], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return those fields that a class of module has."""
    names = {field.name for field in fields_of(cls)} - {"parent", "name"}
    return {name: fields[name] for name in names}
