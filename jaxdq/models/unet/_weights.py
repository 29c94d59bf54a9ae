"""Between diffusers' weights and the parameter trees of this floor.

A torch name is the path with dots: ``down_blocks.0.resnets.1.conv1.weight`` is
``down_blocks_0/resnets_1/conv1/kernel``. Convolution kernels are OIHW there and HWIO here; matrices are
[out, in] there and [in, out] here. diffusers' Flax classes have the names and the layouts that we have.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxdq._common.errors import InputError
from jaxdq.models.unet._stored import Stored

_LIST_ITEM = re.compile(
    r"^(down_blocks|up_blocks|resnets|attentions|downsamplers|upsamplers|transformer_blocks|transformers|net|to_out"
    r"|input_hint_block|blocks|controlnet_down_blocks)_(\d+)$"
)
_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "weight": "weight", "bias": "bias"}
# Leaves with a name of their own keep it.
# Before diffusers 0.15 attention had a class of its own, and files of that time keep its names.
_OLD_ATTENTION = re.compile(r"(attentions\.\d+)\.(query|key|value|proj_attn)\.")
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
# What `DataParallel`, `torch.compile`, FSDP, activation checkpointing and Fabric put into a name.
_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
_NAMES_SHOWN = 5
_Axes = Mapping[int, tuple[int, ...]]
_TO_FLAX: _Axes = {4: (2, 3, 1, 0), 2: (1, 0)}
_TO_TORCH: _Axes = {4: (3, 2, 0, 1), 2: (1, 0)}


def torch_name(path: tuple[str, ...]) -> str:
    """Return the name that diffusers' PyTorch class gives to a parameter.

    Args:
        path: The keys from the root of the parameter tree to the leaf.

    Returns:
        The name in the state dictionary.

    Example:
        >>> torch_name(("mid_block", "attentions_0", "to_out_0", "kernel"))
        'mid_block.attentions.0.to_out.0.weight'
    """
    parts = [*(_LIST_ITEM.sub(r"\1.\2", part) for part in path[:-1]), _LEAVES.get(path[-1], path[-1])]
    # The Flax class of the autoencoder has attention by its old names.
    return _modern_name(".".join(parts))


def match_torch(tensors: Mapping[str, Stored], expected: Any, source: str) -> dict[str, Stored]:
    """Find the tensors of a PyTorch state dictionary that a module's parameters are, without reading them.

    Args:
        tensors: Torch name -> tensor of any floating dtype; the names of wrappers (`DataParallel`, `torch.compile`, a
            pipeline's or a trainer's own) and the attention names of before diffusers 0.15 are accepted.
        expected: The parameter tree of shapes, from ``abstract_params``.
        source: What the tensors were read from, for the messages.

    Returns:
        path with slashes -> tensor, in torch's layout.

    Raises:
        InputError: Tensors are missing, superfluous, of another shape or not floating; they are named.
    """
    paths = {torch_name(path): path for path in flatten_dict(expected)}
    tensors = {_modern_name(name): tensor for name, tensor in unwrapped(tensors, paths, source, ".").items()}
    return _matched(tensors, paths, expected, source, _TO_TORCH)


def match_flax(tensors: Mapping[str, Stored], expected: Any, source: str) -> dict[str, Stored]:
    """Find the arrays of a Flax tree that a module's parameters are; as ``match_torch``, with slashes in the names."""
    paths = {"/".join(path): path for path in flatten_dict(expected)}
    return _matched(unwrapped(tensors, paths, source, "/"), paths, expected, source, {})


def params_from_torch(tensors: Mapping[str, Stored], expected: Any, source: str) -> dict[str, Any]:
    """Rearrange a PyTorch state dictionary into the parameter tree of a module.

    Args:
        tensors: As in ``match_torch``, read when their turn comes.
        expected: The parameter tree of shapes, from ``abstract_params``.
        source: What the tensors were read from, for the messages.

    Returns:
        The parameter tree, float32.

    Raises:
        InputError: As in ``match_torch``, or a tensor is not finite.
    """
    return _read(match_torch(tensors, expected, source), source, _TO_FLAX)


def params_from_flax(tensors: Mapping[str, Stored], expected: Any, source: str) -> dict[str, Any]:
    """Check the parameters of a diffusers Flax class and return them as the parameter tree of a module.

    Args:
        tensors: Path with slashes -> tensor of any floating dtype.
        expected: The parameter tree of shapes, from ``abstract_params``.
        source: What the tensors were read from, for the messages.

    Returns:
        The parameter tree, float32.

    Raises:
        InputError: As in ``params_from_torch``.
    """
    return _read(match_flax(tensors, expected, source), source, {})


