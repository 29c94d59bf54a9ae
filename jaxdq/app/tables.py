"""Tables for the terminal: runs side by side, and what would become of a model."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from jaxdq.app.conditions import num_classes
from jaxdq.app.inspection import Inspection
from jaxdq.app.report import nice_bytes
from jaxdq.app.settings import Settings
from jaxdq.models.text import GUIDANCE, TEXT_CONDITIONS

# (label, path in metrics.json, format) of the lines that summaries and comparisons show.
_LINES = (
    ("recipe", ("recipe",), "{}"),
    ("bits", ("weight_bits", "act_bits"), "W{}A{}"),
    ("time groups", ("groups",), "{}"),
    ("sampler", ("sampler", "steps"), "{} {}"),
    ("images, seed", ("images", "seed"), "{}, {}"),
    ("classes or prompts", ("conditions.total", "conditions.kind"), "{:,} {}"),
    ("images compared as", ("image_space",), "{}"),
    ("noise SQNR (dB), mean of steps", ("noise_sqnr_db.mean",), "{:.2f}"),
    ("  pooled over steps", ("noise_sqnr_pooled_db",), "{:.2f}"),
    ("image PSNR (dB), pooled", ("image_psnr_db",), "{:.2f}"),
    ("  median image", ("image_psnr_median_db",), "{:.2f}"),
    ("  mean of the worst 5%", ("image_psnr_worst5_db",), "{:.2f}"),
    ("  worst image", ("image_psnr_worst_db",), "{:.2f}"),
    ("image SSIM, mean and worst", ("image_ssim", "image_ssim_worst"), "{:.3f}, {:.3f}"),
    ("LPIPS, mean and worst", ("lpips", "lpips_worst"), "{:.4f}, {:.4f}"),
    ("  of other noise", ("lpips_float_floor",), "{:.4f}"),
    ("Fréchet distance, same noise", ("fd_to_float",), "{:.4g}"),
    ("  quantized, other noise", ("fd_other_noise",), "{:.4g}"),
    ("  float, other noise", ("fd_float_floor",), "{:.4g}"),
    ("weights, float (kB)", ("weight_bytes.float",), "{:,.1f}"),
    ("weights, quantized (kB)", ("weight_bytes.quantized",), "{:,.1f}"),
    ("  its files (kB)", ("weight_bytes.disk",), "{:,.1f}"),
    ("integer sites", ("sites.integer", "sites.total"), "{} of {}"),
    ("integer arithmetic", ("integer_mac_fraction",), "{:.1%}"),
)
_ASKED_FOR = ("lpips", "lpips_float_floor")  # lines that no run has unless it was asked
_PATHS_SHOWN = 3
_PREDICTIONS = {
    "epsilon": "epsilon, the noise",
    "v_prediction": "v_prediction, the velocity",
    "sample": "sample, the clean image",
}
_IMAGE_CHANNELS = (1, 3)
_ABSENT = object()


def table_of_runs(runs: Sequence[Mapping[str, Any]], heads: Sequence[str]) -> Table:
    """The lines of `_LINES`, one column for each run.

    Args:
        runs: Contents of metrics.json.
        heads: What to call them.
    """
    table = Table(box=None, header_style="bold")
    table.add_column("", no_wrap=True)
    for head in heads:
        table.add_column(head, justify="right", overflow="fold")
    for label, paths, form in _LINES:
        cells = []
        for metrics in runs:
            values = [_at(metrics, path) for path in paths]
            missing = "exact" if "_db" in paths[0] and _ABSENT not in values else "-"
            cells.append(missing if None in values or _ABSENT in values else form.format(*values))
        if paths[0] not in _ASKED_FOR or set(cells) != {"-"}:
            table.add_row(label, *cells)
    return table


def _at(metrics: Mapping[str, Any], path: str) -> Any:
    """The value there; `_ABSENT` in the runs of earlier versions that lack it.

    None is a number that JSON does not have: two models that do not differ have infinitely many dB.
    """
    value: Any = metrics
    for key in path.split("."):
        value = value.get(key, _ABSENT) if isinstance(value, Mapping) else _ABSENT
    return value / 1000 if path.startswith("weight_bytes") and isinstance(value, int) else value


def tables_of_inspection(found: Inspection) -> Group:
    """What a model is, its bytes, its sites by how they run, and the float ones by reason."""
    parts = [_model_table(found), _bytes_table(found), _sites_table(found), _float_table(found)]
    return Group(*(Padding(part, (0, 0, 1, 0)) for part in parts))


def _model_table(found: Inspection) -> Table:
    schedule, files, module = found.denoiser.schedule, found.files, type(found.denoiser.module).__name__
    sides = " x ".join(map(str, found.denoiser.shape))
    steps = f"{schedule.num_timesteps} timesteps, predicts {_PREDICTIONS[schedule.prediction_type]}"
    rows = {
        "model": f"{found.denoiser.name} ({module}), {found.num_params:,} parameters",
        "draws": f"{'latents' if _draws_latents(found) else 'images'} {sides}",
        "takes": ", ".join(("x", "t", *found.takes)),
        "schedule": steps,
    }
    classes = num_classes(found.denoiser)
    if classes is not None:
        seen = [min(classes, count) for count in (Settings.calibration_images, Settings.images)]
        rows["classes"] = f"{classes:,}, 0 to {classes - 1}" + (
            f"; a run sees {seen[0]} in calibration and {seen[1]} in evaluation, spread over all by its seed"
            if min(seen) < classes
            else ""
        )
    elif found.denoiser.conditions:
        with_text = "encoder_hidden_states" in found.denoiser.condition_names
        others = [name for name in found.denoiser.condition_names if name not in (*TEXT_CONDITIONS, GUIDANCE)]
        rows |= {"prompts": "from a file, --prompts"} if with_text else {}
        rows |= {"conditions": f"{', '.join(others)}: from a file, --conditions"} if others else {}
    if found.denoiser.notes:
        rows["note"] = " ".join(found.denoiser.notes)
    if files is not None:
        rows["model"] = f"{found.denoiser.name} ({files.unet_class}), {found.num_params:,} parameters"
        rows["schedule"] = ", ".join(filter(None, (files.scheduler_class, files.beta_schedule, steps)))
        stored = files.weights
        rows["on disk"] = (
            files.no_weights
            if stored is None
            else f"{stored.file.name}, {' and '.join(stored.dtypes)}, {nice_bytes(stored.num_bytes)}"
        )
        if stored is not None and stored.misfit:
            rows["but"] = stored.misfit
        if files.parts:
            rows["beside it"] = f"{', '.join(files.parts)}: not quantized, not counted"
    table = Table(box=None, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in rows.items():
        table.add_row(label, value)
    return table


def _draws_latents(found: Inspection) -> bool:
    """Whether there is a decoder beside the network; where the files don't say, whether it draws what no image is."""
    if found.files is not None and any("Autoencoder" in part or "VQModel" in part for part in found.files.parts):
        return True
    return found.denoiser.schedule.clip_range is None and found.denoiser.shape[-1] not in _IMAGE_CHANNELS


