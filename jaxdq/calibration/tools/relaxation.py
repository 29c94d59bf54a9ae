"""ADP-DM's search: which steps share a grid, learned by gradient through a relaxed choice.

For every step s, logits over G groups; `p = softmax(logits)`. While the search runs, an activation is the mixture of
its G quantized values,

    x^ = sum_g p[s, g] fake_quantize(x, grid[g, a]),

with straight-through rounding, so that the loss at the network's output reaches every site before it. The loss is

    sum_s w_s |eps_float - eps^|^2 / unit  +  sum_a sum_g min_c sum_s p[s, g] table[s, a, c]  +  strength H(p),

the error of the noise prediction on float trajectories (its unit is what it was at first), the discretisation error
(`proxy`: the inner minimum is the grid that the group would choose, which is also the bank of the mixture), and the
entropy of the choice, whose strength grows so that every row of p comes close to one-hot; argmax decides what is left.
The second term is concave in p, so that it too is least at a choice.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdq.calibration.tools.proxy import Proxy
from jaxdq.calibration.tools.rows import Rows, apply_by_row
from jaxdq.grid import QParams, Scheme, fake_quantize
from jaxdq.linen import Visitor, on_pieces

TINY = 1e-30  # a unit that nothing is ever measured in: a network that is exact on its first rows


class SearchState(NamedTuple):
    """What the next update needs.

    Attributes:
        logits: f32[S, G].
        opt_state: the optimizer's.
        update: int32[], updates done.
        unit: f32[], the error of the noise prediction in the first update.
    """

    logits: jax.Array
    opt_state: optax.OptState
    update: jax.Array
    unit: jax.Array


class SearchInfo(NamedTuple):
    """Diagnostics of one update.

    Attributes:
        task: f32[], weighted error of the noise prediction, relative to the prediction itself.
        discretisation: f32[], relative to one group.
        entropy: f32[], mean over rows, in parts of log G.
        unit: f32[], the task in the first update, which it is counted in.
    """

    task: jax.Array
    discretisation: jax.Array
    entropy: jax.Array
    unit: jax.Array


class SearchProblem(NamedTuple):
    """What does not change during a search.

    Attributes:
        table: f32[S, A, C], of the proxy, in parts of the cost of one group.
        scale: f32[C, A], candidate grids.
        zero_point: int32[C, A].
        params: the network's, every planned kernel on its grid, in float.
    """

    table: jax.Array
    scale: jax.Array
    zero_point: jax.Array
    params: Any


def search_problem(proxy: Proxy, params: Any) -> SearchProblem:
    """The search's view of a proxy, and of the params that carry the weights' own error."""
    whole = proxy.cost(np.zeros(proxy.table.shape[0], int)) or 1.0
    return SearchProblem(
        jnp.asarray(proxy.table / whole, jnp.float32), jnp.asarray(proxy.scale), jnp.asarray(proxy.zero_point), params
    )


def initial_logits(num_steps: int, num_groups: int, key: jax.Array) -> jax.Array:
    """Logits that lean towards equal spans, with a little noise, so that no two groups start alike."""
    centre = (jnp.arange(num_groups) + 0.5) * num_steps / num_groups
    distance = (jnp.arange(num_steps)[:, None] + 0.5 - centre) * num_groups / num_steps
    logits = -0.5 * distance**2
    return logits + 0.01 * jax.random.normal(key, logits.shape)


def discretisation(logits: jax.Array, table: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The soft discretisation error f32[], and each group's choice of candidate int32[G, A]."""
    share = jax.nn.softmax(logits, axis=1)
    priced = jnp.einsum("sg,sac->gac", share, table)
    choice = jnp.argmin(priced, axis=-1)
    return jnp.sum(jnp.min(priced, axis=-1)), choice


def mean_entropy(logits: jax.Array) -> jax.Array:
    """Entropy of the choice, mean over rows, in parts of log G: 1 where undecided, 0 where one-hot."""
    log_share = jax.nn.log_softmax(logits, axis=1)
    rows = -jnp.sum(jnp.exp(log_share) * log_share, axis=1)
    return jnp.mean(rows) / jnp.log(max(2, logits.shape[1]))


def relaxed(
    problem: SearchProblem, columns: dict[str, tuple[int, Scheme]], logits: jax.Array, step: jax.Array
) -> Visitor:
    """At `step: int32[]`, every quantized activation becomes the mixture of its G quantized values."""
    _, choice = discretisation(jax.lax.stop_gradient(logits), problem.table)
    share = jax.nn.softmax(logits[step], axis=0)  # [G]

    def visitor(name: str, x: jax.Array) -> jax.Array:
        return on_pieces(columns, name, x, mixed)

    def mixed(name: str, x: jax.Array) -> jax.Array:
        index, scheme = columns[name]
        candidate = choice[:, index]
        zero_point = None if scheme.symmetric else problem.zero_point[candidate, index]
        grids = QParams(problem.scale[candidate, index], zero_point)
        return _mixture(x, share, grids, scheme)

    return visitor


def relaxed_apply(
    module: Any, problem: SearchProblem, columns: dict[str, tuple[int, Scheme]], logits: jax.Array, rows: Rows
) -> jax.Array:
    """The network's output with every quantized activation a mixture."""
    return apply_by_row(module, problem.params, lambda step: relaxed(problem, columns, logits, step), rows)


def _mixture(x: jax.Array, share: jax.Array, grids: QParams, scheme: Scheme) -> jax.Array:
    """sum_g share[g] fake_quantize(x, grids[g]), one group after another, on the way back too.

    All at once would be G copies of x, kept whether a checkpoint stands around them or not, and several times as slow.
    """

    @jax.checkpoint
    def add(mixture: jax.Array, group: tuple[jax.Array, QParams]) -> tuple[jax.Array, None]:
        share, grid = group
        return mixture + share * fake_quantize(x, grid, scheme), None

    mixture, _ = jax.lax.scan(add, jnp.zeros(x.shape), (share, grids))
    return mixture.astype(x.dtype)


def make_update(
    module: Any,
    columns: dict[str, tuple[int, Scheme]],
    optimizer: optax.GradientTransformation,
    num_updates: int,
    task_weight: float,
    strength: float,
) -> Any:
    """The search's pure update, `(problem, state, rows) -> (state, info)`.

    The entropy's strength grows linearly from 0 to `strength`. Rows of logits whose steps are not among the batch's
    feel the discretisation error and the entropy only, and an optimizer with momentum moves them for that reason alone.
    """

    def loss_of(
        logits: jax.Array, problem: SearchProblem, rows: Rows, state: SearchState
    ) -> tuple[jax.Array, SearchInfo]:
        error = rows.target - relaxed_apply(module, problem, columns, logits, rows)
        task = jnp.sum(rows.weight * jnp.sum(error**2, axis=(1, 2, 3)))
        proxy, _ = discretisation(logits, problem.table)
        entropy = mean_entropy(logits)
        unit = jnp.where(state.update == 0, jnp.maximum(jax.lax.stop_gradient(task), TINY), state.unit)
        anneal = strength * state.update / num_updates
        return task_weight * task / unit + proxy + anneal * entropy, SearchInfo(task, proxy, entropy, unit)

    def update(problem: SearchProblem, state: SearchState, rows: Rows) -> tuple[SearchState, SearchInfo]:
        gradient, info = jax.grad(loss_of, has_aux=True)(state.logits, problem, rows, state)
        change, opt_state = optimizer.update(gradient, state.opt_state)
        logits = optax.apply_updates(state.logits, change)
        return SearchState(jnp.asarray(logits), opt_state, state.update + 1, info.unit), info

    return update
