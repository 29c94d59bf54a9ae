"""The README's example and its main command, as written (but for the number of images): what a newcomer does first."""

import json
import shlex
from pathlib import Path

import jax
import numpy as np
import pytest
from readme import block

import jaxdq
from jaxdq.app.command import main


@pytest.mark.slow
def test_the_library_example_runs_as_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(block("example"), "README.md", "exec"), names)
    restored, saved_images = names["qparams"], names["images"]
    assert isinstance(restored, jaxdq.QuantizedParams)
    assert saved_images.shape == (16, 16, 16, 1)
    assert np.abs(saved_images).max() <= 1
    assert names["noise"].shape == (1, 16, 16, 1)
    again = jaxdq.sample(names["denoiser"], restored, sampler=jaxdq.ddim(50), num_images=16, key=jax.random.key(1))
    np.testing.assert_array_equal(again, saved_images)


def test_the_library_example_is_twelve_lines():
    lines = [line for line in block("example").splitlines() if line.strip()]
    assert len(lines) <= 12


@pytest.mark.parametrize(("name", "install"), [("run", "pip install ."), ("tests", "pip install -e '.[dev]'")])
def test_a_newcomer_needs_one_line(name, install):
    lines = block(name).strip().splitlines()
    assert len(lines) == 1
    make, activate, installed, *_ = (part.strip() for part in lines[0].split("&&"))
    assert (make, activate, installed) == ("python3 -m venv .venv", ". .venv/bin/activate", install)


@pytest.mark.slow
def test_the_main_command_reaches_its_figures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = shlex.split(block("run").split("&&")[-1])
    assert command[0] == "jaxdq"
    folder = Path(command[command.index("--out") + 1])
    with pytest.raises(SystemExit) as stop:
        main([*command[1:], "--images", "16", "--calibration-images", "16"])
    assert not stop.value.code
    metrics = json.loads((folder / "metrics.json").read_text())
    # Half a dozen dB below what 64 images give (README): 16 images vary.
    assert metrics["noise_sqnr_db"]["mean"] >= 28
    assert metrics["image_psnr_db"] >= 28
    assert metrics["weight_bytes"]["quantized"] <= 0.27 * metrics["weight_bytes"]["float"]
    assert metrics["integer_mac_fraction"] >= 0.95
    assert {path.name for path in folder.iterdir()} >= {"quantized", "samples.png", "report.html"}