def unwrapped(tensors: Mapping[str, Stored], known: Iterable[str], source: str, separator: str) -> dict[str, Stored]:
    """Drop from all names what wrappers put there: their own names anywhere, and a beginning that all names share.

    Args:
        tensors: Name -> tensor.
        known: Names without wrappers; a beginning goes only if one of these is left.
        source: What the tensors were read from, for the message.
        separator: Between the parts of a name.

    Raises:
        InputError: Two names become one.

    Example:
        >>> list(unwrapped({"unet._orig_mod.conv_in.bias": np.zeros(1)}, ["conv_in.bias"], "a file", "."))
        ['conv_in.bias']
    """
    names = {name: [part for part in name.split(separator) if part not in _WRAPPERS] for name in tensors}
    known = set(known)
    # zip stops at the end of the shortest name.
    shared = list(takewhile(lambda parts: len(set(parts)) == 1, zip(*names.values(), strict=False)))
    for length in range(1, len(shared) + 1):
        shorter = {name: parts[length:] for name, parts in names.items()}
        if not known.isdisjoint(map(separator.join, shorter.values())):
            names = shorter
            break
    plain: dict[str, str] = {}
    for name, parts in names.items():
        other = plain.setdefault(separator.join(parts), name)
        if other != name:
            raise InputError(
                f"{source} has both {other} and {name}, which are names of one tensor; save one of the models alone."
            )
    return {name: tensors[wrapped] for name, wrapped in plain.items()}


def _matched(
    tensors: Mapping[str, Stored],
    paths: Mapping[str, tuple[str, ...]],
    expected: Any,
    source: str,
    axes: _Axes,
) -> dict[str, Stored]:
    """Check all tensors by their descriptions; none is read."""
    leaves = flatten_dict(expected)
    advice = "use the weights and the config.json of one and the same model"
    missing, more = sorted(paths.keys() - tensors.keys()), sorted(tensors.keys() - paths.keys())
    complaints = [f"lacks {_some(missing)}"] if missing else []
    complaints += [f"has tensors that the configuration has no place for, {_some(more)}"] if more else []
    if complaints:
        raise InputError(f"{source} {', and '.join(complaints)}; {advice}.")
    shapes = {name: _source_shape(path, leaves[path].shape, axes) for name, path in paths.items()}
    misfits = [name for name in paths if tuple(tensors[name].shape) != shapes[name]]
    _refuse(
        source,
        "has tensors of another shape than the configuration asks for:",
        (f"{name} {tuple(tensors[name].shape)} instead of {shapes[name]}" for name in misfits),
        advice,
    )
    floating = {name for name in paths if jnp.issubdtype(tensors[name].dtype, jnp.floating)}
    _refuse(source, "has tensors that are not floating point:", paths.keys() - floating, "load the unquantized model")
    return {"/".join(path): tensors[name] for name, path in paths.items()}


def _read(tensors: Mapping[str, Stored], source: str, axes: _Axes) -> dict[str, Any]:
    """Read tensors that fit, one at a time."""
    params: dict[tuple[str, ...], jax.Array] = {}
    not_finite = []
    for name, tensor in tensors.items():
        path = tuple(name.split("/"))
        # What jax holds already stays where it is: a way through numpy would hold every parameter twice.
        array = tensor if isinstance(tensor, jax.Array) else np.asarray(tensor, np.float32)
        if not np.isfinite(np.asarray(array)).all():
            not_finite.append(torch_name(path) if axes else name)
        params[path] = jnp.asarray(_transposed(path, array, axes), jnp.float32)
    advice = "download the file again or take an earlier checkpoint"
    _refuse(source, "has NaN or infinity in", not_finite, advice)
    return unflatten_dict(params)


def torch_from_params(params: Any) -> dict[str, np.ndarray]:
    """Rearrange a parameter tree into a PyTorch state dictionary, the inverse of ``params_from_torch``.

    Args:
        params: The parameter tree of a UNet of this floor.

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
        raise InputError(f"{source} {complaint} {_some(ordered)}; {advice}.")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return f"{', '.join(names[:_NAMES_SHOWN])}{more}"
