"""The unconditional and class-conditional UNet of diffusers, ``UNet2DModel``, in Flax and NHWC."""

import math
from collections.abc import Mapping
from dataclasses import fields as fields_of
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdq._errors import InputError
from jaxdq.unet._blocks import DownBlock, MidBlock, Style, UpBlock, conv3x3, group_norm
from jaxdq.unet._config import complete_config

MAX_PERIOD = 10_000.0
FOURIER_SCALE = 16.0


class PositionalTime(nn.Module):
    """Sines and cosines of the time at geometrically spaced frequencies (Vaswani et al. 2017; Ho et al. 2020).

    With F = channels // 2 and ``w_i = 10000 ** (-i / (F - freq_shift))`` the result is ``[sin(t w), cos(t w)]``.

    Attributes:
        channels: width of the result; an odd width ends in a zero.
        flip_sin_to_cos: the cosines first.
        freq_shift: subtracted from F in the exponent.
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
    """

    channels: int

    @nn.compact
    def __call__(self, t: jax.Array) -> jax.Array:
        """Map t: float[B or 1] > 0 to float32[B or 1, 2 * channels]."""
        weight = self.param("weight", nn.initializers.normal(FOURIER_SCALE), (self.channels,))
        angle = jnp.log(t.astype(jnp.float32))[:, None] * weight * 2 * np.pi
        return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


class TimeMlp(nn.Module):
    """``linear_2(silu(linear_1(x)))``, both of the same width (diffusers' ``TimestepEmbedding``)."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map x: float[B or 1, K] to float[B or 1, width]."""
        return nn.Dense(self.width, name="linear_2")(nn.silu(nn.Dense(self.width, name="linear_1")(x)))


