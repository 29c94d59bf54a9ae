"""report.html: the run on one page that opens anywhere, offline."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from jaxdq.app.report import _figures
from jaxdq.app.report._samples import paired_grid
from jaxdq.app.report._seen import seen
from jaxdq.app.report._sizes import size_rows
from jaxdq.calibration import Ranges
from jaxdq.evaluation import Evaluation
from jaxdq.linen import QuantizedParams


def write_pages(
    folder: Path,
    metrics: Mapping[str, Any],
    evaluation: Evaluation,
    params: Any,
    qparams: QuantizedParams,
    ranges: Ranges | None = None,
) -> None:
    """Writes FOLDER/samples.png and FOLDER/report.html.

    Args:
        folder: Exists.
        metrics: The contents of metrics.json.
        evaluation: Its images and its curve are drawn.
        params: The float model's.
        qparams: The quantized one's.
        ranges: What the activations spanned by step; None leaves that picture out.
    """
    label = f"W{metrics['weight_bits']}A{metrics['act_bits']}"
    samples = paired_grid(evaluation.float_images, evaluation.quantized_images, label)
    (folder / "samples.png").write_bytes(samples)
    page = _template().render(
        metrics=metrics,
        label=label,
        name=Path(metrics["model"]).name,
        headlines=headlines(metrics),
        predicted=predicted(metrics),
        samples=base64.b64encode(samples).decode(),
        figures=_figures_of(evaluation, qparams, ranges, metrics),
        sizes=size_rows(params, qparams),
        sites=qparams.plan.rows(),
        shares=shares_of_error(metrics),
        lowest=_lowest(evaluation),
        warnings=warnings_of(metrics),
        learned=learned(metrics),
        seen=seen(metrics),
        seconds=sorted(metrics["seconds"].items(), key=lambda item: -item[1]),
    )
    (folder / "report.html").write_text(page, encoding="utf-8")


def headlines(metrics: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The four figures that answer first: (what, number, what it means in plain words)."""
    sqnr_db, psnr_db = metrics["noise_sqnr_db"]["mean"], metrics["image_psnr_db"]
    worst_db = min((value for value in metrics["noise_sqnr_db"]["per_step"] if value is not None), default=None)
    pooled_db, median_db, tail_db = (
        metrics[name] for name in ("noise_sqnr_pooled_db", "image_psnr_median_db", "image_psnr_worst5_db")
    )
    size = metrics["weight_bytes"]
    integer, total = metrics["sites"]["integer"], metrics["sites"]["total"]
    return [
        (
            f"Predicted {predicted(metrics)}",
            _db(sqnr_db),
            f"{_share(sqnr_db)} from the float model's at a typical step, {_share(worst_db)} at the worst; "
            f"{_db(pooled_db)} if the energies of all steps are pooled.",
        ),
        (
            "Images" if metrics["image_space"] == "pixels" else "Latents",
            _db(psnr_db),
            (
                f"{_levels(psnr_db)} from the float model's images, pixel by pixel, from the same noise."
                if metrics["image_space"] == "pixels"
                else "between the float model's latents and these, from the same noise (peak 2)."
            )
            + f" Pooled over all of them; {_db(median_db)} at the median, {_db(tail_db)} on average in the worst 5%.",
        ),
        (
            "Weights",
            f"{size['float'] / size['quantized']:.2f}x",
            f"smaller: {nice_bytes(size['quantized'])} in place of {nice_bytes(size['float'])}, scales included; the "
            f"checkpoint takes {nice_bytes(size['disk'])} on disk.",
        ),
        (
            "On integers",
            f"{100 * metrics['integer_mac_fraction']:.1f}%",
            f"of the arithmetic, at {integer} of {total} places; the others are named below with the reason.",
        ),
    ]


def predicted(metrics: Mapping[str, Any]) -> str:
    """What the network predicts, in a word; runs of earlier versions do not say."""
    words = {"epsilon": "noise", "v_prediction": "velocity", "sample": "image"}
    return words.get(metrics.get("prediction_type", ""), "output")


def learned(metrics: Mapping[str, Any]) -> list[str]:
    """What each calibrator tried and what it kept, a sentence each; none of recipes that only observe."""
    logs = metrics.get("calibration", {})
    choices = [
        f"{name}: kept {log['kept']}. PSNR of calibration images to the float model's: "
        f"{', '.join(f'{_psnr(error)} with {what}' for what, error in log['tried'].items())}."
        for name, log in logs.items()
        if log.get("tried")
    ]
    tables = logs.get("tabulate_time", {})
    if tables.get("layers"):
        choices.append(
            f"tabulate_time: {tables['layers']} layers that see the time alone, {tables['parameters']:,} parameters "
            f"and {tables['macs']:,} multiply-accumulates of every call, became {nice_bytes(tables['table_bytes'])} of "
            f"rows for {tables['times']} times; the network runs at these times only."
        )
    return choices


