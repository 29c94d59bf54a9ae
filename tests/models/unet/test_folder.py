import json
import shutil
from pathlib import Path

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from twins import (
    SCHEDULER,
    TINY,
    WEIGHTS,
    compiled,
    images,
    relative_error,
    tiny_params,
    torch_output,
)

import jaxdq.models.unet
from jaxdq._common.errors import InputError
from jaxdq.models.unet import (
    abstract_params,
    bundled_models,
    load_denoiser,
    load_unet_folder,
    save_unet_folder,
    unet2d_from_config,
    write_configs,
)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    path = tmp_path_factory.mktemp("pristine")
    save_unet_folder(path, TINY, tiny_params(), SCHEDULER)
    return path


@pytest.fixture
def folder(pristine, tmp_path):
    return Path(shutil.copytree(pristine, tmp_path / "model"))


def edit(file: Path, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_restores_bit_exact(folder):
    module, params, config = load_unet_folder(folder / "unet")
    chex.assert_trees_all_equal(params, tiny_params())
    assert module == unet2d_from_config(TINY)
    assert config["norm_num_groups"] == 4
    assert config["dropout"] == 0.0


def test_the_denoiser_has_what_the_folder_says(folder):
    denoiser = load_denoiser(folder)
    assert (denoiser.name, denoiser.shape, denoiser.conditions) == ("model", (8, 8, 3), ())
    assert denoiser.schedule.num_timesteps == 100
    assert denoiser.schedule.clip_range == 1.0
    chex.assert_trees_all_equal(denoiser.params, tiny_params())


def test_oblong_images(folder):
    edit(folder / "unet" / "config.json", sample_size=[8, 16])
    assert load_denoiser(folder, weights=False).shape == (8, 16, 3)


def test_without_weights_the_parameters_are_shapes(folder):
    (folder / "unet" / WEIGHTS).unlink()
    assert load_denoiser(str(folder), weights=False).params == abstract_params(unet2d_from_config(TINY))


def test_configs_alone_can_be_copied(folder, tmp_path):
    write_configs(folder, tmp_path / "copy")
    assert sorted(path.name for path in (tmp_path / "copy").rglob("*.*")) == [
        "config.json",
        "model_index.json",
        "scheduler_config.json",
    ]
    ours, theirs = (load_denoiser(path, weights=False) for path in (tmp_path / "copy", folder))
    assert ours.module == theirs.module
    np.testing.assert_array_equal(ours.schedule.alphas_cumprod, theirs.schedule.alphas_cumprod)


def test_classes_become_conditions(tmp_path):
    save_unet_folder(tmp_path, TINY | {"num_class_embeds": 10}, tiny_params(num_classes=10), SCHEDULER)
    (labels,) = load_denoiser(tmp_path).conditions
    np.testing.assert_array_equal(labels, np.arange(10))


def test_a_flat_folder_and_a_unet_folder_are_found(folder, tmp_path):
    assert load_denoiser(folder / "unet").name == "model"
    flat = tmp_path / "flat"
    flat.mkdir()
    for file in folder.rglob("*.*"):
        shutil.copy(file, flat / file.name)
    assert load_denoiser(flat).name == "flat"


def test_half_precision_and_shards_are_read(folder):
    whole = folder / "unet" / WEIGHTS
    tensors = load_file(whole)
    whole.unlink()
    halves = {name: tensor.astype(np.float16) for name, tensor in tensors.items()}
    save_file(halves, folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    chex.assert_trees_all_close(load_denoiser(folder).params, tiny_params(), rtol=1e-3, atol=1e-6)

    names = sorted(tensors)
    parts = {"part-1.safetensors": names[::2], "part-2.safetensors": names[1::2]}
    for part, held in parts.items():
        save_file({name: tensors[name] for name in held}, folder / "unet" / part)
    weight_map = {name: part for part, held in parts.items() for name in held}
    index = folder / "unet" / f"{WEIGHTS}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    chex.assert_trees_all_equal(load_denoiser(folder).params, tiny_params())

    (folder / "unet" / "part-2.safetensors").unlink()
    with pytest.raises(InputError, match=r"part-2.safetensors does not exist; download all parts"):
        load_denoiser(folder)
    edit(index, weight_map={"conv_in.weight": "../../elsewhere.safetensors"})
    with pytest.raises(InputError, match=r"refers to '\.\./\.\./elsewhere\.safetensors'"):
        load_denoiser(folder)
    edit(index, weight_map={})
    with pytest.raises(InputError, match="has no weight_map"):
        load_denoiser(folder)


def truncate(folder):
    file = folder / "unet" / WEIGHTS
    file.write_bytes(file.read_bytes()[:-100])


def leave_pointer(folder):
    (folder / "unet" / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def leave_pickle(folder):
    (folder / "unet" / WEIGHTS).rename(folder / "unet" / "diffusion_pytorch_model.bin")


def leave_nothing(folder):
    (folder / "unet" / WEIGHTS).unlink()


def spoil(folder):
    file = folder / "unet" / WEIGHTS
    save_file(load_file(file) | {"conv_out.bias": np.array([0, np.nan, 0], np.float32)}, file)


def break_json(folder):
    (folder / "unet" / "config.json").write_text('{"sample_size": 8,')


def break_encoding(folder):
    (folder / "scheduler" / "scheduler_config.json").write_bytes(b"\xff\xfe\xfa")


def hold_a_list(folder):
    (folder / "unet" / "config.json").write_text("[]")


def lose_config(folder):
    (folder / "unet" / "config.json").unlink()


def lose_scheduler(folder):
    shutil.rmtree(folder / "scheduler")


def change(**changes):
    def fault(folder):
        edit(folder / "unet" / "config.json", **changes)

    return fault


FAULTS = {
    "truncated weights": (truncate, "safetensors is damaged or not a safetensors file"),
    "git-lfs pointer": (leave_pointer, "git-lfs"),
    "pickle": (leave_pickle, r"only as diffusion_pytorch_model.bin.*no pickle.*from_pretrained.*save_pretrained"),
    "no weights": (leave_nothing, f"has no weights; put {WEIGHTS} there"),
    "NaN": (spoil, "NaN or infinity in conv_out.bias"),
    "broken JSON": (break_json, "config.json is not readable JSON"),
    "broken encoding": (break_encoding, "scheduler_config.json is not readable JSON"),
    "JSON list": (hold_a_list, "holds a JSON list, not an object"),
    "no config": (lose_config, "config.json does not exist"),
    "no scheduler": (lose_scheduler, r"no scheduler_config.json.*build jaxdq.Denoiser"),
    "other class": (change(_class_name="Transformer2DModel"), "describes a Transformer2DModel"),
    "other block": (change(up_block_types=["UpBlock2D", "SkipUpBlock2D"]), "mix Skip blocks"),
    "unknown field": (change(encoder_hid_dim=3), "encoder_hid_dim"),
    "more layers": (change(layers_per_block=2), "lacks down_blocks.0.resnets.1"),
    "fewer rows": (
        change(block_out_channels=[16], down_block_types=["DownBlock2D"], up_block_types=["UpBlock2D"]),
        "lacks|no place for",
    ),
    "wider": (change(block_out_channels=[16, 64]), "another shape"),
    "more than a variance": (change(out_channels=5), "in_channels 3 and out_channels 5: it returns more than"),
    "labels in no file": (change(class_embed_type="identity"), "conditions="),
}


@pytest.mark.parametrize(("fault", "message"), FAULTS.values(), ids=FAULTS)
def test_faulty_folders_are_refused(folder, fault, message):
    fault(folder)
    with pytest.raises(InputError, match=message) as caught:
        load_denoiser(folder)
    assert "\n" not in str(caught.value)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(InputError, match=r"called 'digit'; bundled are .*digits"):
        load_denoiser("digit")


def test_nothing_is_written_where_the_parameters_do_not_fit(tmp_path):
    with pytest.raises(InputError, match=r"The parameter tree lacks class_embedding.weight"):
        save_unet_folder(tmp_path / "new", TINY | {"num_class_embeds": 3}, tiny_params(), SCHEDULER)
    with pytest.raises(InputError, match="scheduler"):
        save_unet_folder(tmp_path / "new", TINY, tiny_params(), {"_class_name": "CosineDPMSolverMultistepScheduler"})
    assert not (tmp_path / "new").exists()


def test_every_bundled_model_loads_and_digits_is_small():
    assert "digits" in bundled_models()
    for name in bundled_models():
        assert load_denoiser(name).name == name
    root = Path(jaxdq.models.unet.__file__).parents[1] / "bundled" / "digits"
    assert sum(file.stat().st_size for file in root.rglob("*.*")) <= 3_000_000


def test_oracle_digits_in_diffusers():
    from diffusers import DDPMScheduler, UNet2DModel

    root = Path(jaxdq.models.unet.__file__).parents[1] / "bundled" / "digits"
    network = UNet2DModel.from_pretrained(root, subfolder="unet", low_cpu_mem_usage=False).eval()
    denoiser = load_denoiser("digits")
    config = {"sample_size": denoiser.shape[0], "in_channels": denoiser.shape[2]}
    x, t = images(config, batch=3), np.array([0, 400, 999])
    ours = compiled(denoiser.module.apply)({"params": denoiser.params}, x, jnp.asarray(t))
    assert relative_error(ours, torch_output(network, x, t)) < 1e-4
    scheduler = DDPMScheduler.from_pretrained(root, subfolder="scheduler")
    np.testing.assert_allclose(denoiser.schedule.alphas_cumprod, scheduler.alphas_cumprod.numpy(), rtol=1e-4)
