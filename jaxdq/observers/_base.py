"""Observers: how the range of one tensor is learned from the values that pass by.

An observer is four pure functions and has no state of its own; the caller keeps one state per tensor (and per time
group), usually stacked along leading axes and updated under `vmap`.

    init()               -> state               a state that saw nothing
    update(state, x)     -> state               after seeing x, of any shape
    merge(a, b)          -> state               as if one observer had seen what both saw
    qparams(state, s)    -> QParams             the grid that this observer would choose under scheme s

`init` says the shapes; everything else keeps them, so that all four work under `jit`, `vmap` and `scan`. What differs
between two observers is the idea of `qparams`, and what must be remembered for it:

    minmax()          all that was seen                        low, high
    ema(decay)        what a typical batch spans               num_batches, low, high
    percentile(p)     all but a tail share at each end         histogram
    mse(p)            the range of least L_p error             histogram

Contract, kept by each and tested in one battery: a state that saw nothing, or only zeros, gives scale 1; zero lies
exactly on the grid; values a power of two larger give a scale larger by that power; values with NaN or infinity give a
scale of NaN or infinity, for the host to refuse with the name of the tensor. `merge` is associative and equal to
updating in sequence, except for `ema`, whose docstring states what it does instead.

A weight is seen whole and at once: `minmax_weights()`, `mse_weights(p)` and `percentile_weights(p)` are functions
`(w, scheme) -> QParams`, with one scale for each channel of `scheme.channel_axis`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxdq._common.errors import InputError
from jaxdq.grid import QParams, Scheme

State = Any  # a pytree of arrays, of the shapes that init() gives


class Observer(NamedTuple):
    """Ranges of one tensor, learned from its values. Functions only; the module's docstring says what they promise.

    Attributes:
        init: `() -> State`, a pytree of arrays of fixed shape: the state that saw nothing.
        update: `(State, x: float[...]) -> State`.
        merge: `(State, State) -> State`, as if one observer had seen both.
        qparams: `(State, Scheme) -> QParams` with scale f32[] and zero_point int32[] (None where symmetric).

    Example:
        >>> from jaxdq.observers import minmax
        >>> o = minmax()
        >>> state = o.update(o.init(), jnp.array([-0.5, 1.27]))
        >>> round(float(o.qparams(state, Scheme(8)).scale), 6)
        0.01
    """

    init: Callable[[], State]
    update: Callable[[State, jax.Array], State]
    merge: Callable[[State, State], State]
    qparams: Callable[[State, Scheme], QParams]


WeightQParams = Callable[[jax.Array, Scheme], QParams]
ErrorOfRange = Callable[[jax.Array, jax.Array], jax.Array]
_Best = tuple[jax.Array, jax.Array, jax.Array]  # low, high, error


def search_range(
    error_of: ErrorOfRange, low: jax.Array, high: jax.Array, scheme: Scheme, num_candidates: int
) -> tuple[jax.Array, jax.Array]:
    """The range `(r_low * low, r_high * high)` of least error, `r = i / num_candidates`, i = 1..num_candidates.

    Both ends shrink together first. Where the scheme is asymmetric each end is then searched alone, low before high:
    after SiLU the negative tail is short, and cutting it as hard as the positive one costs what it never repays.

    Args:
        error_of: `(low, high) -> f32[...]`, elementwise: each entry is a range of its own.
        low: f32[...], the full range, which is among the candidates and wins ties.
        high: f32[...].
        scheme: Scheme; its symmetry decides which searches are worth their time.
        num_candidates: Ratios tried per search, one at a time, so that memory does not grow with them.

    Returns:
        low, high: f32[...]. Never of larger error than the full range; the full range itself where errors are NaN.
    """
    # Which end moves is data, so that the three searches are one loop and compile once.
    moves = jnp.array([[True, True]] if scheme.symmetric else [[True, True], [True, False], [False, True]])
    ratios = jnp.arange(num_candidates, 0, -1, dtype=jnp.float32) / num_candidates

    def step(best: _Best, trial: tuple[jax.Array, jax.Array]) -> tuple[_Best, None]:
        ratio, (low_moves, high_moves) = trial
        # An end that does not move keeps its best value, which such a trial does not change.
        ends = jnp.where(low_moves, ratio * low, best[0]), jnp.where(high_moves, ratio * high, best[1])
        candidate = *ends, error_of(*ends)
        better = candidate[2] < best[2]
        return jax.tree.map(lambda new, old: jnp.where(better, new, old), candidate, best), None

    trials = jnp.tile(ratios, len(moves)), jnp.repeat(moves, num_candidates, axis=0)
    best, _ = lax.scan(step, (low, high, error_of(low, high)), trials)
    return best[0], best[1]


def power(difference: jax.Array, p: float) -> jax.Array:
    """`|difference|**p`, elementwise: a product where p is 2, otherwise through exp and log.

    XLA:CPU vectorises all three; pow takes several times as long as exp and log, and those four times as a product.
    """
    return difference**2 if p == 2 else jnp.exp(p * jnp.log(jnp.abs(difference)))


def check_search(p: float, num_candidates: int) -> None:
    """Refuses a norm or a number of candidates that no search can use."""
    if not 0 < p < float("inf"):
        raise InputError(f"p is {p}; give the exponent of the error as a positive number, such as 2.4.")
    if num_candidates < 1:
        raise InputError(f"num_candidates is {num_candidates}; give at least 1.")
