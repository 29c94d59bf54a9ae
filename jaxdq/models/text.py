"""Text for text-to-image models: prompts from a file, and what a model's own text encoders make of them."""

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxdq._common.errors import InputError, described
from jaxdq._common.paths import local_path
from jaxdq._common.reading import read_text
from jaxdq.diffusion import Denoiser, Guided, guided
from jaxdq.models._foreign import text_classes
from jaxdq.models.decoding import pixels_per_latent
from jaxdq.models.unet import load_denoiser, model_folder, read_json

_BATCH_SIZE = 8
_CONDITIONS = "conditions.npz"
_ENCODER_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
_TEXT_PARTS = ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2")


class TextEncoder(NamedTuple):
    """A model's tokenizers and text encoders: one of each in Stable Diffusion 1 and 2, two in XL.

    Attributes:
        tokenizers: Tokenizers of transformers.
        encoders: Flax text encoders of transformers, `encoder(ids, params=params)`.
        params: The params of each encoder.
    """

    tokenizers: tuple[Any, ...]
    encoders: tuple[Any, ...]
    params: tuple[Any, ...]

    def embed(self, prompts: Sequence[str]) -> tuple[np.ndarray, ...]:
        """What the denoiser takes as its text.

        Args:
            prompts: P texts; one that is longer than the encoder reads is cut.

        Returns:
            (float[P, M, K],), the last hidden states; of two encoders (float[P, M, K], float[P, E]): the states before
            the last of both side by side, and the second one's pooled text.
        """
        parts = [
            self._embed(prompts[start : start + _BATCH_SIZE]) for start in range(0, len(prompts), _BATCH_SIZE)
        ]  # a few at a time: a list of prompts may be long
        return tuple(np.concatenate(rows) for rows in zip(*parts, strict=True))

    def _embed(self, prompts: Sequence[str]) -> tuple[np.ndarray, ...]:
        max_length = self.tokenizers[0].model_max_length
        ids = [
            tokenizer(
                list(prompts), padding="max_length", max_length=max_length, truncation=True, return_tensors="np"
            ).input_ids
            for tokenizer in self.tokenizers
        ]
        with_states = len(self.encoders) > 1
        outs = [
            encoder(jnp.asarray(rows), params=params, output_hidden_states=with_states)
            for encoder, rows, params in zip(self.encoders, ids, self.params, strict=True)
        ]
        # float32 also of encoders in bfloat16, which numpy's own files can't hold: what takes them in casts them again.
        if not with_states:
            return (np.asarray(outs[0].last_hidden_state, np.float32),)
        states = [np.asarray(out.hidden_states[-2], np.float32) for out in outs]
        return np.concatenate(states, axis=-1), np.asarray(outs[1].text_embeds, np.float32)


