"""Folders that are written whole or not at all: built beside their place, and moved there by two renames."""

import contextlib
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxdq._common.errors import InputError
from jaxdq._common.paths import is_remote, reaching, upload, upload_as_one_file


@contextlib.contextmanager
def building(path: Any, *, last: str = "", as_one_file: bool = False) -> Iterator[Path]:
    """A local folder to build in, which takes the place of `path` at the end; after an error `path` is as it was.

    Args:
        path: Result of `path_of`. A remote place is written once the folder is whole. Stores of objects can't rename a
            folder, so that the old one is removed first; a copy that fails is removed too.
        last: In a remote folder, the file that is copied last: without it the folder is not whole.
        as_one_file: A remote place holds a zip file, which replaces the old one in one move.

    Yields:
        The folder, which exists and is empty.

    Raises:
        InputError: No folder can be made there.
    """
    if is_remote(path):
        with tempfile.TemporaryDirectory(prefix="jaxdq-") as here:
            yield Path(here)
            with reaching(path):
                if as_one_file:
                    upload_as_one_file(Path(here), path)
                else:
                    upload(Path(here), path, last=last)
        return
    check_place(path)
    path = path.resolve()
    part = _part_of(path)
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"can't write beside '{path}' ({error.strerror}); choose another folder.") from None
    try:
        yield part
        _move_into_place(part, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def check_place(path: Any) -> None:
    """Refuse a local place to which no folder can be moved, before any work is done for it.

    Args:
        path: Result of `path_of`; what a remote one takes is only known when it is written.

    Raises:
        InputError: The current folder, a mount point, or a place below a file or a folder that can't be written to.
    """
    if is_remote(path):
        return
    if odd := sorted(set("[]\\") & set(str(path))):
        raise InputError(
            f"'{path}' holds {' and '.join(odd)}, which checkpoints can't be read back from; choose another."
        )
    whole = path.resolve()
    if whole == Path.cwd() or whole.is_mount():
        what = "the current folder" if whole == Path.cwd() else "a mount point"
        raise InputError(f"'{path}' is {what}, which can't be replaced; choose a folder inside it.")
    above = next(folder for folder in whole.parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        state = "can't be written to" if above.is_dir() else "is a file"
        raise InputError(f"can't write beside '{path}', because '{above}' {state}; choose another folder.")


def _part_of(path: Path) -> Path:
    """A name beside `path` for what is being built; leftovers of processes that were killed are removed."""
    for suffix in (".part", ".old"):
        for leftover in path.parent.glob(f".{glob.escape(path.name)}.*{suffix}"):
            pid = leftover.name.removeprefix(f".{path.name}.").removesuffix(suffix)
            if pid.isdigit() and not _is_alive(int(pid)):
                shutil.rmtree(leftover, ignore_errors=True)
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def _move_into_place(part: Path, path: Path) -> None:
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
