"""Optimal Brain Compression of one layer: which weights become 0, the rest making up for them (ExactOBS).

The notation is that of `tools.compression`: rows x with the Hessian H = sum x^T x, a kernel w [K, N], and the loss
`e^T H e` of a change e in each output.
"""

import functools
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.sparse.linalg import cg

from jaxdq._common.errors import InputError


class Sparsity(NamedTuple):
    """Which weights of a kernel become 0.

    Attributes:
        share: Of its weights, (0, 1).
        group: M of N:M, where that share is taken of every M neighbouring inputs of every output; 0 takes it wherever
            it costs least.
    """

    share: float
    group: int = 0

    @classmethod
    def of(cls, given: "str | float | Sparsity") -> "Sparsity":
        """The pattern in `0.5`, "0.5" or "2:4" (two of four neighbouring inputs are kept).

        Raises:
            InputError: Anything else.

        Example:
            >>> Sparsity.of("1:4")
            Sparsity(share=0.75, group=4)
        """
        if isinstance(given, Sparsity):
            return given
        pattern = re.fullmatch(r"(\d{1,3}):(\d{1,3})", given) if isinstance(given, str) else None
        if pattern is not None:
            kept, group = int(pattern[1]), int(pattern[2])
            if 0 < kept < group:
                return cls(1 - kept / group, group)
        elif not isinstance(given, bool):
            try:
                share = float(given)
            except (TypeError, ValueError):
                share = 0.0
            if 0 < share < 1:
                return cls(share)
        raise InputError(
            f"sparsity is {given!r}; give the share of weights that become 0, such as 0.5, or how many of neighbouring "
            f"inputs are kept, such as '2:4'."
        )

    def __str__(self) -> str:
        return f"{round((1 - self.share) * self.group)}:{self.group}" if self.group else f"{self.share:.0%} zeros"


def exact_obs(w: jax.Array, hessian: jax.Array, sparsity: Sparsity, *, outputs_at_a_time: int = 8) -> jax.Array:
    """Which weights stay: in each output, the one whose removal costs least goes first, then the next.

    With `G = H^-1` of the weights that are left,

        p = argmin w_p^2 / G_pp,   w <- w - G_p w_p / G_pp,   G <- G - G_p G_p^T / G_pp.

    N:M takes no more than M - N of each M neighbouring inputs; inputs after the last whole M keep their weights. A
    share is taken of the whole kernel: what each removal costs is known from going down to nothing, and the cheapest
    of all outputs go, in the order of their output. O(N K^3).

    Args:
        w: f32[K, N].
        hessian: f32[K, K], positive definite (see `damped`).
        sparsity: The pattern.
        outputs_at_a_time: How many inverses are in memory.

    Returns:
        bool[K, N], True where a weight stays.

    Source: Frantar et al., arXiv 2208.11580 (Optimal Brain Compression), algorithms 1 and 2.
    """
    num_inputs, num_outputs = w.shape
    whole = inverse_among(hessian, jnp.ones(num_inputs, bool))
    turns, quota = num_inputs, num_inputs
    in_group, can_go = jnp.zeros(num_inputs, jnp.int32), jnp.ones(num_inputs, bool)
    if sparsity.group:
        quota = round(sparsity.share * sparsity.group)
        turns = num_inputs // sparsity.group * quota
        in_group = jnp.arange(num_inputs) // sparsity.group
        can_go = in_group < num_inputs // sparsity.group

    def one_output(weights: jax.Array) -> tuple[jax.Array, jax.Array]:
        def one(turn: jax.Array, carry: tuple) -> tuple:
            weights, inverse, gone, costs, gone_of = carry
            diagonal = jnp.where(gone >= num_inputs, jnp.diagonal(inverse), 1.0)
            allowed = (gone >= num_inputs) & can_go & (gone_of[in_group] < quota)
            cost = jnp.where(allowed, weights**2 / diagonal, jnp.inf)
            p = jnp.argmin(cost)
            row = inverse[p] / diagonal[p]
            weights = (weights - row * weights[p]).at[p].set(0.0)
            left = (gone >= num_inputs).at[p].set(False)
            inverse = (inverse - diagonal[p] * row[:, None] * row) * (left[:, None] & left)
            gone, costs = gone.at[p].set(turn), costs.at[turn].set(cost[p])
            return weights * left, inverse, gone, costs, gone_of.at[in_group[p]].add(1)

        never, costs = jnp.full(num_inputs, num_inputs, jnp.int32), jnp.zeros(num_inputs, jnp.float32)
        start = (weights, whole, never, costs, jnp.zeros(num_inputs, jnp.int32))
        _, _, gone, costs, _ = jax.lax.fori_loop(0, turns, one, start)
        return gone, costs

    gone, costs = jax.lax.map(one_output, w.T, batch_size=min(outputs_at_a_time, num_outputs))
    if sparsity.group:
        return (gone >= num_inputs).T
    # A removal can't come before those that made it cheap: costs are compared as they stand at their highest so far.
    order = jnp.argsort(jax.lax.cummax(costs, axis=1).ravel(), stable=True)
    rank = jnp.zeros(w.size, jnp.int32).at[order].set(jnp.arange(w.size, dtype=jnp.int32)).reshape(costs.shape)
    turns_of = jnp.sum(rank < round(sparsity.share * w.size), axis=1)
    return (gone >= turns_of[:, None]).T


