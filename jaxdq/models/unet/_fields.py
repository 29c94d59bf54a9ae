"""What the configurations of diffusers' UNets have in common: fields that are checked before anything is built."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxdq._common.checks import is_count
from jaxdq._common.errors import InputError

BLOCK_TYPES = ("down_block_types", "up_block_types")
# What diffusers' trainers leave in a config.json when they save a moving average of the weights (`EMAModel`).
EMA_FIELDS = ("decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup")


class FieldSpec(NamedTuple):
    """What the configuration of one class of UNet may say.

    Attributes:
        class_name: Diffusers' name of the class.
        defaults: Every field of the class, and the value it has where a configuration is silent.
        choices: Field -> the values that this library supports.
        block_types: "down_block_types" and "up_block_types" -> the types that this library supports.
        counts: Fields that are positive integers.
        optional_counts: Fields that are positive integers or null.
        per_row: Fields that are one positive integer for all resolutions, or a list with one for each.
        positive: Fields that are positive numbers.
        flags: Fields that are true or false.
        ignored: Fields that do not say what is computed, and are dropped.
    """

    class_name: str
    defaults: Mapping[str, Any]
    choices: Mapping[str, tuple[Any, ...]]
    block_types: Mapping[str, tuple[str, ...]]
    counts: tuple[str, ...]
    optional_counts: tuple[str, ...]
    per_row: tuple[str, ...]
    positive: tuple[str, ...]
    flags: tuple[str, ...]
    ignored: tuple[str, ...] = ()


def complete_fields(config: Mapping[str, Any], spec: FieldSpec) -> dict[str, Any]:
    """Check a configuration and fill in what it leaves out.

    Args:
        config: The fields of diffusers' config.json; keys that start with ``_`` are diffusers' own and are dropped.
        spec: What the class of UNet may say.

    Returns:
        Every field of ``spec.defaults``, lists as tuples, block types without the old prefix ``UNetRes`` and without
        the prefix ``Flax``.

    Raises:
        InputError: A field is unknown, has a value this library does not support, or contradicts another.
    """
    fields = {key: value for key, value in config.items() if not key.startswith("_") and key not in spec.ignored}
    unknown = sorted(set(fields) - set(spec.defaults))
    if unknown:
        raise InputError(
            f"The UNet's configuration has fields that {spec.class_name} does not have: {', '.join(unknown)}; "
            "remove them from config.json if they change nothing, or load another model."
        )
    fields = dict(spec.defaults) | fields
    for key in (*BLOCK_TYPES, "block_out_channels"):
        if not isinstance(fields[key], list | tuple) or not fields[key]:
            raise InputError(f"The UNet's {key} is {fields[key]!r}; give a list with one entry per resolution.")
        fields[key] = tuple(fields[key])
    for key in BLOCK_TYPES:
        fields[key] = tuple(str(name).removeprefix("Flax").removeprefix("UNetRes") for name in fields[key])
    fields |= {key: tuple(fields[key]) for key in spec.per_row if isinstance(fields[key], list)}
    # diffusers' own scripts write null for false.
    fields |= {key: False for key in spec.flags if fields[key] is None and spec.defaults[key] is False}
    _check_values(fields, spec)
    _check_numbers(fields, spec)
    _check_together(fields)
    return fields


def per_row(value: Any, num_rows: int) -> tuple[Any, ...]:
    """Return a field that may be one for all resolutions as one for each.

    Example:
        >>> per_row(8, 3)
        (8, 8, 8)
    """
    return value if isinstance(value, tuple) else (value,) * num_rows


def attention_levels(fields: Mapping[str, Any], *, has_middle: bool) -> list[int]:
    """Return the resolutions that have attention on the way down, in the middle or on the way up, 0 for the highest.

    Example:
        >>> kinds = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("UpBlock2D",) * 2}
        >>> attention_levels(kinds, has_middle=False)
        [1]
    """
    down, up = ([("Attn" in kind) for kind in fields[key]] for key in BLOCK_TYPES)
    last = len(down) - 1
    return [i for i in range(last + 1) if down[i] or up[last - i] or (has_middle and i == last)]


def _check_values(fields: Mapping[str, Any], spec: FieldSpec) -> None:
    """Raise InputError for a field whose value, taken alone, is not supported."""
    for key, choices in spec.choices.items():
        if fields[key] not in choices:
            raise InputError(f"The UNet's {key} is {fields[key]!r}; jaxdq supports {_listed(choices)}.")
    for key, supported in spec.block_types.items():
        for name in fields[key]:
            if name not in supported:
                raise InputError(f"The UNet's {key} has {name!r}; jaxdq supports {_listed(supported)}.")
    for key in spec.flags:
        if not isinstance(fields[key], bool):
            raise InputError(f"The UNet's {key} is {fields[key]!r}; give true or false.")


def _check_numbers(fields: Mapping[str, Any], spec: FieldSpec) -> None:
    """Raise InputError for a field that is not the number it should be."""
    for key in spec.counts + spec.optional_counts:
        optional = key in spec.optional_counts
        if not is_count(fields[key]) and not (optional and fields[key] is None):
            expected = "a positive integer or null" if optional else "a positive integer"
            raise InputError(f"The UNet's {key} is {fields[key]!r}; give {expected}.")
    num_rows = len(fields["block_out_channels"])
    for key in spec.per_row:
        values = per_row(fields[key], num_rows)
        if len(values) != num_rows or not all(map(is_count, values)):
            raise InputError(
                f"The UNet's {key} is {fields[key]!r}; give a positive integer, or {num_rows} of them, one for each "
                "entry of block_out_channels."
            )
    for key in spec.positive:
        if isinstance(fields[key], bool) or not isinstance(fields[key], int | float) or not fields[key] > 0:
            raise InputError(f"The UNet's {key} is {fields[key]!r}; give a positive number.")
    if isinstance(fields["freq_shift"], bool) or not isinstance(fields["freq_shift"], int | float):
        raise InputError(f"The UNet's freq_shift is {fields['freq_shift']!r}; give a number.")
    if not all(map(is_count, fields["block_out_channels"])):
        raise InputError(f"The UNet's block_out_channels is {fields['block_out_channels']}; give positive integers.")
    size = fields["sample_size"]
    is_pair = isinstance(size, list | tuple) and len(size) == 2 and all(map(is_count, size))
    if not (size is None or is_count(size) or is_pair):
        raise InputError(f"The UNet's sample_size is {size!r}; give a positive integer, [height, width] or null.")


def _check_together(fields: Mapping[str, Any]) -> None:
    """Raise InputError for fields that contradict each other."""
    channels = fields["block_out_channels"]
    for key in BLOCK_TYPES:
        if len(fields[key]) != len(channels):
            raise InputError(
                f"The UNet's {key} has {len(fields[key])} entries and block_out_channels has {len(channels)}; "
                "give both one entry per resolution."
            )
    for count in channels:
        if fields["norm_num_groups"] is not None and count % fields["norm_num_groups"]:
            raise InputError(
                f"The UNet's norm_num_groups is {fields['norm_num_groups']}, which does not divide the {count} of "
                "block_out_channels; choose a divisor of every entry."
            )
    if fields["time_embedding_type"] == "positional" and channels[0] // 2 <= fields["freq_shift"]:
        raise InputError(
            f"The UNet's freq_shift is {fields['freq_shift']}, and its time embedding has only {channels[0] // 2} "
            "frequencies; make half the first entry of block_out_channels larger than freq_shift."
        )


def _listed(choices: tuple[Any, ...]) -> str:
    names = {None: "null", True: "true", False: "false"}
    return " or ".join(
        names[choice] if choice is None or isinstance(choice, bool) else repr(choice) for choice in choices
    )
