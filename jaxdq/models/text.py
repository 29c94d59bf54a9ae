"""Text for text-to-image models: prompts from a file, and what a model's own text encoders make of them."""

import os
import types
import zipfile
from collections.abc import Mapping, Sequence
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
from jaxdq.models.unet import described_rows, load_denoiser, model_folder, read_json

_BATCH_SIZE = 8
_CONDITIONS = "conditions.npz"
_ENCODER_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
TEXT_CONDITIONS = ("encoder_hidden_states", "text_embeds", "time_ids")
"""What a network takes that its text encoders say."""
GUIDANCE = "timestep_cond"
"""The condition that the scale of guidance is embedded in."""
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


def load_text_denoiser(
    folder: str | Path,
    prompts: Sequence[str],
    *,
    guidance_scale: float = 7.5,
    others: Mapping[str, np.ndarray] = types.MappingProxyType({}),
) -> Denoiser:
    """A text-to-image model from a folder in diffusers' layout, its prompts embedded by its own text encoders.

    Args:
        folder: With `tokenizer/` and `text_encoder/` (and a second of each in XL) beside `unet/` and `scheduler/`; or a
            Hub id, as `jaxdq.load_denoiser` takes it.
        prompts: P >= 1 texts; image i takes prompt i % P.
        guidance_scale: Scale of classifier-free guidance; a latent consistency model takes it as a number.
        others: Name -> rows of what else the network takes, such as `joined_channels` of an inpainting model.

    Returns:
        Denoiser: of latents, guided by the text; what else there is, is the same without the text.

    Raises:
        InputError: As `jaxdq.load_denoiser`; or the folder has no text encoder, or transformers can't be imported.
    """
    check_prompts(prompts)
    looked_at = load_denoiser(folder, weights=False)
    names = looked_at.condition_names
    if "encoder_hidden_states" not in names:
        raise InputError(f"'{folder}' reads no text, and prompts were given; leave them out.")
    width = dict(zip(names, looked_at.conditions, strict=True)).get(GUIDANCE)
    embedded = {} if width is None else {GUIDANCE: guidance_embedding(guidance_scale, width.shape[1])}
    _check_named({**dict.fromkeys(TEXT_CONDITIONS), **embedded, **others}, looked_at)
    root = model_folder(folder, _TEXT_PARTS)
    side = looked_at.shape[0] * pixels_per_latent(root)
    conditional, unconditional = (
        dict(zip(TEXT_CONDITIONS, rows, strict=False)) | embedded | dict(others)
        for rows in conditions_of(_encoder_of(root), prompts, side)
    )
    _check_named(conditional, looked_at)  # what its encoders say may be another network's
    denoiser = load_denoiser(folder, conditions=[conditional[name] for name in names])
    if embedded:
        return denoiser
    return guided(denoiser, [unconditional[name] for name in names], guidance_scale=guidance_scale)


def load_conditioned(model: str | Path, named: Mapping[str, np.ndarray]) -> Denoiser:
    """`load_denoiser` with conditions by the names that the network has for them.

    Args:
        model: What `load_denoiser` takes.
        named: Name -> rows, each with a leading axis of rows.

    Raises:
        InputError: As `load_denoiser`; or a condition is missing, superfluous or of another shape.
    """
    looked_at = load_denoiser(model, weights=False)
    _check_named(named, looked_at)
    return load_denoiser(model, conditions=[named[name] for name in looked_at.condition_names])


def _check_named(named: Mapping[str, Any], looked_at: Denoiser) -> None:
    """Raise InputError where named rows, None for what is not known yet, are not the conditions of a network."""
    names = looked_at.condition_names
    if not names:
        raise InputError(f"'{looked_at.name}' is unconditional, and conditions were given; leave them out.")
    shapes = dict(zip(names, looked_at.conditions, strict=False))
    listed = ", ".join(f"{name}: {described_rows(shapes[name])}" for name in names)
    missing = [name for name in names if name not in named]
    more = [name for name, rows in named.items() if name not in names and rows is not None]
    if missing or more:
        what = f"lack {', '.join(missing)}" if missing else f"have {', '.join(more)}, which it does not take"
        raise InputError(f"The conditions of '{looked_at.name}' {what}; it takes {listed}.")
    for name, rows in named.items():
        free = 1 if name == "encoder_hidden_states" else None  # the number of tokens
        given, wanted = np.shape(rows), shapes[name].shape if name in shapes else ()
        if rows is not None and (
            len(given) != len(wanted)
            or not given
            or not given[0]
            or any(a != b for i, (a, b) in enumerate(zip(given, wanted, strict=True)) if i not in (0, free))
        ):
            raise InputError(f"The condition {name} has shape {given}; give {described_rows(shapes[name])}.")


def guidance_embedding(guidance_scale: float, width: int) -> np.ndarray:
    """What a latent consistency model takes for the scale of guidance that it was distilled from.

    `[sin(v), cos(v)]` with `v_i = 1000 (guidance_scale - 1) 10000 ** (-i / (width // 2 - 1))` (Luo et al. 2023).

    Args:
        guidance_scale: As `guided` takes it.
        width: Width of the result; an odd one ends in a zero.

    Returns:
        float32[1, width].

    Example:
        >>> guidance_embedding(1.0, 4).tolist()
        [[0.0, 0.0, 1.0, 1.0]]
    """
    half = width // 2
    angle = 1000.0 * (guidance_scale - 1.0) * 10_000.0 ** (-np.arange(half) / max(1, half - 1))
    waves = np.concatenate([np.sin(angle), np.cos(angle), np.zeros(width % 2)])
    return waves.astype(np.float32)[None]


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
    """Writes a denoiser's conditions, so that neither text encoders nor files are needed again; else nothing."""
    if denoiser.conditions:
        is_guided = isinstance(denoiser.module, Guided)
        guidance_scale = np.float64(denoiser.module.guidance_scale if is_guided else np.nan)
        np.savez(folder / _CONDITIONS, guidance_scale, *denoiser.conditions)


def load_with_conditions(model: str | Path, folder: Path, *, weights: bool = True) -> Denoiser:
    """`load_denoiser(model)` with the conditions that `save_conditions` wrote in a folder, if any, guided if it was.

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
    if np.isnan(guidance_scale):
        return load_denoiser(model, weights=weights, conditions=rows)
    half = len(rows) // 2
    denoiser = load_denoiser(model, weights=weights, conditions=rows[half:])
    return guided(denoiser, rows[:half], guidance_scale=float(guidance_scale))


def read_conditions(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, by name.

    Raises:
        InputError: No such file, one that is no .npz, or one without arrays of numbers.
    """
    try:
        with np.load(local_path(path), allow_pickle=False) as file:
            named = {name: file[name] for name in file.files} if isinstance(file, np.lib.npyio.NpzFile) else {}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        said = described(error)
        raise InputError(
            f"can't read the conditions '{path}' ({said}); give an .npz file, as np.savez(path, name=rows) writes it."
        ) from None
    if not named or not all(np.issubdtype(rows.dtype, np.number) for rows in named.values()):
        raise InputError(
            f"the conditions '{path}' are no arrays of numbers by name; np.savez(path, name=rows) does it."
        )
    return named


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
