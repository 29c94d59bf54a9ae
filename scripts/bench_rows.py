"""Rows of a bench in one JSON: labelled, resumable, and out of date where the sources behind them have changed."""

import fcntl
import json
import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from provenance import digest_of_model, digest_of_sources, sources_behind

ROOT = Path(__file__).parents[1]


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
