"""Small networks of Stable Diffusion's three families, ours and diffusers', with the same random weights."""

import numpy as np
import torch
from diffusers import UNet2DConditionModel

from jaxdq.models.unet import abstract_params, unet2d_condition_from_config
from jaxdq.models.unet._weights import params_from_torch

V1 = {  # CompVis/stable-diffusion-v1-4, made small: heads of several widths, 1x1 convolutions as projections
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "cross_attention_dim": 12,
    "attention_head_dim": 4,
    "norm_num_groups": 4,
}
V2 = V1 | {  # stabilityai/stable-diffusion-2-1: heads of one width, linear projections
    "attention_head_dim": [2, 4],
    "use_linear_projection": True,
    "upcast_attention": True,
}
XL = V2 | {  # stabilityai/stable-diffusion-xl-base-1.0: no attention at the top, deep transformers, added conditions
    "block_out_channels": [8, 16, 16],
    "layers_per_block": 2,
    "attention_head_dim": [1, 2, 4],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 3],
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 6,
    "projection_class_embeddings_input_dim": 10 + 6 * 6,
    "upcast_attention": None,
}
FAMILIES = {"v1": V1, "v2": V2, "xl": XL}


def torch_condition_network(config, seed=0):
    """diffusers' network; every parameter is moved off its initial value, the ones and zeros of the norms included."""
    torch.manual_seed(seed)
    network = UNet2DConditionModel(**config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def jax_condition_network(config, network):
    module = unet2d_condition_from_config(config)
    tensors = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    return module, params_from_torch(tensors, abstract_params(module), "the twin")


def conditions(config, batch=2, tokens=5, seed=2):
    """encoder_hidden_states, and text_embeds and time_ids where the family has them."""
    rng = np.random.default_rng(seed)
    text = rng.normal(size=(batch, tokens, config["cross_attention_dim"])).astype(np.float32)
    if "addition_embed_type" not in config:
        return (text,)
    time_ids = np.array([[1024, 768, 0, 64, 1024, 1024], [512, 512, 0, 0, 1024, 1024]], np.float32)[:batch]
    return text, rng.normal(size=(batch, 10)).astype(np.float32), time_ids


def torch_condition_output(network, x, t, text, text_embeds=None, time_ids=None):
    added = None
    if text_embeds is not None:
        added = {"text_embeds": torch.tensor(text_embeds), "time_ids": torch.tensor(time_ids)}
    with torch.no_grad():
        x = torch.tensor(x.transpose(0, 3, 1, 2))
        y = network(x, torch.tensor(t), torch.tensor(text), added_cond_kwargs=added).sample
    return y.numpy().transpose(0, 2, 3, 1)
