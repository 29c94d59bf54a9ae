"""LoRA layers that were saved beside the weights they change: merged with their scale, or named."""

import json

import chex
import jax
import numpy as np
import pytest
from safetensors.numpy import save_file
from twins import SCHEDULER, SMALL, WEIGHTS

import jaxdq.models.unet
from jaxdq._common.errors import InputError
from jaxdq.models.unet import abstract_params, load_unet_folder, save_unet_folder, unet2d_from_config
from jaxdq.models.unet._weights import params_from_torch, torch_from_params

EXPECTED = abstract_params(unet2d_from_config(SMALL))
LAYERS = ("mid_block.attentions.0.to_q", "down_blocks.0.resnets.0.conv1", "mid_block.resnets.0.time_emb_proj")
RANK = 2
ZEROS = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), EXPECTED)


def random_params():
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=tensor.shape).astype(np.float32) for name, tensor in torch_from_params(ZEROS).items()}


def wrapped(tensors, adapter="default", layers=LAYERS):
    """The tensors as PEFT names them, with LoRA layers of rank 2, and the products of those layers."""
    rng, merged = np.random.default_rng(1), dict(tensors)
    tensors = dict(tensors)
    for layer in layers:
        weight = tensors.pop(f"{layer}.weight")
        down = rng.normal(size=(RANK, *weight.shape[1:])).astype(np.float32)
        up = rng.normal(size=(len(weight), RANK, *(1,) * (weight.ndim - 2))).astype(np.float32)
        tensors |= {f"{layer}.base_layer.weight": weight, f"{layer}.base_layer.bias": tensors.pop(f"{layer}.bias")}
        name = f".{adapter}" if adapter else ""
        tensors |= {f"{layer}.lora_A{name}.weight": down, f"{layer}.lora_B{name}.weight": up}
        merged[f"{layer}.weight"] = np.einsum("or,r...->o...", up.reshape(len(up), RANK), down)
    return tensors, merged


@pytest.fixture
def folder(tmp_path):
    save_unet_folder(tmp_path, SMALL, ZEROS, SCHEDULER)
    return tmp_path / "unet"


def expected_params(tensors, products, scale):
    sums = {
        name: tensors[name] + (scale * products[name] if name.removesuffix(".weight") in LAYERS else 0)
        for name in tensors
    }
    return params_from_torch(sums, EXPECTED, "it")


@pytest.mark.parametrize(
    ("settings", "scale"),
    [({"lora_alpha": 3}, 3 / RANK), ({"lora_alpha": 3, "use_rslora": True}, 3 / RANK**0.5)],
)
@pytest.mark.parametrize("adapter", ["default", ""])
def test_a_scale_in_the_adapters_settings_merges(folder, settings, scale, adapter):
    tensors = random_params()
    stored, products = wrapped(tensors, adapter)
    save_file({f"base_model.model.{name}": tensor for name, tensor in stored.items()}, folder / WEIGHTS)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": RANK} | settings))
    params = load_unet_folder(folder)[1]
    chex.assert_trees_all_close(params, expected_params(tensors, products, scale), rtol=1e-5, atol=1e-6)


def test_a_scale_beside_each_layer_merges(folder):
    tensors = random_params()
    stored, products = wrapped(tensors)
    alphas = {f"{layer}.alpha": np.ones((), np.float32) for layer in LAYERS}
    save_file(stored | alphas, folder / WEIGHTS)
    params = load_unet_folder(folder)[1]
    chex.assert_trees_all_close(params, expected_params(tensors, products, 1 / RANK), rtol=1e-5, atol=1e-6)


def test_wrapped_layers_without_lora_are_unwrapped(folder):
    tensors = random_params()
    stored = {name: tensor for name, tensor in wrapped(tensors)[0].items() if ".lora_" not in name}
    save_file(stored, folder / WEIGHTS)
    chex.assert_trees_all_equal(load_unet_folder(folder)[1], params_from_torch(tensors, EXPECTED, "it"))


def no_scale(stored):
    return stored, {}


def two_adapters(stored):
    other = {name.replace(".default.", ".style."): tensor for name, tensor in stored.items() if ".lora_" in name}
    return stored | other, {"lora_alpha": 1}


def half_an_adapter(stored):
    return {name: tensor for name, tensor in stored.items() if ".lora_B" not in name}, {"lora_alpha": 1}


def dora(stored):
    return stored, {"lora_alpha": 1, "use_dora": True}


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (no_scale, r"LoRA layers that are not merged, whose scale is in no file .* at down_blocks.0.resnets.0.conv1, "),
        (two_adapters, "LoRA layers that are not merged, of a kind that is not read"),
        (half_an_adapter, "LoRA layers that are not merged, of a kind that is not read"),
        (dora, r"of a kind that is not read \(use_dora\)"),
    ],
)
def test_what_cannot_be_merged_is_named_with_the_way_to_merge_it(folder, fault, message):
    stored, settings = fault(wrapped(random_params())[0])
    save_file(stored, folder / WEIGHTS)
    if settings:
        (folder / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match=rf"{message}.*merge_and_unload"):
        load_unet_folder(folder)
    assert "LoRA" in jaxdq.models.unet.describe(folder.parent, EXPECTED).weights.misfit
