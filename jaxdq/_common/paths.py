"""What a path means, decided once: a local folder, or a place elsewhere that etils.epath (as used by Orbax) can reach.

A path elsewhere is a *remote* path: an object with pathlib's methods. Nothing is built there: folders are made on this
machine and copied, so that a scheme needs no more than reading, writing and listing files.
"""

import contextlib
import os
import re
import shutil
import tempfile
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxdq._common.errors import InputError

# One slash is enough: pathlib makes "gs:/bucket" of "gs://bucket". A single letter is a Windows drive.
_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(?:/.*)?", re.DOTALL)
_PACKAGES = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs", "hf": "huggingface_hub"}


def path_of(path: Any) -> Any:
    """The path that a person means.

    Args:
        path: Text or an `os.PathLike`: a local path, one that begins with `~`, a `file://` URI, or a URI of a scheme
            that `etils.epath` knows (gs, s3, az, hf, and whatever was registered there).

    Returns:
        pathlib.Path of a local path; the object of `etils.epath` of a remote one.

    Raises:
        InputError: No path, a user without a home, a scheme that isn't known, or a URI that names no folder.

    Example:
        >>> path_of("file:///tmp/out")
        PosixPath('/tmp/out')
    """
    text = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(text, str) or not text or "\0" in text:
        raise InputError(f"the path is {path!r:.60}; give text or a pathlib.Path that names a folder or file.")
    if _URI.fullmatch(text):
        return _from_uri(text)
    if text.startswith("~"):
        expanded = os.path.expanduser(text)
        if expanded.startswith("~"):
            raise InputError(f"'{text}' begins with a user who has no home here; write the whole path.")
        text = expanded
    try:
        Path(text).exists()
    except OSError as error:
        raise InputError(f"'{text}' can't be a path here ({error.strerror}); choose another.") from None
    return Path(text)


def local_path(path: Any) -> Path:
    """`path_of`, where only a place on this machine will do.

    Raises:
        InputError: As `path_of`; or the path is remote.
    """
    found = path_of(path)
    if is_remote(found):
        raise InputError(
            f"'{found}' is not on this machine; give a local path, and copy the folder before or afterwards (only "
            f"checkpoints are read and written elsewhere: jaxdq.save, jaxdq.restore and checkpoint_dir)."
        )
    return found


def user_cache() -> Path:
    """Where jaxdq keeps what it can make again: `JAXDQ_CACHE`, else its folder in the user's cache.

    Raises:
        RuntimeError: A user without a home.
    """
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("JAXDQ_CACHE") or Path(base) / "jaxdq")


def is_remote(path: Any) -> bool:
    """Whether a path that `path_of` returned is not on this machine."""
    # By its exact class: those registered with epath may be subclasses of pathlib's.
    return type(path) is not type(Path())


@contextlib.contextmanager
def reaching(path: Any) -> Iterator[None]:
    """Turn whatever the library of a remote path raises into one sentence; a local path's errors stay as they are."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if not is_remote(path):
            raise
        scheme = str(path).partition(":")[0]
        package = f"install {_PACKAGES[scheme]} and " if scheme in _PACKAGES else ""
        reason = next(iter(str(error).strip().splitlines()), "").rstrip(".:; ")
        raise InputError(
            f"'{path}' can't be read or written ({type(error).__name__}: {reason}); {package}check your access to it, "
            f"or give a local folder."
        ) from error


def upload(folder: Path, to: Any, *, last: str) -> None:
    """Copy a local folder to a remote place, in place of what is there.

    Args:
        folder: Local.
        to: Remote. What stands there is removed first, and what was copied is removed if the copy fails.
        last: The file to copy when all others are there: without it the copy is not whole.
    """
    files = sorted(file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    try:
        remove(to)
        for name in sorted(files, key=lambda name: name.as_posix() == last):
            target = to.joinpath(*name.parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            copy_file(folder / name, target)
    except BaseException:
        with contextlib.suppress(Exception):
            remove(to)
        raise


def upload_as_one_file(folder: Path, to: Any) -> None:
    """Copy a local folder to a remote place as one zip file, which takes the old one's place in one move."""
    part = to.with_name(f".{to.name}.{os.getpid()}.part")
    with tempfile.TemporaryDirectory(prefix="jaxdq-") as here:
        archive = shutil.make_archive(str(Path(here) / "folder"), "zip", folder)
        to.parent.mkdir(parents=True, exist_ok=True)
        try:
            copy_file(Path(archive), part)
            part.replace(to)
        finally:
            with contextlib.suppress(Exception):
                remove(part)


@contextlib.contextmanager
def at_hand(place: Any) -> Iterator[Path]:
    """A local folder with what is at a place: the place itself, or a copy that is gone afterwards.

    Args:
        place: Result of `path_of`; a remote one is a folder, or what `upload_as_one_file` wrote.

    Yields:
        The folder; if there is nothing at the place, it does not exist.
    """
    if not is_remote(place):
        yield place
        return
    with tempfile.TemporaryDirectory(prefix="jaxdq-") as here:
        copy, archive = Path(here) / "copy", Path(here) / "copy.zip"
        with reaching(place):
            if place.is_dir():
                _download(place, copy)
            elif place.exists():
                copy_file(place, archive)
                shutil.unpack_archive(archive, copy)
        yield copy


def _download(place: Any, folder: Path) -> None:
    """Copy a remote folder to a local one that does not exist yet."""
    folder.mkdir()
    for child in place.iterdir():
        if child.name and child != place:  # some stores list a folder among its own files
            (_download if child.is_dir() else copy_file)(child, folder / child.name)


def copy_file(source: Any, target: Any) -> None:
    """Copy one file, between machines too."""
    with source.open("rb") as reader, target.open("wb") as writer:
        shutil.copyfileobj(reader, writer)


def remove(path: Any) -> None:
    """Remove a remote file or folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path) if isinstance(path, Path) else path.rmtree()
    elif path.exists():
        path.unlink()


def _from_uri(text: str) -> Any:
    scheme, rest = text.split(":", 1)
    scheme = scheme.lower()
    if scheme == "file":
        return _from_file_uri(text, rest)
    from etils import epath

    rest = rest.lstrip("/")
    try:
        found = epath.Path(f"{scheme}://{rest}")
    except KeyError:  # what it has no class for
        raise InputError(
            f"'{text}' has the scheme '{scheme}', and jaxdq reads local paths, file:// and what etils.epath knows "
            f"({', '.join(_PACKAGES)}); give one of those."
        ) from None
    if not rest:
        raise InputError(f"'{text}' names no folder; give {scheme}://BUCKET/FOLDER.")
    return found


def _from_file_uri(text: str, rest: str) -> Path:
    host, path = "", rest
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        path = slash + path
    if host not in ("", "localhost") or not path.strip("/"):
        raise InputError(f"'{text}' names no folder of this machine; give file:///FOLDER, with three slashes.")
    return path_of(urllib.parse.unquote(path))
