"""What a diffusers ``UNet2DModel`` configuration may say, and what it means here."""

from collections.abc import Mapping
from typing import Any

from jaxdq._errors import InputError

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

_CHOICES: dict[str, tuple[Any, ...]] = {
    "time_embedding_type": ("positional", "fourier"),
    "mid_block_type": ("UNetMidBlock2D", None),
    "downsample_padding": (0, 1),
    "downsample_type": ("conv", "resnet"),
    "upsample_type": ("conv", "resnet"),
    "act_fn": ("silu", "swish"),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "class_embed_type": (None, "timestep", "identity"),
}
_BLOCK_TYPES: dict[str, tuple[str, ...]] = {
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D"),
}
_COUNTS = ("in_channels", "out_channels", "layers_per_block", "norm_num_groups")
_OPTIONAL_COUNTS = ("attention_head_dim", "attn_norm_num_groups", "num_class_embeds", "time_embedding_dim")
_POSITIVE = ("mid_block_scale_factor", "norm_eps")
_FLAGS = ("center_input_sample", "flip_sin_to_cos", "add_attention")


def complete_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Check a ``UNet2DModel`` configuration and fill in what it leaves out.

    Args:
        config: the fields of diffusers' config.json; keys that start with ``_`` are diffusers' own and are dropped.

    Returns:
        Every field of ``DEFAULTS``, lists as tuples, block types without the old prefix ``UNetRes``.

    Raises:
        InputError: a field is unknown, has a value this library does not support, or contradicts another.
    """
    fields = {key: value for key, value in config.items() if not key.startswith("_")}
    unknown = sorted(set(fields) - set(DEFAULTS))
    if unknown:
        raise InputError(
            f"The UNet's configuration has fields that UNet2DModel does not have: {', '.join(unknown)}; "
            "remove them from config.json if they change nothing, or load another model."
        )
    fields = DEFAULTS | fields
    for key in (*_BLOCK_TYPES, "block_out_channels"):
        if not isinstance(fields[key], list | tuple) or not fields[key]:
            raise InputError(f"The UNet's {key} is {fields[key]!r}; give a list with one entry per resolution.")
        fields[key] = tuple(fields[key])
    for key in _BLOCK_TYPES:
        fields[key] = tuple(str(name).removeprefix("UNetRes") for name in fields[key])
    _check_values(fields)
    _check_together(fields)
    return fields


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _check_values(fields: Mapping[str, Any]) -> None:
    """Raise InputError for a field whose value, taken alone, is not supported."""
    for key, choices in _CHOICES.items():
        if fields[key] not in choices:
            raise InputError(f"The UNet's {key} is {fields[key]!r}; jaxdq supports {_listed(choices)}.")
    for key, supported in _BLOCK_TYPES.items():
        for name in fields[key]:
            if name not in supported:
                raise InputError(f"The UNet's {key} has {name!r}; jaxdq supports {_listed(supported)}.")
    for key in _FLAGS:
        if not isinstance(fields[key], bool):
            raise InputError(f"The UNet's {key} is {fields[key]!r}; give true or false.")
    _check_numbers(fields)


def _check_numbers(fields: Mapping[str, Any]) -> None:
    """Raise InputError for a field that is not the number it should be."""
    for key in _COUNTS + _OPTIONAL_COUNTS:
        optional = key in _OPTIONAL_COUNTS
        if not _is_count(fields[key]) and not (optional and fields[key] is None):
            expected = "a positive integer or null" if optional else "a positive integer"
            raise InputError(f"The UNet's {key} is {fields[key]!r}; give {expected}.")
    for key in _POSITIVE:
        if isinstance(fields[key], bool) or not isinstance(fields[key], int | float) or not fields[key] > 0:
            raise InputError(f"The UNet's {key} is {fields[key]!r}; give a positive number.")
    if isinstance(fields["freq_shift"], bool) or not isinstance(fields["freq_shift"], int | float):
        raise InputError(f"The UNet's freq_shift is {fields['freq_shift']!r}; give a number.")
    if not all(map(_is_count, fields["block_out_channels"])):
        raise InputError(f"The UNet's block_out_channels is {fields['block_out_channels']}; give positive integers.")
    size = fields["sample_size"]
    is_pair = isinstance(size, list | tuple) and len(size) == 2 and all(map(_is_count, size))
    if not (size is None or _is_count(size) or is_pair):
        raise InputError(f"The UNet's sample_size is {size!r}; give a positive integer, [height, width] or null.")


def _check_together(fields: Mapping[str, Any]) -> None:
    """Raise InputError for fields that contradict each other."""
    channels = fields["block_out_channels"]
    for key in _BLOCK_TYPES:
        if len(fields[key]) != len(channels):
            raise InputError(
                f"The UNet's {key} has {len(fields[key])} entries and block_out_channels has {len(channels)}; "
                "give both one entry per resolution."
            )
    for count in channels:
        if count % fields["norm_num_groups"]:
            raise InputError(
                f"The UNet's norm_num_groups is {fields['norm_num_groups']}, which does not divide the {count} of "
                "block_out_channels; choose a divisor of every entry."
            )
        if fields["attention_head_dim"] is not None and fields["attention_head_dim"] > count:
            raise InputError(
                f"The UNet's attention_head_dim is {fields['attention_head_dim']}, more than the {count} channels of "
                "block_out_channels; give at most the smallest entry, or null for a single head."
            )
    if fields["attn_norm_num_groups"] is not None and channels[-1] % fields["attn_norm_num_groups"]:
        raise InputError(
            f"The UNet's attn_norm_num_groups {fields['attn_norm_num_groups']} does not divide the {channels[-1]} "
            "channels of its mid block; choose a divisor."
        )
    if fields["time_embedding_type"] == "positional" and channels[0] // 2 <= fields["freq_shift"]:
        raise InputError(
            f"The UNet's freq_shift is {fields['freq_shift']}, and its time embedding has only {channels[0] // 2} "
            "frequencies; make half the first entry of block_out_channels larger than freq_shift."
        )


def _listed(choices: tuple[Any, ...]) -> str:
    return " or ".join("null" if choice is None else repr(choice) for choice in choices)
