"""What a diffusers ``UNet2DModel`` configuration may say, and what it means here."""

from collections.abc import Mapping
from typing import Any

from jaxdq._common.errors import InputError
from jaxdq.models.unet._activations import ACTIVATIONS
from jaxdq.models.unet._fields import EMA_FIELDS, FieldSpec, attention_levels, complete_fields
from jaxdq.models.unet._skip_rows import ATTENTION_GROUPS, IMAGE_CHANNELS, num_groups_of

DEFAULTS: dict[str, Any] = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (224, 448, 672, 896),
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
    "num_train_timesteps": None,
}
"""Every field of ``UNet2DModel`` (diffusers 0.39) and the value it has where a configuration is silent."""

_SPEC = FieldSpec(
    class_name="UNet2DModel",
    defaults=DEFAULTS,
    choices={
        "time_embedding_type": ("positional", "fourier", "learned"),
        "mid_block_type": ("UNetMidBlock2D", None),
        "downsample_padding": (0, 1),
        "downsample_type": ("conv", "resnet"),
        "upsample_type": ("conv", "resnet"),
        "act_fn": tuple(ACTIVATIONS),
        "resnet_time_scale_shift": ("default", "scale_shift"),
        "class_embed_type": (None, "timestep", "identity"),
    },
    block_types={
        "down_block_types": (
            "DownBlock2D",
            "AttnDownBlock2D",
            "ResnetDownsampleBlock2D",
            "SkipDownBlock2D",
            "AttnSkipDownBlock2D",
        ),
        "up_block_types": (
            "UpBlock2D",
            "AttnUpBlock2D",
            "ResnetUpsampleBlock2D",
            "SkipUpBlock2D",
            "AttnSkipUpBlock2D",
        ),
    },
    counts=("in_channels", "out_channels", "layers_per_block"),
    optional_counts=(
        "norm_num_groups",
        "attention_head_dim",
        "attn_norm_num_groups",
        "num_class_embeds",
        "num_train_timesteps",
        "time_embedding_dim",
    ),
    per_row=(),
    positive=("mid_block_scale_factor", "norm_eps"),
    flags=("center_input_sample", "flip_sin_to_cos", "add_attention"),
    ignored=EMA_FIELDS,
)


def complete_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Check a ``UNet2DModel`` configuration and fill in what it leaves out.

    Args:
        config: The fields of diffusers' config.json; keys that start with ``_`` are diffusers' own and are dropped.

    Returns:
        Every field of ``DEFAULTS``, lists as tuples, block types without the old prefix ``UNetRes``.

    Raises:
        InputError: A field is unknown, has a value this library does not support, or contradicts another.
    """
    fields = complete_fields(config, _SPEC)
    channels, head_dim = fields["block_out_channels"], fields["attention_head_dim"]
    has_middle = fields["mid_block_type"] is not None and fields["add_attention"]
    attended = [channels[level] for level in attention_levels(fields, has_middle=has_middle)]
    if head_dim is not None and head_dim > min(attended, default=head_dim):
        raise InputError(
            f"The UNet's attention_head_dim is {head_dim}, more than the {min(attended)} channels of a row of "
            "block_out_channels that has attention; give at most those, or null for a single head."
        )
    _check_skip_blocks(fields)
    if fields["time_embedding_type"] == "learned" and fields["num_train_timesteps"] is None:
        raise InputError(
            "The UNet's time_embedding_type is 'learned' and its num_train_timesteps null; give the number of rows of "
            "its table of times."
        )
    if fields["attn_norm_num_groups"] is not None and channels[-1] % fields["attn_norm_num_groups"]:
        raise InputError(
            f"The UNet's attn_norm_num_groups {fields['attn_norm_num_groups']} does not divide the {channels[-1]} "
            "channels of its mid block; choose a divisor."
        )
    return fields


def _check_skip_blocks(fields: Mapping[str, Any]) -> None:
    """Raise InputError for what blocks that carry the image along can't be, and for other blocks without norms."""
    kinds = fields["down_block_types"] + fields["up_block_types"]
    are_skip, channels = ["Skip" in kind for kind in kinds], fields["block_out_channels"]
    if not any(are_skip):
        if fields["norm_num_groups"] is None:
            raise InputError("The UNet's norm_num_groups is null, and its blocks have norms; give a positive integer.")
        return
    if not all(are_skip):
        raise InputError(
            f"The UNet's down_block_types and up_block_types mix Skip blocks with others ({', '.join(kinds)}), which "
            "have images of other sizes; diffusers' class fails with them too: give blocks of one kind."
        )
    if fields["in_channels"] != IMAGE_CHANNELS or fields["out_channels"] != IMAGE_CHANNELS:
        raise InputError(
            f"The UNet has in_channels {fields['in_channels']} and out_channels {fields['out_channels']}; Skip blocks "
            f"draw images of {IMAGE_CHANNELS} channels: give {IMAGE_CHANNELS} for both."
        )
    unfit = [count for count in channels if count % num_groups_of(count) or count % ATTENTION_GROUPS]
    if unfit:
        raise InputError(
            f"The UNet's block_out_channels is {channels}; Skip blocks norm in {ATTENTION_GROUPS} groups: give "
            f"multiples of {ATTENTION_GROUPS}."
        )