def _bytes_table(found: Inspection) -> Table:
    sizes = {"float32": found.float32_bytes, **found.bytes_at}
    if found.files is not None and found.files.weights is not None:
        sizes = {"as stored": found.files.weights.num_bytes, **sizes}
    table = Table(box=None, header_style="bold")
    table.add_column("weights")
    for name in ("size", "bytes", "of float32"):
        table.add_column(name, justify="right")
    for label, size in sizes.items():
        table.add_row(label, nice_bytes(size), f"{size:,}", f"{size / found.float32_bytes:.3f}")
    return table


def _sites_table(found: Inspection) -> Table:
    plan = found.plan
    table = Table(box=None, header_style="bold", show_footer=True)
    table.add_column("runs as", "all", no_wrap=True)
    table.add_column("what, or why not", overflow="fold")
    table.add_column("sites", str(len(plan.sites)), justify="right")
    table.add_column("arithmetic", f"{sum(row.mac_fraction for row in found.site_rows()):.2%}", justify="right")
    for row in found.site_rows():
        table.add_row(row.runs_as, row.what, str(len(row.paths)), f"{row.mac_fraction:.2%}")
    table.caption = f"On integers: {plan.integer_mac_fraction:.2%} of the arithmetic" + (
        f"; {found.mac_fraction_with_products:.2%} if a rule switches the {found.num_products} products on."
        if found.mac_fraction_with_products > plan.integer_mac_fraction
        else "."
    )
    table.caption_justify = "left"
    return table


def _float_table(found: Inspection) -> Table:
    """The sites that do not run on integers, by name and reason, a few of each."""
    table = Table(box=None, header_style="bold")
    table.add_column("in float because")
    table.add_column("sites", overflow="fold")
    rows = [(row.what, row.paths) for row in found.site_rows() if not row.is_integer]
    reasons = dict.fromkeys(reason for *_, reason in found.plan.unplanned)  # a set that keeps its order
    rows += [(name, tuple(path for path, _, why in found.plan.unplanned if why == name)) for name in reasons]
    for reason, paths in rows:
        more = f"\nand {len(paths) - _PATHS_SHOWN} more" if len(paths) > _PATHS_SHOWN else ""
        table.add_row(reason, "\n".join(paths[:_PATHS_SHOWN]) + more)
    return table


def tables_of_bench(found: Mapping[str, Any]) -> Group:
    """One line for each variant: its time, how many times as fast as the baseline, what it needs; what time it is."""
    rows = found["rows"]
    table = _bench_table(f"{found['model']}, batch {found['batch_size']}, {found['how']} on {found['platform']}")
    for head in ("ms", "speed", "arguments", "temporaries", "integer, float dots"):
        table.add_column(head, justify="right")
    for name, row in rows.items():
        counts = row["contractions"]
        sizes = nice_bytes(row["argument_bytes"]), nice_bytes(row["temp_bytes"])
        dots = f"{counts['integer']}, {counts['float']}"
        table.add_row(name, _milliseconds(row["milliseconds"]), f"{row['ratio']:.2f}", *sizes, dots)
    table.caption, table.caption_justify = f"speed: times as fast as {found['baseline']}", "left"
    kinds = sorted({kind for row in rows.values() for kind in row.get("parts", ())})
    if not kinds:
        return Group(table)
    parts = _bench_table("of which, in ms")
    for kind in kinds:
        parts.add_column(kind, justify="right")
    for name, row in rows.items():
        cells = (row["parts"].get(kind) for kind in kinds)  # only integers on static grids look these up
        parts.add_row(name, *("-" if cell is None else _milliseconds(cell) for cell in cells))
    return Group(Padding(table, (0, 0, 1, 0)), parts)


def _bench_table(title: str) -> Table:
    table = Table(box=None, header_style="bold", title=escape(title), title_justify="left")
    table.add_column("", no_wrap=True)
    return table


def _milliseconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
