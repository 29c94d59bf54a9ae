"""The one sampling loop: a `lax.scan` over a sampler's steps, in which the model is traced once.

Random numbers belong to images, not to batches: image i's initial noise and the noise of its steps follow from
`fold_in(key, i)` alone, so an image is the same in whatever batch it is drawn. (Of jax's generators this holds for
threefry, the default; "rbg" draws depend on the batch.)
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdq._common.errors import InputError
from jaxdq.diffusion._sampler import Coefficients, Sampler, left_by, step

Model = Callable[[jax.Array, jax.Array], jax.Array]


def image_keys(key: jax.Array, image_index: jax.Array) -> jax.Array:
    """Give each image its own random key, `fold_in(key, i)`.

    Args:
        key: A jax random key.
        image_index: int32[B].

    Returns:
        key[B].

    Example:
        >>> image_keys(jax.random.key(0), jnp.arange(3)).shape
        (3,)
    """
    return jax.vmap(jax.random.fold_in, (None, 0))(key, image_index)


def initial_noise(key: jax.Array, image_index: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draw the noise that sampling starts from.

    Args:
        key: A jax random key, the same for all images of a run.
        image_index: int32[B].
        shape: The shape of one image, (H, W, C).

    Returns:
        f32[B, H, W, C], standard normal.

    Example:
        >>> initial_noise(jax.random.key(0), jnp.arange(2), (4, 4, 1)).shape
        (2, 4, 4, 1)
    """
    return _noise(image_keys(key, image_index), 0, tuple(shape))


def step_noise(image_keys: jax.Array, step: jax.Array | int, shape: tuple[int, ...]) -> jax.Array:
    """Draw the fresh noise of one step.

    Args:
        image_keys: Key[B], from the function of that name.
        step: The sampler's index.
        shape: The shape of one image, (H, W, C).

    Returns:
        f32[B, H, W, C], standard normal.

    Example:
        >>> step_noise(image_keys(jax.random.key(0), jnp.arange(2)), 3, (4, 4, 1)).shape
        (2, 4, 4, 1)
    """
    return _noise(image_keys, step + 1, tuple(shape))  # draw 0 is the initial noise


def sample(
    model: Model, sampler: Sampler, coefficients: Coefficients, x_init: jax.Array, image_keys: jax.Array
) -> jax.Array:
    """Draw images.

    Args:
        model: `model(x: f32[B, H, W, C], t: int32[]) -> [B, H, W, C]`; traced once.
        sampler: Says whether fresh noise is needed.
        coefficients: `sampler.coefficients(schedule)`.
        x_init: f32[B, H, W, C], from `initial_noise`.
        image_keys: Key[B], from the function of that name; unused by a deterministic sampler.

    Returns:
        f32[B, H, W, C], as the last step leaves them: not clipped.

    Raises:
        InputError: The model returns another shape than it was given.

    Example:
        >>> from jaxdq.diffusion import ddim, linear_schedule
        >>> x = jnp.ones((1, 2, 2, 1))
        >>> keys = image_keys(jax.random.key(0), jnp.arange(1))
        >>> sample(lambda x, t: x, ddim(2), ddim(2).coefficients(linear_schedule()), x, keys).shape
        (1, 2, 2, 1)
    """
    return _scan(model, sampler, coefficients, x_init, image_keys, lambda x, output: None)[0]


def trajectory(
    model: Model, sampler: Sampler, coefficients: Coefficients, x_init: jax.Array, image_keys: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Draw images and keep what the model saw and said on the way.

    Args:
        model: As in `sample`.
        sampler: As in `sample`.
        coefficients: As in `sample`.
        x_init: As in `sample`.
        image_keys: As in `sample`.

    Returns:
        images: f32[B, H, W, C], what `sample` returns.
        states: f32[S, B, H, W, C]; `states[i]` is x before step i, so `states[0]` is `x_init`.
        outputs: f32[S, B, H, W, C]; `outputs[i]` is `model(states[i], t[i])`.

    Raises:
        InputError: The model returns another shape than it was given.

    Example:
        >>> from jaxdq.diffusion import ddim, linear_schedule
        >>> x = jnp.ones((1, 2, 2, 1))
        >>> keys = image_keys(jax.random.key(0), jnp.arange(1))
        >>> coefficients = ddim(3).coefficients(linear_schedule())
        >>> images, states, outputs = trajectory(lambda x, t: x, ddim(3), coefficients, x, keys)
        >>> states.shape
        (3, 1, 2, 2, 1)
    """
    images, (states, outputs) = _scan(model, sampler, coefficients, x_init, image_keys, lambda x, output: (x, output))
    return images, states, outputs


def _scan(
    model: Model,
    sampler: Sampler,
    coefficients: Coefficients,
    x_init: jax.Array,
    image_keys: jax.Array,
    record: Callable[[jax.Array, jax.Array], Any],
) -> tuple[jax.Array, Any]:
    """Run all steps; `record(x, output)` chooses what each of them leaves behind."""

    def body(carry: tuple[jax.Array, tuple], this_step: tuple[jax.Array, Coefficients]) -> tuple[Any, Any]:
        (x, past), (index, numbers) = carry, this_step
        output = model(x, numbers.t)
        if not hasattr(output, "shape"):
            raise InputError(
                f"The model returned a {type(output).__name__}; it must return one array of x's own shape: wrap it so "
                "that it returns its prediction alone."
            )
        output = jnp.asarray(output, jnp.float32)
        if output.shape != x.shape:
            raise InputError(
                f"The model was given x of shape {x.shape} and returned {output.shape}; "
                "it must return one prediction of x's own shape (a learned variance is not supported)."
            )
        noise = step_noise(image_keys, index, x.shape[1:]) if sampler.is_stochastic else None
        left = (left_by(numbers, x, output), *past[:-1]) if past else ()
        return (step(numbers, x, output, noise, past), left), record(x, output)

    # Cast beforehand: a carry whose type changes in the first step would be traced twice.
    x_init = jnp.asarray(x_init, jnp.float32)
    coefficients = jax.tree.map(jnp.asarray, coefficients)
    carry = x_init, (jnp.zeros_like(x_init),) * coefficients.num_past
    (x, _), recorded = jax.lax.scan(body, carry, (jnp.arange(len(coefficients.t)), coefficients))
    return x, recorded


def _noise(keys: jax.Array, draw: jax.Array | int, shape: tuple[int, ...]) -> jax.Array:
    """f32[B, *shape], standard normal: draw number `draw` of each image."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, draw), shape, jnp.float32))(keys)