class UNet2D(nn.Module):
    """The network of DDPM (Ho et al. 2020) in the layout of diffusers' ``UNet2DModel``.

    The fields are diffusers' and mean the same; make one with ``unet2d_from_config``, which checks them. With the same
    weights the output equals that of diffusers' PyTorch class up to float32 rounding. There is no dropout: this is the
    network as it samples.

    Example:
        >>> module = unet2d_from_config({"block_out_channels": [8, 8], "down_block_types": ["DownBlock2D"] * 2,
        ...                              "up_block_types": ["UpBlock2D"] * 2, "norm_num_groups": 4})
        >>> x = jnp.zeros((2, 16, 16, 3))
        >>> module.apply(module.init(jax.random.key(0), x, 0), x, 500).shape
        (2, 16, 16, 3)
    """

    in_channels: int
    out_channels: int
    center_input_sample: bool
    time_embedding_type: str
    time_embedding_dim: int | None
    freq_shift: float
    flip_sin_to_cos: bool
    down_block_types: tuple[str, ...]
    mid_block_type: str | None
    up_block_types: tuple[str, ...]
    block_out_channels: tuple[int, ...]
    layers_per_block: int
    mid_block_scale_factor: float
    downsample_padding: int
    downsample_type: str
    upsample_type: str
    attention_head_dim: int | None
    norm_num_groups: int
    attn_norm_num_groups: int | None
    norm_eps: float
    resnet_time_scale_shift: str
    add_attention: bool
    class_embed_type: str | None
    num_class_embeds: int | None

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array | int, class_labels: jax.Array | None = None) -> jax.Array:
        """Predict the noise in ``x``.

        Args:
            x: float[B, H, W, in_channels], H and W multiples of 2 ** (number of resolutions - 1).
            t: int[] or int[B], the model time; float where time_embedding_type is "fourier". A scalar is embedded once.
            class_labels: int[B] for a table of num_class_embeds rows or a "timestep" class embedding; float[B, E] for
                "identity"; absent for a network without classes.

        Returns:
            float[B, H, W, out_channels].

        Raises:
            InputError: the shape of ``x`` or ``t`` does not fit, or class_labels is absent or superfluous.
        """
        self._check_inputs(x, jnp.shape(t))
        t = jnp.atleast_1d(jnp.asarray(t))
        temb = self._embed(t, class_labels)
        x = conv3x3(self.block_out_channels[0], "conv_in")(2 * x - 1 if self.center_input_sample else x)
        x = self._decode(*self._encode(x, temb), temb)
        x = nn.silu(group_norm(self.norm_num_groups, self.norm_eps, "conv_norm_out")(x))
        x = conv3x3(self.out_channels, "conv_out")(x)
        return x / t[:, None, None, None] if self.time_embedding_type == "fourier" else x

    @property
    def has_classes(self) -> bool:
        """Whether the network takes class_labels."""
        return self.class_embed_type is not None or self.num_class_embeds is not None

    @property
    def _style(self) -> Style:
        scale_shift = self.resnet_time_scale_shift == "scale_shift"
        return Style(self.norm_num_groups, self.norm_eps, scale_shift, self.attention_head_dim)

    def _embed(self, t: jax.Array, class_labels: jax.Array | None) -> jax.Array:
        """Embed the time, and the class where there is one: float[B or 1, E]."""
        channels = self.block_out_channels[0]
        width = self.time_embedding_dim or 4 * channels
        if self.time_embedding_type == "fourier":
            time_proj: nn.Module = FourierTime(channels, name="time_proj")
        else:
            time_proj = PositionalTime(channels, self.flip_sin_to_cos, self.freq_shift, name="time_proj")
        temb = TimeMlp(width, name="time_embedding")(time_proj(t))
        if self.has_classes != (class_labels is not None):
            raise InputError(
                "This UNet is class-conditional and was called without class_labels; pass one label per image."
                if self.has_classes
                else "This UNet has no classes and was called with class_labels; leave them out."
            )
        if class_labels is None:
            return temb
        if self.class_embed_type == "identity":
            return temb + class_labels
        if self.class_embed_type is None and self.num_class_embeds is not None:
            return temb + nn.Embed(self.num_class_embeds, width, name="class_embedding")(class_labels)
        return temb + TimeMlp(width, name="class_embedding")(time_proj(class_labels))

    def _encode(self, x: jax.Array, temb: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        """Run the way down and the middle: float[B, h, w, C] and the skips, the first to be made first."""
        skips = [x]
        last = len(self.block_out_channels) - 1
        for i, (kind, channels) in enumerate(zip(self.down_block_types, self.block_out_channels, strict=True)):
            attention = kind == "AttnDownBlock2D"
            # diffusers hands downsample_type to the blocks with attention only; the others always convolve.
            downsample = None if i == last else self.downsample_type if attention else "conv"
            block = DownBlock(
                channels=channels,
                num_layers=self.layers_per_block,
                style=self._style,
                attention=attention,
                downsample=downsample,
                downsample_padding=self.downsample_padding,
                name=f"down_blocks_{i}",
            )
            x, block_skips = block(x, temb)
            skips += block_skips
        if self.mid_block_type is not None:
            groups = self.attn_norm_num_groups
            if groups is None and not self._style.scale_shift:
                groups = self.norm_num_groups
            scale = self.mid_block_scale_factor
            x = MidBlock(self._style, self.add_attention, groups, scale, name="mid_block")(x, temb)
        return x, skips

    def _decode(self, x: jax.Array, skips: list[jax.Array], temb: jax.Array) -> jax.Array:
        """Run the way up, each row taking one skip more than it had layers on the way down."""
        last = len(self.block_out_channels) - 1
        taken = self.layers_per_block + 1
        for i, (kind, channels) in enumerate(zip(self.up_block_types, reversed(self.block_out_channels), strict=True)):
            attention = kind == "AttnUpBlock2D"
            upsample = None if i == last else self.upsample_type if attention else "conv"
            block = UpBlock(channels, self._style, attention, upsample, name=f"up_blocks_{i}")
            x = block(x, skips[-taken:], temb)
            skips = skips[:-taken]
        return x

    def _check_inputs(self, x: jax.Array, t_shape: tuple[int, ...]) -> None:
        """Raise InputError where the shapes of ``x`` and ``t`` do not fit the network."""
        multiple = 2 ** (len(self.block_out_channels) - 1)
        if x.ndim != 4 or x.shape[-1] != self.in_channels or x.shape[1] % multiple or x.shape[2] % multiple:
            raise InputError(
                f"The UNet's x has shape {x.shape}; give [B, H, W, {self.in_channels}] with H and W multiples of "
                f"{multiple}."
            )
        if t_shape not in ((), (1,), (x.shape[0],)):
            raise InputError(f"The UNet's t has shape {t_shape}; give a scalar or one time per image, [{x.shape[0]}].")


def unet2d_from_config(config: Mapping[str, Any]) -> UNet2D:
    """Build the network that a diffusers ``UNet2DModel`` configuration describes.

    Args:
        config: the fields of diffusers' config.json; what is left out has diffusers' default.

    Returns:
        The module, without parameters.

    Raises:
        InputError: a field is unknown, unsupported or contradicts another; the sentence names it.
    """
    complete = complete_config(config)
    names = {field.name for field in fields_of(UNet2D)} - {"parent", "name"}
    return UNet2D(**{name: complete[name] for name in names})


def abstract_params(module: UNet2D) -> Any:
    """Return the shapes of the module's parameters without making them.

    Args:
        module: from ``unet2d_from_config``.

    Returns:
        The parameter tree with ``jax.ShapeDtypeStruct`` leaves, all float32.
    """
    side = 2 ** (len(module.block_out_channels) - 1)
    x = jax.ShapeDtypeStruct((1, side, side, module.in_channels), jnp.float32)
    t = jax.ShapeDtypeStruct((1,), jnp.int32)
    class_labels = None
    if module.class_embed_type == "identity":
        width = module.time_embedding_dim or 4 * module.block_out_channels[0]
        class_labels = jax.ShapeDtypeStruct((1, width), jnp.float32)
    elif module.has_classes:
        class_labels = t
    return jax.eval_shape(module.init, jax.random.key(0), x, t, class_labels)["params"]
