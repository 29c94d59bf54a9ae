"""Every command from its words to its files, on a UNet of a few thousand random weights."""

import json
import re
import shutil
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file
from toys import UNET2D_CONFIG, toy_params

import jaxdq
from jaxdq import InputError, InputWarning
from jaxdq.app import run
from jaxdq.app.command import main
from jaxdq.app.settings import command_of
from jaxdq.models.unet import save_unet_folder, unet2d_from_config

SCHEDULER = {"_class_name": "DDPMScheduler", "num_train_timesteps": 20, "beta_start": 0.01, "beta_end": 0.3}
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
SMALL = ["--steps", "3", "--images", "4", "--calibration-images", "4", "--groups", "2", "--seed", "5"]
SMALL += ["--recipe", "uniform_groups", "--ranges", "minmax"]  # seconds; the default recipe learns for minutes


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "tiny"
    module = unet2d_from_config(UNET2D_CONFIG)
    save_unet_folder(
        path, UNET2D_CONFIG, toy_params(module, np.zeros((1, 8, 8, 1), np.float32), np.int32(0)), SCHEDULER
    )
    return path


@pytest.fixture(scope="session")
def made(model) -> Path:
    """A run; tests that change it take a copy."""
    out = model.parent / "run"
    assert code_of(["quantize", str(model), *SMALL, "--out", str(out)]) == 0
    return out


def code_of(words) -> int:
    with pytest.raises(SystemExit) as exit_info:
        main([str(word) for word in words])
    return exit_info.value.code or 0


def output_of(capsys, words) -> str:
    capsys.readouterr()
    assert code_of(words) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("scheduler", "sampler"),
    [
        pytest.param({"_class_name": "EulerAncestralDiscreteScheduler"}, "euler_ancestral", marks=pytest.mark.slow),
        pytest.param({"_class_name": "PNDMScheduler", "skip_prk_steps": True}, "pndm", marks=pytest.mark.slow),
        ({"_class_name": "UniPCMultistepScheduler"}, "ddim"),
    ],
    ids=str,
)
def test_the_models_own_scheduler_draws_unless_told_otherwise(model, tmp_path, scheduler, sampler):
    other = shutil.copytree(model, tmp_path / "model")
    path = other / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**SCHEDULER, **scheduler}))
    assert code_of(["quantize", other, *SMALL, "--out", tmp_path / "own"]) == 0
    metrics = json.loads((tmp_path / "own" / "metrics.json").read_text())
    assert metrics["sampler"] == sampler and f"--sampler {sampler}" in metrics["command"]
    assert code_of(["sample", tmp_path / "own", "--images", "2", "--out", tmp_path / "drawn.png"]) == 0
    told = ["--sampler", "dpm_solver", "--recipe", "uniform_groups+tac", "--force", "--out", tmp_path / "own"]
    assert code_of(["quantize", other, *SMALL, *told]) == 0
    metrics = json.loads((tmp_path / "own" / "metrics.json").read_text())
    assert (metrics["sampler"], metrics["recipe"]) == ("dpm_solver", "uniform_groups+tac")
    assert "correct_trajectory" in metrics["calibration"]


def strict(text: str):
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def refusal_of(capsys, words) -> str:
    """The one sentence on stderr, with exit code 2 and nothing on stdout."""
    capsys.readouterr()
    assert code_of(words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.strip().splitlines()
    assert line.startswith("jaxdq: ") and line.endswith(".")
    return line


def copy_of(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def changed_config(folder: Path, **fields) -> Path:
    file = folder / "unet/config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))
    return folder


def changed_weights(folder: Path, name: str, change) -> Path:
    tensors = load_file(folder / WEIGHTS)
    tensors[name] = change(tensors[name])
    save_file(tensors, folder / WEIGHTS)
    return folder


def truncated(folder: Path) -> Path:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100])
    return folder


def without(folder: Path, name: str) -> Path:
    (folder / name).unlink()
    return folder


