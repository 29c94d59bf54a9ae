"""Text-conditional folders: written by diffusers, by torch and by flax, and read by load_denoiser."""

import functools
import json
import shutil

import chex
import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
from condition_twins import (
    FAMILIES,
    V1,
    conditions,
    jax_condition_network,
    torch_condition_network,
    torch_condition_output,
)
from safetensors.numpy import load_file, save_file
from twins import compiled, images, relative_error

import jaxdq
from jaxdq._common.errors import InputError
from jaxdq.calibration import plan_for
from jaxdq.models.unet import load_denoiser, load_unet_folder, save_unet_folder, write_configs

WEIGHTS = "diffusion_pytorch_model.safetensors"
SCHEDULER = {  # stabilityai/stable-diffusion-2-1
    "_class_name": "DDIMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}


def write_scheduler(folder, **changes):
    (folder / "scheduler").mkdir(parents=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER | changes))


@functools.cache
def network(family):
    return torch_condition_network(FAMILIES[family])


@pytest.fixture
def folder(tmp_path):
    """A pipeline's folder with v1's UNet as diffusers writes it, and with parts that are not ours to read."""
    write_scheduler(tmp_path / "model")
    network("v1").save_pretrained(tmp_path / "model" / "unet")
    (tmp_path / "model" / "text_encoder").mkdir()
    (tmp_path / "model" / "vae").mkdir()
    return tmp_path / "model"


def params_of(folder):
    return load_unet_folder(folder / "unet")[1]


def twin_params(family="v1"):
    return jax_condition_network(FAMILIES[family], network(family))[1]


@pytest.mark.parametrize("family", ["v1", *(pytest.param(name, marks=pytest.mark.slow) for name in ("v2", "xl"))])
def test_oracle_a_folder_of_diffusers(family, tmp_path):
    config = FAMILIES[family]
    write_scheduler(tmp_path)
    network(family).save_pretrained(tmp_path / "unet")
    rest, x, t = conditions(config), images(config), np.array([3, 951])
    denoiser = load_denoiser(tmp_path, conditions=rest)
    assert denoiser.shape == (8, 8, 4)
    assert (denoiser.schedule.prediction_type, denoiser.schedule.clip_range) == ("v_prediction", None)
    ours = compiled(functools.partial(jaxdq.apply, denoiser.module))(
        denoiser.params, x, jnp.asarray(t), *denoiser.args(jnp.arange(2))
    )
    assert relative_error(ours, torch_condition_output(network(family), x, t, *rest)) < 1e-4


@pytest.mark.slow
def test_oracle_a_folder_of_diffusers_flax(tmp_path):
    from diffusers import FlaxUNet2DConditionModel

    fields = V1 | {"block_out_channels": [32, 64]}  # its norms have 32 groups, always
    del fields["norm_num_groups"]
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
    theirs = FlaxUNet2DConditionModel(**fields)
    rng = np.random.default_rng(0)
    text = conditions(V1)[0]
    x, t = images(V1), jnp.asarray([3, 951])
    shapes = jax.eval_shape(theirs.init, jax.random.key(0), x.transpose(0, 3, 1, 2), t, text)["params"]
    params = jax.tree.map(lambda leaf: (0.3 * rng.normal(size=leaf.shape)).astype(np.float32), shapes)
    write_scheduler(tmp_path)
    theirs.save_pretrained(tmp_path / "unet", params=params)

    denoiser = load_denoiser(tmp_path, conditions=(text,))
    chex.assert_trees_all_equal(denoiser.params, params)
    ours = compiled(denoiser.module.apply)({"params": denoiser.params}, x, t, text)
    expected = compiled(theirs.apply)({"params": params}, x.transpose(0, 3, 1, 2), t, text).sample
    # The exact gelu of the PyTorch class would be off by 2e-4.
    assert relative_error(ours, np.asarray(expected).transpose(0, 2, 3, 1)) < 1e-5

    file = tmp_path / "unet" / "diffusion_flax_model.msgpack"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"msgpack is damaged or not a flax msgpack file \(OutOfData\)"):
        load_unet_folder(tmp_path / "unet")
    file.write_bytes(msgpack.packb({"conv_in": {"bias": msgpack.ExtType(7, b"")}}))
    with pytest.raises(InputError, match="is damaged or not a flax msgpack file"):
        load_unet_folder(tmp_path / "unet")
    file.write_bytes(msgpack.packb([1, 2]))
    with pytest.raises(InputError, match="holds a list, not a tree"):
        load_unet_folder(tmp_path / "unet")
    file.write_bytes(msgpack.packb({"conv_on": {"bias": 1.0}}))
    with pytest.raises(InputError, match=r"msgpack lacks conv_in/bias, .* and \d+ more"):
        load_unet_folder(tmp_path / "unet")


