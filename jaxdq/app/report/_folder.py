"""A run folder is written whole or not at all."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from jaxdq._common.errors import InputError
from jaxdq._common.folders import building, check_place
from jaxdq.app.report._metrics import METRICS

QUANTIZED = "quantized"


def check_free(out: Path, *, overwrite: bool) -> None:
    """Refuses a place where something stands that a run must not replace.

    Args:
        out: Where the run is to go.
        overwrite: Whether an earlier run there may be replaced; nothing else ever is.

    Raises:
        InputError: A file, a mount point, a place that can't be written to, or a folder that holds anything else.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"'{out}' is a file; choose another folder for the run.")
    check_place(out)
    if not out.exists() or not any(out.iterdir()):
        return
    # --force on a mistyped folder must not cost a person their files: only a run is ever replaced.
    if overwrite and not ((out / METRICS).is_file() and (out / QUANTIZED).is_dir()):
        raise InputError(
            f"'{out}' holds something other than a run of jaxdq and is not replaced; choose another folder."
        )
    if not overwrite:
        raise InputError(f"'{out}' is not empty; choose another folder with --out, or replace the run with --force.")


@contextlib.contextmanager
def staged(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder beside `out` to build in: moved there at the end, removed if anything goes wrong.

    Args:
        out: As in `check_free`, which is called again at the end.
        overwrite: As in `check_free`.

    Yields:
        The folder to write to.

    Raises:
        InputError: No folder can be made there.
    """
    with building(out) as folder:
        yield folder
        check_free(out, overwrite=overwrite)  # again: minutes have passed
