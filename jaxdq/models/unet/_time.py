"""Embeddings of the time, and of other numbers, in diffusers' UNets."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdq.models.unet._activations import ACTIVATIONS

MAX_PERIOD = 10_000.0
FOURIER_SCALE = 16.0


class PositionalTime(nn.Module):
    """Sines and cosines of the time at geometrically spaced frequencies (Vaswani et al. 2017; Ho et al. 2020).

    With F = channels // 2 and ``w_i = 10000 ** (-i / (F - freq_shift))`` the result is ``[sin(t w), cos(t w)]``.

    Attributes:
        channels: Width of the result; an odd width ends in a zero.
        flip_sin_to_cos: The cosines first.
        freq_shift: Subtracted from F in the exponent.
    """

    channels: int
    flip_sin_to_cos: bool
    freq_shift: float

    @nn.compact
    def __call__(self, t: jax.Array) -> jax.Array:
        """Map t: float[B or 1] to float32[B or 1, channels]."""
        half = self.channels // 2
        exponent = np.float32(-math.log(MAX_PERIOD)) * np.arange(half, dtype=np.float32) / (half - self.freq_shift)
        angle = t.astype(jnp.float32)[:, None] * np.exp(exponent, dtype=np.float32)
        waves = [jnp.cos(angle), jnp.sin(angle)] if self.flip_sin_to_cos else [jnp.sin(angle), jnp.cos(angle)]
        return jnp.pad(jnp.concatenate(waves, axis=-1), ((0, 0), (0, self.channels % 2)))


class FourierTime(nn.Module):
    """Sines and cosines of the logarithm of a noise level at random, stored frequencies (Song et al. 2021).

    ``[sin(2 pi log(t) w), cos(2 pi log(t) w)]`` with ``w``: float[channels] from the checkpoint.

    Attributes:
        channels: Half the width of the result.
        log: Whether the logarithm is taken.
        flip_sin_to_cos: The cosines first.
    """

    channels: int
    log: bool = True
    flip_sin_to_cos: bool = False

    @nn.compact
    def __call__(self, t: jax.Array) -> jax.Array:
        """Map t: float[B or 1] > 0 to float32[B or 1, 2 * channels]."""
        weight = self.param("weight", nn.initializers.normal(FOURIER_SCALE), (self.channels,))
        t = t.astype(jnp.float32)
        angle = (jnp.log(t) if self.log else t)[:, None] * weight * 2 * np.pi
        waves = [jnp.cos(angle), jnp.sin(angle)] if self.flip_sin_to_cos else [jnp.sin(angle), jnp.cos(angle)]
        return jnp.concatenate(waves, axis=-1)


class TimeMlp(nn.Module):
    """``post(linear_2(act(linear_1(x + cond_proj(more)))))`` (diffusers' ``TimestepEmbedding``).

    Attributes:
        width: Width of the result, and of what is inside.
        act: Name of the activation.
        post: Name of another one after all, or None.
        more_width: Width of what else comes in, such as the guidance scale's embedding in a latent consistency model;
            None for nothing.
    """

    width: int
    act: str = "silu"
    post: str | None = None
    more_width: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array, more: jax.Array | None = None) -> jax.Array:
        """Map x: float[B or 1, K] and more: float[B, more_width], which may be absent, to float[B or 1, width]."""
        if self.more_width is not None:
            more = jnp.zeros((1, self.more_width), x.dtype) if more is None else more
            x = x + nn.Dense(x.shape[-1], use_bias=False, name="cond_proj")(more)
        h = nn.Dense(self.width, name="linear_2")(ACTIVATIONS[self.act](nn.Dense(self.width, name="linear_1")(x)))
        return h if self.post is None else ACTIVATIONS[self.post](h)
