"""Progress of long work: one bar on a terminal, nothing elsewhere."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")

_console = Console(stderr=True)  # one for all, or bars within bars would draw over each other


def track(items: Sequence[T] | Iterable[T], label: str, *, total: int | None = None) -> Iterator[T]:
    """Yields the items, showing on a terminal's stderr how many are done and how long the rest will take.

    Args:
        items: What is worked through.
        label: What the work is, in a word or two.
        total: How many there are, where `len(items)` can't tell.
    """
    total = total if total is not None else len(items)  # type: ignore[arg-type]  # an iterable comes with its total
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=_console, transient=True, disable=not _console.is_terminal) as progress:
        task = progress.add_task(label, total=total)
        for item in items:
            yield item
            progress.advance(task)
