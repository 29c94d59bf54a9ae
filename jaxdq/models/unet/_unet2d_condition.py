"""The UNet of diffusers that a text, an image or something else conditions, ``UNet2DConditionModel``."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax

from jaxdq.models.unet._activations import ACTIVATIONS
from jaxdq.models.unet._blocks import group_norm
from jaxdq.models.unet._conditioned import ConditionedNet
from jaxdq.models.unet._conditions import own_fields, spread_fields
from jaxdq.models.unet._config_condition import complete_condition_config
from jaxdq.models.unet._fields import per_row
from jaxdq.models.unet._k_rows import KUpBlock
from jaxdq.models.unet._rows import Residuals, UpBlock, run_down, run_up


class UNet2DCondition(ConditionedNet):
    """The network of Stable Diffusion (Rombach et al. 2022; Podell et al. 2023) in the layout of diffusers.

    The fields are those of ``UNet2DConditionModel``, see ``Conditions``. Make one with
    ``unet2d_condition_from_config``, which checks them. With the same weights the output equals that of diffusers'
    PyTorch or Flax class, as ``numerics`` says, up to float32 rounding. There is no dropout: this is the network as it
    samples.

    Example:
        >>> module = unet2d_condition_from_config({"block_out_channels": [8, 8], "norm_num_groups": 4,
        ...     "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "cross_attention_dim": 6,
        ...     "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"]})
        >>> x, text = jnp.zeros((2, 16, 16, 4)), jnp.zeros((2, 77, 6))
        >>> module.apply(module.init(jax.random.key(0), x, 0, text), x, 500, text).shape
        (2, 16, 16, 4)
    """

    out_channels: int
    up_block_types: tuple[str, ...]
    up_transformer_layers_per_block: tuple[int | tuple[int, ...], ...]
    conv_out_kernel: int

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        t: jax.Array | int,
        *conditions: jax.Array,
        down_residuals: Sequence[jax.Array] = (),
        mid_residual: jax.Array | None = None,
        adapter_residuals: Sequence[jax.Array] = (),
        **named: jax.Array,
    ) -> jax.Array:
        """Predict the noise, or what the network was trained to predict, in ``x``.

        Args:
            x: float[B, H, W, x_channels], any H and W: what is rounded on the way down is undone on the way up.
            t: int[] or int[B], the model time. A scalar is embedded once.
            *conditions: The arrays of ``condition_names``, in its order, each with a row for every image:
                encoder_hidden_states: float[B, M, K], what the text encoder says of M tokens;
                text_embeds: float[B, E], the pooled text (SDXL, Kandinsky 2.1);
                time_ids: float[B, 6], original size, crop and target size in pixels (5 for SDXL's refiner);
                image_embeds: float[B, E] (Kandinsky 2); hint: float[B, 8H, 8W, 3] (its ControlNet);
                class_labels: int[B], or float[B, E] where the configuration projects them;
                timestep_cond: float[B, E], the guidance scale's embedding (latent consistency models).
            down_residuals: What a ControlNet adds to each skip; float[B, h, w, C] each.
            mid_residual: What a ControlNet adds to the middle's result.
            adapter_residuals: A T2I-Adapter's features, one for each row on the way down.
            **named: Conditions by name; timestep_cond may be absent.

        Returns:
            float[B, H, W, out_channels].

        Raises:
            InputError: The shape of an argument does not fit, or a condition is absent or superfluous.
        """
        given = self._given(x, t, conditions, named)
        h, temb = self._read(x, t, given)
        tokens = self._context(given)
        residuals = Residuals(down_residuals, mid_residual, adapter_residuals)
        x, skips = run_down(h, temb, tokens, (self._down(), self._middle()), residuals)
        x = run_up(x, skips, temb, tokens, self._up())
        if self.norm_num_groups is not None:
            x = ACTIVATIONS[self.act_fn](group_norm(self.norm_num_groups, self.norm_eps, "conv_norm_out")(x))
        size, pad = self.conv_out_kernel, (self.conv_out_kernel - 1) // 2
        return nn.Conv(self.out_channels, (size, size), padding=((pad, pad), (pad, pad)), name="conv_out")(x)

    def _up(self) -> list[nn.Module]:
        return [self._up_row(i, kind) for i, kind in enumerate(self.up_block_types)]

    def _up_row(self, i: int, kind: str) -> nn.Module:
        last = len(self.block_out_channels) - 1
        level, name = last - i, f"up_blocks_{i}"
        channels, num_layers = self.block_out_channels[level], self.layers_per_block[level] + 1
        if kind.startswith("K"):
            out = self.block_out_channels[max(level - 1, 0)]
            return KUpBlock(
                channels=channels,
                out_channels=out,
                num_layers=num_layers - 1,
                act=self.act_fn,
                eps=self.norm_eps,
                head_dim=self.num_heads[i] if "Attn" in kind else None,
                between_pixels=out == channels == self._time_width,
                upsample=i < last,
                name=name,
            )
        # diffusers turns round the numbers of heads, but not the widths of heads.
        heads = i if "SimpleCrossAttn" in kind else level
        layers = self.up_transformer_layers_per_block[i]
        by_resnet = kind.startswith(("Resnet", "SimpleCrossAttn"))
        return UpBlock(
            channels=channels,
            num_layers=num_layers,
            style=self._style(kind),
            attention=self._attention(kind, heads, layers, self.only_cross_attention[level]),
            upsample=None if i == last else "resnet" if by_resnet else "conv",
            name=name,
        )


def unet2d_condition_from_config(config: Mapping[str, Any]) -> UNet2DCondition:
    """Build the network that a diffusers ``UNet2DConditionModel`` configuration describes.

    Args:
        config: The fields of diffusers' config.json; what is left out has diffusers' default. The network computes as
            diffusers' Flax class does where ``_class_name`` is that class's, and as the PyTorch class does elsewhere.

    Returns:
        The module, without parameters.

    Raises:
        InputError: A field is unknown, unsupported or contradicts another; the sentence names it.
    """
    complete = complete_condition_config(config)
    up = complete["reverse_transformer_layers_per_block"]
    complete = spread_fields(complete, config)
    layers = complete["transformer_layers_per_block"]
    complete["up_transformer_layers_per_block"] = layers[::-1] if up is None else per_row(up, len(layers))
    return UNet2DCondition(**own_fields(UNet2DCondition, complete))
