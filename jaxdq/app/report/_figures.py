"""The report's figures, as SVG that takes its colours from the page.

matplotlib draws with stand-in colours, which are replaced by the page's CSS variables: one figure serves both light
and dark.
"""

import io
import itertools
import re
from collections.abc import Iterator, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

SERIES = ("var(--series-1)", "var(--series-2)", "var(--series-3)", "var(--series-4)")
_INK, _MUTED, _LINE, _BAND = "#010101", "#020202", "#030303", "#040404"
_SERIES = ("#0a0a01", "#0a0a02", "#0a0a03", "#0a0a04")
_ON_PAGE = {_INK: "var(--ink)", _MUTED: "var(--muted)", _LINE: "var(--line)", _BAND: "var(--band)"} | dict(
    zip(_SERIES, SERIES, strict=True)
)
_SIZE = (4.9, 2.7)  # inches: about a phone's width at 72 points an inch, so that text is never shrunk much


def sqnr_figure(t: np.ndarray, sqnr_db: np.ndarray, group_of_t: np.ndarray) -> str:
    """Noise SQNR at each step against t, over the bands of the time groups.

    Args:
        t: int[S], the noisiest first.
        sqnr_db: float[S]; what is not finite is left out.
        group_of_t: int[T] or int[T, A]; bands are drawn for one partition only.

    Returns:
        An `<svg>` element.
    """
    figure, axes = _time_axes(len(group_of_t), _SIZE)
    _draw_bands(axes, group_of_t)
    axes.plot(t, np.where(np.isfinite(sqnr_db), sqnr_db, np.nan), color=_SERIES[0], linewidth=1.6, marker="o", ms=2.2)
    axes.set_ylabel("noise SQNR (dB)", color=_MUTED)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    return _to_svg(figure, "Noise SQNR at each sampling step")


def scale_figure(scale_of_t: np.ndarray, group_of_t: np.ndarray) -> str:
    """Activation scales of a few sites against t, over the bands of the time groups.

    Args:
        scale_of_t: f32[T, K] > 0, at most as many columns as `SERIES`.
        group_of_t: int[T] or int[T, A].

    Returns:
        An `<svg>` element; column k has the colour `SERIES[k]`.
    """
    figure, axes = _time_axes(len(group_of_t), _SIZE)
    _draw_bands(axes, group_of_t)
    for column, colour in zip(scale_of_t.T, _SERIES, strict=False):
        axes.plot(np.arange(len(column)), column, color=colour, linewidth=1.6, drawstyle="steps-mid")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=7))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel("scale of one code", color=_MUTED)
    return _to_svg(figure, "Activation scales against time")


def range_figure(
    t: np.ndarray, observed: tuple[np.ndarray, np.ndarray], grid_of_t: tuple[np.ndarray, np.ndarray], groups: np.ndarray
) -> str:
    """What one activation spans against t, and what its grid covers, over the bands of the time groups.

    Args:
        t: int[S], the sampler's times.
        observed: (low, high), f32[S] each, of the float model.
        grid_of_t: (low, high), f32[T] each: the values of the end codes.
        groups: int[T], the activation's own partition.

    Returns:
        An `<svg>` element.
    """
    figure, axes = _time_axes(len(groups), _SIZE)
    _draw_bands(axes, groups)
    axes.fill_between(t, *observed, color=_SERIES[0], alpha=0.3, linewidth=0)
    for end in grid_of_t:
        axes.plot(np.arange(len(end)), end, color=_SERIES[1], linewidth=1.4, drawstyle="steps-mid")
    axes.set_ylabel("value", color=_MUTED)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    return _to_svg(figure, "Range of an activation against time")


