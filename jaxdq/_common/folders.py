"""Folders that are written whole or not at all: built beside their place, and moved there in one step.

Whoever builds holds a lock on what is being built, which ends with the process: names are random, and no process id
says who is alive.
"""

import contextlib
import ctypes
import errno
import glob
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxdq._common.errors import InputError
from jaxdq._common.paths import is_remote, reaching, upload, upload_as_one_file

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_PART, _OLD = ".part", ".old"
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ENAMETOOLONG)


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
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        recover(path)
        part = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=_PART, dir=path.parent))
    except OSError as error:
        raise InputError(f"can't write beside '{path}' ({error.strerror}); choose another folder.") from None
    try:
        part.chmod(0o777 & ~_umask())  # mkdtemp's own is for its owner alone
        with working_in(part), writing(path):
            yield part
            synced(part)
            move_into_place(part, path)
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


def check_room(path: Any, needed: int) -> None:
    """Refuses a local place on whose disk so much does not fit, before any work is done for it.

    Args:
        path: Result of `path_of`, or a path; what a remote store has room for is only known when it is written.
        needed: Bytes, at least.

    Raises:
        InputError: Says how much is needed and how much is free.
    """
    if is_remote(path):
        return
    there = next((folder for folder in (path, *path.resolve().parents) if folder.exists()), None)
    free = shutil.disk_usage(there).free if there is not None else needed
    if free < needed:
        raise InputError(
            f"'{path}' needs at least {needed / 1e6:,.1f} MB and the disk has {free / 1e6:,.1f} MB left; make room or "
            f"choose another place."
        )


def recover(path: Path) -> None:
    """Puts right what a process that was killed has left beside a place.

    What it was building is removed. Where it had moved the old folder away and not yet the new one in, the old one is
    put back: the last whole copy is never removed.
    """
    for leftover in sorted(path.parent.glob(f".{glob.escape(path.name)}.*{_OLD}")):
        if path.exists():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.rename(path)
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*{_PART}"):
        if not leftover.is_symlink() and not is_worked_in(leftover):
            shutil.rmtree(leftover, ignore_errors=True)


def move_into_place(part: Path, path: Path) -> None:
    """Puts the whole new folder in place of the old one: in one step where the system can, else in two.

    Between the two steps nothing stands at the place; `recover` puts the old one back.
    """
    if path.exists() and not path.is_symlink() and exchange(part, path):
        _sync(path.parent)
        return  # the old one is where the new one was built, and is removed with it
    retired = part.with_suffix(_OLD)
    if path.exists():
        path.rename(retired)
    try:
        part.rename(path)
    except BaseException:
        if retired.exists():
            retired.rename(path)
        raise
    _sync(path.parent)
    shutil.rmtree(retired, ignore_errors=True)


def exchange(one: Path, two: Path) -> bool:
    """Exchanges two folders in one step, which no kill can divide; False where the system can't."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):  # not Linux, or a C library without it
        return False
    at_cwd, exchanged = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return renameat2(at_cwd, os.fsencode(one), at_cwd, os.fsencode(two), exchanged) == 0


@contextlib.contextmanager
def working_in(folder: Path) -> Iterator[bool]:
    """Holds a folder while there is work in it; the hold ends with the process, however that ends.

    Yields:
        Whether it was free. Where the system has no locks, it always is.
    """
    if fcntl is None:
        yield True
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield _lock(descriptor)
    finally:
        os.close(descriptor)


def is_worked_in(folder: Path) -> bool:
    """Whether a process that is alive holds the folder."""
    try:
        with working_in(folder) as is_free:
            return not is_free
    except OSError:
        return False


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


@contextlib.contextmanager
def writing(path: Any) -> Iterator[None]:
    """Turns an error of the disk, however deep it comes from, into a sentence.

    Raises:
        InputError: The disk is full, a quota is used up, a file grew too large, or the disk can't be written to.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        fault = fault_of_disk(error)
        if not fault:
            raise
        raise InputError(
            f"'{_as_asked(path)}' can't be written ({fault}); make room or choose another place. What was there before "
            f"is as it was."
        ) from None


def _as_asked(path: Any) -> str:
    """The path as a person knows it: not that of the folder in which it is built."""
    return re.sub(rf"/\.([^/]+)\.[^/.]+\{_PART}(?=/|$)", r"/\1", str(path))


def fault_of_disk(error: BaseException | None) -> str:
    """What the disk says in an error or in those that led to it; "" where it is about something else."""
    seen = 0
    while error is not None and seen < 20:
        if isinstance(error, OSError) and error.errno in _DISK:
            return os.strerror(error.errno)
        # Libraries in C++ hand on the system's words alone.
        if found := next((os.strerror(code) for code in _DISK if os.strerror(code) in str(error)), ""):
            return found
        error, seen = error.__cause__ or error.__context__, seen + 1
    return ""


def synced(folder: Path) -> None:
    """Waits until a folder and all that is in it is on the disk, so that a power loss after its move loses nothing."""
    for path in (*folder.rglob("*"), folder):
        _sync(path)


def _sync(path: Path) -> None:
    if path.is_symlink():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that has none
            raise
    finally:
        os.close(descriptor)


def write_whole(path: Path, content: bytes) -> None:
    """Writes a local file whole or not at all; no link at a name beside it is followed."""
    descriptor, part = tempfile.mkstemp(prefix=f".{path.name}.", suffix=_PART, dir=path.parent)
    try:
        with writing(path), open(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        Path(part).chmod(0o666 & ~_umask())
        Path(part).replace(path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise
    _sync(path.parent)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def bytes_on_disk(folder: Path) -> int:
    """The lengths of all files in a folder and below, as a copy of it would need them."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@contextlib.contextmanager
def state_beside(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out` for what a calibration has learned; it outlives a run that was stopped."""
    state = out.resolve().with_name(f".{out.resolve().name}.state")
    was_there = state.exists()  # and may be another run's
    try:
        state.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"can't write beside '{out}' ({error.strerror}); choose another folder.") from None
    try:
        with working_in(state) as is_free:
            if not is_free:
                was_there = True
                raise InputError(f"another process is at work on '{out}'; wait for it, or choose another --out.")
            yield state
    except BaseException:
        if not was_there and not any(child.is_dir() for child in state.glob("*")):  # nothing was learned yet
            shutil.rmtree(state, ignore_errors=True)
        raise
    shutil.rmtree(state, ignore_errors=True)
