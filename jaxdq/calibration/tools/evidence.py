"""Observer states of every quantized activation at every step, and the grids that follow for any groups of steps.

Evidence is kept by the name of the array. A plan's columns are looked up by that name, so that a plan that changes
after the fact, such as one with other bits, finds its arrays or is refused.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdq import diffusion
from jaxdq._common.devices import gather, replicate, replicated
from jaxdq._common.errors import InputError
from jaxdq._common.progress import track
from jaxdq.calibration._base import Work, kind
from jaxdq.calibration.tools.selection import Selection, counts_of
from jaxdq.grid import Scheme
from jaxdq.linen import Acts, apply_visited, on_pieces
from jaxdq.observers import Observer
from jaxdq.sampling import Batch, Trajectories, num_batches, one_pass


def indices(known: tuple[str, ...], wanted: tuple[str, ...], what: str) -> np.ndarray:
    """int[len(wanted)]: where each wanted array stands among the known ones.

    Raises:
        InputError: One that is not there, by name.
    """
    index = {name: position for position, name in enumerate(known)}
    for name in wanted:
        if name not in index:
            raise InputError(
                f"the plan quantizes the input of '{name}' and no {what} of it was taken; change the plan before it is "
                f"observed."
            )
    return np.array([index[name] for name in wanted], int)


@kind("ranges of activations", "observe(mse())")
class Evidence(NamedTuple):
    """What observers saw of every quantized activation at every step.

    Attributes:
        observer: Made the states, and turns them into grids.
        arrays: Names of the N arrays (`Plan.columns`).
        states: The observer's states on the host, each leaf with leading axes [S, N].
    """

    observer: Observer
    arrays: tuple[str, ...]
    states: Any

    def of(self, names: tuple[str, ...]) -> Any:
        """The states [S, A] of these arrays, in this order."""
        chosen = indices(self.arrays, names, "range")
        return jax.tree.map(lambda leaf: leaf[:, chosen], self.states)


class Ranges(NamedTuple):
    """What the activations spanned in the float model.

    Attributes:
        t: int32[S].
        low: f32[S, A], the smallest value at each step.
        high: f32[S, A], the largest.
    """

    t: np.ndarray
    low: np.ndarray
    high: np.ndarray


def observed_ranges(work: Work) -> Ranges | None:
    """The ranges by step of the plan's columns; None where nothing was observed, or by an observer without them."""
    evidence = work.facts.get(Evidence)
    if evidence is None or not work.plan.columns or not hasattr(evidence.states, "low"):
        return None
    states = evidence.of(names_of(work))
    return Ranges(work.data.t, np.asarray(states.low), np.asarray(states.high))


def names_of(work: Work) -> tuple[str, ...]:
    """The array of each of the plan's columns."""
    return tuple(name for name, _ in work.plan.columns)


def schemes_of(work: Work) -> tuple[Scheme, ...]:
    """The scheme of each of the plan's columns."""
    return tuple(scheme for _, scheme in work.plan.columns)


def gather_evidence(work: Work, observer: Observer, data: Trajectories | None = None) -> Evidence:
    """Runs an observer on every quantized array at every step, in one pass over states.

    Args:
        work: Work, for its float network and plan.
        observer: Such as `jaxdq.observers.minmax()`.
        data: The states that the network is shown, such as those that a quantized network walked through; None takes
            the float trajectories, of which the selected states are shown.

    Returns:
        Evidence. Steps of which no state was selected have that of the nearest step.

    Raises:
        InputError: An activation is NaN or infinite; the site and the time are named.
    """
    if data is not None:
        work = work._replace(problem=work.problem._replace(data=data))
        work = work._replace(facts={kind: fact for kind, fact in work.facts.items() if kind is not Selection})
    arrays, counts = tuple(dict.fromkeys(names_of(work))), counts_of(work)
    shape = (work.data.num_steps, len(arrays))
    states = jax.tree.map(lambda leaf: np.tile(leaf, (*shape, *(1,) * leaf.ndim)), jax.device_get(observer.init()))
    if arrays:
        states = _observed(work, observer, arrays, counts, states)
    seen = np.flatnonzero(counts)
    nearest = seen[np.argmin(np.abs(np.arange(len(counts))[:, None] - seen), axis=1)]
    evidence = Evidence(observer, arrays, jax.tree.map(lambda leaf: leaf[nearest], states))
    _refuse_non_finite(work, evidence)
    return evidence


def _observed(work: Work, observer: Observer, arrays: tuple[str, ...], counts: np.ndarray, states: Any) -> Any:
    module, (batch_size, mesh, _) = work.denoiser.module, work.machine
    column = {name: index for index, name in enumerate(arrays)}

    @functools.partial(jax.jit, donate_argnums=1, out_shardings=replicated(mesh))
    def update(params: object, states: object, batch: Batch) -> object:
        here = jax.tree.map(lambda leaf: leaf[batch.step], states)
        columns = {name: jax.tree.map(lambda leaf, i=i: leaf[i], here) for name, i in column.items()}

        def look(name: str, x: jax.Array) -> jax.Array:
            columns[name] = observer.update(columns[name], x)
            return x

        def visitor(name: str, x: jax.Array) -> jax.Array:
            on_pieces(columns, name, x, look)
            return x

        apply_visited(module, params, visitor, batch.x, batch.t, *batch.args)
        here = jax.tree.map(lambda *leaves: jnp.stack(leaves), *columns.values())
        return jax.tree.map(lambda leaf, new: leaf.at[batch.step].set(new), states, here)

    params, states = replicate((work.denoiser.params, jax.tree.map(jnp.asarray, states)), mesh)
    batches = one_pass(work.denoiser, work.data, batch_size, counts, mesh=mesh)
    for batch in track(batches, "observe ranges", total=num_batches(counts, batch_size, mesh)):
        states = update(params, states, batch)
    return jax.device_get(gather(states, mesh))


