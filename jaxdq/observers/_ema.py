"""The range of a typical batch."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdq._common.errors import InputError
from jaxdq.grid import QParams, Scheme, qparams_from_range
from jaxdq.observers._base import Observer


class EmaState(NamedTuple):
    """The averages so far.

    Attributes:
        num_batches: int32[], how many were seen.
        low: f32[], the average of their smallest values; 0 where nothing was seen.
        high: f32[], the average of their largest values.
    """

    num_batches: jax.Array
    low: jax.Array
    high: jax.Array


def ema(decay: float = 0.9) -> Observer:
    """Exponential moving averages of each batch's min and max: `low = decay low + (1 - decay) min x`; high likewise.

    The first batch starts the averages. A batch is what one `update` sees: images that the devices of a mesh can't
    share out evenly make two of one.

    Args:
        decay: Decay in [0, 1); 0 is the last batch alone.

    Returns:
        Observer. merge is the mean weighted by the number of batches: commutative, and associative up to float
        rounding, but not what one observer would have kept, since a moving average depends on the order.

    Raises:
        InputError: A decay outside [0, 1).

    Example:
        >>> o = ema(0.5)
        >>> state = o.update(o.update(o.init(), jnp.array([0.0, 2.0])), jnp.array([-2.0, 4.0]))
        >>> float(state.low), float(state.high)
        (-1.0, 3.0)

    Source: Jacob et al. 2018, section 3.1 (they also ignore the first batches; we do not, since nothing trains).
    """
    if not 0 <= decay < 1:
        raise InputError(f"decay is {decay}; give a number from 0 up to, but not including, 1.")

    def init() -> EmaState:
        return EmaState(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32))

    def update(state: EmaState, x: jax.Array) -> EmaState:
        if x.size == 0:
            return state
        x, keep = x.astype(jnp.float32), jnp.where(state.num_batches == 0, 0.0, jnp.float32(decay))
        low, high = (keep * old + (1 - keep) * new for old, new in ((state.low, jnp.min(x)), (state.high, jnp.max(x))))
        return EmaState(state.num_batches + 1, low, high)

    def merge(a: EmaState, b: EmaState) -> EmaState:
        num_batches = a.num_batches + b.num_batches
        share = a.num_batches / jnp.maximum(num_batches, 1)
        # A state that saw nothing holds zeros, so its empty share adds nothing; the other's is then exactly 1.
        low, high = (share * x + (1 - share) * y for x, y in ((a.low, b.low), (a.high, b.high)))
        return EmaState(num_batches, low, high)

    def qparams(state: EmaState, scheme: Scheme) -> QParams:
        return qparams_from_range(state.low, state.high, scheme)

    return Observer(init, update, merge, qparams)