def one_shot(w: jax.Array, hessian: jax.Array, sparsity: Sparsity) -> jax.Array:
    """Which weights stay, by what each removal alone would cost, `w_p^2 / (H^-1)_pp`: what `exact_obs` begins with.

    Args and result as there; O(K^3 + K N).
    """
    num_inputs = len(w)
    diagonal = jnp.diagonal(inverse_among(hessian, jnp.ones(num_inputs, bool)))
    cost = w**2 / diagonal[:, None]
    if not sparsity.group:
        rank = jnp.argsort(jnp.argsort(cost.ravel(), stable=True)).reshape(cost.shape)
        return rank >= round(sparsity.share * w.size)
    whole = num_inputs // sparsity.group * sparsity.group
    grouped = cost[:whole].reshape(-1, sparsity.group, cost.shape[1])
    rank = jnp.argsort(jnp.argsort(grouped, axis=1, stable=True), axis=1)
    stays = rank >= round(sparsity.share * sparsity.group)
    return jnp.concatenate([stays.reshape(whole, cost.shape[1]), jnp.ones((num_inputs - whole, cost.shape[1]), bool)])


def least_squares(w: jax.Array, hessian: jax.Array, kept: jax.Array, *, iterations: int = 100) -> jax.Array:
    """The weights that lose least among those that are 0 where `kept` is False: `H_SS w^_S = (H w)_S` per output.

    By conjugate gradients from where the weights are, all outputs at once: O(K^2 N) each, no system of its own for
    each output.

    Args:
        w: f32[K, N].
        hessian: f32[K, K], positive definite.
        kept: bool[K, N].
        iterations: At most.

    Returns:
        f32[K, N].
    """
    times = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    diagonal = jnp.diagonal(hessian)

    def one_output(weights: jax.Array, stays: jax.Array) -> jax.Array:
        def masked(x: jax.Array) -> jax.Array:
            return jnp.where(stays, times(hessian, jnp.where(stays, x, 0.0)), 0.0)

        goal, start = jnp.where(stays, times(hessian, weights), 0.0), jnp.where(stays, weights, 0.0)
        found, _ = cg(masked, goal, start, tol=1e-6, maxiter=iterations, M=lambda x: x / diagonal)
        return found

    return jax.vmap(one_output, in_axes=1, out_axes=1)(w, kept)


def among(hessian: jax.Array, kept: jax.Array) -> jax.Array:
    """f32[K, K]: the Hessian of the weights that stay, with the identity in place of the others."""
    return jnp.where(kept[:, None] & kept, hessian, jnp.eye(len(hessian), dtype=hessian.dtype))


def inverse_among(hessian: jax.Array, kept: jax.Array) -> jax.Array:
    """f32[K, K]: the inverse of the Hessian of the weights that stay, 0 in the others' rows and columns."""
    factor = jax.scipy.linalg.cho_factor(among(hessian, kept), lower=True)
    inverse = jax.scipy.linalg.cho_solve(factor, jnp.eye(len(hessian), dtype=hessian.dtype))
    return jnp.where(kept[:, None] & kept, inverse, 0.0)
