"""Every part that a UNet2DConditionModel or ControlNetModel may have, against diffusers' PyTorch class."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from condition_twins import V1, XL, jax_condition_network, torch_condition_network
from diffusers import ControlNetModel

from jaxdq import InputError
from jaxdq.linen import find_sites
from jaxdq.models.unet import Controlled, abstract_params, controlnet_from_config, unet2d_condition_from_config
from jaxdq.models.unet._weights import params_from_torch

SIMPLE = V1 | {  # DeepFloyd IF, Kandinsky 2, unCLIP
    "down_block_types": ["ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"],
    "up_block_types": ["SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"],
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "resnet_time_scale_shift": "scale_shift",
    "attention_head_dim": 4,
}
K = {  # the latent upscaler
    "in_channels": 5,
    "out_channels": 4,
    "block_out_channels": [32, 64, 64],
    "layers_per_block": 2,
    "down_block_types": ["KDownBlock2D", "KCrossAttnDownBlock2D", "KCrossAttnDownBlock2D"],
    "up_block_types": ["KCrossAttnUpBlock2D", "KCrossAttnUpBlock2D", "KUpBlock2D"],
    "mid_block_type": None,
    "norm_num_groups": None,
    "cross_attention_dim": 12,
    "attention_head_dim": 16,
    "act_fn": "gelu",
    "time_embedding_type": "fourier",
    "timestep_post_act": "gelu",
    "time_cond_proj_dim": 20,
    "conv_in_kernel": 1,
    "conv_out_kernel": 1,
}
PARTS = {
    "channels": V1 | {"in_channels": 9},
    "variance": V1 | {"in_channels": 6, "out_channels": 8, "only_cross_attention": True},
    "guidance embedded": V1 | {"time_cond_proj_dim": 6, "act_fn": "gelu"},
    "only text by rows": V1 | {"only_cross_attention": [True, False], "act_fn": "mish"},
    "heads that do not divide": V1 | {"attention_head_dim": [3, 5], "act_fn": "relu"},
    "bare middle": V1 | {"mid_block_type": "UNetMidBlock2D", "conv_in_kernel": 5, "conv_out_kernel": 1},
    "no middle": V1
    | {
        "mid_block_type": None,
        "time_embedding_act_fn": "silu",
        "timestep_post_act": "mish",
        "class_embed_type": "timestep",
    },
    "deep transformers by layer": XL
    | {
        "transformer_layers_per_block": [1, [2, 1], [1, 2]],
        "reverse_transformer_layers_per_block": [[1, 1, 2], [1, 2, 1], 1],
        "mid_block_type": None,
    },
    "fourier": V1
    | {
        "time_embedding_type": "fourier",
        "flip_sin_to_cos": False,
        "cross_attention_dim": [12, 12],
        "num_class_embeds": 7,
    },
    "no text": V1 | {"cross_attention_dim": [8, 16], "class_embed_type": "identity"},
    "class projected": V1 | {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 10},
    "class beside": V1
    | {
        "class_embed_type": "simple_projection",
        "projection_class_embeddings_input_dim": 10,
        "class_embeddings_concat": True,
    },
    "text projected": V1 | {"encoder_hid_dim": 9, "addition_embed_type": "text", "addition_embed_type_num_heads": 3},
    "text and image": SIMPLE
    | {"encoder_hid_dim": 9, "encoder_hid_dim_type": "text_image_proj", "addition_embed_type": "text_image"},
    "image": SIMPLE | {"encoder_hid_dim": 9, "encoder_hid_dim_type": "image_proj", "addition_embed_type": "image"},
    "hint": SIMPLE
    | {
        "in_channels": 8,
        "encoder_hid_dim": 9,
        "encoder_hid_dim_type": "image_proj",
        "addition_embed_type": "image_hint",
    },
    "simple": SIMPLE | {"resnet_skip_time_act": True, "resnet_out_scale_factor": 2.0, "mid_block_scale_factor": 3.0},
    "simple text only": SIMPLE | {"only_cross_attention": True},
    "simple heads by rows": SIMPLE | {"attention_head_dim": [2, 4]},
    "simple norm": SIMPLE | {"cross_attention_norm": "group_norm", "cross_attention_dim": 32},
    "k": K,
    "k with norms": K | {"norm_num_groups": 8},
}


def seeded(shape, seed):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def inputs_of(module, side=8):
    """x, t and conditions of two images."""
    x = seeded((2, side, side, module.x_channels), 1)
    rows = []
    for i, shape in enumerate(module.abstract_conditions((side, side))):
        size = (2, *shape.shape[1:])
        rows.append(np.array([1, 3]) if jnp.issubdtype(shape.dtype, jnp.integer) else seeded(size, 2 + i))
    return x, np.array([3, 700]), rows


def torch_arguments(module, x, t, rows):
    named = dict(zip(module.condition_names, map(torch.from_numpy, rows), strict=True))
    if "hint" in named:
        named["hint"] = named["hint"].permute(0, 3, 1, 2)
    added = {key: named.pop(key) for key in ("text_embeds", "time_ids", "image_embeds", "hint") if key in named}
    text = named.pop("encoder_hidden_states", None)
    arguments = {"encoder_hidden_states": text, "added_cond_kwargs": added, **named}
    return (torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(t)), arguments


# Those that differ in their code from all others; the rest take the longer way.
_FAST = ("guidance embedded", "no text", "hint", "simple", "k")


@pytest.mark.parametrize(
    "config", [pytest.param(PARTS[name], id=name, marks=() if name in _FAST else pytest.mark.slow) for name in PARTS]
)
def test_each_part_equals_pytorch(config):
    network = torch_condition_network(config)
    module, params = jax_condition_network(config, network)
    x, t, rows = inputs_of(module)
    positional, named = torch_arguments(module, x, t, rows)
    with torch.no_grad():
        expected = network(*positional, **named).sample.permute(0, 2, 3, 1).numpy()
    out = jax.jit(module.apply)({"params": params}, x, t, *rows)
    assert np.abs(out - expected).max() <= 1e-5 * max(1, np.abs(expected).max())


@pytest.mark.parametrize("name", ["text projected", "text and image", "image", "channels"])
def test_the_layer_that_reads_the_image_runs_first(name):
    module = unet2d_condition_from_config(PARTS[name])
    params = abstract_params(module)
    sites = find_sites(module, params, *(jnp.zeros(part.shape, part.dtype) for part in module.abstract_inputs()))
    assert next(site.path for site in sites if site.rows > 1) == "conv_in"


def test_without_the_guidance_embedding_nothing_is_added():
    config = PARTS["guidance embedded"]
    module, params = jax_condition_network(config, torch_condition_network(config))
    x, t, rows = inputs_of(module)
    left_out = module.apply({"params": params}, x, t, rows[0])
    np.testing.assert_array_equal(left_out, module.apply({"params": params}, x, t, rows[0], np.zeros_like(rows[1])))


CONTROLNETS = {
    "v1": {"conditioning_embedding_out_channels": [4, 8]},
    "bgr": {"conditioning_embedding_out_channels": [4, 6, 8], "controlnet_conditioning_channel_order": "bgr"},
    "heads": {
        "conditioning_embedding_out_channels": [4, 8],
        "num_attention_heads": 2,
        "mid_block_type": "UNetMidBlock2D",
    },
}
_SHARED = ("block_out_channels", "layers_per_block", "down_block_types", "cross_attention_dim", "attention_head_dim")


def controlnet_twins(changes):
    torch.manual_seed(1)
    config = {key: V1[key] for key in (*_SHARED, "norm_num_groups", "in_channels")} | changes
    network = ControlNetModel(**config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    module = controlnet_from_config(config)
    tensors = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    return network, module, params_from_torch(tensors, abstract_params(module), "the twin")


@pytest.mark.parametrize("changes", CONTROLNETS.values(), ids=CONTROLNETS)
def test_a_controlled_unet_equals_pytorch(changes):
    network, module, params = controlnet_twins(changes)
    unet = torch_condition_network(V1)
    ours, unet_params = jax_condition_network(V1, unet)
    x, t, (text,) = inputs_of(ours)
    image = seeded((2, *module.abstract_conditions((8, 8))[-1].shape[1:]), 9)
    both = Controlled(ours, module, 0.7)
    out = both.apply({"params": {"unet": unet_params, "controlnet": params}}, x, t, text, image)
    with torch.no_grad():
        (state, time), named = torch_arguments(ours, x, t, [text])
        down, middle = network(
            state, time, controlnet_cond=torch.from_numpy(image).permute(0, 3, 1, 2), **named, return_dict=False
        )
        expected = unet(
            state,
            time,
            **named,
            down_block_additional_residuals=[0.7 * part for part in down],
            mid_block_additional_residual=0.7 * middle,
        ).sample
    assert np.abs(out - expected.permute(0, 2, 3, 1).numpy()).max() <= 1e-5 * expected.abs().max()
    plain = ours.apply({"params": unet_params}, x, t, text)
    assert np.abs(out - plain).max() > 0.01  # it does control


def test_the_features_of_an_adapter_are_added_as_in_pytorch():
    unet = torch_condition_network(V1)
    ours, params = jax_condition_network(V1, unet)
    x, t, (text,) = inputs_of(ours)
    features = [seeded((2, 8, 8, 8), 5), seeded((2, 4, 4, 16), 6)]
    out = ours.apply({"params": params}, x, t, text, adapter_residuals=features)
    (state, time), named = torch_arguments(ours, x, t, [text])
    with torch.no_grad():
        added = [torch.from_numpy(part).permute(0, 3, 1, 2) for part in features]
        expected = unet(state, time, **named, down_intrablock_additional_residuals=added).sample
    assert np.abs(out - expected.permute(0, 2, 3, 1).numpy()).max() <= 1e-5 * expected.abs().max()


def test_residuals_that_do_not_fit_are_refused():
    ours, params = jax_condition_network(V1, torch_condition_network(V1))
    x, t, (text,) = inputs_of(ours)
    with pytest.raises(InputError, match="takes 4 down_residuals and was given 1"):
        ours.apply({"params": params}, x, t, text, down_residuals=[x])
    with pytest.raises(InputError, match="has 2 rows and was given 3 adapter_residuals"):
        ours.apply({"params": params}, x, t, text, adapter_residuals=[x] * 3)
