"""The only imports of diffusers and transformers: lazy, with one clear sentence where they are missing."""

from typing import Any

from jaxdq._common.errors import InputError

INSTALL = "pip install 'jaxdq[diffusers]' (diffusers from 0.34 to below 0.40, transformers below 5)"


def text_classes() -> tuple[Any, Any, Any]:
    """Transformers' CLIP tokenizer, Flax text encoder, and Flax text encoder with a projection.

    Raises:
        InputError: They can't be imported.
    """
    try:
        from transformers import CLIPTokenizer, FlaxCLIPTextModel, FlaxCLIPTextModelWithProjection
    except ImportError:
        raise InputError(
            f"embedding prompts takes transformers' Flax text encoders, which can't be imported; {INSTALL}, or pass "
            "embeddings: jaxdq.load_denoiser(folder, conditions=...) and jaxdq.guided."
        ) from None
    return CLIPTokenizer, FlaxCLIPTextModel, FlaxCLIPTextModelWithProjection


def autoencoder_class() -> Any:
    """Diffusers' Flax autoencoder.

    Raises:
        InputError: It can't be imported.
    """
    try:
        from diffusers import FlaxAutoencoderKL
        from diffusers.utils import logging
    except (ImportError, RuntimeError):  # diffusers loads lazily, and reports what fails then as a RuntimeError
        raise InputError(
            f"decoding latents takes diffusers' FlaxAutoencoderKL, which can't be imported; {INSTALL}, or pass decode=."
        ) from None
    logging.get_logger("diffusers.models.vae_flax").setLevel(logging.ERROR)  # it announces its removal at every call
    return FlaxAutoencoderKL
