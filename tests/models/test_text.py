"""Prompts, what a model's text encoders make of them, and runs of text-to-image models."""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import torch
from condition_twins import torch_condition_network
from diffusers import FlaxStableDiffusionXLPipeline
from small_pipelines import TOKENS, WIDTH, text_config, write_pipeline
from transformers import CLIPTextModel, CLIPTokenizer

import jaxdq
from jaxdq import InputError
from jaxdq.app.command import main
from jaxdq.models.text import (
    check_prompts,
    guidance_embedding,
    load_text_denoiser,
    load_with_conditions,
    read_prompts,
    save_conditions,
)
from jaxdq.models.unet._config_condition import CONDITION_DEFAULTS

PROMPTS = ["a cat", "a dog on a hill"]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A pipeline's folder; tests that change it take a copy."""
    return write_pipeline(tmp_path_factory.mktemp("text") / "model")


def test_prompts_are_lines_and_empty_ones_are_ignored(tmp_path):
    (tmp_path / "prompts.txt").write_text("\ufeffa cat\n\n  a dog, \r\n \t\nein Fuß", encoding="utf-8")
    assert read_prompts(tmp_path / "prompts.txt") == ["a cat", "a dog,", "ein Fuß"]


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "are empty"), (b" \n\n", "are empty"), (b"\xff\xfe\x00", "UTF-8")]
)
def test_refuses_files_without_prompts(tmp_path, content, message):
    (tmp_path / "prompts.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_prompts(tmp_path / "prompts.txt")


def test_refuses_what_is_no_file(tmp_path):
    for path in (tmp_path, tmp_path / "none.txt"):
        with pytest.raises(InputError, match="can't read the prompts"):
            read_prompts(path)


@pytest.mark.parametrize("prompts", ["a cat", [], [1], None])
def test_refuses_what_is_no_list_of_texts(prompts):
    with pytest.raises(InputError, match="pass a list of one text"):
        check_prompts(prompts)


@pytest.mark.slow
def test_a_folders_text_encoder_and_the_pipelines_make_the_same_conditions(tmp_path):
    folder = write_pipeline(tmp_path / "model", xl=True)
    denoiser = load_text_denoiser(folder, PROMPTS, guidance_scale=3.0)
    pipeline, params = FlaxStableDiffusionXLPipeline.from_pretrained(folder)
    twin = jaxdq.denoiser_from_pipeline(pipeline, params, PROMPTS, guidance_scale=3.0)
    assert denoiser.shape == twin.shape and denoiser.module.guidance_scale == twin.module.guidance_scale
    np.testing.assert_array_equal(denoiser.schedule.alphas_cumprod, twin.schedule.alphas_cumprod)
    for ours, theirs in zip(denoiser.conditions, twin.conditions, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_oracle_text_encoders_of_pytorch_are_read_from_safetensors(tmp_path):
    folder = write_pipeline(tmp_path / "model")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    torch.manual_seed(0)
    network = CLIPTextModel(text_config(len(tokenizer))).eval()
    shutil.rmtree(folder / "text_encoder")
    network.save_pretrained(folder / "text_encoder")
    ids = tokenizer(["", PROMPTS[0]], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        expected = network(ids).last_hidden_state.numpy()
    without, given = load_text_denoiser(folder, PROMPTS[:1]).conditions
    np.testing.assert_allclose(np.concatenate([without, given]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_saved_conditions_guide_the_model_again_without_its_text_encoder(tmp_path):
    folder = write_pipeline(tmp_path / "model")
    denoiser = load_text_denoiser(folder, PROMPTS, guidance_scale=3.0)
    shutil.rmtree(folder / "text_encoder")
    save_conditions(denoiser, tmp_path)
    again = load_with_conditions(folder, tmp_path, weights=False)
    assert again.module == denoiser.module
    for ours, saved in zip(again.conditions, denoiser.conditions, strict=True):
        np.testing.assert_array_equal(ours, saved)
    (tmp_path / "conditions.npz").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(InputError, match=r"conditions.npz' can't be read"):
        load_with_conditions(folder, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["inpainting", "consistency"])
def test_prompts_go_with_what_else_a_network_takes(kind, tmp_path):
    folder = write_pipeline(tmp_path / "model")
    changes = {"in_channels": 9} if kind == "inpainting" else {"time_cond_proj_dim": 6}
    config = (
        json.loads((folder / "unet" / "config.json").read_text()) | changes | {"_class_name": "UNet2DConditionModel"}
    )
    shutil.rmtree(folder / "unet")
    torch_condition_network({k: v for k, v in config.items() if k in CONDITION_DEFAULTS}).save_pretrained(
        folder / "unet"
    )
    image = np.ones((1, 8, 8, 5), np.float32)
    others = {"joined_channels": image} if kind == "inpainting" else {}
    denoiser = load_text_denoiser(folder, PROMPTS, guidance_scale=3.0, others=others)
    if kind == "inpainting":
        assert denoiser.module.guidance_scale == 3.0
        ours, text, again, _ = denoiser.conditions
        np.testing.assert_array_equal(ours, again)
        assert text.shape[1:] == (TOKENS, WIDTH)
        with pytest.raises(InputError, match=r"lack joined_channels; it takes joined_channels: float\[P, 8, 8, 5\]"):
            load_text_denoiser(folder, PROMPTS)
    else:  # the network knows the scale itself
        _, embedded = denoiser.conditions
        np.testing.assert_allclose(embedded, guidance_embedding(3.0, 6))
    settings = {"sampler": jaxdq.ddim(2), "key": jax.random.key(0), "num_images": 2}
    drawn = jaxdq.sample(denoiser, denoiser.params, **settings)
    save_conditions(denoiser, tmp_path)
    np.testing.assert_array_equal(
        jaxdq.sample(load_with_conditions(folder, tmp_path), denoiser.params, **settings), drawn
    )


@pytest.mark.slow
def test_text_encoders_of_another_network_are_told(tmp_path):
    folder = write_pipeline(tmp_path / "model")
    file = folder / "unet" / "config.json"
    added = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 32,
    }
    file.write_text(json.dumps(json.loads(file.read_text()) | added))
    with pytest.raises(InputError, match=r"lack text_embeds, time_ids; it takes encoder_hidden_states: float\[P, "):
        load_text_denoiser(folder, PROMPTS)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"addition_embed_type": None, "cross_attention_dim": 5}))
    with pytest.raises(InputError, match=r"encoder_hidden_states has shape \(2, 8, 8\); give float\[P, 77, 5\]"):
        load_text_denoiser(folder, PROMPTS)


def test_models_without_guidance_have_no_conditions_to_save(tmp_path):
    save_conditions(jaxdq.load_denoiser("digits"), tmp_path)
    assert not list(tmp_path.iterdir())
    assert load_with_conditions("digits", tmp_path).conditions == ()


def test_refuses_folders_without_a_text_encoder(small, tmp_path):
    folder = Path(shutil.copytree(small, tmp_path / "model"))
    (folder / "text_encoder" / "flax_model.msgpack").write_bytes(b"\x00 damaged")
    with pytest.raises(InputError, match="can't be read"):
        load_text_denoiser(folder, PROMPTS)
    shutil.rmtree(folder / "tokenizer")
    with pytest.raises(InputError, match="no tokenizer and text_encoder folders"):
        load_text_denoiser(folder, PROMPTS)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("text_encoder/config.json", "", "not readable JSON"),
        ("text_encoder/config.json", "[]", "holds a JSON list"),
        ("text_encoder/config.json", "{}", "no usable hidden_size, intermediate_size"),
        ("text_encoder/config.json", '{"hidden_size": "wide"}', "no usable hidden_size"),
        ("tokenizer/vocab.json", "{", "can't be read"),
        ("tokenizer/vocab.json", "[]", "can't be read"),
        ("tokenizer/tokenizer_config.json", "{", "can't be read"),
        ("vae/config.json", "{", "not readable JSON"),
        ("vae/config.json", "{}", "no usable block_out_channels"),
    ],
)
def test_a_damaged_part_is_one_sentence(small, tmp_path, file, content, message):
    folder = shutil.copytree(small, tmp_path / "model")
    (folder / file).write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        load_text_denoiser(folder, PROMPTS)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value) and str(caught.value).endswith(".")


