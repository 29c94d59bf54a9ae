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
    assert complete_condition_config(V1 | rows | {"attention_head_dim": [4, 99]})["attention_head_dim"] == (4, 99)
    up = rows | {"up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"]}
    with pytest.raises(InputError, match="attention_head_dim has 99"):
        complete_condition_config(V1 | up | {"attention_head_dim": [4, 99]})


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
    (V1, {"up_block_types": ["UpBlock2D", "AttnUpBlock2D"]}, "has 'AttnUpBlock2D'"),
    (V1, {"reverse_transformer_layers_per_block": [[1], [1]]}, "reverse_transformer_layers_per_block"),
    (V1, {"encoder_hid_dim_type": "text_proj"}, "encoder_hid_dim_type 'text_proj' needs it"),
    (V1, {"num_attention_heads": 4}, "num_attention_heads is 4"),
    (
        V1,
        {"class_embed_type": "projection"},
        "is 'projection' and its projection_class_embeddings_input_dim null",
    ),
    (V1, {"resnet_time_scale_shift": "ada_group"}, "resnet_time_scale_shift"),
    (
        V1,
        {"mid_block_type": "UNetMidBlock3D"},
        "mid_block_type is 'UNetMidBlock3D'; jaxdq supports",
    ),
    (V1, {"only_cross_attention": [True]}, r"only_cross_attention is \[True\]; give true or false, or one for each"),
    (V1, {"only_cross_attention": "no"}, "only_cross_attention is 'no'"),
    (V1, {"mid_block_only_cross_attention": "no"}, "mid_block_only_cross_attention is 'no'"),
    (V1, {"dual_cross_attention": "no"}, "dual_cross_attention is 'no'; give true or false"),
    (V1, {"cross_attention_dim": [8, 16], "encoder_hid_dim": 4}, "reads no text, and encoder_hid_dim ask for one"),
    (V1, {"encoder_hid_dim": -1}, "encoder_hid_dim is -1; give a positive integer or null"),
    (V1, {"addition_embed_type": "image"}, "encoder_hid_dim is null, and its addition_embed_type 'image' needs it"),
    (V1, {"addition_embed_type": "text"}, "addition_embed_type_num_heads is 64, which does not divide the 12"),
    (V1, {"conv_in_kernel": 2}, "conv_in_kernel is 2, which would change the image's size"),
    (V1, {"cross_attention_dim": [12, 13]}, r"cross_attention_dim is \[12, 13\]; give a positive integer"),
    (V1, {"attention_head_dim": 9}, "attention_head_dim has 9 .*, more than the 8"),
    (V1, {"resnet_out_scale_factor": 0}, "resnet_out_scale_factor is 0; give a positive number"),
    (V1, {"norm_num_groups": None}, "norm_num_groups is null, and its blocks have norms"),
    (V1, {"transformer_layers_per_block": [[1], 1]}, "differs within a resolution; give reverse_"),
    (V1, {"down_block_types": ["KDownBlock2D", "DownBlock2D"]}, "mix K blocks with others"),
    (V1, {"time_embedding_type": "fourier", "time_embedding_dim": 5}, "time_embedding_dim is 5; give an even one"),
    (XL, {"class_embed_type": "timestep", "class_embeddings_concat": True}, "class_embeddings_concat doubles"),
    (V1, {"attention_type": "gated"}, "attention_type is 'gated'; jaxdq supports 'default'"),
    (V1, {"attention_head_dim": [4]}, r"attention_head_dim is \(4,\); give a positive integer, or 2 of them"),
    (V1, {"transformer_layers_per_block": [[1], [1]]}, "transformer_layers_per_block"),
    (V1, {"flip_sin_to_cos": None}, "flip_sin_to_cos is None; give true or false"),
    (XL, {"addition_time_embed_dim": None}, "addition_time_embed_dim is None"),
    (XL, {"projection_class_embeddings_input_dim": 36}, "projection_class_embeddings_input_dim 36"),
]


@pytest.mark.parametrize(
    ("config", "changes", "message"), BAD_FIELDS, ids=[",".join(changes) for _, changes, _ in BAD_FIELDS]
)
def test_bad_fields_are_refused_by_name(config, changes, message):
    with pytest.raises(InputError, match=message):
        complete_condition_config(config | changes)
