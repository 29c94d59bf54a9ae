"""Reading small files of someone else: bounded before anything is read, whatever stands at the path."""

import json
import stat
from typing import Any

MOST_BYTES = 64_000_000  # of a text: the largest that we know, a plan of a thousand layers, has some hundred kilobytes


def read_text(path: Any, *, encoding: str = "utf-8", most: int = MOST_BYTES) -> str:
    """The text in a file.

    Args:
        path: A local path, or one of `etils.epath`.
        encoding: Of the text.
        most: Bytes beyond which it is none of ours.

    Raises:
        OSError: No file, or no regular one: a device such as /dev/zero has no end, and a pipe waits for ever.
        ValueError: More bytes, or no text in this encoding.
    """
    found = path.stat()
    mode = getattr(found, "st_mode", None)  # remote stores have sizes alone
    if mode is not None and not stat.S_ISREG(mode):
        raise OSError("it is no regular file")
    size = found.st_size if mode is not None else found.length
    if size > most:
        raise ValueError(f"it has {size:,} bytes, and at most {most:,} are read")
    return path.read_text(encoding=encoding)


def read_json_values(path: Any, *, most: int = MOST_BYTES) -> Any:
    """What JSON a file holds; errors as of `read_text`, ValueError for what is no JSON or nested without end."""
    return parse_json(read_text(path, most=most))


def parse_json(text: str) -> Any:
    """The values of a JSON text.

    Raises:
        ValueError: No JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
