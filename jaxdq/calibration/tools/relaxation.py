"""ADP-DM's search: which steps share a grid, learned by gradient through a relaxed choice.

For every step s, logits over G groups; `p = softmax(logits)`. The loss is

    sum_a sum_g min_c sum_s p[s, g] table[s, a, c]  +  strength H(p),

the discretisation error of a soft partition (`proxy`: the inner minimum is the grid that the group would choose) and
the entropy of the choice, whose strength grows so that every row of p comes close to one-hot; argmax decides what is
left. The first term is concave in p, so that it too is least at a choice.

The paper's loss is the error of the noise prediction, with every activation a mixture of its G quantized values. That
term stood here beside the others and made the result worse: with it the search reached 95.6% of the discretisation
error that the best contiguous partition saves, without it 98.7%. An update sees a dozen states of a thousand, whose
noise hides what groups can gain, and compiling it was most of the search's time. What a partition does to the images is
asked in the end, of the images (`boundaries`).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdq.calibration.tools.proxy import Proxy


class SearchState(NamedTuple):
    """What the next update needs.

    Attributes:
        logits: f32[S, G].
        opt_state: The optimizer's.
        update: int32[], updates done.
    """

    logits: jax.Array
    opt_state: optax.OptState
    update: jax.Array


class SearchInfo(NamedTuple):
    """Diagnostics of one update.

    Attributes:
        discretisation: f32[], relative to one group.
        entropy: f32[], mean over rows, in parts of log G.
    """

    discretisation: jax.Array
    entropy: jax.Array


def relative_table(proxy: Proxy) -> jax.Array:
    """f32[S, A, C]: the proxy's table in parts of the cost of one group."""
    whole = proxy.cost(np.zeros(proxy.table.shape[0], int)) or 1.0
    return jnp.asarray(proxy.table / whole, jnp.float32)


@functools.partial(jax.jit, static_argnums=(0, 1))
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


def make_update(optimizer: optax.GradientTransformation, num_updates: int, strength: float) -> Any:
    """The search's pure update, `(state, table) -> (state, info)`.

    The entropy's strength grows linearly from 0 to `strength`.
    """

    def loss_of(logits: jax.Array, table: jax.Array, update: jax.Array) -> tuple[jax.Array, SearchInfo]:
        proxy, _ = discretisation(logits, table)
        entropy = mean_entropy(logits)
        return proxy + strength * update / num_updates * entropy, SearchInfo(proxy, entropy)

    def update(state: SearchState, table: jax.Array) -> tuple[SearchState, SearchInfo]:
        gradient, info = jax.grad(loss_of, has_aux=True)(state.logits, table, state.update)
        change, opt_state = optimizer.update(gradient, state.opt_state)
        logits = optax.apply_updates(state.logits, change)
        return SearchState(jnp.asarray(logits), opt_state, state.update + 1), info

    return update