def with_flipped_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_quantize_writes_a_whole_run(made):
    assert {path.name for path in made.iterdir()} == {
        *("quantized", "model", "metrics.json", "samples.png", "report.html")
    }
    assert not list(made.parent.glob(".*"))
    metrics = strict((made / "metrics.json").read_text())
    assert metrics["image_space"] == "pixels" and metrics["no_decoder"] == ""
    assert metrics["ranges"] == "minmax" and metrics["arguments"] == {}
    assert metrics["groups"] == 2 and metrics["steps"] == 3 and len(metrics["noise_sqnr_db"]["per_step"]) == 3
    assert metrics["weight_bytes"]["quantized"] == jaxdq.stored_bytes(jaxdq.restore(made / "quantized"))
    files = [path for path in (made / "quantized").rglob("*") if path.is_file()]
    assert metrics["weight_bytes"]["disk"] == sum(len(path.read_bytes()) for path in files)
    worst, worst5, median = (metrics[f"image_psnr_{part}_db"] for part in ("worst", "worst5", "median"))
    assert worst <= worst5 <= median and worst <= metrics["image_psnr_db"]
    assert metrics["noise_sqnr_pooled_db"] is not None and metrics["fd_other_noise"] >= 0
    assert "<svg" in (made / "report.html").read_text()


def test_json_alone_on_stdout_and_the_same_seed_gives_the_same_numbers(model, made, tmp_path, capsys):
    out = copy_of(made, tmp_path)
    (out / "old").write_text("")
    metrics = strict(output_of(capsys, ["quantize", model, *SMALL, "--out", out, "--force", "--json"]))
    assert metrics == strict((out / "metrics.json").read_text())
    first = strict((made / "metrics.json").read_text())
    # Orbax lays the same values out in files of slightly different sizes.
    assert metrics["weight_bytes"].pop("disk") > 0 and first["weight_bytes"].pop("disk") > 0
    assert {**metrics, "seconds": 0, "command": 0} == {**first, "seconds": 0, "command": 0}
    assert (out / "samples.png").read_bytes() == (made / "samples.png").read_bytes()
    assert not (out / "old").exists()


def test_the_command_in_the_metrics_makes_the_run_again(made):
    words = strict((made / "metrics.json").read_text())["command"].split()
    assert words[:2] == ["jaxdq", "quantize"]
    for option in ("--groups 2", "--steps 3", "--seed 5", "--images 4", "--calibration-images 4", "--sampler ddim"):
        assert option in " ".join(words)


def test_the_command_names_ranges_and_what_was_set(tmp_path):
    settings = run.Settings("digits", arguments={"budget": "64", "learning.weights": "false"})
    command = command_of(settings, run.make_recipe(settings), tmp_path)
    assert "--ranges learned" in command and "--set budget=64 --set learning.weights=False" in command


def test_evaluate_gives_the_run_its_own_numbers(made, capsys):
    metrics = strict((made / "metrics.json").read_text())
    again = strict(output_of(capsys, ["evaluate", made, "--json"]))
    assert set(again) < set(metrics)
    assert {**metrics, "seconds": 0} == {**metrics, **again, "seconds": 0}


def test_evaluate_takes_other_noise_images_and_steps(made, monkeypatch):
    class Asked(Exception):
        pass

    def ask(*_, sampler, num_images, key, **__):
        raise Asked(sampler.num_steps, num_images, jax.random.key_data(key).tolist())

    monkeypatch.setattr(run, "evaluate", ask)
    asked = []
    for options in ([], ["--images", "5", "--steps", "2"], ["--seed", "6"]):
        with pytest.raises(Asked) as caught:
            main(["evaluate", str(made), *options])
        asked.append(caught.value.args)
    same, other, noise = asked
    assert same[:2] == noise[:2] == (3, 4) and other[:2] == (2, 5)
    assert same[2] == other[2] != noise[2]


