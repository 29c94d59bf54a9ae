"""Text for text-to-image models: prompts from a file, and what a model's own text encoders make of them.

The one door to transformers, which is loaded only when a folder's text encoders are asked for.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxdq._errors import InputError

INSTALL = "pip install 'jaxdq[diffusers]' (diffusers from 0.34 to below 0.40, transformers below 5)"
_BATCH_SIZE = 8


class TextEncoder(NamedTuple):
    """A model's tokenizers and text encoders: one of each in Stable Diffusion 1 and 2, two in XL.

    Attributes:
        tokenizers: as transformers has them.
        encoders: Flax text encoders of transformers, `encoder(ids, params=params)`.
        params: the params of each encoder.
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
        if not with_states:
            return (np.asarray(outs[0].last_hidden_state),)
        states = [np.asarray(out.hidden_states[-2]) for out in outs]
        return np.concatenate(states, axis=-1), np.asarray(outs[1].text_embeds)


def conditions_of(encoder: TextEncoder, prompts: Sequence[str], side: int) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The conditions of a text-to-image denoiser, with the prompts and without.

    Args:
        encoder: the model's own.
        prompts: P >= 1 texts.
        side: of the images in pixels, which XL is told.

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


def read_prompts(path: str | os.PathLike[str]) -> list[str]:
    """The prompts of a text file: one a line, empty lines ignored.

    Raises:
        InputError: no such file, one that is not UTF-8 text, or one without a prompt.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise InputError(
            f"can't read the prompts '{path}' ({error.strerror}); give a text file, one prompt a line."
        ) from None
    except UnicodeDecodeError:
        raise InputError(f"the prompts '{path}' are not UTF-8 text; save the file as UTF-8.") from None
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise InputError(f"the prompts '{path}' are empty; write one prompt a line.")
    return prompts


def check_prompts(prompts: Sequence[str]) -> None:
    """Refuses what is no list of texts."""
    is_list = not isinstance(prompts, str) and isinstance(prompts, Sequence)
    if not is_list or not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        raise InputError(f"prompts is {str(prompts)[:60]!r}; pass a list of one text or more.")