def test_oracle_shards_of_diffusers(folder):
    (folder / "unet" / WEIGHTS).unlink()
    network("v1").save_pretrained(folder / "unet", max_shard_size="20KB")
    assert (folder / "unet" / f"{WEIGHTS}.index.json").is_file()
    assert len(list((folder / "unet").glob("*-of-*.safetensors"))) > 2
    chex.assert_trees_all_equal(params_of(folder), twin_params())


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "variant"), [("float16", "fp16"), ("bfloat16", "bf16"), ("bfloat16", None)])
def test_half_precision_of_diffusers_is_read_as_float32(dtype, variant, folder):
    import torch

    (folder / "unet" / WEIGHTS).unlink()
    torch_condition_network(V1).to(getattr(torch, dtype)).save_pretrained(folder / "unet", variant=variant)
    expected = jax.tree.map(lambda leaf: leaf.astype(dtype).astype(jnp.float32), twin_params())
    chex.assert_trees_all_equal(params_of(folder), expected)


def test_a_bare_unet_folder_needs_a_schedule(folder):
    bare = folder.parent / "bare"
    shutil.copytree(folder / "unet", bare)
    with pytest.raises(InputError, match=r"no scheduler_config.json in or beside .*bare"):
        load_denoiser(bare, conditions=conditions(V1))
    shutil.copy(folder / "scheduler" / "scheduler_config.json", bare)
    assert load_denoiser(bare, conditions=conditions(V1)).name == "bare"


def test_text_is_asked_for(folder):
    with pytest.raises(InputError, match=r"conditions=\(encoder_hidden_states: float\[P, 77, 12\],\).*--prompts FILE"):
        load_denoiser(folder)


def test_without_weights_a_model_can_be_looked_at_and_not_drawn_from(folder):
    (folder / "unet" / WEIGHTS).unlink()
    denoiser = load_denoiser(folder, weights=False)
    plan = plan_for(denoiser, jaxdq.recipes.minmax(weight_bits=8, act_bits=8))
    assert sum(site.site.kind == "product" for site in plan.sites) == 16
    with pytest.raises(InputError, match=r"conditions that are shapes only, \(1, 77, 12\); give the arrays"):
        denoiser.args(jnp.arange(1))


@pytest.mark.slow
def test_float_sampling_takes_the_conditions_in_turn(folder):
    denoiser = load_denoiser(folder, conditions=conditions(V1))
    draw = functools.partial(jaxdq.sample, denoiser, denoiser.params, sampler=jaxdq.ddim(2), key=jax.random.key(0))
    images = draw(num_images=3)
    assert images.shape == (3, 8, 8, 4)
    assert np.isfinite(images).all()


