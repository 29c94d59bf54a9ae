import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from twins import SMALL, compiled, images, jax_network, relative_error, torch_network, torch_output, twin_error

from jaxdq._common.errors import InputError
from jaxdq.cost import network_of
from jaxdq.models.unet import abstract_params, unet2d_from_config

# Both sides sum in float32 in another order: about 1e-6 through some twenty layers. A wrong detail costs 1e-2 or more.
TOLERANCE = 1e-4

CIFAR10 = {  # google/ddpm-cifar10-32
    "sample_size": 32,
    "in_channels": 3,
    "out_channels": 3,
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": [128, 256, 256, 256],
    "center_input_sample": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-6,
    "norm_num_groups": 32,
    "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}

VARIANTS = {  # of SMALL, which has heads of 8 channels and symmetric downsampling, and is tested with a scalar t below
    "one head": {"attention_head_dim": None},
    "heads that leave channels over": {"attention_head_dim": 12},
    "scale and shift": {"resnet_time_scale_shift": "scale_shift"},
    "scale and shift, norm in mid attention": {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 8},
    "resampling in residual blocks": {"downsample_type": "resnet", "upsample_type": "resnet"},
    "rows that resample in residual blocks": {
        "down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "ResnetUpsampleBlock2D"],
    },
    "heads wider than a row without attention": {"block_out_channels": [4, 32], "attention_head_dim": 16},
    "asymmetric downsampling, no attention in the middle": {"downsample_padding": 0, "add_attention": False},
    "no middle, centred, odd width": {
        "mid_block_type": None,
        "center_input_sample": True,
        "block_out_channels": [15, 30],
        "norm_num_groups": 5,
    },
    "other time embedding, scaled middle": {
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "time_embedding_dim": 24,
        "mid_block_scale_factor": 1.41421356,
        "norm_eps": 1e-3,
    },
}


_SKIP = {  # google/ncsnpp-celebahq-256, made small
    "block_out_channels": [32, 32, 64],
    "down_block_types": ["SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipDownBlock2D"],
    "up_block_types": ["SkipUpBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D"],
    "norm_num_groups": None,
    "mid_block_scale_factor": 1.41421356,
    "norm_eps": 1e-6,
}
VARIANTS |= {
    "the image carried along": _SKIP | {"attention_head_dim": None},
    "the image carried along, heads": _SKIP | {"attention_head_dim": 8, "norm_num_groups": 8},
    "other activation": {"act_fn": "mish"},
}
QUICK = {
    "the image carried along",
    "one head",
    "scale and shift",
    "rows that resample in residual blocks",
    "no middle, centred, odd width",
}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(changes, id=name, marks=[pytest.mark.slow] * (name not in QUICK))
        for name, changes in VARIANTS.items()
    ],
)
def test_oracle_equals_diffusers(changes):
    assert twin_error(SMALL | changes, np.array([3, 951])) < TOLERANCE


@pytest.mark.slow
def test_oracle_cifar10_structure():
    small = CIFAR10 | {"sample_size": 16, "block_out_channels": [8, 16, 16, 16], "norm_num_groups": 4}
    assert twin_error(small, np.array([0, 999])) < TOLERANCE


@pytest.mark.slow
def test_oracle_cifar10_at_full_size():
    assert twin_error(CIFAR10, np.array([0, 999])) < TOLERANCE


def test_oracle_fourier_time():
    # Noise levels, not timesteps; the phase 2 pi w log(t) is kept small, as both sides round it to float32.
    assert twin_error(SMALL | {"time_embedding_type": "fourier"}, np.array([1.01, 1.5], np.float32)) < TOLERANCE


def test_oracle_learned_time():
    changes = {"time_embedding_type": "learned", "num_train_timesteps": 1000}
    assert twin_error(SMALL | changes, np.array([3, 951])) < TOLERANCE


CLASSES = {
    "table": ({"num_class_embeds": 10}, np.array([7, 2])),
    "timestep": ({"class_embed_type": "timestep"}, np.array([7, 2])),
    "identity": ({"class_embed_type": "identity"}, np.ones((2, 64), np.float32)),
}


