"""What a diffusers ``UNet2DConditionModel`` configuration may say, and what it means here."""

from collections.abc import Mapping
from typing import Any

from jaxdq._common.checks import is_count
from jaxdq._common.errors import InputError
from jaxdq.models.unet._activations import ACTIVATIONS
from jaxdq.models.unet._fields import EMA_FIELDS, FieldSpec, attention_levels, complete_fields, per_row

K_GROUP_SIZE = 32
"""Channels that a norm of k-diffusion's blocks takes together; fixed in diffusers' code."""

CONDITION_DEFAULTS: dict[str, Any] = {
    "sample_size": None,
    "in_channels": 4,
    "out_channels": 4,
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "only_cross_attention": False,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "dropout": 0.0,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "cross_attention_dim": 1280,
    "transformer_layers_per_block": 1,
    "reverse_transformer_layers_per_block": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "attention_head_dim": 8,
    "num_attention_heads": None,
    "dual_cross_attention": False,
    "use_linear_projection": False,
    "class_embed_type": None,
    "addition_embed_type": None,
    "addition_time_embed_dim": None,
    "num_class_embeds": None,
    "upcast_attention": False,
    "resnet_time_scale_shift": "default",
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "time_cond_proj_dim": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "projection_class_embeddings_input_dim": None,
    "attention_type": "default",
    "class_embeddings_concat": False,
    "mid_block_only_cross_attention": None,
    "cross_attention_norm": None,
    "addition_embed_type_num_heads": 64,
}
"""Every field of ``UNet2DConditionModel`` (diffusers 0.39) and the value it has where a configuration is silent."""

_SPEC = FieldSpec(
    class_name="UNet2DConditionModel",
    defaults=CONDITION_DEFAULTS,
    choices={
        "mid_block_type": ("UNetMidBlock2DCrossAttn", "UNetMidBlock2DSimpleCrossAttn", "UNetMidBlock2D", None),
        "downsample_padding": (0, 1),
        "act_fn": tuple(ACTIVATIONS),
        "time_embedding_act_fn": (None, *ACTIVATIONS),
        "timestep_post_act": (None, *ACTIVATIONS),
        "resnet_time_scale_shift": ("default", "scale_shift"),
        "addition_embed_type": (None, "text", "text_image", "text_time", "image", "image_hint"),
        "encoder_hid_dim_type": (None, "text_proj", "text_image_proj", "image_proj"),
        "class_embed_type": (None, "timestep", "identity", "projection", "simple_projection"),
        "cross_attention_norm": (None, "layer_norm", "group_norm"),
        "mid_block_only_cross_attention": (None, False, True),
        "time_embedding_type": ("positional", "fourier"),
        # It asks for float32 inside attention: ours has float32 parameters and a float32 softmax in any case.
        "upcast_attention": (False, True, None),
        "num_attention_heads": (None,),  # diffusers refuses it: attention_head_dim has the number of heads
        "attention_type": ("default",),  # the others are GLIGEN's boxes
    },
    block_types={
        "down_block_types": (
            "DownBlock2D",
            "CrossAttnDownBlock2D",
            "SimpleCrossAttnDownBlock2D",
            "ResnetDownsampleBlock2D",
            "KDownBlock2D",
            "KCrossAttnDownBlock2D",
        ),
        "up_block_types": (
            "UpBlock2D",
            "CrossAttnUpBlock2D",
            "SimpleCrossAttnUpBlock2D",
            "ResnetUpsampleBlock2D",
            "KUpBlock2D",
            "KCrossAttnUpBlock2D",
        ),
    },
    counts=("in_channels", "out_channels", "conv_in_kernel", "conv_out_kernel", "addition_embed_type_num_heads"),
    optional_counts=(
        "norm_num_groups",
        "time_embedding_dim",
        "time_cond_proj_dim",
        "encoder_hid_dim",
        "num_class_embeds",
        "addition_time_embed_dim",
        "projection_class_embeddings_input_dim",
    ),
    per_row=("layers_per_block", "attention_head_dim"),
    positive=("mid_block_scale_factor", "norm_eps", "resnet_out_scale_factor"),
    flags=(
        "center_input_sample",
        "flip_sin_to_cos",
        "use_linear_projection",
        "dual_cross_attention",
        "resnet_skip_time_act",
        "class_embeddings_concat",
    ),
    ignored=(*EMA_FIELDS, "use_memory_efficient_attention", "split_head_dim"),  # the last two are the Flax class's
)


