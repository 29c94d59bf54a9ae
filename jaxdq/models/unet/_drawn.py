"""What a network draws: how many of the channels that it takes and returns are an image's, and what the others are."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdq._common.errors import InputError
from jaxdq.diffusion import LEARNED_VARIANCES
from jaxdq.models.unet._build import UNet
from jaxdq.models.unet._controlnet import Controlled, ControlNet

DEFAULT_SIDE = 64
"""Side of what is drawn where a configuration leaves it open: that of Stable Diffusion's latents."""
JOINED = "joined_channels"
"""Name of the condition that joins x along its channels."""
_WHAT_JOINS = {
    9: "a mask and the masked image, as for inpainting",
    8: "an image to edit",
    7: "a small image to enlarge",
    5: "a map of depths or a mask",
}


class Drawn(NamedTuple):
    """What a network draws.

    Attributes:
        shape: (H, W, C) of one image or latent.
        joined: Number of channels that join the noisy ones, from a condition.
        extra: Number of channels that the network returns behind its prediction.
        notes: What a person should know of it, in sentences.
    """

    shape: tuple[int, int, int]
    joined: int
    extra: int
    notes: tuple[str, ...]


def drawn_by(complete: Mapping[str, Any], x_channels: int, scheduler: Mapping[str, Any]) -> Drawn:
    """Tell what a network draws from its configuration and its scheduler's.

    A network returns as many channels as it draws, and behind them a learned variance if the scheduler says so or if
    they are twice as many as it takes; what else it takes joins the noisy channels.

    Args:
        complete: The network's configuration, every field filled in.
        x_channels: Channels that the network takes.
        scheduler: The contents of scheduler_config.json.

    Returns:
        What it draws.

    Raises:
        InputError: It takes fewer channels than it draws, or returns some that are no variance.
    """
    taken, returned = x_channels, complete["out_channels"]
    is_k = any(kind.startswith("K") for kind in complete["down_block_types"])
    learned = scheduler.get("variance_type") in LEARNED_VARIANCES and returned % 2 == 0
    if learned or returned == 2 * taken:
        channels = returned // 2
    elif is_k and returned < taken and taken % 2 == 0:
        channels = taken // 2  # the latent upscaler's: noise and an image, and a log-variance behind the prediction
    else:
        channels = min(taken, returned)
    if channels > taken or (returned - channels not in (0, channels) and not is_k):
        raise InputError(
            f"The UNet has in_channels {taken} and out_channels {returned}: it returns more than a prediction, and no "
            "learned variance behind it; choose another model."
        )
    size, notes = complete["sample_size"], []
    if size is None:
        notes.append(
            f"The configuration leaves sample_size open: sides of {DEFAULT_SIDE} are drawn, unless it is written there."
        )
        size = DEFAULT_SIDE
    if returned > channels:
        notes.append(
            f"The network returns {returned} channels, {channels} of prediction and a learned variance behind them: "
            "sampling takes the prediction, and the variance of its schedule."
        )
    joined = taken - channels
    if joined:
        beside = _WHAT_JOINS.get(taken, "such as a mask or another image") if channels == 4 else "such as another image"
        notes.append(f"The network takes {joined} channels beside the noisy ones ({beside}): its condition {JOINED}.")
    height, width = (size, size) if isinstance(size, int) else size
    return Drawn((height, width, channels), joined, returned - channels, tuple(notes))


def condition_names(module: UNet | ControlNet | Controlled, drawn: Drawn) -> tuple[str, ...]:
    """Return the names of a denoiser's conditions: what joins x, if anything does, and what its network takes."""
    return (*[JOINED] * bool(drawn.joined), *module.condition_names)


def _joined_shape(drawn: Drawn) -> tuple[jax.ShapeDtypeStruct, ...]:
    """The shape of one row of what joins x, if anything does."""
    return (jax.ShapeDtypeStruct((1, *drawn.shape[:2], drawn.joined), jnp.float32),) if drawn.joined else ()


def default_rows(module: UNet | ControlNet | Controlled, drawn: Drawn, *, weights: bool) -> tuple[Any, ...]:
    """Return what the network takes after (x, t) where the caller does not say: one row per class, or nothing."""
    names = condition_names(module, drawn)
    if not names:
        return ()
    if names == ("class_labels",) and module.class_embed_type is None and module.num_class_embeds is not None:
        return (jnp.arange(module.num_class_embeds),)
    shapes = (*_joined_shape(drawn), *module.abstract_conditions(drawn.shape[:2]))
    if not weights:
        return shapes
    rows = [f"{name}: {described_rows(shape)}" for name, shape in zip(names, shapes, strict=True)]
    has_text = "encoder_hidden_states" in names
    options = ["--prompts FILE for its text"] * has_text
    if not has_text or len(names) > 1:
        options.append(f"--conditions FILE.npz for {'the others' if has_text else 'them'}")
    raise InputError(
        f"The UNet takes conditions that are in no file; pass conditions=({', '.join(rows)},), one row per image to "
        f"draw from; on the command line, {', '.join(options)}."
    )


def described_rows(shape: jax.ShapeDtypeStruct) -> str:
    """Say what the rows of a condition are: "float[P, 77, 768]".

    Example:
        >>> described_rows(jax.ShapeDtypeStruct((1, 77, 768), jnp.float32))
        'float[P, 77, 768]'
    """
    kind = "int" if jnp.issubdtype(shape.dtype, jnp.integer) else "float"
    return f"{kind}[{', '.join(['P', *map(str, shape.shape[1:])])}]"