def test_a_gate_says_what_fell_short(made, capsys):
    metrics = json.loads((made / "metrics.json").read_text())
    own = {
        "psnr": metrics["image_psnr_db"],
        "median_psnr": metrics["image_psnr_median_db"],
        "worst5_psnr": metrics["image_psnr_worst5_db"],
        "worst_psnr": metrics["image_psnr_worst_db"],
        "ssim": metrics["image_ssim"],
        "worst_ssim": metrics["image_ssim_worst"],
        "sqnr": metrics["noise_sqnr_db"]["mean"],
        "pooled_sqnr": metrics["noise_sqnr_pooled_db"],
    }

    def limits(change):
        return [word for name, value in own.items() for word in ("--fail-under", f"{name}={value + change}")]

    assert code_of(["evaluate", made, *limits(-1e-6)]) == 0
    capsys.readouterr()
    assert code_of(["evaluate", made, "--json", *limits(0.5)]) == 1
    out, said = capsys.readouterr()
    assert strict(out)["image_psnr_db"] == own["psnr"], "the figures are told all the same"
    assert all(f"{name} is {value:.4g}, below {value + 0.5:g}" in said for name, value in own.items())


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("lpips=0.1", "names 'lpips'; the figures are psnr, median_psnr"),
        ("psnr=high", "sets psnr to 'high'; give a number, such as psnr=30"),
        ("psnr=nan", "sets psnr to 'nan'"),
        ("psnr", "give a figure and its limit, such as psnr=30"),
        ("psnr=", "give a figure and its limit"),
    ],
)
def test_a_gate_that_means_nothing_is_refused_before_anything_runs(made, capsys, word, said):
    assert code_of(["evaluate", made, "--fail-under", word]) == 2
    assert said in capsys.readouterr().err


def test_evaluate_prints_a_table_and_leaves_the_run(made, capsys):
    before = (made / "metrics.json").read_bytes()
    assert "image PSNR (dB)" in output_of(capsys, ["evaluate", made])
    assert (made / "metrics.json").read_bytes() == before


def test_sample_needs_the_run_alone(made, tmp_path, capsys):
    folder = copy_of(made, tmp_path)
    metrics = {**strict((folder / "metrics.json").read_text()), "model": "gone"}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    assert "drawn.png" in output_of(capsys, ["sample", folder, "--images", "4"])
    first = np.asarray(Image.open(folder / "drawn.png"))
    output_of(capsys, ["sample", folder, "--images", "4", "--seed", "1", "--out", tmp_path / "other.png"])
    assert not np.array_equal(first, np.asarray(Image.open(tmp_path / "other.png")))
    assert not list(tmp_path.rglob(".*"))


