"""One sentence about the classes or prompts that a run covered."""

from collections.abc import Mapping, Sequence
from typing import Any

_SHOWN = 40


def seen(metrics: Mapping[str, Any]) -> str | None:
    """How many classes or prompts there are, and which of them the images had; None of unconditional models.

    Args:
        metrics: The contents of metrics.json.
    """
    found = metrics.get("conditions")
    if not found:
        return None
    phases = {"calibration": found.get("calibrated"), "evaluation": found.get("evaluated")}
    parts = [f"{_some(ids, found['total'])} in {phase}" for phase, ids in phases.items() if ids is not None]
    return f"Of {found['total']:,} {found['kind']}, {' and '.join(parts)}."


def spans(ids: Sequence[int]) -> str:
    """Sorted numbers, neighbours in spans.

    Example:
        >>> spans([0, 5, 6, 7, 9])
        '0, 5-7, 9'
    """
    ends: list[list[int]] = []
    for number in ids:
        if ends and number == ends[-1][1] + 1:
            ends[-1][1] = number
        else:
            ends.append([number, number])
    shown = [str(low) if low == high else f"{low}-{high}" for low, high in ends[:_SHOWN]]
    return ", ".join(shown) + (f" and {len(ends) - _SHOWN} more spans" if len(ends) > _SHOWN else "")


def _some(ids: Sequence[int], total: int) -> str:
    return "all were seen" if len(ids) == total else f"{len(ids):,} were seen ({spans(ids)})"
