"""Between diffusers' PyTorch state dictionaries and the parameter trees of this floor.

A torch name is the path with dots: ``down_blocks.0.resnets.1.conv1.weight`` is
``down_blocks_0/resnets_1/conv1/kernel``. Convolution kernels are OIHW there and HWIO here; matrices are
[out, in] there and [in, out] here.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxdq._errors import InputError

_LIST_ITEM = re.compile(r"^(down_blocks|up_blocks|resnets|attentions|downsamplers|upsamplers|to_out)_(\d+)$")
_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "weight": "weight", "bias": "bias"}
# Before diffusers 0.15 attention had a class of its own, and files of that time keep its names.
_OLD_ATTENTION = re.compile(r"(attentions\.\d+)\.(query|key|value|proj_attn)\.")
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_TO_FLAX = {4: (2, 3, 1, 0), 2: (1, 0)}
_TO_TORCH = {4: (3, 2, 0, 1), 2: (1, 0)}
_NAMES_SHOWN = 5


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
    return ".".join([*(_LIST_ITEM.sub(r"\1.\2", part) for part in path[:-1]), _LEAVES[path[-1]]])


def params_from_torch(tensors: Mapping[str, np.ndarray], expected: Any, source: str) -> dict[str, Any]:
    """Rearrange a PyTorch state dictionary into the parameter tree of a module.

    Args:
        tensors: torch name -> array of any floating dtype; the attention names of before diffusers 0.15 are accepted.
        expected: the parameter tree of shapes, from ``abstract_params``.
        source: what the tensors were read from, for the messages.

    Returns:
        The parameter tree, float32.

    Raises:
        InputError: tensors are missing, superfluous, of another shape, not floating or not finite; they are named.
    """
    tensors = {_modern_name(name): array for name, array in tensors.items()}
    leaves = flatten_dict(expected)
    paths = {torch_name(path): path for path in leaves}
    advice = "use the weights and the config.json of one and the same model"
    _refuse(source, "lacks", paths.keys() - tensors.keys(), advice)
    _refuse(source, "has tensors that the configuration has no place for,", tensors.keys() - paths.keys(), advice)
    shapes = {name: _torch_shape(path, leaves[path].shape) for name, path in paths.items()}
    misfits = [name for name in paths if tensors[name].shape != shapes[name]]
    _refuse(
        source,
        "has tensors of another shape than the configuration asks for:",
        (f"{name} {tensors[name].shape} instead of {shapes[name]}" for name in misfits),
        advice,
    )
    floating = {name for name in paths if jnp.issubdtype(tensors[name].dtype, jnp.floating)}
    _refuse(source, "has tensors that are not floating point:", paths.keys() - floating, "load the unquantized model")
    arrays = {name: np.asarray(tensors[name], np.float32) for name in paths}
    _refuse(
        source,
        "has NaN or infinity in",
        (name for name, array in arrays.items() if not np.isfinite(array).all()),
        "download the file again or take an earlier checkpoint",
    )
    return unflatten_dict(
        {path: jnp.asarray(_transposed(path, arrays[name], _TO_FLAX)) for name, path in paths.items()}
    )


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


def _transposed(path: tuple[str, ...], array: np.ndarray, axes: Mapping[int, tuple[int, ...]]) -> np.ndarray:
    return array.transpose(axes[array.ndim]) if path[-1] == "kernel" else array


def _torch_shape(path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(shape[axis] for axis in _TO_TORCH[len(shape)]) if path[-1] == "kernel" else tuple(shape)


def _refuse(source: str, complaint: str, names: Iterable[str], advice: str) -> None:
    """Raise InputError if there are any names to complain about."""
    ordered = sorted(names)
    if ordered:
        more = f" and {len(ordered) - _NAMES_SHOWN} more" if len(ordered) > _NAMES_SHOWN else ""
        raise InputError(f"{source} {complaint} {', '.join(ordered[:_NAMES_SHOWN])}{more}; {advice}.")