@pytest.mark.parametrize(("changes", "class_labels"), CLASSES.values(), ids=CLASSES)
def test_oracle_class_conditional(changes, class_labels):
    assert twin_error(SMALL | changes, np.array([3, 951]), class_labels) < TOLERANCE


def test_oracle_scalar_t_equals_vector_t():
    network = torch_network(SMALL)
    module, params = jax_network(SMALL, network)
    x = images(SMALL)
    apply = compiled(module.apply)
    scalar = apply({"params": params}, x, jnp.asarray(500))
    assert relative_error(scalar, torch_output(network, x, 500)) < TOLERANCE
    assert relative_error(apply({"params": params}, x, jnp.asarray([500, 500])), np.asarray(scalar)) < 1e-5
    np.testing.assert_array_equal(apply({"params": params}, x, 500), scalar)


def test_the_prefix_of_old_block_types_is_accepted():
    old = {"down_block_types": ["UNetResDownBlock2D", "UNetResAttnDownBlock2D"]}
    assert unet2d_from_config(SMALL | old) == unet2d_from_config(SMALL)


@pytest.mark.parametrize("changes", [{}, *(changes for changes, _ in CLASSES.values())])
def test_abstract_params_are_those_of_init(changes):
    module = unet2d_from_config(SMALL | changes)
    labels = {"table": jnp.zeros(1, int), "timestep": jnp.zeros(1, int), "identity": jnp.zeros((1, 64))}
    kind = "table" if module.num_class_embeds else module.class_embed_type
    params = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)), 0, labels.get(kind))["params"]
    assert abstract_params(module) == params


def test_attention_products_and_kernels_have_diffusers_paths():
    params = abstract_params(unet2d_from_config(SMALL))
    assert params["mid_block"]["attentions_0"]["to_out_0"]["kernel"].shape == (32, 32)
    assert params["down_blocks_0"]["downsamplers_0"]["conv"]["kernel"].shape == (3, 3, 16, 16)
    assert params["up_blocks_1"]["resnets_1"]["conv_shortcut"]["kernel"].shape == (1, 1, 32, 16)
    assert set(params["time_embedding"]) == {"linear_1", "linear_2"}


BAD_CALLS = {
    "x with other channels": ((jnp.zeros((2, 8, 8, 1)), 0), r"shape \(2, 8, 8, 1\); give \[B, H, W, 3\]"),
    "odd x": ((jnp.zeros((2, 8, 9, 3)), 0), "multiples of 2"),
    "x without batch": ((jnp.zeros((8, 8, 3)), 0), r"\[B, H, W, 3\]"),
    "t for another batch": ((jnp.zeros((2, 8, 8, 3)), jnp.zeros(3, int)), r"t has shape \(3,\)"),
    "labels for no classes": ((jnp.zeros((2, 8, 8, 3)), 0, jnp.zeros(2, int)), "has no classes"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_bad_calls_are_refused(arguments, message):
    module = unet2d_from_config(SMALL)
    with pytest.raises(InputError, match=message):
        jax.eval_shape(module.init, jax.random.key(0), *arguments)


def test_classes_without_labels_are_refused():
    module = unet2d_from_config(SMALL | {"num_class_embeds": 10})
    with pytest.raises(InputError, match="without class_labels"):
        jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((2, 8, 8, 3)), 0)


def test_a_network_in_bfloat16_stays_in_bfloat16():
    module = unet2d_from_config(toys.UNET2D_CONFIG)
    x, t = jax.ShapeDtypeStruct((2, 8, 8, toys.UNET2D_CONFIG["in_channels"]), jnp.bfloat16), jnp.int32(3)
    params = jax.eval_shape(module.init, jax.random.key(0), x, t)["params"]
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), params)
    found = network_of(module, params, x, t)
    assert {shape.dtype.name for call in found.calls[2:] for shape in (*call.inputs, call.output)} == {"bfloat16"}
