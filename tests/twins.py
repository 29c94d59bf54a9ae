"""Our network and diffusers' PyTorch one with the same, thoroughly random weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import torch
from diffusers import UNet2DModel

from jaxdq.models.unet import abstract_params, unet2d_from_config
from jaxdq.models.unet._weights import params_from_torch

SMALL = {
    "sample_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [16, 32],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 4,
}
TINY = SMALL | {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2, "add_attention": False}
SCHEDULER = {"_class_name": "DDPMScheduler", "num_train_timesteps": 100, "clip_sample": True}
WEIGHTS = "diffusion_pytorch_model.safetensors"


@functools.cache
def tiny_params(num_classes=None):
    rng = np.random.default_rng(0)
    shapes = abstract_params(unet2d_from_config(TINY | {"num_class_embeds": num_classes}))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), shapes)


def torch_network(config, seed=0):
    """diffusers' network; every parameter is moved off its initial value, the ones and zeros of the norms included."""
    torch.manual_seed(seed)
    network = UNet2DModel(**config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def jax_network(config, network):
    module = unet2d_from_config(config)
    tensors = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    return module, params_from_torch(tensors, abstract_params(module), "the twin")


def torch_output(network, x, t, class_labels=None):
    labels = None if class_labels is None else torch.tensor(class_labels)
    with torch.no_grad():
        y = network(torch.tensor(x.transpose(0, 3, 1, 2)), torch.tensor(t), class_labels=labels).sample
    return y.numpy().transpose(0, 2, 3, 1)


def images(config, batch=2, seed=1):
    size = config["sample_size"]
    return np.random.default_rng(seed).normal(size=(batch, size, size, config["in_channels"])).astype(np.float32)


def relative_error(ours, theirs):
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


def compiled(function):
    """Jitted without LLVM's optimisations, which take three times as long as all else here."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def twin_error(config, t, class_labels=None):
    """Build both networks, run both, and return the largest difference relative to the largest output."""
    network = torch_network(config)
    module, params = jax_network(config, network)
    x = images(config)
    labels = () if class_labels is None else (jnp.asarray(class_labels),)
    ours = compiled(module.apply)({"params": params}, x, jnp.asarray(t), *labels)
    return relative_error(ours, torch_output(network, x, t, class_labels))
