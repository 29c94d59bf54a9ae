"""From steps to whole steps: nearest, stochastic and learned rounding, each with its gradient stated."""

import jax
import jax.numpy as jnp

# The stretch of the rectified sigmoid: h reaches 0 and 1 at finite logits (Louizos et al. 2018, used by AdaRound).
STRETCH_HIGH, STRETCH_LOW = 1.1, -0.1


def _straight_through(whole: jax.Array, steps: jax.Array) -> jax.Array:
    return steps + jax.lax.stop_gradient(whole - steps)


def round_nearest(steps: jax.Array) -> jax.Array:
    """To the nearest whole number, ties to even. Gradient: 1 everywhere, ties included (straight-through).

    Example:
        >>> round_nearest(jnp.array([0.5, 1.5, -2.4])).tolist()
        [0.0, 2.0, -2.0]
    """
    return _straight_through(jnp.round(steps), steps)


def round_stochastic(steps: jax.Array, key: jax.Array) -> jax.Array:
    """Down or up at random, up with probability `steps - floor(steps)`, so that the mean is kept. Gradient: 1.

    Args:
        steps: float32[...]. Whole numbers stay.
        key: A random key; the same key rounds the same way.

    Returns:
        float32[...] of whole numbers.
    """
    # Compared with the fraction, not added to steps: 127 + 0.9999999 is 128 in float32, and whole numbers must stay.
    down = jnp.floor(steps)
    return _straight_through(down + (jax.random.uniform(key, steps.shape) < steps - down), steps)


def rectified_sigmoid(logits: jax.Array) -> jax.Array:
    """`h = clip(1.2 sigmoid(logits) - 0.1, 0, 1)`: how far up a weight is rounded. Gradient: 0 where clipped.

    Source: Nagel et al. 2020 (AdaRound), eq. 23.
    """
    stretched = jax.nn.sigmoid(logits) * (STRETCH_HIGH - STRETCH_LOW) + STRETCH_LOW
    return jnp.clip(stretched, 0.0, 1.0)


def init_rounding_logits(steps: jax.Array) -> jax.Array:
    """Logits with which `round_learned` changes nothing: `rectified_sigmoid(logits) = steps - floor(steps)`."""
    fraction = steps - jnp.floor(steps)
    return -jnp.log((STRETCH_HIGH - STRETCH_LOW) / (fraction - STRETCH_LOW) - 1.0)


def round_learned(steps: jax.Array, logits: jax.Array) -> jax.Array:
    """`floor(steps) + rectified_sigmoid(logits)`: soft while it is learned. Gradient: 0 to steps, that of h to logits.

    Source: Nagel et al. 2020 (AdaRound), eq. 22. `round_learned_hard` is what remains after learning.
    """
    return jax.lax.stop_gradient(jnp.floor(steps)) + rectified_sigmoid(logits)


def round_learned_hard(steps: jax.Array, logits: jax.Array) -> jax.Array:
    """`floor(steps) + 1[logits >= 0]`: whole numbers. Gradient: 1 to steps (straight-through), none to logits."""
    return _straight_through(jnp.floor(steps) + (logits >= 0), steps)


def rounding_penalty(logits: jax.Array, sharpness: float | jax.Array) -> jax.Array:
    """`sum(1 - |2h - 1|**sharpness)`: 0 if and only if every h is 0 or 1. Scalar.

    Args:
        logits: float32[...].
        sharpness: > 1; lowered from about 20 to 2 while learning, which lets go and then gathers.
    """
    distance = jnp.abs(2.0 * rectified_sigmoid(logits) - 1.0)
    return jnp.sum(1.0 - distance**sharpness)
