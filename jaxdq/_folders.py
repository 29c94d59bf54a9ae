"""Folders that are written whole or not at all: built beside their place, and moved there by two renames."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


def part_of(path: Path) -> Path:
    """A name beside `path` for what is being built; leftovers of processes that were killed are removed."""
    for suffix in (".part", ".old"):
        for leftover in path.parent.glob(f".{path.name}.*{suffix}"):
            pid = leftover.name.removeprefix(f".{path.name}.").removesuffix(suffix)
            if pid.isdigit() and not _is_alive(int(pid)):
                shutil.rmtree(leftover, ignore_errors=True)
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def move_into_place(part: Path, path: Path) -> None:
    """Puts the whole new folder in place of the old one, which is gone only once the new one stands."""
    retired = path.with_name(f".{path.name}.{os.getpid()}.old")
    if path.exists():
        path.rename(retired)
    try:
        part.rename(path)
    except BaseException:
        if retired.exists():
            retired.rename(path)
        raise
    shutil.rmtree(retired, ignore_errors=True)


def bytes_on_disk(folder: Path) -> int:
    """The lengths of all files in a folder and below, as a copy of it would need them."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextlib.contextmanager
def state_beside(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out` for what a calibration has learned; it outlives a run that was stopped."""
    state = out.resolve().with_name(f".{out.resolve().name}.state")
    was_there = state.exists()  # and may be another run's
    try:
        yield state
    except BaseException:
        if not was_there and not any(child.is_dir() for child in state.glob("*")):  # nothing was learned yet
            shutil.rmtree(state, ignore_errors=True)
        raise
    shutil.rmtree(state, ignore_errors=True)
