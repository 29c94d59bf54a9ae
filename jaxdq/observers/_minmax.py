"""The range of everything that was seen."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdq.grid import QParams, Scheme, qparams_from_range
from jaxdq.observers._base import Observer


class MinMaxState(NamedTuple):
    """What was seen.

    Attributes:
        low: f32[], the smallest value; +inf where nothing was seen.
        high: f32[], the largest; -inf where nothing was seen.
    """

    low: jax.Array
    high: jax.Array


def minmax() -> Observer:
    """The range from the smallest to the largest value: `low = min x`, `high = max x`. Nothing clips.

    Returns:
        Observer; merge is exact, associative and commutative.

    Example:
        >>> o = minmax()
        >>> state = o.update(o.update(o.init(), jnp.array([-1.0, 0.5])), jnp.array([2.54]))
        >>> round(float(o.qparams(state, Scheme(8)).scale), 6)
        0.02
    """

    def init() -> MinMaxState:
        return MinMaxState(jnp.full((), jnp.inf, jnp.float32), jnp.full((), -jnp.inf, jnp.float32))

    def update(state: MinMaxState, x: jax.Array) -> MinMaxState:
        x = x.astype(jnp.float32)
        return merge(state, MinMaxState(jnp.min(x, initial=jnp.inf), jnp.max(x, initial=-jnp.inf)))

    def merge(a: MinMaxState, b: MinMaxState) -> MinMaxState:
        return MinMaxState(jnp.minimum(a.low, b.low), jnp.maximum(a.high, b.high))

    def qparams(state: MinMaxState, scheme: Scheme) -> QParams:
        nothing = state.low > state.high
        return qparams_from_range(jnp.where(nothing, 0.0, state.low), jnp.where(nothing, 0.0, state.high), scheme)

    return Observer(init, update, merge, qparams)