def test_inspect_a_model_says_what_it_is_and_what_would_become_of_it(model, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    said = output_of(capsys, ["inspect", model])
    assert max(map(len, said.splitlines())) <= 80
    number = sum(tensor.size for tensor in load_file(model / WEIGHTS).values())
    for part in ("UNet2DModel", f"{number:,} parameters", "images 8 x 8 x 1", "DDPMScheduler", "predicts epsilon"):
        assert part in said
    assert "diffusion_pytorch_model.safetensors, float32" in said
    assert re.search(rf"as stored +\S+ k?B +{4 * number:,} +1\.000", said)
    assert re.search(r"W8 +\S+ kB", said) and re.search(r"W4 +\S+ kB", said)
    assert re.search(r"float +reads or writes the image +2 ", said)
    assert re.search(r"On integers: \d+\.\d\d% of the arithmetic\.", said), "it has no products"
    assert "up_blocks_0/resnets_0/conv1" not in said
    assert "up_blocks_0/resnets_0/conv1" in output_of(capsys, ["inspect", model, "--sites"])


def test_inspect_says_what_is_predicted_and_that_an_image_is_one_whoever_samples_it(model, tmp_path, capsys):
    folder = copy_of(model, tmp_path)
    file = folder / "scheduler" / "scheduler_config.json"
    solver = {"_class_name": "EulerDiscreteScheduler", "prediction_type": "v_prediction"}
    file.write_text(json.dumps(json.loads(file.read_text()) | solver))
    said = output_of(capsys, ["inspect", folder])
    assert "predicts v_prediction, the velocity" in " ".join(said.split()) and "noise" not in said
    assert "images 8 x 8 x 1" in said


def test_inspect_a_model_reads_no_weights(model, tmp_path, capsys):
    folder = truncated(copy_of(model, tmp_path))
    assert "is damaged or not a safetensors file" in " ".join(output_of(capsys, ["inspect", folder]).split())
    (folder / WEIGHTS).unlink()
    said = " ".join(output_of(capsys, ["inspect", folder]).split())
    assert "has no weights; put diffusion_pytorch_model.safetensors there." in said
    assert "as stored" not in said and "W4" in said


def test_inspect_says_that_weights_are_another_networks(model, tmp_path, capsys):
    folder = copy_of(model, tmp_path)
    tensors = load_file(folder / WEIGHTS)
    save_file({name.replace("conv_in", "conv_on"): w for name, w in tensors.items()}, folder / WEIGHTS)
    said = " ".join(output_of(capsys, ["inspect", folder]).split())
    assert "lacks conv_in.bias, conv_in.weight, and has tensors that the configuration has no place for" in said
    assert "as stored" in said


def test_inspect_counts_half_precision_as_it_is_stored(model, tmp_path, capsys):
    folder = copy_of(model, tmp_path)
    save_file({name: w.astype(np.float16) for name, w in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)
    said = output_of(capsys, ["inspect", folder])
    assert ", float16, " in said and re.search(r"as stored .* 0\.500", said)


@pytest.mark.parametrize("content", ["{", "[]", ""])
def test_inspect_refuses_damaged_configurations_of_other_parts(model, tmp_path, capsys, content):
    folder = copy_of(model, tmp_path)
    (folder / "vae").mkdir()
    (folder / "vae" / "config.json").write_text(content)
    assert "vae/config.json" in refusal_of(capsys, ["inspect", folder])


def test_inspect_a_run(made, capsys):
    said = output_of(capsys, ["inspect", made])
    assert "W8A8" in said and "noise SQNR (dB)" in said and "conv_out" in said


def test_compare_side_by_side(made, capsys):
    said = output_of(capsys, ["compare", made, made])
    assert len(re.findall("uniform_groups", said)) == 2
    for row in ("median image", "mean of the worst 5%", "worst image", "quantized, other noise", "its files"):
        assert len(re.findall(rf"{row}.*\d.*\d", said)) == 1
    runs = strict(output_of(capsys, ["compare", made, made, "--json"]))
    assert [entry["folder"] for entry in runs] == [str(made)] * 2
    assert runs[0]["image_psnr_db"] == strict((made / "metrics.json").read_text())["image_psnr_db"]


def test_the_run_is_named_after_its_options(model):
    settings = run.Settings(str(model), weight_bits=4, groups=8, recipe="uniform_groups")
    assert settings.default_folder == Path("out/tiny-uniform_groups-w4a8-g8")


def test_a_folder_in_use_is_refused_before_any_work(model, made, monkeypatch, capsys):
    monkeypatch.setattr(run, "load_model", lambda *_: pytest.fail("work was done"))
    assert "--force" in refusal_of(capsys, ["quantize", model, *SMALL, "--out", made])


def test_force_replaces_nothing_but_a_run(model, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("years of work")
    said = refusal_of(capsys, ["quantize", model, *SMALL, "--out", tmp_path, "--force"])
    assert "not replaced" in said and (tmp_path / "thesis.tex").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--recipe", "magic"], "no recipe 'magic'; the recipes are"),
        (["--weight-bits", "1"], "bits is 1; give a whole number from 2 to 8"),
        (["--act-bits", "9"], "bits is 9"),
        (["--groups", "4"], "4 groups were asked for and the sampler has 3 steps"),
        (["--groups", "0"], "0 groups"),
        (["--groups", "2", "--recipe", "minmax"], "can't use 2 groups"),
        (["--steps", "0"], "0 steps"),
        (["--steps", "21"], "21 steps but the noise schedule has 20"),
        (["--seed", "-1"], "seed is -1"),
        (["--seed", str(2**32)], "seed is 4294967296"),
        (["--images", "1"], "images is 1; give 2 to 10,000,000"),
        (["--images", "1000000000"], "images is 1,000,000,000; give 2 to 10,000,000"),
        (["--images", "-4"], "images is -4"),
        (["--calibration-images", "0"], "calibration_images is 0"),
        (["--batch-size", "0"], "batch_size is 0"),
        (["--ranges", "mean"], "ranges is 'mean'; give one of 'minmax', 'mse', 'percentile', 'learned'"),
        (["--set", "budget=64"], "recipe 'uniform_groups' has no argument 'budget'; it has weight_bits"),
        (["--set", "learning.num_updates=few"], "learning.num_updates is 'few'; give a whole number"),
        (["--set", "learning.num_updates=3"], "ranges='minmax' learns nothing"),
        (["--set", "num_groups=3"], "groups is 2 and num_groups was set to 3; give one of them"),
        (["--set", "budget"], "'budget' was to be set; give it as name=value"),
        (["--set", "=3"], "'=3' was to be set"),
        (["--set", "act_bits=4", "--set", "act_bits=5"], "act_bits was set twice, to 4 and to 5"),
        (["--sampler", "heun"], "no sampler 'heun'"),
        (["--eta", "2"], "eta is 2"),
        (["--eta", "0.5", "--sampler", "ddpm"], "ddpm sampler has none"),
    ],
)
def test_refuses_options(model, tmp_path, capsys, options, said):
    assert said in refusal_of(capsys, ["quantize", model, *SMALL, *options, "--out", tmp_path / "run"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: folder / "nowhere", "neither a bundled model nor a folder"),
        (lambda folder: without(folder, "unet/config.json"), "config.json does not exist"),
        (lambda folder: without(folder, "scheduler/scheduler_config.json"), "no scheduler_config.json"),
        (lambda folder: without(folder, WEIGHTS), "has no weights"),
        (lambda folder: changed_config(folder, down_block_types=["CrossAttnDownBlock2D"]), "CrossAttnDownBlock2D"),
        (truncated, "damaged"),
        (lambda folder: changed_weights(folder, "conv_in.weight", lambda w: w[:-1]), "conv_in.weight"),
        (lambda folder: changed_weights(folder, "conv_in.bias", lambda w: w * np.nan), "conv_in"),
        (lambda folder: changed_weights(folder, "conv_out.weight", lambda w: w * 0 + 3e38), "NaN or infinity at t = "),
    ],
)
def test_refuses_models(model, tmp_path, capsys, spoil, said):
    folder = spoil(copy_of(model, tmp_path))
    assert said in refusal_of(capsys, ["quantize", folder, *SMALL, "--out", tmp_path / "run"])
    assert {path.name for path in tmp_path.iterdir()} == {"copy"}


