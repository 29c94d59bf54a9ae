"""Calibrators that choose which steps share a grid, and the grid that costs the image least."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdq._common.devices import replicate
from jaxdq._common.errors import InputError
from jaxdq.calibration._base import Run, Work, calibrator, check_at_least, check_not_negative
from jaxdq.calibration.tools.boundaries import move_boundaries
from jaxdq.calibration.tools.evidence import Evidence, names_of, with_acts
from jaxdq.calibration.tools.loop import learn
from jaxdq.calibration.tools.propagation import Sensitivity
from jaxdq.calibration.tools.proxy import Proxy, best_contiguous, build_proxy, without_empty_groups
from jaxdq.calibration.tools.relaxation import SearchInfo, SearchState, initial_logits, make_update, relative_table
from jaxdq.calibration.tools.rows import image_error
from jaxdq.calibration.tools.selection import check_groups_fit, equal_spans
from jaxdq.grid import Grid
from jaxdq.linen import Acts
from jaxdq.observers import HistogramState


@dataclasses.dataclass(frozen=True)
class SearchSettings:
    """How the search runs; the paper's values where it states them.

    Attributes:
        num_updates: Number of updates of the logits.
        learning_rate: Adam's (the public code of the paper has 0.05 and decays weights, which keeps rows undecided).
        entropy: Strength of the entropy term at the end (1 in the paper's public code, there without annealing).
        moves: Partitions that are tried by their images in the end, each with one boundary moved. The discretisation
            error can't judge them: it adds up errors as if they were independent of one another, and nine tenths of an
            image's error is what the errors of all steps have in common.
    """

    num_updates: int = 60
    learning_rate: float = 0.2
    entropy: float = 0.1
    moves: int = 12

    def __post_init__(self) -> None:
        check_at_least(1, num_updates=self.num_updates)
        check_at_least(0, moves=self.moves)
        check_not_negative(learning_rate=self.learning_rate, entropy=self.entropy)


_SEARCH = SearchSettings()


def price(work: Work) -> Proxy:
    """The discretisation errors of candidate grids, at what they cost the image."""
    evidence = work.fact(Evidence)
    if not isinstance(evidence.states, HistogramState):
        raise InputError(
            "ranges were observed and no histograms; put observe(mse()) before this calibrator in the recipe."
        )
    return build_proxy(evidence, work.fact(Sensitivity).of(names_of(work)), work.plan.columns)


@calibrator(needs=(Evidence, Sensitivity), gives=(Acts,))
def share_by_price(num_groups: int) -> Run:
    """Equal spans of the steps, each activation's grid the one of least propagated error in its group.

    Unlike `share_uniformly`, whose grids are the observer's own and ignore what an error costs.
    """

    def run(work: Work, key: jax.Array) -> Work:
        check_groups_fit(work, num_groups)
        proxy = price(work)
        return _shared(work, proxy, equal_spans(work.data.num_steps, num_groups), num_groups)

    return run


@calibrator(needs=(Evidence, Sensitivity), gives=(Acts,))
def share_optimally(num_groups: int) -> Run:
    """The best contiguous partition for the discretisation error, by dynamic programming: the search's yardstick."""

    def run(work: Work, key: jax.Array) -> Work:
        check_groups_fit(work, num_groups)
        proxy = price(work)
        group_of_step, _ = best_contiguous(proxy, num_groups)
        return _shared(work, proxy, group_of_step, num_groups)

    return run


@calibrator(needs=(Grid, Evidence, Sensitivity), gives=(Acts,))
def search_groups(num_groups: int, settings: SearchSettings = _SEARCH) -> Run:
    """ADP-DM's differentiable search of the groups (see `tools.relaxation` for its equations).

    The logits become a partition by argmax, in which a group that no step chose takes a part of another;
    grids are refitted to the union of each group's steps; and the result is kept only if images drawn on the integer
    path, from noise that nothing was learned from, come closer to the float ones than with equal spans. From the better
    of the two, boundaries are then moved one at a time, where that brings those images closer still
    (`move_boundaries`).

    Args:
        num_groups: G.
        settings: Settings of the search.

    Returns:
        A calibrator that fits the activations' grids; needs histograms as evidence.

    Raises:
        InputError: More groups than steps.

    Source: arXiv 2305.18723, with these deviations: one bank per tensor, so that integer dots can run it (the public
    code's ranges differ by input channel); the discretisation error, weighted by what it costs the image, in place of
    the noise prediction's, which made the result worse; in the end a choice, by argmax of rows that the entropy term
    has made nearly one-hot (there, a mixture remains); an acceptance test by images, and boundaries that are moved by
    it.
    """

    def run(work: Work, key: jax.Array) -> Work:
        num_steps = work.data.num_steps
        check_groups_fit(work, num_groups)
        proxy = price(work)
        uniform = equal_spans(num_steps, num_groups)
        if num_groups == 1 or not work.plan.columns:
            return _shared(work, proxy, uniform, num_groups)
        logits, infos = _search(work, proxy, num_groups, settings, key)
        group_of_step = without_empty_groups(proxy, np.argmax(logits, axis=1), num_groups)
        partitions = {"equal spans": uniform, "search": group_of_step}

        def error_of(groups: np.ndarray) -> float:
            return image_error(_shared(work, proxy, groups, num_groups))

        tried = {name: error_of(groups) for name, groups in partitions.items()}
        kept = "search" if tried["search"] <= tried["equal spans"] else "equal spans"
        moved, error = move_boundaries(partitions[kept], tried[kept], error_of, settings.moves)
        if error < tried[kept]:
            kept, tried["moved"], partitions["moved"] = "moved", error, moved
        log = {
            "tried": tried,
            "kept": kept,
            "proxy": {
                "one group": proxy.cost(np.zeros(num_steps, int)),
                "equal spans": proxy.cost(uniform),
                "dynamic programming": best_contiguous(proxy, num_groups)[1],
                "search": proxy.cost(group_of_step),
            },
            "updates": {name: [float(getattr(info, name)) for info in infos] for name in SearchInfo._fields},
        }
        return _shared(work, proxy, partitions[kept], num_groups).logging("search_groups", log)

    return run


def _shared(work: Work, proxy: Proxy, group_of_step: np.ndarray, num_groups: int) -> Work:
    scale, zero_point = proxy.grids(group_of_step, num_groups)
    return with_acts(work, group_of_step, scale, zero_point)


def _search(
    work: Work, proxy: Proxy, num_groups: int, settings: SearchSettings, key: jax.Array
) -> tuple[np.ndarray, list[Any]]:
    optimizer, mesh = optax.adam(settings.learning_rate), work.machine.mesh
    logits = initial_logits(work.data.num_steps, num_groups, key)
    state = SearchState(logits, optimizer.init(logits), jnp.zeros((), jnp.int32))
    table = replicate(relative_table(proxy), mesh)
    state, history = learn(
        make_update(optimizer, settings.num_updates, settings.entropy),
        state,
        lambda index: table,
        settings.num_updates,
        label="search groups",
        checkpoint=work.machine.folder,
        mesh=mesh,
    )
    return np.asarray(state.logits), history.infos
