"""Between diffusers' weights and the parameter trees of this floor.

A torch name is the path with dots: ``down_blocks.0.resnets.1.conv1.weight`` is
``down_blocks_0/resnets_1/conv1/kernel``. Convolution kernels are OIHW there and HWIO here; matrices are
[out, in] there and [in, out] here. diffusers' Flax classes have the names and the layouts that we have.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxdq._errors import InputError

_LIST_ITEM = re.compile(
    r"^(down_blocks|up_blocks|resnets|attentions|downsamplers|upsamplers|transformer_blocks|net|to_out)_(\d+)$"
)
_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "weight": "weight", "bias": "bias"}
# Before diffusers 0.15 attention had a class of its own, and files of that time keep its names.
_OLD_ATTENTION = re.compile(r"(attentions\.\d+)\.(query|key|value|proj_attn)\.")
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_NAMES_SHOWN = 5
_Axes = Mapping[int, tuple[int, ...]]
_TO_FLAX: _Axes = {4: (2, 3, 1, 0), 2: (1, 0)}
_TO_TORCH: _Axes = {4: (3, 2, 0, 1), 2: (1, 0)}
_AS_THEY_ARE: tuple[_Axes, _Axes] = ({}, {})


class Stored(Protocol):
    """An array, or a tensor in a file, which ``np.asarray`` reads."""

    @property
    def shape(self) -> Any:
        """The sizes of its axes."""

    @property
    def dtype(self) -> Any:
        """Its dtype, known before it is read."""


def torch_name(path: tuple[str, ...]) -> str:
    """Return the name that diffusers' PyTorch class gives to a parameter.

    Args:
        path: the keys from the root of the parameter tree to the leaf.

    Returns:
        The name in the state dictionary.

    Example:
        >>> torch_name(("mid_block", "attentions_0", "to_out_0", "kernel"))
        'mid_block.attentions.0.to_out.0.weight'
    """
    # The Flax class of the autoencoder has attention by its old names.
    return _modern_name(".".join([*(_LIST_ITEM.sub(r"\1.\2", part) for part in path[:-1]), _LEAVES[path[-1]]]))


def params_from_torch(tensors: Mapping[str, Stored], expected: Any, source: str) -> dict[str, Any]:
    """Rearrange a PyTorch state dictionary into the parameter tree of a module.

    Args:
        tensors: torch name -> tensor of any floating dtype, read when its turn comes; the attention names of before
            diffusers 0.15 are accepted.
        expected: the parameter tree of shapes, from ``abstract_params``.
        source: what the tensors were read from, for the messages.

    Returns:
        The parameter tree, float32.

    Raises:
        InputError: tensors are missing, superfluous, of another shape, not floating or not finite; they are named.
    """
    tensors = {_modern_name(name): tensor for name, tensor in tensors.items()}
    paths = {torch_name(path): path for path in flatten_dict(expected)}
    return _params(tensors, paths, expected, source, (_TO_FLAX, _TO_TORCH))


def params_from_flax(tensors: Mapping[str, Stored], expected: Any, source: str) -> dict[str, Any]:
    """Check the parameters of a diffusers Flax class and return them as the parameter tree of a module.

    Args:
        tensors: path with slashes -> tensor of any floating dtype.
        expected: the parameter tree of shapes, from ``abstract_params``.
        source: what the tensors were read from, for the messages.

    Returns:
        The parameter tree, float32.

    Raises:
        InputError: as in ``params_from_torch``.
    """
    return _params(tensors, {"/".join(path): path for path in flatten_dict(expected)}, expected, source, _AS_THEY_ARE)


def _params(
    tensors: Mapping[str, Stored],
    paths: Mapping[str, tuple[str, ...]],
    expected: Any,
    source: str,
    layouts: tuple[_Axes, _Axes],
) -> dict[str, Any]:
    """Check all tensors by their descriptions, and only then read them, one at a time."""
    leaves, (to_flax, to_source) = flatten_dict(expected), layouts
    advice = "use the weights and the config.json of one and the same model"
    _refuse(source, "lacks", paths.keys() - tensors.keys(), advice)
    _refuse(source, "has tensors that the configuration has no place for,", tensors.keys() - paths.keys(), advice)
    shapes = {name: _source_shape(path, leaves[path].shape, to_source) for name, path in paths.items()}
    misfits = [name for name in paths if tuple(tensors[name].shape) != shapes[name]]
    _refuse(
        source,
        "has tensors of another shape than the configuration asks for:",
        (f"{name} {tuple(tensors[name].shape)} instead of {shapes[name]}" for name in misfits),
        advice,
    )
    floating = {name for name in paths if jnp.issubdtype(tensors[name].dtype, jnp.floating)}
    _refuse(source, "has tensors that are not floating point:", paths.keys() - floating, "load the unquantized model")
    params: dict[tuple[str, ...], jax.Array] = {}
    not_finite = []
    for name, path in paths.items():
        tensor = tensors[name]
        # What jax holds already stays where it is: a way through numpy would hold every parameter twice.
        array = tensor if isinstance(tensor, jax.Array) else np.asarray(tensor, np.float32)
        if not np.isfinite(np.asarray(array)).all():
            not_finite.append(name)
        params[path] = jnp.asarray(_transposed(path, array, to_flax), jnp.float32)
    advice = "download the file again or take an earlier checkpoint"
    _refuse(source, "has NaN or infinity in", not_finite, advice)
    return unflatten_dict(params)


def torch_from_params(params: Any) -> dict[str, np.ndarray]:
    """Rearrange a parameter tree into a PyTorch state dictionary, the inverse of ``params_from_torch``.

    Args:
        params: the parameter tree of a UNet of this floor.

    Returns:
        torch name -> contiguous float32 array.
    """
    leaves = flatten_dict(jax.device_get(params))
    return {
        torch_name(path): np.ascontiguousarray(_transposed(path, np.asarray(leaf, np.float32), _TO_TORCH))
        for path, leaf in leaves.items()
    }


def _modern_name(name: str) -> str:
    return _OLD_ATTENTION.sub(lambda match: f"{match[1]}.{_OLD_NAMES[match[2]]}.", name)


def _transposed(path: tuple[str, ...], array: Any, axes: _Axes) -> Any:
    return array.transpose(axes[array.ndim]) if path[-1] == "kernel" and axes else array


def _source_shape(path: tuple[str, ...], shape: tuple[int, ...], axes: _Axes) -> tuple[int, ...]:
    return tuple(shape[axis] for axis in axes[len(shape)]) if path[-1] == "kernel" and axes else tuple(shape)


def _refuse(source: str, complaint: str, names: Iterable[str], advice: str) -> None:
    """Raise InputError if there are any names to complain about."""
    ordered = sorted(names)
    if ordered:
        more = f" and {len(ordered) - _NAMES_SHOWN} more" if len(ordered) > _NAMES_SHOWN else ""
        raise InputError(f"{source} {complaint} {', '.join(ordered[:_NAMES_SHOWN])}{more}; {advice}.")
