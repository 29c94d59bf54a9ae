"""Weights that were saved with their LoRA layers still beside them, as PEFT names them: merged where that is exact.

A wrapped layer `to_q` is stored as `to_q.base_layer.weight` with `to_q.lora_A.NAME.weight`: [r, in] and
`to_q.lora_B.NAME.weight`: [out, r], and computes with `W + (alpha / r) B A` (Hu et al. 2021, sec. 4.1).
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxdq._common.errors import InputError
from jaxdq.models.unet._stored import Stored

_PART = re.compile(r"^(?P<layer>.+)\.lora_(?P<part>A|B)(?:\.(?P<adapter>[^.]+))?\.weight$")
_ALPHA = re.compile(r"^(?P<layer>.+)\.alpha$")
_NAMES_SHOWN = 3


@dataclass(frozen=True)
class _Merged:
    """`W + (alpha / r) B A`, computed when numpy asks for it.

    Attributes:
        base: W, a matrix [out, in] or a convolution's kernel [out, in, h, w].
        down: A, [r, in] or [r, in, h, w].
        up: B, [out, r] or [out, r, 1, 1].
        alpha: The numerator of the scale, or the tensor that holds it.
        rank_stabilised: Whether the scale is `alpha / sqrt(r)` (Kalajdzievski 2023).
    """

    base: Stored
    down: Stored
    up: Stored
    alpha: Any
    rank_stabilised: bool

    @property
    def shape(self) -> Any:
        return self.base.shape

    @property
    def dtype(self) -> Any:
        return self.base.dtype

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        base, down, up = (np.asarray(part, np.float64) for part in (self.base, self.down, self.up))
        rank = len(down)
        scale = float(np.asarray(self.alpha, np.float64)) / (math.sqrt(rank) if self.rank_stabilised else rank)
        merged = base + scale * np.tensordot(up.reshape(len(up), rank), down, 1)
        return merged.astype(dtype or np.float32)


def merge_lora(tensors: Mapping[str, Stored], adapter: Mapping[str, Any] | None, source: str) -> dict[str, Stored]:
    """Merge LoRA layers into the layers that they wrap.

    Args:
        tensors: Torch name -> tensor.
        adapter: The contents of PEFT's adapter_config.json, which has the scale; None where there is none.
        source: What the tensors were read from, for the message.

    Returns:
        The tensors by the names of the layers that were wrapped, none of LoRA's among them.

    Raises:
        InputError: The scale is in no file, there is more than one adapter, or the adapter is of another kind.
    """
    parts = {name: match for name in tensors if (match := _PART.match(name))}
    merged = {name.replace(".base_layer.", "."): tensor for name, tensor in tensors.items() if name not in parts}
    if not parts:
        return merged
    layers: dict[str, dict[str, list[Stored]]] = {}
    for name, match in parts.items():
        layers.setdefault(match["layer"], {}).setdefault(match["part"], []).append(tensors[name])
    alphas = {match["layer"]: tensors[name] for name in tensors if (match := _ALPHA.match(name))}
    for layer in alphas.keys() & layers.keys():
        del merged[f"{layer}.alpha"]
    settings = adapter or {}
    unlike = [name for name in ("use_dora", "alpha_pattern", "fan_in_fan_out") if settings.get(name)]
    for layer, found in layers.items():
        base, alpha = merged.get(f"{layer}.weight"), alphas.get(layer, settings.get("lora_alpha"))
        if base is None or alpha is None or unlike or not _fits(base, found):
            raise InputError(_unmerged(source, layers, alpha is None, unlike))
        (down,), (up,) = found["A"], found["B"]
        merged[f"{layer}.weight"] = _Merged(base, down, up, alpha, bool(settings.get("use_rslora")))
    return merged


def _fits(base: Stored, found: Mapping[str, list[Stored]]) -> bool:
    """Whether there is one adapter, and its product has the layer's shape."""
    if [len(found.get(part, ())) for part in "AB"] != [1, 1]:
        return False
    down, up = tuple(found["A"][0].shape), tuple(found["B"][0].shape)
    return (up[0], *down[1:]) == tuple(base.shape) and up[1:] == (down[0], *(1,) * (len(down) - 2))


def _unmerged(source: str, layers: Mapping[str, Any], no_scale: bool, unlike: list[str]) -> str:
    names = sorted(layers)
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    why = "whose scale is in no file (lora_alpha, in adapter_config.json)" if no_scale else "of a kind that is not read"
    why += f" ({', '.join(unlike)})" if unlike else ""
    return (
        f"{source} has LoRA layers that are not merged, {why}, at {', '.join(names[:_NAMES_SHOWN])}{more}; merge them "
        "where the model was trained, with fuse_lora() and unload_lora_weights() or PEFT's merge_and_unload(), and "
        "save it again."
    )