def conditions_of(encoder: TextEncoder, prompts: Sequence[str], side: int) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The conditions of a text-to-image denoiser, with the prompts and without.

    Args:
        encoder: The model's own.
        prompts: P >= 1 texts.
        side: Side of the images in pixels, an input of XL.

    Returns:
        (conditional, unconditional), rows P and 1. As diffusers' pipelines have it, no prompt is the embedding of ""
        in Stable Diffusion 1 and 2, and zeros in XL.
    """
    check_prompts(prompts)
    conditional = encoder.embed(prompts)
    if len(conditional) == 1:
        return conditional, encoder.embed([""])
    time_ids = np.array([[side, side, 0, 0, side, side]], conditional[1].dtype)
    unconditional = tuple(np.zeros_like(rows[:1]) for rows in conditional)
    return (*conditional, np.repeat(time_ids, len(prompts), axis=0)), (*unconditional, time_ids)


def load_text_denoiser(folder: str | Path, prompts: Sequence[str], *, guidance_scale: float = 7.5) -> Denoiser:
    """A text-to-image model from a folder in diffusers' layout, its prompts embedded by its own text encoders.

    Args:
        folder: With `tokenizer/` and `text_encoder/` (and a second of each in XL) beside `unet/` and `scheduler/`; or a
            Hub id, as `jaxdq.load_denoiser` takes it.
        prompts: P >= 1 texts; image i takes prompt i % P.
        guidance_scale: Scale of classifier-free guidance.

    Returns:
        Denoiser: of latents, guided.

    Raises:
        InputError: As `jaxdq.load_denoiser`; or the folder has no text encoder, or transformers can't be imported.
    """
    check_prompts(prompts)
    height, _, _ = load_denoiser(folder, weights=False).shape
    root = model_folder(folder, _TEXT_PARTS)
    side = height * pixels_per_latent(root)
    conditional, unconditional = conditions_of(_encoder_of(root), prompts, side)
    denoiser = load_denoiser(folder, conditions=conditional)
    return guided(denoiser, unconditional, guidance_scale=guidance_scale)


def _encoder_of(folder: Path) -> TextEncoder:
    """The text encoders of a model's folder, in Flax, from msgpack or safetensors."""
    names = [name for name in ("", "_2") if (folder / f"text_encoder{name}" / "config.json").is_file()]
    if "" not in names or not all((folder / f"tokenizer{name}").is_dir() for name in names):
        raise InputError(
            f"'{folder}' has no tokenizer and text_encoder folders, so its prompts can't be embedded; pass a folder "
            "that has, or the embeddings: jaxdq.load_denoiser(folder, conditions=...) and jaxdq.guided."
        )
    for name in names:
        _check_encoder_config(folder / f"text_encoder{name}" / "config.json")
    tokenizer_class, *classes = text_classes()
    try:
        tokenizers = tuple(tokenizer_class.from_pretrained(folder / f"tokenizer{name}") for name in names)
        encoders = tuple(
            cls.from_pretrained(folder / f"text_encoder{name}") for cls, name in zip(classes, names, strict=False)
        )
    except Exception as error:  # transformers lets through whatever a damaged file makes it stumble over
        raise InputError(
            f"the tokenizer or text encoder of '{folder}' can't be read ({described(error)}); its "
            "weights must be safetensors or Flax msgpack: download the model anew, or pass embeddings."
        ) from None
    return TextEncoder(tokenizers, encoders, tuple(encoder.params for encoder in encoders))


def _check_encoder_config(file: Path) -> None:
    """Raise InputError for a text encoder's configuration of which transformers would make another network."""
    config = read_json(file)
    wrong = [name for name in _ENCODER_SIZES if not isinstance(config.get(name), int) or config[name] < 1]
    if wrong:
        raise InputError(
            f"{file} has no usable {', '.join(wrong)}; expected the config.json of a CLIP text encoder: download the "
            "file again or mend it."
        )


def save_conditions(denoiser: Denoiser, folder: Path) -> None:
    """Writes what a guided denoiser is guided by, so that its text encoders are not needed again; else nothing."""
    if isinstance(denoiser.module, Guided):
        guidance_scale = np.float64(denoiser.module.guidance_scale)
        np.savez(folder / _CONDITIONS, guidance_scale, *denoiser.conditions)


def load_with_conditions(model: str | Path, folder: Path, *, weights: bool = True) -> Denoiser:
    """`load_denoiser(model)`, guided by what `save_conditions` wrote in a folder, if anything.

    Raises:
        InputError: As `load_denoiser`; or the file is damaged.
    """
    path = folder / _CONDITIONS
    if not path.exists():
        return load_denoiser(model, weights=weights)
    try:
        with np.load(path, allow_pickle=False) as file:
            guidance_scale, *rows = (file[f"arr_{index}"] for index in range(len(file.files)))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"'{path}' can't be read ({error}); quantize again, or copy the run anew.") from None
    half = len(rows) // 2
    denoiser = load_denoiser(model, weights=weights, conditions=rows[half:])
    return guided(denoiser, rows[:half], guidance_scale=float(guidance_scale))


def read_prompts(path: str | os.PathLike[str]) -> list[str]:
    """The prompts of a text file: one a line, empty lines ignored.

    Raises:
        InputError: No such file, one that is not UTF-8 text, or one without a prompt.
    """
    try:
        lines = read_text(local_path(path), encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise InputError(f"the prompts '{path}' are not UTF-8 text; save the file as UTF-8.") from None
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise InputError(f"can't read the prompts '{path}' ({said}); give a text file, one prompt a line.") from None
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise InputError(f"the prompts '{path}' are empty; write one prompt a line.")
    return prompts


def check_prompts(prompts: Sequence[str]) -> None:
    """Refuses what is no list of texts."""
    is_list = not isinstance(prompts, str) and isinstance(prompts, Sequence)
    if not is_list or not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        raise InputError(f"prompts is {str(prompts)[:60]!r}; pass a list of one text or more.")