def test_roundtrip_of_what_we_write(folder, tmp_path):
    module, params, config = load_unet_folder(folder / "unet")
    config = {"_class_name": "UNet2DConditionModel"} | config
    save_unet_folder(tmp_path / "ours", config, params, SCHEDULER)
    again, restored, _ = load_unet_folder(tmp_path / "ours" / "unet")
    assert again == module
    chex.assert_trees_all_equal(restored, params)
    assert not (tmp_path / "ours" / "model_index.json").exists()

    from diffusers import UNet2DConditionModel

    theirs = UNet2DConditionModel.from_pretrained(tmp_path / "ours" / "unet", low_cpu_mem_usage=False)
    np.testing.assert_array_equal(theirs.conv_in.weight.detach().numpy(), network("v1").conv_in.weight.detach().numpy())


def test_copied_configs_keep_the_class(folder, tmp_path):
    file = folder / "unet" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"_class_name": "FlaxUNet2DConditionModel"}))
    write_configs(folder, tmp_path / "copy")
    ours, theirs = (load_denoiser(path, weights=False) for path in (tmp_path / "copy", folder))
    assert ours.module == theirs.module
    assert ours.module.numerics.approximate_gelu


def lose_tensors(tensors):
    return {name: tensor for name, tensor in tensors.items() if "attn2" not in name}


def add_tensors(tensors):
    return tensors | {"encoder_hid_proj.weight": np.zeros((3, 3), np.float32)}


def spoil(tensors):
    name = "mid_block.attentions.0.proj_in.bias"
    return tensors | {name: np.full_like(tensors[name], np.nan)}


FAULTS = [
    (lose_tensors, r"lacks down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight, .* and 15 more"),
    (add_tensors, "has tensors that the configuration has no place for, encoder_hid_proj.weight"),
    (spoil, "has NaN or infinity in mid_block.attentions.0.proj_in.bias"),
]


@pytest.mark.parametrize(("fault", "message"), FAULTS, ids=[fault.__name__ for fault, _ in FAULTS])
def test_faulty_weights_are_named(fault, message, folder):
    file = folder / "unet" / WEIGHTS
    save_file(fault(load_file(file)), file)
    with pytest.raises(InputError, match=message):
        load_unet_folder(folder / "unet")


@pytest.mark.parametrize("suffix", [".bin", ".ckpt", ".pt"])
def test_pickles_are_refused_with_the_way_to_convert_them(suffix, folder):
    (folder / "unet" / WEIGHTS).rename(folder / "unet" / f"diffusion_pytorch_model{suffix}")
    with pytest.raises(InputError, match=r"no pickle.*diffusers.UNet2DConditionModel.from_pretrained.*save_pretrained"):
        load_unet_folder(folder / "unet")


@pytest.mark.slow
def test_latents_of_any_size_are_drawn(folder):
    file = folder / "unet" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"sample_size": [9, 7]}))
    denoiser = load_denoiser(folder, conditions=conditions(V1))
    images = jaxdq.sample(denoiser, denoiser.params, sampler=jaxdq.ddim(1), key=jax.random.key(0), num_images=1)
    assert images.shape == (1, 9, 7, 4)


def test_a_pipeline_without_a_unet_is_told_what_it_is(tmp_path):
    (tmp_path / "scheduler").mkdir()
    flow = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(flow))
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text(json.dumps({"_class_name": "FluxTransformer2DModel"}))
    message = r"its network is in transformer \(FluxTransformer2DModel\), which is no UNet; jaxdq reads pipelines with"
    with pytest.raises(InputError, match=f"has no unet folder: {message}"):
        load_denoiser(tmp_path)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(InputError, match=f"is the folder of a FluxPipeline: {message}"):
        load_denoiser(tmp_path)
    shutil.copytree(tmp_path / "transformer", tmp_path / "alone" / "elsewhere")
    with pytest.raises(InputError, match="describes a FluxTransformer2DModel"):
        load_denoiser(tmp_path / "alone" / "elsewhere")
    (tmp_path / "transformer").rename(tmp_path / "unet")
    with pytest.raises(InputError, match="describes a FluxTransformer2DModel"):
        load_denoiser(tmp_path)
