"""The blocks of diffusers' UNets in NHWC: residual block, attention over pixels, resampling.

Every submodule carries the name it has in diffusers' PyTorch classes, so that a path of the parameter tree is the
torch name with ``.`` for ``/`` and ``_`` before a list's index.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdq.linen._attention import DotProductAttention
from jaxdq.models.unet._activations import ACTIVATIONS
from jaxdq.models.unet._filters import doubled, halved


class Style(NamedTuple):
    """What all blocks of one network share.

    Attributes:
        num_groups: Groups of every GroupNorm in a residual block.
        eps: Added to the variance in every GroupNorm of a residual block.
        scale_shift: The time embedding scales and shifts after the second norm (True) or is added before it (False).
        act: Name of the activation function, as ``ACTIVATIONS`` has it.
        skip_time_act: The time embedding goes to a residual block's projection without an activation before it.
        output_scale: Divisor of the sum at the end of a residual block.
    """

    num_groups: int
    eps: float
    scale_shift: bool
    act: str = "silu"
    skip_time_act: bool = False
    output_scale: float = 1.0


def group_norm(num_groups: int, eps: float, name: str) -> nn.GroupNorm:
    """Return a GroupNorm that takes the variance about the mean, in two passes, as torch does.

    Flax's default, E[x^2] - E[x]^2, loses half the digits where a channel group's mean is far from zero.
    """
    return nn.GroupNorm(num_groups=num_groups, epsilon=eps, use_fast_variance=False, name=name)


def conv3x3(channels: int, name: str, *, stride: int = 1, padding: tuple[int, int] = (1, 1)) -> nn.Conv:
    """Return a 3x3 convolution that pads both axes by ``padding`` = (before, after) zeros."""
    return nn.Conv(channels, (3, 3), strides=(stride, stride), padding=(padding, padding), name=name)


Size = tuple[int, int]
"""Height and width of an image."""


def upsample_nearest(x: jax.Array, size: Size | None = None) -> jax.Array:
    """Repeat the pixels of ``x`` to a larger image.

    Args:
        x: float[B, H, W, C].
        size: (H', W') of the result; None is (2H, 2W). As in torch, row i is row ``floor(i * H / H')`` of ``x``.

    Returns:
        float[B, H', W', C].
    """
    batch, height, width, channels = x.shape
    if size is not None and size != (2 * height, 2 * width):
        rows, columns = (
            # In float32, as torch rounds it.
            np.minimum(np.floor(np.arange(large, dtype=np.float32) * np.float32(small / large)).astype(int), small - 1)
            for large, small in zip(size, (height, width), strict=True)
        )
        return x[:, rows][:, :, columns]
    twice = jnp.broadcast_to(x[:, :, None, :, None, :], (batch, height, 2, width, 2, channels))
    return twice.reshape(batch, 2 * height, 2 * width, channels)


class ResnetBlock(nn.Module):
    """Two normalised convolutions with the time embedding between them, and a shortcut.

    ``h = conv1(resample(act(norm1(x))))``; then with ``e = time_emb_proj(act(temb))`` either ``h = norm2(h + e)`` or,
    for ``scale_shift`` and ``e = [scale, shift]``, ``h = norm2(h) * (1 + scale) + shift``; the result is
    ``(shortcut(resample(x)) + conv2(act(h))) / output_scale``.

    Attributes:
        channels: Output channels; where the input has others, the shortcut is a 1x1 convolution.
        style: What all blocks of the network share.
        resample: "up" (nearest, by 2), "down" (mean of 2x2), "filtered up", "filtered down" or None.
        groups: Groups of the two norms, or None for the style's.
        project: The shortcut is a convolution whatever the channels.
    """

    channels: int
    style: Style
    resample: str | None = None
    groups: tuple[int, int] | None = None
    project: bool = False

    def _resampled(self, x: jax.Array, size: Size | None) -> jax.Array:
        if self.resample == "up":
            return upsample_nearest(x, size)
        if self.resample == "down":
            return nn.avg_pool(x, (2, 2), strides=(2, 2))
        if self.resample == "filtered up":
            return doubled(x, "constant")
        if self.resample == "filtered down":
            return halved(x, "constant")
        return x

    @nn.compact
    def __call__(self, x: jax.Array, temb: jax.Array, size: Size | None = None) -> jax.Array:
        """Map x: float[B, H, W, C] and temb: float[B or 1, E] to float[B, H', W', channels]; "up" goes to ``size``."""
        style, act = self.style, ACTIVATIONS[self.style.act]
        first, second = self.groups or (style.num_groups, style.num_groups)
        h = act(group_norm(first, style.eps, "norm1")(x))
        h = conv3x3(self.channels, "conv1")(self._resampled(h, size))
        width = 2 * self.channels if style.scale_shift else self.channels
        e = nn.Dense(width, name="time_emb_proj")(temb if style.skip_time_act else act(temb))[:, None, None, :]
        norm2 = group_norm(second, style.eps, "norm2")
        if style.scale_shift:
            scale, shift = jnp.split(e, 2, axis=-1)
            h = norm2(h) * (1 + scale) + shift
        else:
            h = norm2(h + e)
        h = conv3x3(self.channels, "conv2")(act(h))
        shortcut = self._resampled(x, size)
        if x.shape[-1] != self.channels or self.project:
            shortcut = nn.Conv(self.channels, (1, 1), name="conv_shortcut")(shortcut)
        return (shortcut + h) / style.output_scale


def attend(q: jax.Array, k: jax.Array, v: jax.Array, head_dim: int) -> jax.Array:
    """Attention of several heads, ``softmax(q k^T / sqrt(head_dim)) v`` in each; call it in a compact method.

    It is the submodule ``attention`` of the module that calls.

    Args:
        q: float[B, L, heads * head_dim].
        k: float[B, M, heads * head_dim].
        v: float[B, M, heads * head_dim].
        head_dim: Channels of one head.

    Returns:
        float[B, L, heads * head_dim].
    """
    q, k, v = (x.reshape(*x.shape[:2], -1, head_dim) for x in (q, k, v))
    mixed = DotProductAttention(name="attention")(q, k, v)
    return mixed.reshape(*mixed.shape[:2], -1)


class Attention(nn.Module):
    """Self-attention over the pixels of an image, with a shortcut.

    ``(x + to_out_0(softmax(q k^T / sqrt(head_dim)) v)) / output_scale`` with ``q, k, v`` linear in ``group_norm(x)``.
    The two products are ``attention/scores`` and ``attention/values``.

    Attributes:
        head_dim: Channels of one head, or None for one head; C // head_dim heads.
        num_groups: Groups of the norm before the projections, or None for no norm.
        eps: Added to the variance in that norm.
        output_scale: Divisor of the sum.
    """

    head_dim: int | None
    num_groups: int | None
    eps: float
    output_scale: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map x: float[B, H, W, C] to float[B, H, W, C]."""
        batch, height, width, channels = x.shape
        head_dim = self.head_dim or channels
        tokens = x.reshape(batch, height * width, channels)
        h = tokens if self.num_groups is None else group_norm(self.num_groups, self.eps, "group_norm")(tokens)
        inner = channels // head_dim * head_dim
        q, k, v = (nn.Dense(inner, name=name)(h) for name in ("to_q", "to_k", "to_v"))
        out = nn.Dense(channels, name="to_out_0")(attend(q, k, v, head_dim))
        return (tokens + out).reshape(x.shape) / self.output_scale


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2.

    Attributes:
        padding: 1 pads every side by one pixel; 0 pads one pixel at the bottom and the right only.
    """

    padding: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map x: float[B, H, W, C] to float[B, H/2, W/2, C], halves rounded up (padding 1) or down (padding 0)."""
        return conv3x3(x.shape[-1], "conv", stride=2, padding=(self.padding, 1))(x)


class Upsample(nn.Module):
    """Nearest-neighbour upsampling, by 2 unless a size is given, and a 3x3 convolution."""

    @nn.compact
    def __call__(self, x: jax.Array, size: Size | None = None) -> jax.Array:
        """Map x: float[B, H, W, C] to float[B, H', W', C]."""
        return conv3x3(x.shape[-1], "conv")(upsample_nearest(x, size))
