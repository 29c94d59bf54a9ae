import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from condition_twins import (
    FAMILIES,
    V1,
    XL,
    conditions,
    jax_condition_network,
    torch_condition_network,
    torch_condition_output,
)
from scripts_by_name import script
from twins import compiled, images, relative_error

from jaxdq._common.errors import InputError
from jaxdq.grid import Scheme
from jaxdq.linen import Rule, find_sites, make_plan
from jaxdq.models.unet import abstract_params, unet2d_condition_from_config
from jaxdq.recipes._rules import default_rules

# Both sides sum in float32 in another order: about 1e-6 through some forty layers. A wrong detail costs 1e-2 or more.
TOLERANCE = 1e-4

VARIANTS = {
    "scale and shift, scaled middle": V1 | {"resnet_time_scale_shift": "scale_shift", "mid_block_scale_factor": 1.4},
    "no middle, centred": V1 | {"mid_block_type": None, "center_input_sample": True},
    "layers of its own for each row": V1 | {"layers_per_block": [2, 1], "transformer_layers_per_block": [2, 1]},
    "other time embedding, asymmetric downsampling": V1
    | {"flip_sin_to_cos": False, "freq_shift": 1, "time_embedding_dim": 24, "downsample_padding": 0},
}


@pytest.mark.parametrize(
    "config",
    [
        *(pytest.param(FAMILIES[name], id=name) for name in ("v1", "v2")),
        pytest.param(FAMILIES["xl"], id="xl", marks=pytest.mark.slow),
        *(pytest.param(config, id=name, marks=pytest.mark.slow) for name, config in VARIANTS.items()),
    ],
)
def test_oracle_equals_diffusers(config):
    network = torch_condition_network(config)
    module, params = jax_condition_network(config, network)
    x, rest, t = images(config), conditions(config), np.array([3, 951])
    ours = compiled(module.apply)({"params": params}, x, jnp.asarray(t), *rest)
    assert relative_error(ours, torch_condition_output(network, x, t, *rest)) < TOLERANCE


RESNET = {
    "down_block_types": ["ResnetDownsampleBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "ResnetUpsampleBlock2D"],
}
THREE = V1 | {
    "block_out_channels": [4, 8, 8],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
}
SIZES = [  # diffusers goes back up to the sizes of the way down; a multiple of 4 needs none of it
    pytest.param(THREE, (9, 7), id="9 x 7"),
    pytest.param(THREE, (8, 6), id="one odd side", marks=pytest.mark.slow),
    pytest.param(THREE, (3, 2), id="smaller than its rows", marks=pytest.mark.slow),
    pytest.param(V1, (1, 5), id="a single row of pixels", marks=pytest.mark.slow),
    pytest.param(THREE | {"downsample_padding": 0}, (9, 7), id="asymmetric downsampling", marks=pytest.mark.slow),
    pytest.param(V1 | RESNET | {"resnet_time_scale_shift": "scale_shift"}, (6, 8), id="resampling in residual blocks"),
]


@pytest.mark.parametrize(("config", "size"), SIZES)
def test_oracle_at_any_size(config, size):
    network = torch_condition_network(config)
    module, params = jax_condition_network(config, network)
    x = np.random.default_rng(1).normal(size=(2, *size, 4)).astype(np.float32)
    rest, t = conditions(config), np.array([3, 951])
    ours = compiled(module.apply)({"params": params}, x, jnp.asarray(t), *rest)
    assert ours.shape == x.shape
    assert relative_error(ours, torch_condition_output(network, x, t, *rest)) < TOLERANCE


@pytest.mark.slow
def test_a_scalar_t_equals_a_vector_t():
    module, params = jax_condition_network(V1, torch_condition_network(V1))
    apply, x, rest = compiled(module.apply), images(V1), conditions(V1)
    scalar = apply({"params": params}, x, jnp.asarray(500), *rest)
    assert relative_error(apply({"params": params}, x, jnp.asarray([500, 500]), *rest), np.asarray(scalar)) < 1e-5


MODELS = dict(zip(("v1-4", "v2-1", "xl-base"), script("count_stable_diffusion").MODELS.values(), strict=True))


@functools.cache
def abstract_sites(name):
    """The sites of a network at its own size, and its parameters' shapes; nothing is computed."""
    config = MODELS[name]
    module = unet2d_condition_from_config(config)
    params = abstract_params(module)
    side = config["sample_size"]
    x = jax.ShapeDtypeStruct((1, side, side, 4), jnp.float32)
    t = jax.ShapeDtypeStruct((), jnp.int32)
    return find_sites(module, params, x, t, *module.abstract_conditions()), params


# Parameters as counted by diffusers; two products for each attention, two attentions for each transformer block.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "num_params", "num_blocks"),
    [
        ("v1-4", 859_520_964, 16),
        ("v2-1", 865_910_724, 16),
        ("xl-base", 2_567_463_684, 70),
    ],
)
def test_golden_every_contraction_is_a_site(name, num_params, num_blocks):
    sites, params = abstract_sites(name)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    assert sum(leaf.size for _, leaf in leaves) == num_params
    kernels = {
        jax.tree_util.keystr(path[:-1], simple=True, separator="/") for path, leaf in leaves if path[-1].key == "kernel"
    }
    assert {site.path for site in sites if site.kind != "product"} == kernels
    products = [site.path for site in sites if site.kind == "product"]
    assert len(products) == 4 * num_blocks
    assert all(
        path.endswith(tuple(f"/attn{i}/attention/{name}" for i in (1, 2) for name in ("scores", "values")))
        for path in products
    )
    assert not any(site.unsupported for site in sites)


@pytest.mark.slow
def test_nearly_all_of_v1_4_runs_on_integers():
    sites, params = abstract_sites("v1-4")
    rules = default_rules(weight_bits=8, act_bits=8)(sites)
    products = [Rule(".*", kind="product", act=Scheme(8)), *(rule for rule in rules if rule.kind != "product")]
    without, with_products = (make_plan(each, sites, params).integer_mac_fraction for each in (rules, products))
    assert with_products >= 0.97
    assert 0.75 < without < 0.95


BAD_CALLS = {
    "nothing left of the image": (V1 | RESNET, (np.zeros((2, 5, 12)),), "H and W at least 2"),
    "no text for one image": (V1, (np.zeros((1, 5, 12)),), r"shape \(1, 5, 12\); give .* \[2, tokens, 12\]"),
    "text of another width": (V1, (np.zeros((2, 5, 16)),), r"\[2, tokens, 12\]"),
    "pooled text": (
        V1,
        (np.zeros((2, 5, 12)), np.zeros((2, 10))),
        "takes encoder_hidden_states after x and t, and was called with 2 conditions",
    ),
    "no pooled text": (XL, conditions(XL)[:1], "called without text_embeds or time_ids"),
    "pooled text of another width": (
        XL,
        (conditions(XL)[0], np.zeros((2, 9)), np.zeros((2, 6))),
        r"text_embeds has shape \(2, 9\) and its time_ids \(2, 6\); give \[2, 10\] and \[2, 6\]",
    ),
}


@pytest.mark.parametrize(("config", "rest", "message"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_bad_calls_are_refused(config, rest, message):
    module = unet2d_condition_from_config(config)
    x = np.zeros((2, 1, 8, 4)) if "at least" in message else images(config)
    with pytest.raises(InputError, match=message):
        jax.eval_shape(module.init, jax.random.key(0), x, 0, *rest)
