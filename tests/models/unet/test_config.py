import pytest
from twins import SMALL

from jaxdq._common.errors import InputError
from jaxdq.models.unet._config import DEFAULTS, complete_config


def test_golden_defaults_are_those_of_diffusers():
    import inspect

    from diffusers import UNet2DModel

    parameters = inspect.signature(UNet2DModel.__init__).parameters
    assert {name: value.default for name, value in parameters.items() if name != "self"} == DEFAULTS


def test_what_is_left_out_is_filled_in_and_diffusers_own_keys_are_dropped():
    complete = complete_config(SMALL | {"_class_name": "UNet2DModel", "_diffusers_version": "0.0.4"})
    assert set(complete) == set(DEFAULTS)
    assert complete["block_out_channels"] == (16, 32)
    assert complete["norm_eps"] == 1e-5
    assert complete_config(complete) == complete


EMA = {  # of diffusers' EMAModel.save_pretrained
    "decay": 0.9999,
    "inv_gamma": 1.0,
    "min_decay": 0.0,
    "optimization_step": 10000,
    "power": 0.75,
    "update_after_step": 0,
    "use_ema_warmup": True,
}


def test_what_a_trainer_notes_of_its_moving_average_is_passed_over():
    from diffusers.training_utils import EMAModel

    average = EMAModel([])
    assert set(average.state_dict()) - {"shadow_params"} == set(EMA)
    assert complete_config(SMALL | EMA) == complete_config(SMALL)


@pytest.mark.parametrize(
    ("changes", "head_dim"),
    [
        ({"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2, "add_attention": False}, 64),
        ({"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}, 32),
        ({}, 32),
        ({"mid_block_type": None, "up_block_types": ["UpBlock2D"] * 2}, 32),
    ],
)
def test_the_width_of_heads_concerns_rows_with_attention_only(changes, head_dim):
    assert complete_config(SMALL | changes | {"attention_head_dim": head_dim})["attention_head_dim"] == head_dim


BAD_FIELDS = [
    ({"use_linear_projection": True, "encoder_hid_dim": 3}, "encoder_hid_dim, use_linear_projection"),
    ({"down_block_types": ["SkipDownBlock2D", "AttnDownBlock2D"]}, "mix Skip blocks with others"),
    ({"up_block_types": ["AttnUpBlock2D", "CrossAttnUpBlock2D"]}, "up_block_types has 'CrossAttnUpBlock2D'"),
    ({"up_block_types": []}, "up_block_types is"),
    ({"down_block_types": "DownBlock2D"}, "down_block_types is 'DownBlock2D'; give a list"),
    ({"down_block_types": ["DownBlock2D"]}, "down_block_types has 1 entries and block_out_channels has 2"),
    ({"block_out_channels": [16, -32]}, "block_out_channels is"),
    ({"block_out_channels": [16, 30]}, "norm_num_groups is 4, which does not divide the 30"),
    ({"norm_num_groups": None}, "norm_num_groups is null, and its blocks have norms"),
    ({"down_block_types": ["SkipDownBlock2D", "DownBlock2D"]}, "mix Skip blocks with others"),
    (
        {"down_block_types": ["SkipDownBlock2D"] * 2, "up_block_types": ["SkipUpBlock2D"] * 2},
        "Skip blocks norm in 32 groups: give multiples of 32",
    ),
    ({"attn_norm_num_groups": 5}, "attn_norm_num_groups 5 does not divide the 32"),
    ({"attention_head_dim": 33}, "attention_head_dim is 33, more than the 32"),
    ({"attention_head_dim": 17, "up_block_types": ["UpBlock2D", "AttnUpBlock2D"]}, "17, more than the 16"),
    ({"layers_per_block": [1, 2]}, "layers_per_block"),
    ({"in_channels": True}, "in_channels is True"),
    ({"num_class_embeds": 0}, "num_class_embeds is 0; give a positive integer or null"),
    ({"act_fn": "tanh"}, "act_fn is 'tanh'; jaxdq supports 'silu' or 'swish' or 'gelu' or 'mish' or 'relu'"),
    ({"mid_block_type": "UNetMidBlock2DCrossAttn"}, "mid_block_type"),
    ({"time_embedding_type": "learned"}, "'learned' and its num_train_timesteps null"),
    ({"class_embed_type": "projection"}, "class_embed_type is 'projection'; jaxdq supports null or"),
    ({"downsample_padding": 2}, "downsample_padding is 2; jaxdq supports 0 or 1"),
    ({"downsample_type": "fir"}, "downsample_type"),
    ({"upsample_type": "fir"}, "upsample_type"),
    ({"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift"),
    ({"norm_eps": "small"}, "norm_eps is 'small'; give a positive number"),
    ({"mid_block_scale_factor": 0}, "mid_block_scale_factor is 0"),
    ({"freq_shift": None}, "freq_shift is None; give a number"),
    ({"freq_shift": 8}, "freq_shift is 8, and its time embedding has only 8 frequencies"),
    ({"flip_sin_to_cos": "yes"}, "flip_sin_to_cos is 'yes'; give true or false"),
    ({"sample_size": [8, 8, 3]}, "sample_size"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_FIELDS, ids=[",".join(changes) for changes, _ in BAD_FIELDS])
def test_bad_fields_are_refused_by_name(changes, message):
    with pytest.raises(InputError, match=message):
        complete_config(SMALL | changes)
