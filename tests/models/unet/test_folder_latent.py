"""Latent models without text, and class-conditional ones, in the folders that diffusers writes."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from twins import SMALL, compiled, images, relative_error, torch_network, torch_output

from jaxdq._common.errors import InputError
from jaxdq.models.unet import load_denoiser

LDM_SCHEDULER = {  # CompVis/ldm-celebahq-256
    "_class_name": "DDIMScheduler",
    "beta_end": 0.0195,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.0015,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "timestep_values": None,
    "trained_betas": None,
}


def write_pipeline(folder, config, decoder="vqvae"):
    """A pipeline's folder: UNet, scheduler and a decoder, which is not ours to read."""
    network = torch_network(config)
    network.save_pretrained(folder / "unet")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(LDM_SCHEDULER))
    (folder / decoder).mkdir()
    (folder / decoder / "config.json").write_text(json.dumps({"latent_channels": 99, "sample_size": 256}))
    return network


@pytest.mark.parametrize("decoder", ["vqvae", "vae"])
def test_the_shape_is_that_of_the_latents(decoder, tmp_path):
    config = SMALL | {"in_channels": 4, "out_channels": 4}
    network = write_pipeline(tmp_path, config, decoder)
    denoiser = load_denoiser(tmp_path)
    assert denoiser.shape == (8, 8, 4)
    assert denoiser.schedule.clip_range is None
    x, t = images(config), np.array([3, 951])
    ours = compiled(denoiser.module.apply)({"params": denoiser.params}, x, jnp.asarray(t))
    assert relative_error(ours, torch_output(network, x, t)) < 1e-4


CLASSES = {  # what the file says, what the caller gives
    "table": ({"num_class_embeds": 10}, None),
    "timestep": ({"class_embed_type": "timestep"}, np.arange(3)),
    "identity": ({"class_embed_type": "identity"}, np.ones((3, 64), np.float32)),
}


@pytest.mark.parametrize(("changes", "labels"), CLASSES.values(), ids=CLASSES)
def test_oracle_class_conditional_latents(changes, labels, tmp_path):
    network = write_pipeline(tmp_path, SMALL | changes)
    denoiser = load_denoiser(tmp_path, conditions=None if labels is None else (labels,))
    (rows,) = denoiser.args(jnp.array([0, 1]))
    x, t = images(SMALL), np.array([3, 951])
    ours = compiled(denoiser.module.apply)({"params": denoiser.params}, x, jnp.asarray(t), rows)
    assert relative_error(ours, torch_output(network, x, t, np.asarray(rows))) < 1e-4


def test_the_caller_may_choose_the_classes(tmp_path):
    write_pipeline(tmp_path, SMALL | {"num_class_embeds": 10})
    (labels,) = load_denoiser(tmp_path, conditions=(np.array([7, 2]),)).conditions
    np.testing.assert_array_equal(labels, [7, 2])


@pytest.mark.parametrize("kind", ["timestep", "identity"])
def test_labels_that_are_in_no_file_are_asked_for(kind, tmp_path):
    write_pipeline(tmp_path, SMALL | {"class_embed_type": kind})
    with pytest.raises(InputError, match=r"conditions=\(class_labels: (int|float)\[P.*--conditions FILE.npz"):
        load_denoiser(tmp_path)
