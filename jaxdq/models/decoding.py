"""From latents to images: the decoder of a model's own autoencoder, where its folder has one that can be read."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdq._common.checks import is_count
from jaxdq._common.errors import InputError
from jaxdq.models._foreign import autoencoder_class
from jaxdq.models.unet import model_folder, read_json, read_params

Decode = Callable[[Any], Any]
"""latents: f32[N, h, w, c] -> images: f32[N, H, W, 3] in [-1, 1]."""

_CLASSES = ("AutoencoderKL", "FlaxAutoencoderKL")
_AT_A_TIME = 2  # an image of 512 x 512 takes a gigabyte on its way through the decoder
# What FlaxAutoencoderKL takes for granted, and what some autoencoders have otherwise.
_ASSUMED: dict[str, Any] = {
    "act_fn": "silu",
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
    "latents_mean": None,
    "latents_std": None,
    "shift_factor": None,
}
_COUNTS = ("latent_channels", "layers_per_block", "norm_num_groups", "out_channels", "in_channels")


class Decoder(NamedTuple):
    """What turns a model's latents into images.

    Attributes:
        decode: The function; None where there is none.
        reason: Why there is none, though the model has a part that should be one; "" otherwise.
    """

    decode: Decode | None
    reason: str = ""


def decoder_of(model: str | Path) -> Decoder:
    """The decoder in a model's `vae/`, in diffusers' layout, run by diffusers' Flax class where that is installed.

    Args:
        model: What `jaxdq.load_denoiser` takes.

    Returns:
        Decoder: without a function where the model draws pixels, or where its decoder can't be read, and then with the
        reason.

    Raises:
        InputError: There is no such model, or `vae/config.json` is damaged.
    """
    root = model_folder(model, ("vae", "vqvae"))
    file = root / "vae" / "config.json"
    if not file.is_file():
        return Decoder(None, "jaxdq does not read the decoder in vqvae/" if (root / "vqvae").is_dir() else "")
    config = read_json(file)
    _check_config(file, config)
    class_name = config.get("_class_name", _CLASSES[0])
    if class_name not in _CLASSES:
        return Decoder(None, f"the decoder in vae/ is a {class_name}, and jaxdq reads {_CLASSES[0]}")
    unlike = [name for name, value in _ASSUMED.items() if config.get(name, value) != value]
    if unlike:
        return Decoder(None, f"the decoder in vae/ sets {', '.join(unlike)}, which FlaxAutoencoderKL does not know")
    try:
        return Decoder(_load(file.parent, config))
    except InputError as error:  # the images are a comfort: the run goes on without them
        return Decoder(None, str(error).rstrip("."))


def pixels_per_latent(root: Path) -> int:
    """How much larger than a latent the image is; what all of Stable Diffusion has where there is no VAE to ask.

    Args:
        root: A model's whole folder.

    Raises:
        InputError: `vae/config.json` is damaged.
    """
    file = root / "vae" / "config.json"
    if not file.is_file():
        return 8
    config = read_json(file)
    _check_config(file, config)
    return 2 ** (len(config["block_out_channels"]) - 1)


def decoded(decode: Decode, latents: np.ndarray, batch_size: int) -> np.ndarray:
    """Images of latents, a batch at a time, clipped to [-1, 1].

    Args:
        decode: See `Decode`.
        latents: f32[N, h, w, c].
        batch_size: Latents at a time.

    Raises:
        InputError: Decode returned something else than one image for each latent.
    """
    parts = []
    for start in range(0, len(latents), batch_size):
        given = latents[start : start + batch_size]
        returned = np.asarray(decode(jnp.asarray(given)))
        if not jnp.issubdtype(returned.dtype, jnp.floating):  # bytes from 0 to 255 would all be clipped to white
            raise InputError(f"decode returned {returned.dtype}; let it return images in [-1, 1], float32[N, H, W, 3].")
        images = returned.astype(np.float32)
        if images.ndim != 4 or len(images) != len(given) or not np.isfinite(images).all():
            raise InputError(
                f"decode returned shape {images.shape} for latents of shape {given.shape}; let it return finite images "
                "in [-1, 1], float32[N, H, W, 3], one for each latent."
            )
        parts.append(np.clip(images, -1.0, 1.0))
    return np.concatenate(parts)


def _check_config(file: Path, config: Mapping[str, Any]) -> None:
    """Raise InputError for fields of an autoencoder's configuration that can't be used."""
    channels, scaling = config.get("block_out_channels"), config.get("scaling_factor", 1.0)
    wrong = [name for name in _COUNTS if not is_count(config.get(name, 1))]
    if not isinstance(channels, list) or not channels or not all(map(is_count, channels)):
        wrong.append("block_out_channels")
    if isinstance(scaling, bool) or not isinstance(scaling, int | float) or not scaling > 0:
        wrong.append("scaling_factor")
    if wrong:
        raise InputError(
            f"{file} has no usable {', '.join(wrong)}; expected the config.json of an autoencoder as diffusers writes "
            "it: download the file again or mend it."
        )


def _load(folder: Path, config: Mapping[str, Any]) -> Decode:
    """The decoder of the weights in a folder, PyTorch's or Flax's."""
    cls, channels = autoencoder_class(), config["block_out_channels"]
    groups = config.get("norm_num_groups", 32)
    if any(count % groups for count in channels):
        raise InputError(f"{folder / 'config.json'} has norm_num_groups {groups}; expected a divisor of {channels}.")
    for name, row in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        if config.get(name, [row]) != [row] * len(channels):
            raise InputError(
                f"{folder / 'config.json'} has {name} {config.get(name)}; expected {row}, one for each entry of "
                "block_out_channels."
            )
    names = ("scaling_factor", "block_out_channels", "down_block_types", "up_block_types", *_COUNTS)
    fields = {name: config[name] for name in names if name in config}
    network = cls(
        # No weight depends on sample_size.
        sample_size=2 ** len(channels),
        **{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()},
    )
    expected = jax.eval_shape(network.init_weights, jax.random.key(0))
    params = read_params(folder, expected, _CLASSES[0])
    used = {name: params[name] for name in ("decoder", "post_quant_conv")}

    def decode_one(used: Any, latent: jax.Array) -> jax.Array:
        latents = jnp.transpose(latent[None] / network.config.scaling_factor, (0, 3, 1, 2))
        image = network.apply({"params": used}, latents, method=network.decode).sample[0]
        return jnp.clip(jnp.transpose(image, (1, 2, 0)), -1.0, 1.0)

    @jax.jit
    def decode(used: Any, latents: jax.Array) -> jax.Array:
        return jax.lax.map(lambda latent: decode_one(used, latent), latents, batch_size=_AT_A_TIME)

    return lambda latents: decode(used, latents)