def residual_figure(t: np.ndarray, std: np.ndarray, normality: np.ndarray, group_of_t: np.ndarray) -> str:
    """How much of the output's error is left at each step once its linear part is out, over the bands of the groups.

    Args:
        t: float[S], the sampler's times.
        std: float[S], standard deviation of what is left.
        normality: float[S], p of a test against normal distributions: points below 0.01 are hollow.
        group_of_t: int[T], the partition.

    Returns:
        An `<svg>` element.
    """
    figure, axes = _time_axes(len(group_of_t), _SIZE)
    _draw_bands(axes, group_of_t)
    axes.plot(t, std, color=_SERIES[0], linewidth=1.2)
    faces = np.where(np.asarray(normality) < 0.01, "none", _SERIES[0])
    axes.scatter(t, std, s=14, facecolors=faces.tolist(), edgecolors=_SERIES[0], linewidths=1, zorder=3)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("standard deviation", color=_MUTED)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    return _to_svg(figure, "Residual of the noise correction at each sampling step")


def group_figure(group_of_t: np.ndarray) -> str:
    """Which times share their scales: one strip, or one row for each activation.

    Args:
        group_of_t: int[T] or int[T, A].

    Returns:
        An `<svg>` element.
    """
    if group_of_t.ndim == 1:
        figure, axes = _time_axes(len(group_of_t), (2 * _SIZE[0], 0.95))
        for index, (start, stop, group) in enumerate(spans(group_of_t)):
            shade = 0.85 if index % 2 else 0.5  # by place: neighbours may be 0 and 2
            axes.axvspan(start - 0.5, stop - 0.5, facecolor=_SERIES[0], alpha=shade, linewidth=0)
            if stop - start > len(group_of_t) / 60:
                axes.text((start + stop - 1) / 2, 0.5, str(group), ha="center", va="center", color=_INK, fontsize=9)
        axes.set_ylim(0, 1)
    else:
        figure, axes = _time_axes(len(group_of_t), (2 * _SIZE[0], 2.7))
        extent = (-0.5, len(group_of_t) - 0.5, group_of_t.shape[1], 0)
        axes.imshow(group_of_t.T, aspect="auto", interpolation="nearest", cmap="cividis", extent=extent)
        axes.set_xlim(len(group_of_t) - 0.5, -0.5)  # imshow has set its own
        axes.set_ylabel("activation", color=_MUTED)
    axes.set_yticks([])
    return _to_svg(figure, "Time groups")


def spans(group_of_t: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """The runs of equal groups: (first t, one past the last t, group).

    Example:
        >>> list(spans(np.array([0, 0, 1])))
        [(0, 2, 0), (2, 3, 1)]
    """
    edges = [0, *(np.flatnonzero(np.diff(group_of_t)) + 1).tolist(), len(group_of_t)]
    for start, stop in itertools.pairwise(edges):
        yield start, stop, int(group_of_t[start])


def _time_axes(num_timesteps: int, size: Sequence[float]) -> tuple[Figure, Axes]:
    """A figure whose x is model time in the direction of sampling: noise at the left, the image at the right."""
    figure = Figure(figsize=(size[0], size[1]), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlim(num_timesteps - 0.5, -0.5)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel("model time t, noise to image", color=_MUTED)
    axes.grid(axis="y", color=_LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.patch.set_visible(False)
    figure.patch.set_visible(False)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_LINE)
    axes.tick_params(color=_LINE, labelcolor=_MUTED, length=3, labelsize=9)
    axes.xaxis.label.set_fontsize(9)
    axes.yaxis.label.set_fontsize(9)
    return figure, axes


def _draw_bands(axes: Axes, group_of_t: np.ndarray) -> None:
    if group_of_t.ndim != 1:
        return
    for index, (start, stop, _) in enumerate(spans(group_of_t)):
        if index % 2:
            axes.axvspan(start - 0.5, stop - 0.5, facecolor=_BAND, linewidth=0, zorder=0)


def _to_svg(figure: Figure, title: str) -> str:
    buffer = io.StringIO()
    # No names in the file depend on the day or the process: the same run gives the same page.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(buffer, metadata=metadata)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for stand_in, variable in _ON_PAGE.items():
        svg = svg.replace(stand_in, variable)
    # The page sets the width; the view box keeps the proportions.
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    return svg.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
