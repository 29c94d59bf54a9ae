"""Rows of a bench in one JSON: labelled, resumable, and out of date where the sources behind them have changed."""

import fcntl
import json
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from provenance import digest_of_model, digest_of_sources, sources_behind
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
# (figure of a row, head of its column, digits)
COLUMNS = (
    ("noise_sqnr_db", "noise SQNR (dB)", 2),
    ("noise_sqnr_pooled_db", "pooled", 2),
    ("image_psnr_db", "image PSNR (dB)", 2),
    ("image_psnr_median_db", "median", 2),
    ("image_psnr_worst5_db", "worst 5%", 2),
    ("fd_to_float", "Fréchet distance", 3),
    ("calibrate_seconds", "seconds", 0),
)


def digests_of(denoisers: Mapping[str, Any], *behind: Path) -> dict[str, dict[str, str]]:
    """Name of a model -> what its rows are known by: the sources behind them, and the model."""
    sources = digest_of_sources(ROOT, sources_behind(ROOT, *behind))
    return {name: {"sources": sources, "model": digest_of_model(found)} for name, found in denoisers.items()}


def is_fresh(rows: Mapping[str, dict], label: str, digest: Mapping[str, str]) -> bool:
    """Whether these sources and this model made the row; rows without a digest are of before there was one."""
    return rows.get(label, {}).get("digest") == digest


def read(path: Path) -> dict[str, dict]:
    """The rows by label."""
    return json.loads(path.read_text()) if path.exists() else {}


def add(path: Path, label: str, row: Mapping[str, Any], digest: Mapping[str, str]) -> None:
    """Puts a row beside those that are there by now; a kill leaves all of the file or that of before."""
    machine = f"{platform.machine()}, {os.cpu_count()} cores"  # learning amplifies how sums were rounded
    made = {**row, "digest": digest, "jax": jax.__version__, "machine": machine}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        part = path.with_suffix(".part")
        part.write_text(json.dumps({**read(path), label: made}, indent=1))
        part.replace(path)


def spread(values: Iterable[float]) -> tuple[float, float]:
    """The mean and the sample standard deviation, which is 0 of one value."""
    numbers = np.fromiter(values, float)
    return float(numbers.mean()), float(numbers.std(ddof=1)) if len(numbers) > 1 else 0.0


def in_figures(mean: float, deviation: float, digits: int) -> str:
    """`28.65 ± 0.20`; the deviation of one value is left out."""
    return f"{mean:,.{digits}f}" + (f" ± {deviation:.{digits}f}" if deviation else "")


def show(
    tasks: Sequence[Any], rows: Mapping[str, dict], digest_of: Callable[[Any], Mapping[str, str]], heads: Sequence[str]
) -> None:
    """Prints a table of each model, and how many of the rows are there.

    Args:
        tasks: Each with a `label`, a `model` and `heads`, which lines of the table have in common but for their seeds.
        rows: By label.
        digest_of: A task -> what its row must be known by.
        heads: Of the columns that a task's `heads` stand in.
    """
    fresh = [task for task in tasks if is_fresh(rows, task.label, digest_of(task))]
    for model in dict.fromkeys(task.model for task in tasks):
        table = Table(title=f"{model}: mean ± standard deviation over seeds", title_justify="left", box=None)
        for head in heads:
            table.add_column(head, no_wrap=True)
        for head in ("seeds", *(head for _, head, _ in COLUMNS)):
            table.add_column(head, no_wrap=True, justify="right")
        of_model = [task for task in fresh if task.model == model]
        for line in dict.fromkeys(task.heads for task in of_model):
            found = [rows[task.label] for task in of_model if task.heads == line]
            cells = [in_figures(*spread(row[figure] for row in found), digits) for figure, _, digits in COLUMNS]
            table.add_row(*line, str(len(found)), *cells)
        Console(width=160).print(table)
    stale = sum(task.label in rows for task in tasks) - len(fresh)
    print(f"{len(fresh)} of {len(tasks)} rows; {stale} more are stale: other sources or another model made them.")
