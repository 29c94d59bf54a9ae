"""ControlNet in the layout of diffusers, ``ControlNetModel``, alone and with the UNet that it controls."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from jaxdq.models.unet._blocks import Size, conv3x3
from jaxdq.models.unet._conditioned import ConditionedNet
from jaxdq.models.unet._conditions import own_fields, spread_fields
from jaxdq.models.unet._config_controlnet import complete_controlnet_config
from jaxdq.models.unet._rows import run_down
from jaxdq.models.unet._unet2d_condition import UNet2DCondition


class ControlNet(ConditionedNet):
    """The way down of a UNet again, which an image controls (Zhang et al. 2023; diffusers' ``ControlNetModel``).

    Make one with ``controlnet_from_config``. What it returns is added to the UNet's skips and middle.
    """

    conditioning_channels: int
    conditioning_embedding_out_channels: tuple[int, ...]
    controlnet_conditioning_channel_order: str

    @nn.compact
    def __call__(
        self, x: jax.Array, t: jax.Array | int, *conditions: jax.Array, **named: jax.Array
    ) -> tuple[tuple[jax.Array, ...], jax.Array]:
        """Compute what is added to a UNet.

        Args:
            x: float[B, H, W, in_channels], what the UNet takes.
            t: int[] or int[B], the model time.
            *conditions: As the UNet's; then image: float[B, sH, sW, conditioning_channels], what controls, with s
                8 as a rule.
            **named: Conditions by name.

        Returns:
            One float[B, h, w, C] for each of the UNet's skips, and one for its middle.

        Raises:
            InputError: The shape of an argument does not fit, or a condition is absent or superfluous.
        """
        given = self._given(x, t, conditions, named)
        image = given["image"]
        h, temb = self._read(x, t, given)
        if self.controlnet_conditioning_channel_order == "bgr":
            image = image[..., ::-1]
        widths = self.conditioning_embedding_out_channels
        h = h + ControlImage(widths, self.block_out_channels[0], name="controlnet_cond_embedding")(image)
        x, skips = run_down(h, temb, self._context(given), (self._down(), self._middle()))
        outs = [
            nn.Conv(skip.shape[-1], (1, 1), name=f"controlnet_down_blocks_{i}")(skip) for i, skip in enumerate(skips)
        ]
        return tuple(outs), nn.Conv(x.shape[-1], (1, 1), name="controlnet_mid_block")(x)

    @property
    def condition_names(self) -> tuple[str, ...]:
        """What the network takes after (x, t), in this order."""
        return (*super().condition_names, "image")

    @property
    def _class_act(self) -> str:
        return "silu"

    def _shapes(self, size: Size) -> dict[str, tuple[Any, ...]]:
        scale = 2 ** (len(self.conditioning_embedding_out_channels) - 1)
        return super()._shapes(size) | {"image": (scale * size[0], scale * size[1], self.conditioning_channels)}


class ControlImage(nn.Module):
    """Convolutions from an image's size to a latent's (``ControlNetConditioningEmbedding``).

    Attributes:
        widths: Channels on the way.
        channels: Output channels.
    """

    widths: tuple[int, ...]
    channels: int

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        """Map image: float[B, sH, sW, C] to float[B, H, W, channels]."""
        h = nn.silu(conv3x3(self.widths[0], "conv_in")(image))
        for i, (width, wider) in enumerate(zip(self.widths, self.widths[1:], strict=False)):
            h = nn.silu(conv3x3(width, f"blocks_{2 * i}")(h))
            h = nn.silu(conv3x3(wider, f"blocks_{2 * i + 1}", stride=2)(h))
        return conv3x3(self.channels, "conv_out")(h)


class Controlled(nn.Module):
    """A UNet with a ControlNet: one denoiser whose last condition is the image that controls.

    Attributes:
        unet: The network.
        controlnet: Its ControlNet.
        conditioning_scale: Factor of what the ControlNet returns.
    """

    unet: UNet2DCondition
    controlnet: ControlNet
    conditioning_scale: float = 1.0

    def __call__(self, x: jax.Array, t: jax.Array | int, *conditions: jax.Array) -> jax.Array:
        """Predict as the UNet does; conditions are its own and then image: float[B, sH, sW, C]."""
        *own, image = conditions
        skips, middle = self.controlnet(x, t, *own, image)
        scale = self.conditioning_scale
        return self.unet(x, t, *own, down_residuals=[scale * skip for skip in skips], mid_residual=scale * middle)

    @property
    def condition_names(self) -> tuple[str, ...]:
        """What the network takes after (x, t), in this order."""
        return (*self.unet.condition_names, "image")

    def abstract_inputs(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Return the shapes of the smallest arguments that the network can be called with."""
        return *self.unet.abstract_inputs(), self.controlnet.abstract_conditions()[-1]

    def abstract_conditions(self, size: Size | None = None) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Return the shapes of one row of what the network takes after (x, t), for an x of this size."""
        return *self.unet.abstract_conditions(size), self.controlnet.abstract_conditions(size)[-1]


def controlnet_from_config(config: Mapping[str, Any]) -> ControlNet:
    """Build the network that a diffusers ``ControlNetModel`` configuration describes.

    Args:
        config: As for ``unet2d_condition_from_config``.

    Returns:
        The module, without parameters.

    Raises:
        InputError: A field is unknown, unsupported or contradicts another; the sentence names it.
    """
    return ControlNet(**own_fields(ControlNet, spread_fields(complete_controlnet_config(config), config)))