def shares_of_error(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Path -> what a layer's weights are predicted to add to the images' error, where bits were chosen by it."""
    shares = metrics.get("calibration", {}).get("spend_budget", {}).get("share_of_error", {})
    return {path: f"{_two_figures(100 * share)}%" for path, share in shares.items()}


def warnings_of(metrics: Mapping[str, Any]) -> list[str]:
    """What a person would want to know of the run before its figures."""
    return [log["warning"] for log in metrics.get("calibration", {}).values() if log.get("warning")]


def nice_bytes(count: int) -> str:
    """`1.85 MB`; three figures, powers of 1,000.

    Example:
        >>> nice_bytes(1_850_000), nice_bytes(12)
        ('1.85 MB', '12 B')
    """
    size, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 999.5:
            break
        size, unit = size / 1000, larger
    return f"{size:.0f} {unit}" if unit == "B" or size >= 99.95 else f"{size:.{1 if size >= 9.995 else 2}f} {unit}"


def chosen_columns(scale_of_t: np.ndarray, count: int) -> list[int]:
    """The activations whose scales move most over time, the most moved first: what time groups are for.

    Args:
        scale_of_t: f32[T, A] > 0.
        count: How many.
    """
    if not scale_of_t.shape[1]:
        return []
    moves = scale_of_t.max(0) / scale_of_t.min(0)
    return np.argsort(-moves, kind="stable")[:count].tolist()


def _lowest(evaluation: Evaluation) -> tuple[int, float] | None:
    """The step that is furthest from float: (t, dB); None where all are exact."""
    index = int(np.argmin(evaluation.noise_sqnr_db))
    lowest_db = float(evaluation.noise_sqnr_db[index])
    return (int(evaluation.t[index]), lowest_db) if np.isfinite(lowest_db) else None


def _figures_of(
    evaluation: Evaluation, qparams: QuantizedParams, ranges: Ranges | None, metrics: Mapping[str, Any]
) -> dict[str, Any]:
    group_of_t, scale = np.asarray(qparams.acts.group_of_t), np.asarray(qparams.acts.scale)
    scale_of_t = scale[group_of_t]
    chosen = chosen_columns(scale_of_t, len(_figures.SERIES))
    names = [qparams.plan.columns[column][0] for column in chosen]
    return {
        "sqnr": _figures.sqnr_figure(evaluation.t, evaluation.noise_sqnr_db, group_of_t),
        "scales": _figures.scale_figure(scale_of_t[:, chosen], group_of_t) if chosen else None,
        "legend": list(zip(_figures.SERIES, names, strict=False)),
        "groups": _figures.group_figure(group_of_t) if len(scale) > 1 else None,
        "residual": _residual_figure(metrics, group_of_t),
        "ranges": [] if ranges is None else _range_figures(ranges, qparams, chosen),
    }


def _residual_figure(metrics: Mapping[str, Any], group_of_t: np.ndarray) -> str | None:
    log = metrics.get("calibration", {}).get("correct_noise")
    if log is None:
        return None
    t, std, normality = (np.array(log[name], float) for name in ("t", "residual_std", "normality"))
    return _figures.residual_figure(t, std, normality, group_of_t)


def _range_figures(ranges: Ranges, qparams: QuantizedParams, chosen: list[int]) -> list[tuple[str, str]]:
    """(site, figure) of the chosen activations: what they span, and what their grid covers."""
    figures, group_of_t = [], np.asarray(qparams.acts.group_of_t)
    for column in chosen:
        name, scheme = qparams.plan.columns[column]
        scale = np.asarray(qparams.acts.scale)[group_of_t, column]
        zero_point = np.asarray(qparams.acts.zero_point)[group_of_t, column]
        low, high = (scale * (code - zero_point) for code in scheme.bounds)
        observed = ranges.low[:, column], ranges.high[:, column]
        figures.append((name, _figures.range_figure(ranges.t, observed, (low, high), group_of_t)))
    return figures


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jaxdq.app.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["bytes"] = nice_bytes
    environment.filters["seconds"] = lambda value: f"{value:.1f} s" if value < 100 else f"{value / 60:.1f} min"
    environment.filters["number"] = lambda value: "exact" if value is None else f"{value:.3g}"
    return environment.get_template("template.html")


def _db(value: float | None) -> str:
    return "exact" if value is None else f"{value:.1f} dB"


def _psnr(error: float | None) -> str:
    """Of a mean squared error, at the peak of 2."""
    return "no finite PSNR" if error is None or not np.isfinite(error) else _db(10 * np.log10(4 / error))


def _share(value: float | None) -> str:
    return "0%" if value is None else f"{_two_figures(100 * 10 ** (-value / 20))}%"


def _levels(value: float | None) -> str:
    levels = 0.0 if value is None else 255 * 10 ** (-value / 20)
    return f"{_two_figures(levels)} of 255 grey levels"


def _two_figures(value: float) -> str:
    return f"{value:.2g}" if value < 99.5 else f"{value:.0f}"
