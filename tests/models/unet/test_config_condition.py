import inspect

import pytest
from condition_twins import FAMILIES, V1, XL

from jaxdq._common.errors import InputError
from jaxdq.models.unet import unet2d_condition_from_config
from jaxdq.models.unet._config_condition import CONDITION_DEFAULTS, complete_condition_config


def test_golden_defaults_are_those_of_diffusers():
    from diffusers import UNet2DConditionModel

    parameters = inspect.signature(UNet2DConditionModel.__init__).parameters
    assert {name: value.default for name, value in parameters.items() if name != "self"} == CONDITION_DEFAULTS


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_a_complete_configuration_is_complete(config):
    complete = complete_condition_config(config | {"_class_name": "UNet2DConditionModel"})
    assert set(complete) == set(CONDITION_DEFAULTS)
    assert complete_condition_config(complete) == complete


def test_one_number_for_all_rows_means_that_number_for_each():
    assert unet2d_condition_from_config(V1 | {"attention_head_dim": [4, 4]}) == unet2d_condition_from_config(V1)


def test_the_number_of_heads_concerns_rows_with_attention_only():
    rows = {"mid_block_type": None, "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"]}
    assert complete_condition_config(V1 | rows | {"attention_head_dim": [4, 5]})["attention_head_dim"] == (4, 5)
    up = rows | {"up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"]}
    with pytest.raises(InputError, match="attention_head_dim has 5"):
        complete_condition_config(V1 | up | {"attention_head_dim": [4, 5]})


def test_what_a_trainer_notes_of_its_moving_average_is_passed_over():
    ema = {"decay": 0.9999, "optimization_step": 10, "use_ema_warmup": False, "power": 2 / 3}
    assert unet2d_condition_from_config(V1 | ema) == unet2d_condition_from_config(V1)


def test_the_names_and_the_fields_of_flax_are_accepted():
    flax = {
        "down_block_types": ["FlaxCrossAttnDownBlock2D", "FlaxDownBlock2D"],
        "use_memory_efficient_attention": True,
        "split_head_dim": True,
    }
    assert unet2d_condition_from_config(V1 | flax) == unet2d_condition_from_config(V1)


BAD_FIELDS = [
    (V1, {"transformer_type": "large"}, "fields that UNet2DConditionModel does not have: transformer_type"),
    (V1, {"down_block_types": ["SimpleCrossAttnDownBlock2D", "DownBlock2D"]}, "has 'SimpleCrossAttnDownBlock2D'"),
    (V1, {"up_block_types": ["UpBlock2D", "AttnUpBlock2D"]}, "has 'AttnUpBlock2D'"),
    (V1, {"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}, "mid_block_type is 'UNetMidBlock2DSimpleCrossAttn'"),
    (V1, {"only_cross_attention": [True, False]}, r"only_cross_attention is \[True, False\]; jaxdq supports false"),
    (V1, {"mid_block_only_cross_attention": True}, "mid_block_only_cross_attention is True"),
    (V1, {"dual_cross_attention": True}, "dual_cross_attention is True; jaxdq supports false"),
    (V1, {"reverse_transformer_layers_per_block": [[1], [1]]}, "reverse_transformer_layers_per_block"),
    (V1, {"encoder_hid_dim": 16}, "encoder_hid_dim is 16; jaxdq supports null"),
    (V1, {"encoder_hid_dim_type": "text_proj"}, "encoder_hid_dim_type"),
    (V1, {"num_attention_heads": 4}, "num_attention_heads is 4"),
    (V1, {"class_embed_type": "projection"}, "class_embed_type is 'projection'"),
    (V1, {"num_class_embeds": 10}, "num_class_embeds is 10"),
    (V1, {"resnet_time_scale_shift": "ada_group"}, "resnet_time_scale_shift"),
    (V1, {"resnet_skip_time_act": True}, "resnet_skip_time_act"),
    (V1, {"resnet_out_scale_factor": 2.0}, "resnet_out_scale_factor is 2.0; jaxdq supports 1.0"),
    (V1, {"time_embedding_type": "fourier"}, "time_embedding_type is 'fourier'"),
    (V1, {"time_embedding_act_fn": "silu"}, "time_embedding_act_fn"),
    (V1, {"timestep_post_act": "silu"}, "timestep_post_act"),
    (V1, {"time_cond_proj_dim": 256}, "time_cond_proj_dim is 256; jaxdq supports null"),
    (V1, {"conv_in_kernel": 1}, "conv_in_kernel"),
    (V1, {"conv_out_kernel": 1}, "conv_out_kernel"),
    (V1, {"attention_type": "gated"}, "attention_type is 'gated'; jaxdq supports 'default'"),
    (V1, {"class_embeddings_concat": True}, "class_embeddings_concat"),
    (V1, {"cross_attention_norm": "layer_norm"}, "cross_attention_norm"),
    (V1, {"addition_embed_type": "image"}, "addition_embed_type is 'image'; jaxdq supports null or 'text_time'"),
    (V1, {"act_fn": "gelu"}, "act_fn"),
    (V1, {"cross_attention_dim": [12, 12]}, r"cross_attention_dim is \[12, 12\]; give a positive integer"),
    (V1, {"attention_head_dim": 5}, r"attention_head_dim has 5 \(diffusers' name for the number of heads\)"),
    (V1, {"attention_head_dim": [4]}, r"attention_head_dim is \(4,\); give a positive integer, or 2 of them"),
    (V1, {"transformer_layers_per_block": [[1], [1]]}, "transformer_layers_per_block"),
    (V1, {"use_linear_projection": None}, "use_linear_projection is None; give true or false"),
    (XL, {"addition_time_embed_dim": None}, "addition_time_embed_dim is None"),
    (XL, {"projection_class_embeddings_input_dim": 36}, "projection_class_embeddings_input_dim 36"),
]


@pytest.mark.parametrize(
    ("config", "changes", "message"), BAD_FIELDS, ids=[",".join(changes) for _, changes, _ in BAD_FIELDS]
)
def test_bad_fields_are_refused_by_name(config, changes, message):
    with pytest.raises(InputError, match=message):
        complete_condition_config(config | changes)
