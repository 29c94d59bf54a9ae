"""Optimal Brain Compression of one layer: rounding its weights one after the other, the rest making up for the error.

A layer `y = x w` with rows x and the Hessian `H = 2 sum x^T x` of its squared error loses `e^T H e / 2` per output
channel when its weights change by e. Once a weight is fixed on the grid, the optimal change of those that are still
free follows from the inverse of their Hessian (optimal brain surgery; Hassibi & Stork 1993). `gptq` goes through the
inputs in one order for all outputs, `obq` greedily for each. Only ratios of H matter: its factor 2 is left out.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdq.calibration.tools.pruning import Sparsity, exact_obs, inverse_among, least_squares, one_shot
from jaxdq.grid import QParams, Scheme, fake_quantize

BLOCK = 64  # inputs whose errors are carried to the later ones together, as one product of matrices


def damped(hessian: jax.Array, damping: float) -> jax.Array:
    """f32[K, K]: `H + damping * mean(diag H)` on the diagonal, and 1 for inputs that are always 0.

    An input that was 0 in all calibration has no say in the others' rounding, and is itself rounded to nearest.
    """
    diagonal = jnp.diagonal(hessian)
    dead = diagonal <= 0
    mean = jnp.sum(diagonal) / jnp.maximum(jnp.sum(~dead), 1)
    return hessian + jnp.diag(jnp.where(dead, 1.0, damping * mean))


def layer_error(change: jax.Array, hessian: jax.Array) -> jax.Array:
    """f32[N]: `e^T H e` of the change e: f32[K, N] of a kernel, for each output."""
    product = jnp.matmul(hessian, change, precision=jax.lax.Precision.HIGHEST)
    return jnp.sum(change * product, axis=0)


class Pruned(NamedTuple):
    """A kernel some of whose weights are 0.

    Attributes:
        w: f32[K, N].
        kept: bool[K, N], where they are not.
    """

    w: jax.Array
    kept: jax.Array


def prune_by_error(
    w: jax.Array, hessian: jax.Array, sparsity: Sparsity, *, greedy: bool = False, damping: float = 0.01
) -> Pruned:
    """Removes weights, by `exact_obs` or else `one_shot`, and moves the others to where they lose least.

    Args as of `round_by_error`.
    """
    definite = damped(hessian, damping)
    kept = (exact_obs if greedy else one_shot)(w, definite, sparsity)
    return Pruned(least_squares(w, definite, kept), kept)


def round_by_error(
    w: jax.Array,
    hessian: jax.Array,
    qparams: QParams,
    scheme: Scheme,
    *,
    greedy: bool = False,
    damping: float = 0.01,
    pruned: Pruned | None = None,
) -> tuple[jax.Array, jax.Array]:
    """A kernel on its grid, by `gptq` or `obq`; outputs that lose more by it than by nearest rounding take the nearest.

    What was pruned stays 0; its error counts in both.

    Args:
        w: f32[K, N], float weights.
        hessian: f32[K, K].
        qparams: Grid of w, scalar, f32[N], or f32[K, N] where it changes with the input.
        scheme: Scheme of w.
        greedy: `obq` in place of `gptq`.
        damping: As in `damped`.
        pruned: Result of `prune_by_error`; None keeps all weights.

    Returns:
        (f32[K, N] on the grid, f32[2, N] errors `e^T H e` of nearest rounding and of the result).
    """
    start, kept = (w, None) if pruned is None else pruned
    nearest = fake_quantize(start, qparams, scheme)
    rounded = (obq if greedy else gptq)(start, damped(hessian, damping), qparams, scheme, kept)
    before, after = (layer_error(w - new, hessian) for new in (nearest, rounded))
    better = after < before
    return jnp.where(better, rounded, nearest), jnp.stack([before, jnp.where(better, after, before)])


def gptq(
    w: jax.Array,
    hessian: jax.Array,
    qparams: QParams,
    scheme: Scheme,
    kept: jax.Array | None = None,
    *,
    block: int = BLOCK,
) -> jax.Array:
    """Rounds inputs in one order for all outputs, those of the largest Hessian diagonal first.

    With `H^-1 = U^T U`, U upper triangular, input j gives

        e_j = (w_j - Q(w_j)) / U_jj,        w_k <- w_k - U_jk e_j  for all later k.

    Args:
        w: f32[K, N].
        hessian: f32[K, K], positive definite (see `damped`).
        qparams: Grid of w, scalar, f32[N], or f32[K, N] where it changes with the input.
        scheme: Scheme of w.
        kept: bool[K, N]; Q makes 0 of the others.
        block: Inputs at a time; the same result to rounding.

    Returns:
        f32[K, N], every entry on the grid.

    Source: Frantar et al., arXiv 2210.17323 (GPTQ), with the order of its `act_order`.
    """
    num_inputs, num_outputs = w.shape
    order = jnp.argsort(-jnp.diagonal(hessian))
    padding = -num_inputs % block
    grids = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, w.shape)[order] if leaf.ndim > 1 else leaf, qparams)
    w, hessian = w[order], hessian[order][:, order]
    w = jnp.pad(w, ((0, padding), (0, 0)))
    hessian = jax.scipy.linalg.block_diag(hessian, jnp.eye(padding, dtype=hessian.dtype)) if padding else hessian
    upper = _inverse_factor(hessian)
    stays = jnp.ones_like(w, bool) if kept is None else jnp.pad(kept[order], ((0, padding), (0, 0)))
    position = jnp.arange(num_inputs + padding)

    def one_block(w: jax.Array, start: jax.Array) -> tuple[jax.Array, jax.Array]:
        rows = jax.lax.dynamic_slice_in_dim(upper, start, block)
        own = jax.lax.dynamic_slice_in_dim(rows, start, block, axis=1)
        staying = jax.lax.dynamic_slice_in_dim(stays, start, block)

        def one(j: jax.Array, carry: tuple) -> tuple:
            free, errors, rounded = carry
            grid = jax.tree.map(lambda leaf: leaf[start + j] if leaf.ndim > 1 else leaf, grids)
            on_grid = jnp.where(staying[j], fake_quantize(free[j], grid, scheme), 0.0)
            error = (free[j] - on_grid) / own[j, j]
            return free - own[j][:, None] * error, errors.at[j].set(error), rounded.at[j].set(on_grid)

        free, nothing = jax.lax.dynamic_slice_in_dim(w, start, block), jnp.zeros((block, num_outputs), w.dtype)
        _, errors, rounded = jax.lax.fori_loop(0, block, one, (free, nothing, nothing))
        later = jnp.where(position >= start + block, rows, 0.0)
        return w - jnp.matmul(later.T, errors, precision=jax.lax.Precision.HIGHEST), rounded

    _, rounded = jax.lax.scan(one_block, w, jnp.arange(0, num_inputs + padding, block))
    return jnp.zeros((num_inputs, num_outputs), w.dtype).at[order].set(rounded.reshape(-1, num_outputs)[:num_inputs])


def _inverse_factor(hessian: jax.Array) -> jax.Array:
    """U, upper triangular, with `U^T U = H^-1`: from the Cholesky factor of H read backwards, no inverse of H."""
    factor = jnp.linalg.cholesky(hessian[::-1, ::-1])[::-1, ::-1]
    return jax.scipy.linalg.solve_triangular(factor, jnp.eye(len(hessian), dtype=hessian.dtype), lower=False)


def obq(
    w: jax.Array,
    hessian: jax.Array,
    qparams: QParams,
    scheme: Scheme,
    kept: jax.Array | None = None,
    *,
    outputs_at_a_time: int = 8,
) -> jax.Array:
    """Rounds, in each output on its own, the weight that costs least.

    With `G = H^-1` of the weights still free and the residual `r = w - Q(w)`,

        p = argmin r_p^2 / G_pp,   w <- w - G_p r_p / G_pp,   G <- G - G_p G_p^T / G_pp.

    A weight that is off the grid by more than half a step (it is clipped, or was pushed out of the range) comes first,
    the farthest before the others, while many weights are free to make up for it. O(N K^3).

    Args:
        w: f32[K, N].
        hessian: f32[K, K], positive definite (see `damped`).
        qparams: Grid of w, scalar, f32[N], or f32[K, N] where it changes with the input.
        scheme: Scheme of w.
        kept: bool[K, N]; the others are 0 in w, and stay it.
        outputs_at_a_time: How many inverses are in memory.

    Returns:
        f32[K, N], every entry on the grid.

    Source: Frantar et al., arXiv 2208.11580 (Optimal Brain Compression), algorithm 3.
    """
    num_inputs, num_outputs = w.shape
    upper = _inverse_factor(hessian)
    inverse = jnp.matmul(upper.T, upper, precision=jax.lax.Precision.HIGHEST)
    grids = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, w.shape if leaf.ndim > 1 else num_outputs).T, qparams)

    def one_output(given: tuple[jax.Array, QParams, jax.Array]) -> jax.Array:
        weights, grid, stays = given
        own = inverse if kept is None else inverse_among(hessian, stays)

        def one(_: jax.Array, carry: tuple) -> tuple:
            free, inverse, is_free = carry
            residual = free - fake_quantize(free, grid, scheme)
            diagonal = jnp.where(is_free, jnp.diagonal(inverse), 1.0)
            outlier = jnp.where(is_free & (jnp.abs(residual) > 0.5001 * grid.scale), jnp.abs(residual), 0.0)
            cheapest = jnp.argmin(jnp.where(is_free, residual**2 / diagonal, jnp.inf))
            p = jnp.where(jnp.any(outlier > 0), jnp.argmax(outlier), cheapest)
            row = inverse[p] / diagonal[p]
            free = jnp.where(is_free, free - row * residual[p], free)
            free = free.at[p].set(fake_quantize(free, grid, scheme)[p])
            is_free = is_free.at[p].set(False)
            inverse = (inverse - diagonal[p] * row[:, None] * row) * (is_free[:, None] & is_free)
            return free, inverse, is_free

        return jax.lax.fori_loop(0, num_inputs, one, (weights, own, stays))[0]

    stays = jnp.ones_like(w, bool) if kept is None else kept
    return jax.lax.map(one_output, (w.T, grids, stays.T), batch_size=min(outputs_at_a_time, num_outputs)).T


rounded_by_error = functools.partial(jax.jit, static_argnames=("scheme", "greedy"))(round_by_error)
pruned_by_error = functools.partial(jax.jit, static_argnames=("sparsity", "greedy"))(prune_by_error)
