import copy
import io

import pytest
from rich.console import Console

from jaxdq.app.tables import table_of_runs

RUN = {
    **{"recipe": "minmax", "weight_bits": 8, "act_bits": 8, "groups": 1, "sampler": "ddim", "steps": 4},
    **{"images": 8, "seed": 0, "image_space": "pixels", "noise_sqnr_db": {"mean": 31.0, "per_step": [31.0]}},
    **{"noise_sqnr_pooled_db": 32.0, "image_psnr_db": 33.0, "image_psnr_median_db": 34.0},
    **{"image_psnr_worst5_db": 35.0, "image_psnr_worst_db": 36.0},
    **{"fd_to_float": 0.5, "fd_other_noise": 0.75, "fd_float_floor": 0.25},
    **{"weight_bytes": {"float": 4_000, "quantized": 1_000, "disk": 1_500}},
    **{"sites": {"total": 3, "integer": 2, "float": 1}, "integer_mac_fraction": 0.9},
}
LABELS = {
    "noise_sqnr_pooled_db": "pooled over steps",
    "image_psnr_median_db": "median image",
    "image_psnr_worst5_db": "mean of the worst 5%",
    "image_psnr_worst_db": "worst image",
    "fd_other_noise": "quantized, other noise",
}


def lines_of(*runs: dict) -> list[str]:
    """The table as text."""
    text = io.StringIO()
    heads = [f"run{index}" for index in range(len(runs))]
    Console(width=120, file=text).print(table_of_runs(runs, heads))
    return text.getvalue().splitlines()


def cells(lines: list[str], label: str) -> list[str]:
    """The words of the line with this label; the runs' cells come last."""
    (line,) = (line for line in lines if line.strip().startswith(label))
    return line.split()


def test_every_figure_has_its_line():
    lines = lines_of(RUN)
    expected = {
        **{"noise SQNR (dB), mean": "31.00", "pooled over": "32.00", "image PSNR": "33.00", "median image": "34.00"},
        **{"mean of the worst": "35.00", "worst image": "36.00", "Fréchet distance": "0.5", "quantized, other": "0.75"},
        **{"float, other": "0.25", "weights, quantized": "1.0", "its files": "1.5"},
    }
    assert {label: cells(lines, label)[-1] for label in expected} == expected


@pytest.mark.parametrize("name", LABELS)
def test_a_figure_that_an_earlier_version_did_not_measure_is_not_called_exact(name):
    earlier = {key: value for key, value in RUN.items() if key != name}
    assert cells(lines_of(earlier, RUN), LABELS[name])[-2] == "-"


def test_bytes_on_disk_of_an_earlier_run_are_not_known():
    earlier = copy.deepcopy(RUN)
    del earlier["weight_bytes"]["disk"]
    assert cells(lines_of(earlier), "its files")[-1] == "-"


def test_models_that_do_not_differ_are_exact():
    exact = {**RUN, "image_psnr_median_db": None, "noise_sqnr_db": {"mean": None, "per_step": [None]}}
    lines = lines_of(exact)
    assert cells(lines, "median image")[-1] == cells(lines, "noise SQNR")[-1] == "exact"
