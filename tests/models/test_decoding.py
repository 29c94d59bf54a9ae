"""The decoders of models' folders, beside diffusers' PyTorch class; and what is said where there is none."""

import json
import sys
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from toys import UNET2D_CONFIG

from jaxdq import InputError
from jaxdq.models.decoding import decoded, decoder_of, pixels_per_latent

VAE = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 16,
    "scaling_factor": 0.5,
}
UNET = UNET2D_CONFIG | {"in_channels": 4, "out_channels": 4}


@pytest.fixture
def model(tmp_path):
    """A folder's configurations: what decoders are found by."""
    for name, content in (("unet/config.json", UNET), ("scheduler/scheduler_config.json", {"clip_sample": False})):
        (tmp_path / "model" / name).parent.mkdir(parents=True)
        (tmp_path / "model" / name).write_text(json.dumps(content))
    return tmp_path / "model"


def write_config(model, content, folder="vae"):
    (model / folder).mkdir()
    (model / folder / "config.json").write_text(content if isinstance(content, str) else json.dumps(content))


def test_oracle_images_are_those_of_the_pytorch_autoencoder(model):
    torch.manual_seed(0)
    network = AutoencoderKL(**VAE).eval()
    network.save_pretrained(model / "vae")
    latents = np.random.default_rng(0).standard_normal((3, 8, 8, 4)).astype(np.float32)
    with torch.no_grad():
        expected = network.decode(torch.tensor(latents).permute(0, 3, 1, 2) / 0.5).sample.permute(0, 2, 3, 1).numpy()
    decoder = decoder_of(model)
    assert decoder.reason == ""
    images = np.asarray(decoder.decode(jnp.asarray(latents)))
    assert images.shape == (3, 16, 16, 3) and np.std(images) > 0.05
    # Another order of sums, and a Flax group norm that takes the variance in one pass.
    np.testing.assert_allclose(images, np.clip(expected, -1, 1), atol=1e-4)
    assert pixels_per_latent(model) == 2


def test_models_of_pixels_have_no_decoder_and_no_reason(model):
    assert decoder_of(model) == decoder_of("digits") == (None, "")
    assert pixels_per_latent(model) == 8


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"_class_name": "AutoencoderTiny"}, "is a AutoencoderTiny"),
        ({"shift_factor": 0.1}, "sets shift_factor"),
        ({"act_fn": "relu", "latents_mean": [0.0]}, "sets act_fn, latents_mean"),
        ({"up_block_types": ["AttnUpDecoderBlock2D"] * 2}, "has up_block_types"),
        ({"down_block_types": 3}, "has down_block_types 3"),
        ({"norm_num_groups": 3}, "norm_num_groups 3; expected a divisor of [8, 16]"),
        ({}, "has no weights"),
    ],
)
def test_decoders_that_are_not_read_are_named(model, changes, reason):
    write_config(model, VAE | changes)
    assert decoder_of(model).decode is None
    assert reason in decoder_of(model).reason


def test_vector_quantized_decoders_are_named(model):
    (model / "vqvae").mkdir()
    assert decoder_of(model) == (None, "jaxdq does not read the decoder in vqvae/")


def test_without_diffusers_the_reason_says_what_to_install(model, monkeypatch):
    write_config(model, VAE)
    monkeypatch.setitem(sys.modules, "diffusers", SimpleNamespace())
    assert "pip install 'jaxdq[diffusers]'" in decoder_of(model).reason


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not readable JSON"),
        ("{", "not readable JSON"),
        ("[]", "holds a JSON list"),
        ("{}", "no usable block_out_channels"),
        ({"block_out_channels": 8}, "no usable block_out_channels"),
        ({"block_out_channels": [8, "8"]}, "no usable block_out_channels"),
        (VAE | {"scaling_factor": "big"}, "no usable scaling_factor"),
        (VAE | {"scaling_factor": 0, "latent_channels": None}, "no usable latent_channels, scaling_factor"),
    ],
)
def test_a_damaged_configuration_is_one_sentence(model, content, message):
    write_config(model, content)
    for read in (decoder_of, pixels_per_latent):
        with pytest.raises(InputError, match=rf"vae.config.json .*{message}"):
            read(model)


def test_images_of_bytes_are_refused():
    with pytest.raises(InputError, match=r"decode returned uint8; let it return images in \[-1, 1\]"):
        decoded(lambda latents: np.full((2, 16, 16, 3), 200, np.uint8), np.zeros((2, 8, 8, 4), np.float32), 2)
    bright = decoded(lambda latents: jnp.full((2, 16, 16, 3), 1.5, jnp.bfloat16), np.zeros((2, 8, 8, 4)), 2)
    assert bright.dtype == np.float32 and (bright == 1).all()
