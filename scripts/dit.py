"""A diffusion transformer in linen (Peebles & Xie 2022, arXiv 2212.09748), and the folder that one is kept in.

Not part of jaxdq: it stands for the networks that users bring, which `jaxdq.load_denoiser` has no class for. The folder
has config.json (`_class_name` "DiT" and the fields of the module), scheduler_config.json and params.safetensors.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from jaxdq import Denoiser, InputError
from jaxdq.diffusion import schedule_from_config
from jaxdq.linen import DotProductAttention

CONFIG, SCHEDULER, PARAMS = "config.json", "scheduler_config.json", "params.safetensors"


class Block(nn.Module):
    """Attention, then a perceptron, each behind a norm that the time and the class shift, scale and gate (adaLN)."""

    heads: int

    @nn.compact
    def __call__(self, h: jax.Array, condition: jax.Array) -> jax.Array:
        """Map tokens [B, L, C] to tokens, under a condition [B, C]."""
        width = h.shape[-1]
        modulation = nn.Dense(6 * width, kernel_init=nn.initializers.zeros, name="modulation")(condition)[:, None]
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = jnp.split(modulation, 6, -1)

        normed = nn.LayerNorm(use_bias=False, name="norm_1")(h) * (1 + scale_1) + shift_1
        qkv = nn.Dense(3 * width, name="qkv")(normed)
        q, k, v = jnp.split(qkv.reshape(*h.shape[:2], 3 * self.heads, -1), 3, 2)
        h = h + gate_1 * nn.Dense(width, name="out")(DotProductAttention(name="attention")(q, k, v).reshape(h.shape))

        normed = nn.LayerNorm(use_bias=False, name="norm_2")(h) * (1 + scale_2) + shift_2
        return h + gate_2 * nn.Dense(width, name="mlp_out")(nn.gelu(nn.Dense(4 * width, name="mlp_in")(normed)))


class DiT(nn.Module):
    """Predicts the noise of an image from its patches, the time and the class."""

    size: int = 16
    channels: int = 1
    num_classes: int = 10
    patch: int = 2
    width: int = 64
    depth: int = 4
    heads: int = 4

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, label: jax.Array) -> jax.Array:
        """Map images [B, H, W, C], times [] or [B] and classes int32[B] to noise [B, H, W, C]."""
        batch, side = x.shape[0], self.size // self.patch
        angle = jnp.broadcast_to(t, (batch,))[:, None] * 1e4 ** -jnp.linspace(0, 1, self.width // 2)
        time = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)
        time = nn.Dense(self.width, name="time_2")(nn.silu(nn.Dense(self.width, name="time_1")(time)))
        condition = nn.silu(time + nn.Embed(self.num_classes, self.width, name="label")(label))

        window = (self.patch, self.patch)
        h = nn.Conv(self.width, window, window, "VALID", name="patches")(x).reshape(batch, side**2, self.width)
        h = h + self.param("positions", nn.initializers.normal(0.02), (side**2, self.width))
        for index in range(self.depth):
            h = Block(self.heads, name=f"block_{index}")(h, condition)

        modulation = nn.Dense(2 * self.width, kernel_init=nn.initializers.zeros, name="modulation")(condition)[:, None]
        shift, scale = jnp.split(modulation, 2, -1)
        h = nn.LayerNorm(use_bias=False, name="norm")(h) * (1 + scale) + shift
        h = nn.Dense(self.patch**2 * self.channels, kernel_init=nn.initializers.zeros, name="pixels")(h)
        h = h.reshape(batch, side, side, self.patch, self.patch, self.channels)
        return h.transpose(0, 1, 3, 2, 4, 5).reshape(x.shape)


def is_dit(folder: str | Path) -> bool:
    """Whether a folder is one that `save` wrote."""
    try:
        return json.loads((Path(folder) / CONFIG).read_text())["_class_name"] == "DiT"
    except (OSError, ValueError, KeyError, TypeError):
        return False


def save(folder: str | Path, module: DiT, params: Any, scheduler_config: dict[str, Any]) -> None:
    """Write a model's folder, made if need be.

    Args:
        folder: Where to; files of these names are replaced.
        module: The network.
        params: Its parameters, nested dict.
        scheduler_config: What diffusers' schedulers call their configuration.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    fields = {field.name: getattr(module, field.name) for field in own_fields()}
    (folder / CONFIG).write_text(json.dumps({"_class_name": "DiT"} | fields, indent=2) + "\n")
    (folder / SCHEDULER).write_text(json.dumps(scheduler_config, indent=2) + "\n")
    leaves = flax.traverse_util.flatten_dict(params, sep="/")
    save_file({name: np.asarray(leaf) for name, leaf in leaves.items()}, folder / PARAMS)


def load(folder: str | Path) -> Denoiser:
    """Read a folder that `save` wrote; images go through the classes in order.

    Raises:
        InputError: A file is absent or damaged, or the files don't fit one another.
    """
    folder = Path(folder)
    try:
        config, scheduler = (json.loads((folder / name).read_text()) for name in (CONFIG, SCHEDULER))
        leaves = load_file(folder / PARAMS)
        module = DiT(**{field.name: config[field.name] for field in own_fields()})
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise InputError(f"'{folder}' can't be read ({error}); train the model anew: scripts/train_dit.py.") from None
    shape = (module.size, module.size, module.channels)
    labels = jnp.arange(module.num_classes)
    expected = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, *shape)), 0, labels[:1])["params"]
    wanted = {name: leaf.shape for name, leaf in flax.traverse_util.flatten_dict(expected, sep="/").items()}
    if {name: leaf.shape for name, leaf in leaves.items()} != wanted:
        raise InputError(f"{PARAMS} and {CONFIG} of '{folder}' don't fit each other; train the model anew.")
    params = flax.traverse_util.unflatten_dict({name: jnp.asarray(leaves[name]) for name in leaves}, sep="/")
    return Denoiser(module, params, schedule_from_config(scheduler), shape, (labels,), name=folder.resolve().name)


def own_fields() -> list[dataclasses.Field]:
    """The fields of a DiT, without those of every linen module."""
    return [field for field in dataclasses.fields(DiT) if field.name not in ("parent", "name")]