@pytest.mark.slow
def test_a_hub_id_brings_its_text_encoders(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    download = SimpleNamespace(snapshot_download=lambda hub_id, allow_patterns: str(small))
    monkeypatch.setitem(sys.modules, "huggingface_hub", download)
    ours, again = (load_text_denoiser(model, PROMPTS) for model in ("someone/model", small))
    for given, expected in zip(ours.conditions, again.conditions, strict=True):
        np.testing.assert_array_equal(given, expected)


def test_says_what_to_install_where_transformers_has_no_flax_classes(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", SimpleNamespace())
    with pytest.raises(InputError, match=r"pip install 'jaxdq\[diffusers\]'"):
        load_text_denoiser(small, PROMPTS)


@pytest.mark.slow
def test_the_command_line_takes_prompts_from_a_file_and_reads_its_run_back(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_pipeline(tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    options = "--recipe minmax --steps 2 --images 2 --calibration-images 2 --json".split()
    with pytest.raises(SystemExit) as stop:
        main(["quantize", "model", "--prompts", "prompts.txt", "--guidance", "2", *options, "--out", "run"])
    assert not stop.value.code
    metrics = json.loads(capsys.readouterr().out)
    assert metrics["prompts"] == "prompts.txt" and metrics["guidance"] == 2.0
    assert "--guidance 2.0" in metrics["command"]
    assert metrics["noise_sqnr_db"]["mean"] > 20
    assert (metrics["image_space"], metrics["no_decoder"]) == ("pixels", ""), "the folder's vae made images"
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "run", "--json"])
    assert not stop.value.code
    assert json.loads(capsys.readouterr().out)["image_psnr_db"] == pytest.approx(metrics["image_psnr_db"], abs=1e-3)
    shutil.rmtree("model")
    with pytest.raises(SystemExit) as stop:
        main(["sample", "run", "--images", "3", "--out", "drawn.png"])
    assert not stop.value.code and Path("drawn.png").stat().st_size > 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompts", "none.txt"], "can't read the prompts 'none.txt'"),
        (["--prompts", "empty.txt"], "the prompts 'empty.txt' are empty"),
        ([], "--prompts FILE"),
    ],
)
def test_the_command_line_refuses_in_one_sentence(tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    write_pipeline(tmp_path / "model")
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(SystemExit) as stop:
        main(["quantize", "model", *options, "--out", "run"])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not Path("run").exists()
