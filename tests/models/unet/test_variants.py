"""Files of weights under all the names that they have had, and what else may lie in a folder."""

import json

import chex
import numpy as np
import pytest
from safetensors.numpy import save_file
from twins import SCHEDULER, TINY, WEIGHTS, tiny_params

from jaxdq._common.errors import InputError
from jaxdq.models.unet import load_denoiser, load_unet_folder, save_unet_folder
from jaxdq.models.unet._weights import torch_from_params

PLAIN = torch_from_params(tiny_params())


@pytest.fixture
def folder(tmp_path):
    save_unet_folder(tmp_path, TINY, tiny_params(), SCHEDULER)
    (tmp_path / "unet" / WEIGHTS).unlink()
    return tmp_path / "unet"


def write(folder, name, tensors=PLAIN):
    """The tensors under a name: `{i}` in it stands for the number of one of two parts."""
    names = sorted(tensors)
    if "{i}" not in name:
        return save_file(dict(tensors), folder / name)
    for i, held in enumerate((names[::2], names[1::2]), start=1):
        save_file({name: tensors[name] for name in held}, folder / name.format(i=f"0000{i}"))


def write_index(folder, index, part):
    names = sorted(PLAIN)
    weight_map = {name: part.format(i=f"0000{1 + i % 2}") for i, name in enumerate(names)}
    (folder / index).write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize(
    "name",
    [
        *(
            f"diffusion_pytorch_model.{v}.safetensors"
            for v in ("fp32", "fp16", "ema", "non_ema", "fp16.non_ema", "v2-1")
        ),
        "diffusion_pytorch_model-{i}-of-00002.safetensors",
        "diffusion_pytorch_model.bf16-{i}-of-00002.safetensors",
        "diffusion_pytorch_model-{i}-of-00002.fp16.safetensors",
    ],
)
def test_every_variant_is_read(folder, name):
    write(folder, name)
    chex.assert_trees_all_equal(load_unet_folder(folder)[1], tiny_params())


@pytest.mark.parametrize(
    "index",
    [
        "diffusion_pytorch_model.safetensors.index.bf16.json",  # diffusers before July 2024
        "diffusion_pytorch_model.safetensors.bf16.index.json",
        "diffusion_pytorch_model.bf16.safetensors.index.json",
    ],
)
def test_an_index_of_any_order_is_read(folder, index):
    part = "diffusion_pytorch_model.bf16-{i}-of-00002.safetensors"
    write(folder, part)
    write_index(folder, index, part)
    chex.assert_trees_all_equal(load_unet_folder(folder)[1], tiny_params())
    (folder / part.format(i="00002")).unlink()
    with pytest.raises(InputError, match=r"00002-of-00002\.safetensors does not exist; download all parts"):
        load_unet_folder(folder)


def test_a_missing_part_without_an_index_is_named(folder):
    part = "diffusion_pytorch_model-{i}-of-00002.safetensors"
    write(folder, part)
    (folder / part.format(i="00001")).unlink()
    with pytest.raises(InputError, match=r"has 1 of 2 parts of .*, and lacks part 1; download all"):
        load_unet_folder(folder)


def test_the_finest_numbers_that_are_sampled_with_go_first(folder):
    """Later names hold zeros: whatever is read must be the first of those that are there."""
    zeros = {name: np.zeros_like(tensor) for name, tensor in PLAIN.items()}
    names = [
        f"diffusion_pytorch_model{v}.safetensors" for v in ("", ".fp32", ".fp16", ".bf16", ".ema", ".x", ".non_ema")
    ]
    for name in names:
        write(folder, name, zeros)
    for name in names:
        write(folder, name)
        chex.assert_trees_all_equal(load_unet_folder(folder)[1], tiny_params())
        (folder / name).unlink()


@pytest.mark.parametrize(
    "name", ["model.safetensors", "unet.safetensors", "pytorch_lora_weights.safetensors", "m.gguf"]
)
def test_files_that_are_not_read_are_named(folder, name):
    (folder / name).touch()
    (folder / "diffusion_pytorch_model.bin").touch()
    message = rf"found diffusion_pytorch_model.bin, {name}|found {name}, diffusion_pytorch_model.bin"
    with pytest.raises(InputError, match=message) as caught:
        load_unet_folder(folder)
    assert "none of which is read" in str(caught.value)


@pytest.mark.parametrize("name", ["unet/config.json", "model_index.json", "v1-5.safetensors", "v1-5.ckpt"])
def test_a_file_in_place_of_a_folder_is_called_one(folder, name):
    file = folder.parent / name
    file.touch()
    parent = file.parent if name.endswith("json") else None
    message = f"is a file.*pass {parent}" if parent else "is a file.*single-file checkpoint.*from_single_file"
    for load in (load_denoiser, load_unet_folder):
        with pytest.raises(InputError, match=message):
            load(file)


def test_a_folder_without_a_model_says_what_it_holds(tmp_path):
    with pytest.raises(InputError, match=r"config.json does not exist; .* found nothing\."):
        load_denoiser(tmp_path)
    (tmp_path / "v1-5.safetensors").touch()
    with pytest.raises(InputError, match=r"config.json does not exist; .* found v1-5.safetensors\."):
        load_denoiser(tmp_path)
