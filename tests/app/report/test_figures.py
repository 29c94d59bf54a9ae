import itertools
import re
import xml.etree.ElementTree as ET

import matplotlib as mpl
import numpy as np
import pytest

from jaxdq.app.report import _figures

SVG = "{http://www.w3.org/2000/svg}"
T = np.array([15, 10, 5, 0])
ONE, FOUR = np.zeros(20, np.int32), np.repeat(np.arange(4), 5)
EACH = np.stack([FOUR, FOUR[::-1]], axis=-1)


def all_figures(group_of_t):
    yield _figures.sqnr_figure(T, np.array([40.0, np.inf, 30.0, 20.0]), group_of_t)
    yield _figures.scale_figure(np.linspace(0.01, 0.1, 40).reshape(20, 2), group_of_t)
    yield _figures.group_figure(group_of_t)
    yield _figures.residual_figure(T, np.array([0.1, 0.2, 0.15, 0.3]), np.array([0.5, 0.001, 0.2, 0.0]), group_of_t)


@pytest.mark.parametrize("group_of_t", [ONE, FOUR, EACH])
def test_figures_are_svg_in_the_colours_of_the_page(group_of_t):
    for svg in all_figures(group_of_t):
        root = ET.fromstring(svg)
        assert root.get("viewBox") and root.get("width") is None
        assert "var(--muted)" in svg
        assert not any(stand_in in svg for stand_in in _figures._ON_PAGE)


def test_the_same_numbers_give_the_same_file():
    assert list(all_figures(FOUR)) == list(all_figures(FOUR))


def test_matplotlib_is_left_as_it_was():
    before = dict(mpl.rcParams)
    list(all_figures(FOUR))
    assert dict(mpl.rcParams) == before


def test_neighbouring_spans_of_the_group_map_differ_in_shade():
    root = ET.fromstring(_figures.group_figure(np.repeat([0, 2, 4, 1], 25)))
    shades = re.findall(r"opacity: ([0-9.]+)", " ".join(path.get("style", "") for path in root.iter(f"{SVG}path")))
    assert len(shades) == 4 and all(one != other for one, other in itertools.pairwise(shades))


@pytest.mark.parametrize("group_of_t", [FOUR, EACH])
def test_time_runs_from_noise_to_image(group_of_t):
    for svg in all_figures(group_of_t):
        texts = ET.fromstring(svg).iter(f"{SVG}text")
        numbers = [
            (float(text.get("y")), float(text.get("x")), int(text.text)) for text in texts if text.text.isdigit()
        ]
        lowest = max(y for y, _, _ in numbers)
        ticks = [t for y, _, t in sorted(numbers) if y == lowest]
        assert len(ticks) > 1 and ticks == sorted(ticks, reverse=True)


def test_spans_are_the_runs_of_equal_groups():
    assert list(_figures.spans(np.array([1, 0, 0, 1]))) == [(0, 1, 1), (1, 3, 0), (3, 4, 1)]


def test_constant_scales_can_be_drawn():
    ET.fromstring(_figures.scale_figure(np.full((20, 1), 0.05), ONE))
