"""Small text-to-image pipelines of random weights, written to disk in the layout of published models."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from diffusers import (
    FlaxAutoencoderKL,
    FlaxPNDMScheduler,
    FlaxStableDiffusionPipeline,
    FlaxStableDiffusionXLPipeline,
    FlaxUNet2DConditionModel,
)
from diffusers.utils import logging
from transformers import CLIPTextConfig, CLIPTokenizer, FlaxCLIPTextModel, FlaxCLIPTextModelWithProjection

logging.set_verbosity_error()  # every Flax module announces its removal whenever it is made

TOKENS, WIDTH = 8, 8
UNET = {
    "sample_size": 8,
    "block_out_channels": (32,),  # the Flax class normalizes in 32 groups
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
    "attention_head_dim": 2,
    "cross_attention_dim": WIDTH,
}
XL = UNET | {
    "block_out_channels": (32, 32),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 2 * WIDTH,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": WIDTH + 6 * 4,
}
SCHEDULER = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}


def write_pipeline(folder: Path, *, xl: bool = False) -> Path:
    """Writes a Stable Diffusion 1 or XL pipeline, a few thousand weights, and returns its folder."""
    folder.mkdir()
    tokenizer = write_tokenizer(folder / "tokenizer")
    unet = FlaxUNet2DConditionModel(**(XL if xl else UNET))
    vae = FlaxAutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, sample_size=16, **_VAE)
    scheduler = FlaxPNDMScheduler(skip_prk_steps=True, **SCHEDULER)
    encoder = FlaxCLIPTextModel(text_config(len(tokenizer)))
    parts: dict[str, Any] = {
        "unet": unet, "vae": vae, "scheduler": scheduler, "text_encoder": encoder, "tokenizer": tokenizer
    }  # fmt: skip
    params = {
        "unet": random_params(lambda: unet.init_weights(jax.random.key(0))),
        "vae": random_params(lambda: vae.init_weights(jax.random.key(0))),
        "text_encoder": encoder.params,
        "scheduler": scheduler.create_state(),
    }
    if xl:
        second = FlaxCLIPTextModelWithProjection(text_config(len(tokenizer)), seed=1)
        parts |= {"text_encoder_2": second, "tokenizer_2": tokenizer}
        params["text_encoder_2"] = second.params
        pipeline = FlaxStableDiffusionXLPipeline(**parts)
    else:
        pipeline = FlaxStableDiffusionPipeline(safety_checker=None, feature_extractor=None, **parts)
    pipeline.save_pretrained(folder, params)
    return folder


_VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "latent_channels": 4,
    "layers_per_block": 1,
}


def text_config(vocab_size: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=vocab_size,
        hidden_size=WIDTH,
        projection_dim=WIDTH,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        bos_token_id=vocab_size - 2,
        eos_token_id=vocab_size - 1,
    )


def write_tokenizer(folder: Path) -> CLIPTokenizer:
    """A byte-pair tokenizer of single letters."""
    folder.mkdir()
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(folder / "vocab.json", folder / "merges.txt", model_max_length=TOKENS)


def random_params(init: Any) -> Any:
    """Params that flax would initialize, filled by numpy: flax compiles each layer's initializer."""
    rng = np.random.default_rng(7)

    def fill(path: Any, leaf: Any) -> jax.Array:
        fan_in = int(np.prod(leaf.shape[:-1])) if path[-1].key == "kernel" else 100
        values = rng.standard_normal(leaf.shape) / np.sqrt(fan_in)
        return jnp.asarray(values + (path[-1].key == "scale"), leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, jax.eval_shape(init))
