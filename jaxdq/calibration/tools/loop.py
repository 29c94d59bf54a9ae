"""The one loop that learns: a jitted update, progress, a guard against NaN, and a state on disk to resume from."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jaxdq._common.devices import gather, is_first_process, is_same_everywhere, replicate, replicated
from jaxdq._common.errors import InputError
from jaxdq._common.progress import track
from jaxdq.checkpoint import has_state, restore_state, save_state

SAVE_EVERY = 20


class History(NamedTuple):
    """What a log says of a loop: the same, whether it ran in one go or was killed and went on.

    Attributes:
        infos: What each update returned beside the state, on the host.
        errors: What the judge said, before the first update and at each question; empty without one.
    """

    infos: list[Any]
    errors: list[float]


def learn(
    update: Callable[[Any, Any], tuple[Any, Any]],
    state: Any,
    batch_of: Callable[[int], Any],
    num_updates: int,
    *,
    label: str,
    checkpoint: str | os.PathLike[str] | None = None,
    judge: Callable[[Any], float] | None = None,
    judge_every: int = SAVE_EVERY,
    explain: Callable[[Any, Any], str] | None = None,
    mesh: Mesh | None = None,
) -> tuple[Any, History]:
    """Runs `state, info = update(state, batch_of(i))` for i in 0..num_updates-1.

    Args:
        update: Pure; jitted here, and traced once.
        state: The initial state, a pytree of arrays.
        batch_of: The i-th batch; a function of i alone, so that a resumed run sees what an unbroken one saw.
        num_updates: How many.
        label: Label of the progress bar.
        checkpoint: A folder in which the state is kept every few updates; an earlier state there is continued, and
            ends in the same bits.
        judge: `state -> error` on the host, asked before the first update, after every `judge_every` and after the
            last; the state of least error is returned. None takes the last.
        judge_every: Updates between two questions.
        explain: `(state, batch) -> where it began`, asked on the host when an update has made NaN, with what went in.
        mesh: On which batches lie; the state is replicated over it. Of several processes the first one writes.

    Returns:
        The last state, or the best one, and the history of all updates, those before a kill among them.

    Raises:
        InputError: An info that is NaN or infinite, or a state that is NaN where it would be kept or returned: the
            update and the quantity are named. The state on disk is the last good one. Processes that don't find the
            same state on disk.
    """
    jitted = jax.jit(update, out_shardings=replicated(mesh))
    start, (state, best, least), kept = _begun(state, judge, checkpoint)
    if start > num_updates:
        raise InputError(
            f"the state in '{checkpoint}' has seen {start} updates of '{label}' and {num_updates} were asked for; "
            f"remove the folder to start anew."
        )
    if checkpoint is not None and not is_same_everywhere(start, mesh):
        raise InputError(
            f"the processes found different states in '{checkpoint}'; put the folder on a disk that all of them share."
        )
    errors = [float(error) for error in kept.get("errors", ())]
    state, infos = replicate(state, mesh), list[Any]()
    for index in track(range(start, num_updates), label):
        before, batch = state, batch_of(index)
        state, info = jitted(before, batch)
        infos.append(jax.device_get(info))
        is_kept = (index + 1) % SAVE_EVERY == 0 or index + 1 == num_updates
        broken = _broken(infos[-1], state if is_kept else None)
        if broken is not None:
            what = f"'{broken}'" if broken else "the loss"
            where = "" if explain is None else f" ({explain(*gather((before, batch), mesh))})"
            raise InputError(
                f"{what} became NaN or infinite in update {index} of '{label}'{where}; lower the learning rate, or "
                f"look at the ranges of the calibration that it started from."
            )
        if judge is not None and ((index + 1) % judge_every == 0 or index + 1 == num_updates):
            here = gather(state, mesh)
            errors.append(judge(here))
            best, least = (here, np.float32(errors[-1])) if np.float32(errors[-1]) < least else (best, least)
        if checkpoint is not None and (index + 1) % SAVE_EVERY == 0 and is_first_process():
            history = _columns_of(infos, kept) | ({"errors": np.array(errors)} if errors else {})
            save_state(checkpoint, index + 1, state if judge is None else (state, best, least), history)
    if start:  # where nothing was left to do, nothing has shown what an info looks like
        like = infos[0] if infos else jitted.eval_shape(state, batch_of(start - 1))[1]
        leaves, structure = jax.tree.flatten(like)
        columns = [kept[_INFO.format(index)] for index in range(len(leaves))]
        infos = [jax.tree.unflatten(structure, row) for row in zip(*columns, strict=True)] + infos
    return gather(state, mesh) if judge is None else best, History(infos, errors)


_INFO = "info {}"  # name of a leaf of all infos, [updates, ...]


def _columns_of(infos: list[Any], kept: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The leaves of infos, a row for each update, those that were kept before first."""
    columns = {_INFO.format(index): rows for index, rows in enumerate(zip(*map(jax.tree.leaves, infos), strict=True))}
    return {
        name: np.concatenate([kept[name], np.stack(rows)] if name in kept else [np.stack(rows)])
        for name, rows in columns.items()
    }


def _begun(
    state: Any, judge: Callable[[Any], float] | None, checkpoint: str | os.PathLike[str] | None
) -> tuple[int, tuple[Any, Any, np.float32], dict[str, np.ndarray]]:
    """Updates seen, (the state, the best one, its error) and the history, from disk where there is one.

    Infinity is no error yet.
    """
    infinite = np.float32(np.inf)  # float32, as it comes back from disk
    if checkpoint is not None and has_state(checkpoint):
        start, found, history = restore_state(checkpoint, state if judge is None else (state, state, infinite))
        return start, (found, found, infinite) if judge is None else found, history
    if judge is None:
        return 0, (state, state, infinite), {}
    error = judge(state)
    return 0, (state, state, np.float32(error)), {"errors": np.array([error])}


def _broken(info: Any, state: Any) -> str | None:
    """What became NaN or infinite in an update, or in the state that is kept after it (None is none).

    A gradient can be NaN where its loss is a number. Infinity may be meant in a state, such as a best loss so far.
    """
    broken = _first(info, lambda leaf: ~np.isfinite(leaf))
    return _first(jax.device_get(state), np.isnan) if broken is None else broken  # "" names an info that is one number


def _first(tree: Any, is_bad: Callable[[Any], Any]) -> str | None:
    """The path of the first leaf that holds anything bad."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if is_bad(leaf).any():
            return jax.tree_util.keystr(path, simple=True, separator="/")
    return None
