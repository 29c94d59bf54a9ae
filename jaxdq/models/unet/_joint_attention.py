"""Attention of pixels to a text and to each other at once, as unCLIP, DeepFloyd IF and Kandinsky 2 have it."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdq.models.unet._blocks import attend, group_norm
from jaxdq.models.unet._transformer import layer_norm

# Fixed in diffusers' code; no configuration has them.
_EPS = 1e-5
_TEXT_GROUPS = 32


class JointAttention(nn.Module):
    """Attention over an image's pixels and a text's tokens together, with a shortcut (``AttnAddedKVProcessor``).

    ``x + to_out_0(softmax(q [k_text, k]^T / sqrt(head_dim)) [v_text, v])`` with ``q, k, v`` linear in
    ``group_norm(x)`` and ``k_text, v_text`` in the text.

    Attributes:
        head_dim: Channels of one head; C // head_dim heads.
        num_groups: Groups of the norm.
        only_text: Keys and values are the text's alone.
        norm_text: "layer_norm", "group_norm" or None: what the text goes through first.
    """

    head_dim: int
    num_groups: int
    only_text: bool
    norm_text: str | None

    @nn.compact
    def __call__(self, x: jax.Array, text: jax.Array) -> jax.Array:
        """Map x: float[B, H, W, C] and text: float[B, M, K] to float[B, H, W, C]."""
        batch, height, width, channels = x.shape
        inner = channels // self.head_dim * self.head_dim
        tokens = group_norm(self.num_groups, _EPS, "group_norm")(x.reshape(batch, height * width, channels))
        if self.norm_text == "layer_norm":
            text = layer_norm("norm_cross")(text)
        elif self.norm_text == "group_norm":
            text = group_norm(_TEXT_GROUPS, _EPS, "norm_cross")(text)
        q = nn.Dense(inner, name="to_q")(tokens)
        k, v = (nn.Dense(inner, name=name)(text) for name in ("add_k_proj", "add_v_proj"))
        if not self.only_text:
            k, v = (
                jnp.concatenate([ours, nn.Dense(inner, name=name)(tokens)], axis=1)
                for ours, name in ((k, "to_k"), (v, "to_v"))
            )
        out = nn.Dense(channels, name="to_out_0")(attend(q, k, v, self.head_dim))
        return x + out.reshape(x.shape)
