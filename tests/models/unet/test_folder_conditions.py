"""Folders of networks that take more than a text, or return more than a prediction, from end to end."""

import json

import jax
import numpy as np
import pytest
import torch
from condition_twins import V1, torch_condition_network
from diffusers import ControlNetModel, UNet2DModel
from typer.testing import CliRunner

import jaxdq
from jaxdq import InputError, load_denoiser
from jaxdq.app.command import app

SCHEDULER = {"_class_name": "DDIMScheduler", "clip_sample": False, "beta_schedule": "scaled_linear"}
TEXT = ("encoder_hidden_states", (5, 12))
FAMILIES = {
    "inpainting": (V1 | {"in_channels": 9}, {}, {"joined_channels": (8, 8, 5), TEXT[0]: TEXT[1]}),
    "consistency": (
        V1 | {"time_cond_proj_dim": 6},
        {"_class_name": "LCMScheduler"},
        dict([TEXT]) | {"timestep_cond": (6,)},
    ),
    "variance": (
        V1 | {"in_channels": 6, "out_channels": 6},
        {"_class_name": "DDPMScheduler", "variance_type": "learned_range", "clip_sample": False},
        {"joined_channels": (8, 8, 3), TEXT[0]: TEXT[1]},
    ),
    "instruct": (
        V1 | {"in_channels": 8, "class_embed_type": "projection", "projection_class_embeddings_input_dim": 7},
        {},
        {"joined_channels": (8, 8, 4), **dict([TEXT]), "class_labels": (7,)},
    ),
}


def rows_of(shapes, count=3):
    rng = np.random.default_rng(4)
    return {name: rng.standard_normal((count, *shape)).astype(np.float32) for name, shape in shapes.items()}


def write(folder, network, scheduler=SCHEDULER):
    network.save_pretrained(folder / "unet")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    return folder


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_the_form_of_a_wrapped_network_equals_pytorch(tmp_path):
    config, scheduler, shapes = FAMILIES["variance"]
    network = torch_condition_network(config)
    rows = rows_of(shapes)
    denoiser = load_denoiser(write(tmp_path / "model", network, SCHEDULER | scheduler), conditions=[*rows.values()])
    assert denoiser.shape == (8, 8, 3) and denoiser.condition_names == ("joined_channels", "encoder_hidden_states")
    assert any("learned variance" in note for note in denoiser.notes)
    x = np.random.default_rng(0).standard_normal((3, 8, 8, 3)).astype(np.float32)
    out = denoiser.module.apply({"params": denoiser.params}, x, 500, *denoiser.args(np.arange(3)))
    state = torch.from_numpy(np.concatenate([x, rows["joined_channels"]], axis=-1)).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = network(state, torch.tensor(500), torch.from_numpy(rows["encoder_hidden_states"])).sample[:, :3]
    np.testing.assert_allclose(out, expected.permute(0, 2, 3, 1).numpy(), atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["inpainting", "consistency", "instruct"])
def test_a_folder_goes_through_the_command_line(family, tmp_path):
    config, scheduler, shapes = FAMILIES[family]
    model = write(tmp_path / "model", torch_condition_network(config), SCHEDULER | scheduler)
    np.savez(tmp_path / "rows.npz", **rows_of(shapes))
    for name in shapes:
        assert name in run("inspect", model)
    out = tmp_path / "run"
    small = ("--steps", 4, "--images", 4, "--calibration-images", 4, "--recipe", "minmax", "--seed", 1)
    run("quantize", model, "--conditions", tmp_path / "rows.npz", *small, "--out", out)
    (tmp_path / "rows.npz").unlink()  # the run has its own
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["noise_sqnr_db"]["mean"] >= 25
    assert json.loads(run("evaluate", out, "--json"))["noise_sqnr_db"] == metrics["noise_sqnr_db"]
    run("sample", out, "--images", 2, "--out", tmp_path / "two.png")


def test_conditions_that_do_not_fit_are_told_by_name(tmp_path):
    config, _, shapes = FAMILIES["inpainting"]
    model = write(tmp_path / "model", torch_condition_network(config))
    rows, file = rows_of(shapes), tmp_path / "rows.npz"
    for given, message in (
        (
            {"joined_channels": rows["joined_channels"]},
            "lack encoder_hidden_states; it takes joined_channels: float[P, 8, 8, 5]",
        ),
        (rows | {"mask": rows["joined_channels"]}, "have mask, which it does not take"),
        (rows | {"joined_channels": rows["joined_channels"][..., :4]}, "shape (3, 8, 8, 4); give float[P, 8, 8, 5]"),
        ({"joined_channels": np.array(["a"])}, "no arrays of numbers"),
    ):
        np.savez(file, **given)
        result = CliRunner().invoke(
            app, ["quantize", str(model), "--conditions", str(file), "--out", str(tmp_path / "x")]
        )
        assert result.exit_code == 1 and message in str(result.exception)
    file.write_text("no archive")
    result = CliRunner().invoke(app, ["quantize", str(model), "--conditions", str(file), "--out", str(tmp_path / "x")])
    assert result.exit_code == 1 and "can't read the conditions" in str(result.exception)


def test_a_learned_variance_without_a_text_is_left_out(tmp_path):
    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    )
    denoiser = load_denoiser(write(tmp_path / "model", network))
    images = jaxdq.sample(denoiser, denoiser.params, sampler=jaxdq.ddim(2), key=jax.random.key(0), num_images=1)
    assert images.shape == (1, 8, 8, 1)


def test_a_controlnet_is_one_network_with_its_unet(tmp_path):
    model = write(tmp_path / "model", torch_condition_network(V1))
    shared = {key: V1[key] for key in ("block_out_channels", "layers_per_block", "down_block_types", "norm_num_groups")}
    control = ControlNetModel(
        **shared, cross_attention_dim=12, attention_head_dim=4, conditioning_embedding_out_channels=(4, 8)
    )
    control.save_pretrained(tmp_path / "control")
    rows = rows_of(dict([TEXT]) | {"image": (16, 16, 3)})
    denoiser = load_denoiser(model, controlnet=tmp_path / "control", conditions=[*rows.values()])
    assert denoiser.condition_names == ("encoder_hidden_states", "image")
    recipe = jaxdq.recipes.minmax(weight_bits=8, act_bits=8)
    calib = jaxdq.calibrate(denoiser, recipe, sampler=jaxdq.ddim(2), key=jax.random.key(0), num_images=2)
    qparams = jaxdq.quantize(denoiser.params, calib)
    assert any(site.path.startswith("controlnet/") and site.is_integer for site in qparams.plan.sites)
    images = jaxdq.sample(denoiser, qparams, sampler=jaxdq.ddim(2), key=jax.random.key(0), num_images=2)
    assert np.isfinite(images).all()
    write(tmp_path / "alone", control)
    assert load_denoiser(tmp_path / "alone", weights=False).condition_names == ("encoder_hidden_states", "image")
    with pytest.raises(
        InputError, match="has a ControlNet, which draws nothing by itself; pass the folder of its UNet"
    ):
        load_denoiser(tmp_path / "alone")
    with pytest.raises(InputError, match="conditioning_scale is 'x'; pass a number"):
        load_denoiser(model, controlnet=tmp_path / "control", conditioning_scale="x")
    with pytest.raises(InputError, match="has a UNet2DConditionModel; pass the folder of a ControlNetModel"):
        load_denoiser(model, controlnet=model / "unet", conditions=[*rows.values()])