@pytest.mark.parametrize("command", [["sample"], ["evaluate"], ["inspect"], ["compare"]])
def test_refuses_unreadable_metrics(made, tmp_path, capsys, command):
    folder = copy_of(made, tmp_path)
    (folder / "metrics.json").write_text("{'steps': 3}")
    assert "metrics.json' can't be read" in refusal_of(capsys, [*command, folder])
    (folder / "metrics.json").write_text("{}")
    assert "no usable model" in refusal_of(capsys, [*command, folder])


@pytest.mark.parametrize("command", ["sample", "evaluate", "compare"])
def test_refuses_a_folder_that_is_no_run(tmp_path, capsys, command):
    assert "no run of jaxdq" in refusal_of(capsys, [command, tmp_path])
    assert not list(tmp_path.iterdir())


def test_inspect_refuses_what_is_neither_run_nor_model(tmp_path, capsys):
    assert "config.json" in refusal_of(capsys, ["inspect", tmp_path])
    assert "neither a bundled model nor a folder" in refusal_of(capsys, ["inspect", tmp_path / "nowhere"])


@pytest.mark.parametrize("command", ["sample", "evaluate", "inspect"])
@pytest.mark.parametrize("where", ["manifest", "arrays"])
def test_refuses_a_flipped_byte(made, tmp_path, capsys, command, where):
    folder = copy_of(made, tmp_path)
    arrays = [path for path in (folder / "quantized/arrays").rglob("*") if path.is_file()]
    largest = max(arrays, key=lambda path: path.stat().st_size)
    with_flipped_byte(folder / "quantized/manifest.json" if where == "manifest" else largest)
    said = refusal_of(capsys, [command, folder])
    assert "damaged" in said or "can't be read" in said
    assert not (folder / "drawn.png").exists()


