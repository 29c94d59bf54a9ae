import copy
import functools
import json

import numpy as np
import pytest

from jaxdq import InputError, stored_bytes
from jaxdq.app import report


def test_contract_holds_for_what_is_measured(measured, tmp_path):
    report.write_metrics(tmp_path, measured.metrics)
    assert report.read_metrics(tmp_path) == measured.metrics


def test_counts_every_byte_of_both_models(measured):
    params, qparams = measured.denoiser.params, measured.qparams
    sizes = {"float": stored_bytes(params), "quantized": stored_bytes(qparams), "disk": 7_000}
    assert measured.metrics["weight_bytes"] == sizes
    sites = measured.metrics["sites"]
    assert sites["integer"] + sites["float"] == sites["total"] == len(qparams.plan.sites)


def test_says_what_each_figure_is_of(measured):
    found = measured.metrics
    assert found["noise_sqnr_pooled_db"] == 25.0 and found["noise_sqnr_db"]["mean"] == 30.0
    assert (found["image_psnr_median_db"], found["image_psnr_worst_db"], found["image_psnr_worst5_db"]) == (45, 30, 30)
    assert (found["fd_to_float"], found["fd_float_floor"], found["fd_other_noise"]) == (0.01, 0.5, 0.75)


LATER = [
    *("image_psnr_median_db", "image_psnr_worst_db", "image_psnr_worst5_db"),
    *("noise_sqnr_pooled_db", "fd_other_noise", "weight_bytes.disk"),
]


@pytest.mark.parametrize("name", LATER)
def test_runs_of_earlier_versions_are_read_and_broken_figures_are_not(measured, tmp_path, name):
    earlier = copy.deepcopy(measured.metrics)
    *path, last = name.split(".")
    at = functools.reduce(dict.__getitem__, path, earlier)
    del at[last]
    report.write_metrics(tmp_path, earlier)
    assert report.read_metrics(tmp_path) == earlier
    at[last] = "high"
    report.write_metrics(tmp_path, earlier)
    with pytest.raises(InputError, match=f"no usable {name};"):
        report.read_metrics(tmp_path)


def test_json_is_strict_infinity_is_null(measured, tmp_path):
    report.write_metrics(tmp_path, measured.metrics)

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    read = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=refuse)
    assert read["noise_sqnr_db"] == {"mean": 30.0, "per_step": [40.0, 20.0, None, 30.0]}


def test_json_values_are_plain():
    tree = {1: np.float32(0.5), "a": (np.int64(3), np.nan), "b": np.array([[True]])}
    assert report.to_json_values(tree) == {"1": 0.5, "a": [3, None], "b": [[True]]}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"steps": None}, "steps"),
        ({"steps": "50"}, "steps"),
        ({"steps": True}, "steps"),
        ({"weight_bytes": {"float": 1}}, "weight_bytes.quantized"),
        ({"sites": 3}, "sites"),
    ],
)
def test_names_the_field_that_is_not_usable(measured, tmp_path, change, named):
    report.write_metrics(tmp_path, {**measured.metrics, **change})
    with pytest.raises(InputError, match=f"no usable {named};"):
        report.read_metrics(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe\x00"])
def test_refuses_what_is_no_metrics_file(tmp_path, content):
    (tmp_path / "metrics.json").write_bytes(content)
    with pytest.raises(InputError, match="quantize again"):
        report.read_metrics(tmp_path)


def test_refuses_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(InputError, match="no run of jaxdq"):
        report.read_metrics(tmp_path / "absent")
