"""The discretisation error of any partition, from a table: what a search can look up instead of running the network.

The table holds, for every step s, activation a and candidate grid c, the error that the values seen at s suffer on c,
times what an error there costs (`sensitivity`). The cost of a group is then a sum of rows and, for each activation, the
least entry:

    cost(group) = sum_a min_c sum_{s in group} table[s, a, c]

so that every partition of the steps can be priced, and the best contiguous one found by dynamic programming.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdq.calibration.tools.evidence import Evidence, tables_of
from jaxdq.grid import QParams, Scheme, fake_quantize
from jaxdq.linen import Column
from jaxdq.observers import points_and_shares

_MOST_SHORTEST_SPANS = 64


class Proxy(NamedTuple):
    """Errors of candidate grids.

    Attributes:
        table: f64[S, A, C], the weighted squared error of the values of step s on candidate c of activation a.
        scale: f32[C, A], the candidates.
        zero_point: int32[C, A].
    """

    table: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray

    def cost(self, group_of_step: np.ndarray) -> float:
        """The summed cost of a partition int[S]."""
        groups = (self.table[group_of_step == group] for group in np.unique(group_of_step))
        return float(sum(_cost_of_sums(table.sum(axis=0)) for table in groups))

    def grids(self, group_of_step: np.ndarray, num_groups: int) -> tuple[np.ndarray, np.ndarray]:
        """(f32[G, A], int32[G, A]): for each group and activation, the candidate of least summed error."""
        columns, rows = np.arange(self.table.shape[1]), []
        for group in range(num_groups):
            choice = self.table[group_of_step == group].sum(axis=0).argmin(axis=-1)
            rows.append((self.scale[choice, columns], self.zero_point[choice, columns]))
        scale, zero_point = zip(*rows, strict=True)
        return np.stack(scale), np.stack(zero_point)


def build_proxy(evidence: Evidence, weight: np.ndarray, columns: tuple[Column, ...]) -> Proxy:
    """Prices the grids that would be best for spans of steps, at every step.

    Candidates are the observer's own grids for each single step and for spans of 2, 4, 8, ... steps (overlapping by
    half), which hold those that any contiguous group would choose, or ones close to them. Of more than 64 steps the
    shortest spans are left out: the table would grow with the square of the steps, and neighbours differ little.

    Args:
        evidence: Histograms by step.
        weight: f64[S, A], from `sensitivity`, or ones.
        columns: The A activations and their schemes.

    Returns:
        Proxy.
    """
    num_steps = weight.shape[0]
    spans = _spans(num_steps)
    scale, zero_point = _candidates(evidence, spans, columns)
    table = errors_on(evidence, scale, zero_point, columns) * weight[:, :, None]
    return Proxy(table, scale, zero_point)


def errors_on(evidence: Evidence, scale: np.ndarray, zero_point: np.ndarray, columns: tuple[Column, ...]) -> np.ndarray:
    """f64[S, A, C]: mean squared error of what each step and activation saw on grids f32[C, A] and int32[C, A]."""
    schemes = [scheme for _, scheme in columns]
    errors = np.zeros((jax.tree.leaves(evidence.states)[0].shape[0], len(columns), len(scale)))
    for scheme in dict.fromkeys(schemes):
        chosen = np.flatnonzero([other == scheme for other in schemes])
        states = evidence.of(tuple(columns[index][0] for index in chosen))
        errors[:, chosen] = _errors(states, jnp.asarray(scale[:, chosen]), jnp.asarray(zero_point[:, chosen]), scheme)
    return errors


def best_contiguous(proxy: Proxy, num_groups: int) -> tuple[np.ndarray, float]:
    """The contiguous partition of least cost, by dynamic programming: O(S^2 A C) once, then O(S^2 G).

    `V_g(j) = min_i V_{g-1}(i) + cost(steps i..j-1)`.

    Returns:
        int[S], and its cost.
    """
    span_cost = _span_costs(proxy)
    num_steps = proxy.table.shape[0]
    best = span_cost[0].copy()  # of one group that ends before j
    choice = np.zeros((num_groups, num_steps + 1), int)
    for group in range(1, num_groups):
        through = best[:, None] + span_cost
        choice[group] = np.argmin(through, axis=0)
        best = np.min(through, axis=0)
    bounds = [num_steps]
    for group in range(num_groups - 1, 0, -1):
        bounds.append(int(choice[group, bounds[-1]]))
    starts = np.array(bounds[:0:-1], int)
    return np.searchsorted(starts, np.arange(num_steps), side="right"), float(best[num_steps])


def without_empty_groups(proxy: Proxy, group_of_step: np.ndarray, num_groups: int) -> np.ndarray:
    """The partition with every group in use: an empty one takes the later steps of the group that gains most by a cut.

    Args:
        proxy: Prices the cuts.
        group_of_step: int[S].
        num_groups: G <= S.

    Returns:
        int[S]; nothing changes where no group is empty, and the cost never rises.
    """
    group_of_step = group_of_step.copy()
    for empty in np.setdiff1d(np.arange(num_groups), group_of_step):
        cuts = []
        for group in np.unique(group_of_step):
            steps = np.flatnonzero(group_of_step == group)
            before = np.cumsum(proxy.table[steps], axis=0)
            apart = _cost_of_sums(before[:-1]) + _cost_of_sums(before[-1] - before[:-1])
            gain = _cost_of_sums(before[-1]) - apart
            cuts += [(gain[index], steps[index + 1 :]) for index in range(len(gain))]
        _, later = max(cuts, key=lambda cut: cut[0])
        group_of_step[later] = empty
    return group_of_step


def _cost_of_sums(table: np.ndarray) -> np.ndarray:
    """f64[...]: what summed tables f64[..., A, C] cost where each activation takes its best candidate."""
    return table.min(axis=-1).sum(axis=-1)


def _span_costs(proxy: Proxy) -> np.ndarray:
    """f64[S + 1, S + 1]: the cost of steps i..j-1 as one group; infinite where empty."""
    num_steps = proxy.table.shape[0]
    cost = np.full((num_steps + 1, num_steps + 1), np.inf)
    for start in range(num_steps):
        summed = np.cumsum(proxy.table[start:], axis=0)
        cost[start, start + 1 :] = _cost_of_sums(summed)
    return cost


def _spans(num_steps: int) -> list[tuple[int, int]]:
    length = 1
    while num_steps > _MOST_SHORTEST_SPANS * length:
        length *= 2
    spans = [(step, min(step + length, num_steps)) for step in range(0, num_steps, length)]
    while length < num_steps:
        length *= 2
        starts = range(0, max(1, num_steps - length // 2), length // 2)
        spans += [(start, min(start + length, num_steps)) for start in starts]
    return list(dict.fromkeys(spans))


def _candidates(
    evidence: Evidence, spans: list[tuple[int, int]], columns: tuple[Column, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """(f32[C, A], int32[C, A]): the observer's grids for these spans."""
    observer, schemes = evidence.observer, tuple(scheme for _, scheme in columns)

    @jax.jit
    def tables(states: Any, spans: jax.Array) -> tuple[jax.Array, jax.Array]:
        def of_span(span: jax.Array) -> tuple[jax.Array, jax.Array]:
            def add(step: jax.Array, union: Any) -> Any:
                return jax.vmap(observer.merge)(union, jax.tree.map(lambda leaf: leaf[step], states))

            first = jax.tree.map(lambda leaf: leaf[span[0]], states)
            union = jax.lax.fori_loop(span[0] + 1, span[1], add, first)
            scale, zero_point = tables_of(observer, jax.tree.map(lambda leaf: leaf[None], union), schemes)
            return scale[0], zero_point[0]

        return jax.lax.map(of_span, spans)  # one span at a time: the histograms of all would fill the memory

    scale, zero_point = tables(evidence.of(tuple(name for name, _ in columns)), jnp.asarray(spans))
    return np.asarray(scale), np.asarray(zero_point)


def _errors(states: Any, scale: jax.Array, zero_point: jax.Array, scheme: Scheme) -> jax.Array:
    """f32[S, A, C]: mean squared error of the values of each step and activation on each candidate grid."""

    def of_state(state: Any, scale: jax.Array, zero_point: jax.Array) -> jax.Array:
        points, share = points_and_shares(state)

        def of_grid(grid: tuple[jax.Array, jax.Array]) -> jax.Array:
            qparams = QParams(grid[0], None if scheme.symmetric else grid[1])
            return jnp.sum(share * (points - fake_quantize(points, qparams, scheme)) ** 2)

        return jax.lax.map(of_grid, (scale, zero_point))

    @jax.jit
    def of_all(states: Any, *grids: jax.Array) -> jax.Array:
        over_columns = jax.vmap(of_state, in_axes=(0, 1, 1))
        return jax.lax.map(lambda row: over_columns(row, *grids), states)

    return of_all(states, scale, zero_point)