def _refuse_non_finite(work: Work, evidence: Evidence) -> None:
    if not evidence.arrays:
        return
    scale = np.asarray(grids_by_step(evidence, names_of(work), schemes_of(work)))
    for step, column in np.argwhere(~np.isfinite(scale))[:1]:
        raise InputError(
            f"the input of '{names_of(work)[column]}' holds NaN or infinity at t = {work.data.t[step]} in the float "
            f"model; check the model's weights and its schedule before quantizing it."
        )


def grids_by_step(evidence: Evidence, names: tuple[str, ...], schemes: tuple[Scheme, ...]) -> jax.Array:
    """f32[S, A]: the scale that the observer would choose for every step alone."""
    return jax.jit(lambda states: tables_of(evidence.observer, states, schemes)[0])(evidence.of(names))


def share(work: Work, group_of_step: np.ndarray, num_groups: int) -> Work:
    """Gives every group one grid per activation, fitted to the union of what its steps saw.

    Args:
        work: With evidence.
        group_of_step: int[S], the partition of the steps. Every group that occurs holds at least one step.
        num_groups: G.

    Returns:
        Work with activations' grids.

    Raises:
        InputError: No evidence yet.
    """
    evidence, schemes = work.fact(Evidence), schemes_of(work)
    if not schemes:
        empty = np.ones((num_groups, 0)), np.zeros((num_groups, 0))
        return with_acts(work, group_of_step, *empty)
    # Where an array is the same at every step, all steps are the first group's.
    same = np.isin(np.arange(len(schemes)), work.plan.step_invariant_columns)
    group_of_column = np.where(same, 0, np.asarray(group_of_step, np.int32)[:, None])

    @jax.jit
    def tables(states: Any, group_of_column: Any) -> tuple[jax.Array, jax.Array]:
        merged = _merge_by_group(evidence.observer, states, group_of_column, num_groups)
        return tables_of(evidence.observer, merged, schemes)

    return with_acts(work, group_of_step, *tables(evidence.of(names_of(work)), group_of_column))


def with_acts(work: Work, group_of_step: np.ndarray, scale: Any, zero_point: Any) -> Work:
    """Work with these grids of the plan's columns and this partition of the sampler's steps.

    Where an array is the same at every step, all groups take the grid of the first.

    Args:
        work: What is known so far.
        group_of_step: int[S].
        scale: f32[G, A].
        zero_point: int32[G, A].
    """
    t, first = np.unique(work.data.t, return_index=True)  # a sampler may call the network twice at one time
    group_of_t = diffusion.groups_of_steps(t, np.asarray(group_of_step)[first], work.denoiser.schedule.num_timesteps)
    same = np.isin(np.arange(scale.shape[1]), work.plan.step_invariant_columns)
    scale, zero_point = (np.where(same, rows[:1], rows) for rows in map(np.asarray, (scale, zero_point)))
    grids = jnp.asarray(np.float32(scale)), jnp.asarray(np.int32(zero_point))
    return work.deciding(acts=Acts(*grids, jnp.asarray(np.int32(group_of_t)), work.plan.columns))


def group_of_step(work: Work) -> np.ndarray:
    """int[S]: the group of each of the sampler's steps."""
    return np.asarray(work.acts.group_of_t)[np.round(work.data.t).astype(int)]


def tables_of(observer: Observer, states: Any, schemes: tuple[Scheme, ...]) -> tuple[jax.Array, jax.Array]:
    """(f32[R, A], int32[R, A]): the grids that the observer makes of states with leading axes [R, A]."""
    num_rows = jax.tree.leaves(states)[0].shape[0]
    scale = jnp.ones((num_rows, len(schemes)), jnp.float32)
    zero_point = jnp.zeros((num_rows, len(schemes)), jnp.int32)
    for scheme in dict.fromkeys(schemes):
        columns = np.flatnonzero([other == scheme for other in schemes])
        of_row = jax.vmap(lambda state, scheme=scheme: observer.qparams(state, scheme))
        # Row by row: of two batch axes XLA:CPU makes a loop that takes three times as long.
        qparams = jax.lax.map(of_row, jax.tree.map(lambda leaf, columns=columns: leaf[:, columns], states))
        scale = scale.at[:, columns].set(qparams.scale)
        if qparams.zero_point is not None:
            zero_point = zero_point.at[:, columns].set(qparams.zero_point)
    return scale, zero_point


def _merge_by_group(observer: Observer, states: Any, group_of_column: jax.Array, num_groups: int) -> Any:
    """Observer states [G, A] from states [S, A]: each group's is the union of its steps', a column at a time."""
    num_columns = group_of_column.shape[1]
    empty = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (num_columns, num_groups, *leaf.shape)), observer.init())

    def add(groups_of_column: Any, group: jax.Array, state: Any) -> Any:
        merged = observer.merge(jax.tree.map(lambda leaf: leaf[group], groups_of_column), state)
        return jax.tree.map(lambda leaf, new: leaf.at[group].set(new), groups_of_column, merged)

    def body(merged: Any, step: tuple[jax.Array, Any]) -> tuple[Any, None]:
        return jax.vmap(add)(merged, *step), None

    merged, _ = jax.lax.scan(body, empty, (group_of_column, states))
    return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), merged)
