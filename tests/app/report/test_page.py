import html.parser
import re
import urllib.parse

import numpy as np
import pytest

from jaxdq.app import report
from jaxdq.app.report import _page


@pytest.fixture(scope="module")
def page(measured, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("page")
    report.write_pages(folder, measured.metrics, measured.evaluation, measured.denoiser.params, measured.qparams)
    assert (folder / "samples.png").read_bytes().startswith(b"\x89PNG")
    return (folder / "report.html").read_text()


class Reader(html.parser.HTMLParser):
    """Collects what the page would load, and checks that its tags nest."""

    def __init__(self):
        super().__init__()
        self.loads, self.open, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img", "br", "link", "input"):
            self.open.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_startendtag(self, tag, attrs):
        self.loads += [value for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_opens_offline(page):
    reader = Reader()
    reader.feed(page)
    assert not reader.open
    assert reader.loads
    assert all(urllib.parse.urlsplit(value).scheme == "data" or value.startswith("#") for value in reader.loads)
    assert not re.search(r"@import|<script|<link|url\((?!#)", page)


def test_residuals_of_a_correction_are_drawn(measured, tmp_path, page):
    said = "once slope and bias are taken out"
    log = {"t": [15, 10, 5, 0], "residual_std": [0.1, 0.2, 0.1, 0.3], "normality": [0.5, 0.001, 0.2, 0.0], "tried": {}}
    metrics = {**measured.metrics, "calibration": {"correct_noise": {**log, "kept": "corrected"}}}
    report.write_pages(tmp_path, metrics, measured.evaluation, measured.denoiser.params, measured.qparams)
    drawn = (tmp_path / "report.html").read_text()
    assert said in drawn and "Residual of the noise correction" in drawn and said not in page


@pytest.mark.parametrize(
    ("calibration", "said"),
    [
        ({}, []),
        (
            {"search_groups": {"kept": "search", "tried": {"equal spans": 0.04, "search": 0.004}}},
            ["search_groups: kept search.", "20.0 dB with equal spans, 30.0 dB with search."],
        ),
        (
            {"a method": {"kept": "before", "tried": {"before": 0.04, "look 1": None}}},
            ["a method: kept before.", "20.0 dB with before, no finite PSNR with look 1."],
        ),
        ({"select_timesteps": {"counts": [1, 2]}}, []),
        (
            {"tabulate_time": {"layers": 2, "parameters": 1500, "macs": 12, "table_bytes": 2048, "times": 4}},
            ["2 layers that see the time alone, 1,500 parameters", "2.05 kB of rows for 4 times"],
        ),
        ({"tabulate_time": {"layers": 0}}, []),
    ],
)
def test_says_what_calibration_kept(calibration, said):
    text = " ".join(_page.learned({"calibration": calibration}))
    assert bool(text) == bool(said) and all(part in text for part in said)


def test_says_what_was_found(page, measured):
    reader = Reader()
    reader.feed(page)
    text = " ".join(reader.text.split())
    for site in measured.qparams.plan.sites:
        assert site.path in text
    for said in (
        "W8A8",
        "2.5 min",
        "4 time groups",
        "Lowest at t = 10: 20.0 dB",
        "reads or writes the image",
        "0.75 from the float",
    ):
        assert said in text
    assert measured.metrics["command"] in text  # its < and > are escaped


def test_headlines_in_plain_words(measured):
    metrics = {**measured.metrics, "noise_sqnr_db": {"mean": 40.0, "per_step": [60.0, 20.0]}}
    said = {what: (number, means) for what, number, means in _page.headlines(metrics)}
    assert said["Predicted noise"] == (
        "40.0 dB",
        "1% from the float model's at a typical step, 10% at the worst; "
        "25.0 dB if the energies of all steps are pooled.",
    )
    assert said["Images"][1].startswith("2.6 of 255 grey levels")  # 255 * 10 ** (-40 / 20), rounded
    assert said["Images"][1].endswith("45.0 dB at the median, 30.0 dB on average in the worst 5%.")
    assert said["Weights"][1].endswith("the checkpoint takes 7.00 kB on disk.")


@pytest.mark.parametrize(
    ("prediction_type", "word"), [("v_prediction", "velocity"), ("sample", "image"), (None, "output")]
)
def test_a_model_that_does_not_predict_noise_is_not_said_to(measured, prediction_type, word):
    metrics = {**measured.metrics, "prediction_type": prediction_type}
    assert _page.headlines(metrics)[0][0] == f"Predicted {word}"


def test_headlines_of_an_exact_model(measured):
    exact = {"noise_sqnr_db": {"mean": None, "per_step": [None]}, "image_psnr_db": None}
    numbers = [number for _, number, _ in _page.headlines({**measured.metrics, **exact})]
    assert numbers[:2] == ["exact", "exact"]


def test_headlines_of_a_model_that_is_all_noise(measured):
    noise = {"noise_sqnr_db": {"mean": -10.0, "per_step": [-10.0]}}
    assert _page.headlines({**measured.metrics, **noise})[0][2].startswith("316% from")


def test_shows_the_activations_that_move_most():
    scales = np.array([[1.0, 1.0, 1.0], [1.0, 4.0, 2.0]])
    assert _page.chosen_columns(scales, 2) == [1, 2]
    assert _page.chosen_columns(scales[:, :0], 2) == []


@pytest.mark.parametrize(
    ("count", "said"), [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (999_960, "1.00 MB"), (12_345_678, "12.3 MB")]
)
def test_bytes_in_three_figures(count, said):
    assert _page.nice_bytes(count) == said


def test_warnings_stand_above_the_figures(measured, tmp_path):
    metrics = {**measured.metrics, "calibration": {"coverage": {"warning": "only 9% of <the> arithmetic."}}}
    report.write_pages(tmp_path, metrics, measured.evaluation, measured.denoiser.params, measured.qparams)
    page = (tmp_path / "report.html").read_text()
    assert "Warning:</strong> only 9% of &lt;the&gt; arithmetic.</p>" in page
    assert page.index("Warning:") < page.index('class="tiles"')