def complete_condition_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Check a ``UNet2DConditionModel`` or ``FlaxUNet2DConditionModel`` configuration and fill in what it leaves out.

    Args:
        config: The fields of diffusers' config.json; keys that start with ``_`` are diffusers' own and are dropped.

    Returns:
        Every field of ``CONDITION_DEFAULTS``, lists as tuples.

    Raises:
        InputError: A field is unknown, has a value this library does not support, or contradicts another.
    """
    fields = complete_fields(config, _SPEC)
    _check_lists(fields)
    _check_heads(fields)
    _check_k_blocks(fields)
    _check_conditions(fields)
    for key in ("conv_in_kernel", "conv_out_kernel"):
        if fields[key] % 2 == 0:
            raise InputError(
                f"The UNet's {key} is {fields[key]}, which would change the image's size; give an odd one."
            )
    return fields


def _check_lists(fields: dict[str, Any]) -> None:
    """Bring fields that may be lists into their form, and raise InputError for what they can't be."""
    num_rows = len(fields["block_out_channels"])
    only = fields["only_cross_attention"]
    flags = per_row(tuple(only) if isinstance(only, list) else only, num_rows)
    if len(flags) != num_rows or not all(isinstance(flag, bool) for flag in flags):
        raise InputError(
            f"The UNet's only_cross_attention is {only!r}; give true or false, or one for each resolution."
        )
    fields["only_cross_attention"] = only if isinstance(only, bool) else flags
    width = fields["cross_attention_dim"]
    widths = per_row(tuple(width) if isinstance(width, list) else width, num_rows)
    if len(widths) == num_rows and widths == fields["block_out_channels"] and isinstance(width, list | tuple):
        _check_reads_no_text(fields)
        fields["cross_attention_dim"] = widths
    elif len(widths) != num_rows or len(set(widths)) != 1 or not is_count(widths[0]):
        raise InputError(
            f"The UNet's cross_attention_dim is {width!r}; give a positive integer, the width of the text that all "
            "attention reads, or block_out_channels again for a network that reads none."
        )
    else:
        fields["cross_attention_dim"] = widths[0]
    layers, up = fields["transformer_layers_per_block"], fields["reverse_transformer_layers_per_block"]
    blocks = per_row(fields["layers_per_block"], num_rows)
    fields["transformer_layers_per_block"] = _layers(layers, blocks, "transformer_layers_per_block")
    if up is not None:
        more = tuple(count + 1 for count in reversed(blocks))
        fields["reverse_transformer_layers_per_block"] = _layers(up, more, "reverse_transformer_layers_per_block")
    elif isinstance(layers, list | tuple) and any(isinstance(entry, list | tuple) for entry in layers):
        raise InputError(
            f"The UNet's transformer_layers_per_block is {layers!r}, which differs within a resolution; give "
            "reverse_transformer_layers_per_block for the way up."
        )


def _check_reads_no_text(fields: Mapping[str, Any]) -> None:
    """Raise InputError for a network without a text whose other fields ask for one."""
    others = [
        key for key in ("encoder_hid_dim", "encoder_hid_dim_type", "addition_embed_type") if fields[key] is not None
    ]
    kinds = (*fields["down_block_types"], *fields["up_block_types"], str(fields["mid_block_type"]))
    if others or fields["dual_cross_attention"] or any("Simple" in kind or kind.startswith("K") for kind in kinds):
        raise InputError(
            "The UNet's cross_attention_dim is its block_out_channels, so it reads no text, and "
            f"{', '.join(others) or 'its block types'} ask for one; give the width of the text."
        )


def _layers(value: Any, blocks: tuple[int, ...], key: str) -> Any:
    """Numbers of transformer blocks: one for all resolutions, one for each, or one for each attention in each."""
    entries = per_row(tuple(value) if isinstance(value, list) else value, len(blocks))
    entries = tuple(tuple(entry) if isinstance(entry, list) else entry for entry in entries)
    fits = len(entries) == len(blocks) and all(
        is_count(entry) or (isinstance(entry, tuple) and len(entry) == count and all(map(is_count, entry)))
        for entry, count in zip(entries, blocks, strict=True)
    )
    if not fits:
        raise InputError(
            f"The UNet's {key} is {value!r}; give a positive integer, or {len(blocks)} of them, one for each entry of "
            "block_out_channels."
        )
    return value if is_count(value) else entries


