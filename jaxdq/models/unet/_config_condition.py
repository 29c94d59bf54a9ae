"""What a diffusers ``UNet2DConditionModel`` configuration may say, and what it means here."""

from collections.abc import Mapping
from typing import Any

from jaxdq._common.errors import InputError
from jaxdq.models.unet._fields import EMA_FIELDS, FieldSpec, attention_levels, complete_fields, per_row

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
        "mid_block_type": ("UNetMidBlock2DCrossAttn", None),
        "downsample_padding": (0, 1),
        "act_fn": ("silu", "swish"),
        "resnet_time_scale_shift": ("default", "scale_shift"),
        "addition_embed_type": (None, "text_time"),
        "time_embedding_type": ("positional",),
        # It asks for float32 inside attention: ours has float32 parameters and a float32 softmax in any case.
        "upcast_attention": (False, True, None),
        # Each of the rest switches on a part that this network does not have.
        "only_cross_attention": (False,),
        "mid_block_only_cross_attention": (None, False),
        "reverse_transformer_layers_per_block": (None,),
        "encoder_hid_dim": (None,),
        "encoder_hid_dim_type": (None,),
        "num_attention_heads": (None,),
        "dual_cross_attention": (False,),
        "class_embed_type": (None,),
        "num_class_embeds": (None,),
        "resnet_skip_time_act": (False,),
        "resnet_out_scale_factor": (1.0,),
        "time_embedding_act_fn": (None,),
        "timestep_post_act": (None,),
        "time_cond_proj_dim": (None,),
        "conv_in_kernel": (3,),
        "conv_out_kernel": (3,),
        "attention_type": ("default",),
        "class_embeddings_concat": (False,),
        "cross_attention_norm": (None,),
    },
    block_types={
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "ResnetDownsampleBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    },
    counts=("in_channels", "out_channels", "norm_num_groups", "cross_attention_dim"),
    optional_counts=("time_embedding_dim", "addition_time_embed_dim", "projection_class_embeddings_input_dim"),
    per_row=("layers_per_block", "transformer_layers_per_block", "attention_head_dim"),
    positive=("mid_block_scale_factor", "norm_eps"),
    flags=("center_input_sample", "flip_sin_to_cos", "use_linear_projection"),
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
    channels = fields["block_out_channels"]
    heads = per_row(fields["attention_head_dim"], len(channels))
    for level in attention_levels(fields, has_middle=fields["mid_block_type"] is not None):
        num_heads, count = heads[level], channels[level]
        if count % num_heads:
            raise InputError(
                f"The UNet's attention_head_dim has {num_heads} (diffusers' name for the number of heads), which does "
                f"not divide the {count} of block_out_channels; choose a divisor."
            )
    if fields["addition_embed_type"] is not None:
        width, total = fields["addition_time_embed_dim"], fields["projection_class_embeddings_input_dim"]
        if width is None or total is None or total <= 6 * width:
            raise InputError(
                f"The UNet's addition_time_embed_dim is {width} and its projection_class_embeddings_input_dim {total}; "
                "for 'text_time' give the width of one time id, and of the pooled text and all time ids together."
            )
    return fields
