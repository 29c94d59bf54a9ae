import chex
import jax
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from twins import SMALL, torch_network

from jaxdq._common.errors import InputError
from jaxdq.models.unet import abstract_params, unet2d_from_config
from jaxdq.models.unet._weights import params_from_flax, params_from_torch, torch_from_params, torch_name

EXPECTED = abstract_params(unet2d_from_config(SMALL))


@pytest.fixture
def tensors():
    return {name: tensor.numpy() for name, tensor in torch_network(SMALL).state_dict().items()}


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("time_embedding/linear_1/kernel", "time_embedding.linear_1.weight"),
        ("down_blocks_0/downsamplers_0/conv/bias", "down_blocks.0.downsamplers.0.conv.bias"),
        ("up_blocks_11/resnets_2/norm1/scale", "up_blocks.11.resnets.2.norm1.weight"),
        ("class_embedding/embedding", "class_embedding.weight"),
        ("time_proj/weight", "time_proj.weight"),
    ],
)
def test_golden_torch_names(path, name):
    assert torch_name(tuple(path.split("/"))) == name


def test_roundtrip_is_exact(tensors):
    params = params_from_torch(tensors, EXPECTED, "it")
    chex.assert_trees_all_equal_shapes_and_dtypes(params, EXPECTED)
    back = torch_from_params(params)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor)
        assert back[name].flags.c_contiguous


def test_attention_names_of_old_files_are_accepted(tensors):
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def old_name(name):
        for new, former in old.items():
            name = name.replace(f".{new}.", f".{former}.")
        return name

    renamed = {old_name(name): tensor for name, tensor in tensors.items()}
    assert "mid_block.attentions.0.query.weight" in renamed
    chex.assert_trees_all_equal(params_from_torch(renamed, EXPECTED, "it"), params_from_torch(tensors, EXPECTED, "it"))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_floats_are_read_as_float32(tensors, dtype):
    params = params_from_torch({name: tensor.astype(dtype) for name, tensor in tensors.items()}, EXPECTED, "it")
    chex.assert_trees_all_equal_shapes_and_dtypes(params, EXPECTED)
    kernel = tensors["conv_in.weight"].astype(dtype).astype(np.float32).transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(jax.device_get(params["conv_in"]["kernel"]), kernel)


def drop(tensors):
    del tensors["conv_in.bias"], tensors["conv_in.weight"]


def add(tensors):
    tensors["conv_on.bias"] = np.zeros(3)


def reshape(tensors):
    tensors["conv_in.weight"] = tensors["conv_in.weight"].transpose(2, 3, 1, 0)


def spoil(tensors):
    tensors["conv_in.bias"] = np.full(16, np.nan, np.float32)
    tensors["conv_out.bias"] = np.array([0, np.inf, 0], np.float32)


def round_off(tensors):
    tensors["conv_in.weight"] = tensors["conv_in.weight"].astype(np.int8)


def drop_and_add(tensors):
    drop(tensors)
    add(tensors)


FAULTS = [
    (drop_and_add, "lacks conv_in.bias, conv_in.weight, and has tensors that .* no place for, conv_on.bias; use"),
    (drop, "file.safetensors lacks conv_in.bias, conv_in.weight; use"),
    (add, "no place for, conv_on.bias; use"),
    (reshape, r"conv_in.weight \(3, 3, 3, 16\) instead of \(16, 3, 3, 3\)"),
    (spoil, "NaN or infinity in conv_in.bias, conv_out.bias; download"),
    (round_off, "not floating point: conv_in.weight; load"),
]


@pytest.mark.parametrize(("fault", "message"), FAULTS, ids=[fault.__name__ for fault, _ in FAULTS])
def test_faulty_tensors_are_named(tensors, fault, message):
    fault(tensors)
    with pytest.raises(InputError, match=message):
        params_from_torch(tensors, EXPECTED, "file.safetensors")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: f"unet.{name}",
        lambda name: f"model.diffusion.{name}",
        lambda name: f"base_model.model.{name}",
        lambda name: name.replace("resnets.0.", "resnets.0._orig_mod."),
        lambda name: f"_fsdp_wrapped_module.{name.replace('mid_block.', 'mid_block._fsdp_wrapped_module.')}",
    ],
)
def test_names_of_wrappers_are_dropped(tensors, wrap):
    wrapped = {wrap(name): tensor for name, tensor in tensors.items()}
    chex.assert_trees_all_equal(params_from_torch(wrapped, EXPECTED, "it"), params_from_torch(tensors, EXPECTED, "it"))


def test_the_tree_of_a_train_state_is_unwrapped():
    flat = {"/".join(path): leaf for path, leaf in flatten_dict(EXPECTED).items()}
    arrays = {name: np.ones(leaf.shape, np.float32) for name, leaf in flat.items()}
    wrapped = {f"params/{name}": array for name, array in arrays.items()}
    chex.assert_trees_all_equal(params_from_flax(wrapped, EXPECTED, "it"), params_from_flax(arrays, EXPECTED, "it"))


def test_two_names_of_one_tensor_are_refused(tensors):
    with pytest.raises(InputError, match=r"has both .*conv_in.bias and .*conv_in.bias, which are names of one tensor"):
        params_from_torch(tensors | {"module.conv_in.bias": tensors["conv_in.bias"]}, EXPECTED, "it")


def test_a_beginning_stays_where_nothing_known_would_be_left(tensors):
    with pytest.raises(InputError, match=r"lacks conv_in.bias, .* more; use"):
        params_from_torch({"conv_in.weight": tensors["conv_in.weight"]}, EXPECTED, "it")
    with pytest.raises(InputError, match=r"no place for, conv_on.bias; use"):
        params_from_torch({"conv_on.bias": np.zeros(3)}, EXPECTED, "it")


def test_a_long_list_of_names_is_cut():
    with pytest.raises(InputError, match=r"lacks (\S+, ){4}\S+ and \d+ more; use"):
        params_from_torch({}, EXPECTED, "it")