def _check_heads(fields: Mapping[str, Any]) -> None:
    """Raise InputError where there are more heads, or wider ones, than channels."""
    channels = fields["block_out_channels"]
    heads = per_row(fields["attention_head_dim"], len(channels))
    middle = fields["mid_block_type"] not in (None, "UNetMidBlock2D")
    for level in attention_levels(fields, has_middle=middle):
        if heads[level] > channels[level]:
            raise InputError(
                f"The UNet's attention_head_dim has {heads[level]} (diffusers' name for the number of heads, and for "
                f"the channels of one in SimpleCrossAttn and K blocks), more than the {channels[level]} of "
                "block_out_channels; give at most those."
            )


def _check_k_blocks(fields: Mapping[str, Any]) -> None:
    """Raise InputError for what the blocks of k-diffusion can't be, and for other blocks without norms."""
    channels, kinds = fields["block_out_channels"], fields["down_block_types"] + fields["up_block_types"]
    are_k = [kind.startswith("K") for kind in kinds]
    if not any(are_k):
        if fields["norm_num_groups"] is None:
            raise InputError("The UNet's norm_num_groups is null, and its blocks have norms; give a positive integer.")
        return
    if not all(are_k) or fields["mid_block_type"] is not None:
        raise InputError(
            f"The UNet's down_block_types, up_block_types and mid_block_type mix K blocks with others ({kinds}, "
            f"{fields['mid_block_type']!r}); jaxdq runs networks of K blocks alone, with mid_block_type null."
        )
    if any(count % K_GROUP_SIZE for count in channels):
        raise InputError(
            f"The UNet's block_out_channels is {channels}; K blocks norm {K_GROUP_SIZE} channels at a time: give "
            f"multiples of {K_GROUP_SIZE}."
        )
    factor = 2 if fields["time_embedding_type"] == "fourier" else 4
    width = fields["time_embedding_dim"] or factor * channels[0]
    last, up = len(channels) - 1, fields["up_block_types"]
    for i, kind in enumerate(up):
        narrow = channels[last - i] == channels[max(last - i - 1, 0)] == width
        without_skip = i == 0 and fields["down_block_types"][-1] == "KCrossAttnDownBlock2D"
        if kind == "KCrossAttnUpBlock2D" and narrow != without_skip:
            raise InputError(
                f"The UNet's block_out_channels {channels} and its embedding of time, {width} wide, don't fit its K "
                "blocks: the last two entries are to be as wide as that embedding, and no others; diffusers' class "
                "fails with them too."
            )


def _check_conditions(fields: Mapping[str, Any]) -> None:
    """Raise InputError where the widths of conditions are absent or contradict one another."""
    total = fields["projection_class_embeddings_input_dim"]
    if fields["addition_embed_type"] == "text_time":
        width = fields["addition_time_embed_dim"]
        if width is None or total is None or total <= 6 * width:
            raise InputError(
                f"The UNet's addition_time_embed_dim is {width} and its projection_class_embeddings_input_dim {total}; "
                "for 'text_time' give the width of one time id, and of the pooled text and all time ids together."
            )
    kind = fields["class_embed_type"]
    if kind in ("projection", "simple_projection") and total is None:
        raise InputError(
            f"The UNet's class_embed_type is {kind!r} and its projection_class_embeddings_input_dim null; give the "
            "width of a label."
        )
    if fields["encoder_hid_dim"] is None:
        needing = [
            f"{key} {fields[key]!r}"
            for key, kinds in (
                ("encoder_hid_dim_type", ("text_proj", "text_image_proj", "image_proj")),
                ("addition_embed_type", ("image", "image_hint")),
            )
            if fields[key] in kinds
        ]
        if needing:
            raise InputError(f"The UNet's encoder_hid_dim is null, and its {needing[0]} needs it; give the width.")
    if fields["addition_embed_type"] == "text":
        source, heads = (
            fields["encoder_hid_dim"] or fields["cross_attention_dim"],
            fields["addition_embed_type_num_heads"],
        )
        if source % heads:
            raise InputError(
                f"The UNet's addition_embed_type_num_heads is {heads}, which does not divide the {source} of the text; "
                "choose a divisor."
            )
    if fields["class_embeddings_concat"] and fields["addition_embed_type"] is not None:
        raise InputError(
            "The UNet's class_embeddings_concat doubles the embedding of time, to which its addition_embed_type adds "
            "one of the single width; diffusers' class fails with both too: give one of them."
        )
    if fields["time_embedding_type"] == "fourier" and (fields["time_embedding_dim"] or 2) % 2:
        raise InputError(f"The UNet's time_embedding_dim is {fields['time_embedding_dim']}; give an even one.")