def test_lpips_of_small_images_is_refused_before_any_is_drawn(made, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run, "evaluate", lambda *_, **__: pytest.fail("images are drawn"))
    weights = {name: np.ones((1, 1, 1, 1), np.float32) for name in ("lin0.model.1.weight", "net.slice5.10.weight")}
    save_file(weights, tmp_path / "alex.safetensors")
    said = refusal_of(capsys, ["evaluate", made, "--lpips", tmp_path / "alex.safetensors"])
    assert "images of 8 x 8 are too small for LPIPS" in said
    assert "there is no file" in refusal_of(capsys, ["evaluate", made, "--inception", tmp_path / "none"])


def test_evaluate_refuses_another_model(model, made, tmp_path, capsys):
    other = changed_weights(copy_of(model, tmp_path), "conv_in.bias", lambda w: w + 1)
    assert "'conv_in/bias'" in refusal_of(capsys, ["evaluate", made, "--model", other])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--images", "0"], "num_images is 0"),
        (["--steps", "0"], "0 steps"),
        (["--steps", "99"], "99 steps"),
        (["--seed", "-1"], "seed is -1"),
        (["--out", "drawn.jpg"], "ends in .png"),
        (["--out", "no/such/folder/drawn.png"], "a folder that exists"),
    ],
)
def test_sample_refuses(made, capsys, options, said):
    assert said in refusal_of(capsys, ["sample", made, *options])
    assert not (made / "drawn.png").exists()


def test_a_defect_keeps_its_traceback(model, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("ours")

    monkeypatch.setattr(run, "run_recipe", broken)
    with pytest.raises(RuntimeError, match="ours"):
        main(["quantize", str(model), *SMALL, "--out", str(tmp_path / "run")])
    assert not list(tmp_path.iterdir())


def test_version_and_help(capsys):
    assert output_of(capsys, ["--version"]) == f"jaxdq {jaxdq.__version__}\n"
    said = output_of(capsys, ["quantize", "--help"])
    assert "--calibration-images" in said


@pytest.mark.parametrize("words", [["quantize"], ["quantise", "digits"], ["quantize", "digits", "--steps", "few"]])
def test_usage_errors_exit_with_2(capsys, words):
    assert code_of(words) == 2


def test_backend_is_named(made):
    assert strict((made / "metrics.json").read_text())["backend"] == jax.default_backend()


@pytest.mark.filterwarnings("always")
def test_our_warnings_are_one_sentence_on_stderr_and_those_of_others_as_they_are(monkeypatch, capsys, tmp_path):
    def evaluate(folder, **options):
        warnings.warn("only 9% of the arithmetic.", InputWarning, stacklevel=2)
        warnings.warn("old.", FutureWarning, stacklevel=2)
        raise InputError("that was all.")

    monkeypatch.setattr("jaxdq.app.run.evaluate_run", evaluate)
    others = []
    monkeypatch.setattr(warnings, "showwarning", lambda message, *place: others.append(str(message)))
    assert code_of(["evaluate", str(tmp_path)]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said == ["jaxdq: warning: only 9% of the arithmetic.", "jaxdq: that was all."]
    assert others == ["old."]
