"""What a diffusers ``ControlNetModel`` configuration may say, and what it means here."""

from collections.abc import Mapping
from typing import Any

from jaxdq._common.checks import is_count
from jaxdq._common.errors import InputError
from jaxdq.models.unet._config_condition import CONDITION_DEFAULTS, complete_condition_config

CONTROLNET_DEFAULTS: dict[str, Any] = {
    "conditioning_channels": 3,
    "conditioning_embedding_out_channels": (16, 32, 96, 256),
    "controlnet_conditioning_channel_order": "rgb",
    "global_pool_conditions": False,
}
"""Fields of ``ControlNetModel`` (diffusers 0.39) that ``UNet2DConditionModel`` does not have."""

_SHARED = (
    "in_channels",
    "flip_sin_to_cos",
    "freq_shift",
    "down_block_types",
    "mid_block_type",
    "only_cross_attention",
    "block_out_channels",
    "layers_per_block",
    "downsample_padding",
    "mid_block_scale_factor",
    "act_fn",
    "norm_num_groups",
    "norm_eps",
    "cross_attention_dim",
    "transformer_layers_per_block",
    "encoder_hid_dim",
    "encoder_hid_dim_type",
    "attention_head_dim",
    "use_linear_projection",
    "class_embed_type",
    "addition_embed_type",
    "addition_time_embed_dim",
    "num_class_embeds",
    "upcast_attention",
    "resnet_time_scale_shift",
    "projection_class_embeddings_input_dim",
    "addition_embed_type_num_heads",
)


def complete_controlnet_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Check a ``ControlNetModel`` configuration and fill in what it leaves out.

    Args:
        config: The fields of diffusers' config.json; keys that start with ``_`` are diffusers' own and are dropped.

    Returns:
        Every field of ``CONTROLNET_DEFAULTS`` and of ``CONDITION_DEFAULTS``, lists as tuples.

    Raises:
        InputError: A field is unknown, has a value this library does not support, or contradicts another.
    """
    given = {key: value for key, value in config.items() if not key.startswith("_")}
    unknown = sorted(set(given) - {*_SHARED, *CONTROLNET_DEFAULTS, "num_attention_heads"})
    if unknown:
        raise InputError(
            f"The ControlNet's configuration has fields that ControlNetModel does not have: {', '.join(unknown)}; "
            "remove them from config.json if they change nothing, or load another model."
        )
    shared = {key: given[key] for key in _SHARED if key in given}
    down = shared.get("down_block_types", CONDITION_DEFAULTS["down_block_types"])
    # The way up of the UNet that the ControlNet was made from; it has none itself.
    up = [str(kind).replace("Down", "Up") for kind in reversed(down)] if isinstance(down, list | tuple) else down
    heads = given.get("num_attention_heads")
    shared |= {"up_block_types": up, **({"attention_head_dim": heads} if heads is not None else {})}
    fields = complete_condition_config(shared)
    if any(kind.startswith("K") for kind in fields["down_block_types"]) or fields["mid_block_type"] is None:
        raise InputError(
            f"The ControlNet's down_block_types are {fields['down_block_types']} and its mid_block_type "
            f"{fields['mid_block_type']!r}; jaxdq runs those of a UNet with a middle, without K blocks."
        )
    own = CONTROLNET_DEFAULTS | {key: given[key] for key in CONTROLNET_DEFAULTS if key in given}
    widths = own["conditioning_embedding_out_channels"]
    if not isinstance(widths, list | tuple) or not widths or not all(map(is_count, widths)):
        raise InputError(
            f"The ControlNet's conditioning_embedding_out_channels is {widths!r}; give a list of positive integers."
        )
    own["conditioning_embedding_out_channels"] = tuple(widths)
    if not is_count(own["conditioning_channels"]):
        raise InputError(
            f"The ControlNet's conditioning_channels is {own['conditioning_channels']!r}; give a positive integer."
        )
    order = own["controlnet_conditioning_channel_order"]
    if order not in ("rgb", "bgr"):
        raise InputError(f"The ControlNet's controlnet_conditioning_channel_order is {order!r}; give 'rgb' or 'bgr'.")
    return fields | own
