"""Weights on disk: safetensors, whole or sharded, and the msgpack of diffusers' Flax classes.

A pickle (``.bin``, ``.ckpt``, ``.pt``) can run code when it is opened, so none ever is.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import msgpack  # type: ignore[import-untyped]  # what flax writes its own files with
import numpy as np
from flax.traverse_util import flatten_dict
from safetensors import SafetensorError, safe_open

from jaxdq._common.errors import InputError
from jaxdq._common.reading import read_json_values
from jaxdq.models.unet._lora import merge_lora
from jaxdq.models.unet._stored import Stored
from jaxdq.models.unet._variants import WeightFiles, find_weights
from jaxdq.models.unet._weights import match_flax, match_torch, params_from_flax, params_from_torch

_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_MSGPACK_ARRAY = 1  # flax's extension type of an array: its shape, the name of its dtype, its bytes


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object, or raise InputError."""
    try:
        content = read_json_values(path)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; point to a folder in diffusers' layout, which has it.") from None
    except (ValueError, OSError) as error:
        raise InputError(f"{path} is not readable JSON ({error}); download the file again or mend it.") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a JSON {type(content).__name__}, not an object; download the file again.")
    return content


def read_params(folder: Path, expected: Any, class_name: str) -> dict[str, Any]:
    """Read the weights in a UNet's folder, one tensor at a time, so that they are in memory once.

    Args:
        folder: With weights under one of the names of ``_variants``.
        expected: The parameter tree of shapes, from ``abstract_params``.
        class_name: Diffusers' name of the UNet, for the advice how to convert a pickle.

    Returns:
        The parameter tree, float32.

    Raises:
        InputError: There are no weights that can be read safely, or they do not fit what is expected.
    """
    found = find_weights(folder, class_name)
    if found.file.suffix == ".msgpack":
        return params_from_flax(_read_msgpack(found.file, _array), expected, str(found.file))
    tensors = merge_lora(_open_torch(found), _adapter(folder), str(found.file))
    return params_from_torch(tensors, expected, str(found.file))


class StoredWeights(NamedTuple):
    """What a UNet's folder holds, told without reading the numbers.

    Attributes:
        file: The file, or the index of several.
        num_params: The numbers in it.
        num_bytes: What they take there.
        dtypes: Dtypes of the tensors, the most numbers first.
        misfit: Why they are not this network's, in a sentence; "" where they are.
    """

    file: Path
    num_params: int
    num_bytes: int
    dtypes: tuple[str, ...]
    misfit: str


def stored_weights(folder: Path, expected: Any, class_name: str) -> StoredWeights:
    """Describe the weights in a UNet's folder; arguments as in ``read_params``.

    Raises:
        InputError: There are no weights that can be read safely.
    """
    found, misfit = find_weights(folder, class_name), ""
    file, is_flax = found.file, found.file.suffix == ".msgpack"
    tensors = _read_msgpack(file, _described) if is_flax else _open_torch(found)
    try:
        if is_flax:
            match_flax(tensors, expected, str(file))
        else:
            match_torch(merge_lora(tensors, _adapter(folder), str(file)), expected, str(file))
    except InputError as error:
        misfit = str(error)
    sizes: dict[str, int] = {}
    for tensor in tensors.values():
        name = jnp.dtype(tensor.dtype).name
        sizes[name] = sizes.get(name, 0) + math.prod(tensor.shape)
    num_bytes = sum(count * jnp.dtype(name).itemsize for name, count in sizes.items())
    dtypes = tuple(sorted(sizes, key=lambda name: -sizes[name]))
    return StoredWeights(file, sum(sizes.values()), num_bytes, dtypes, misfit)


@dataclass(frozen=True)
class _StoredTensor:
    """A tensor of a safetensors file that is read when numpy asks for it.

    The file is opened for each: closed, its pages no longer count as this process's memory.
    """

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        with safe_open(self.file, framework="numpy") as tensors:
            return tensors.get_tensor(self.name).astype(dtype or self.dtype, copy=False)


def _adapter(folder: Path) -> dict[str, Any] | None:
    """PEFT's settings of the LoRA layers in a folder, if it has some."""
    file = folder / "adapter_config.json"
    return read_json(file) if file.is_file() else None


def _open_torch(found: WeightFiles) -> dict[str, Stored]:
    """List the tensors of a file, of the files of an index, or of parts without one."""
    if found.file.suffix == ".json":
        return _open_shards(found.file)
    tensors: dict[str, Stored] = {}
    for file in found.parts or (found.file,):
        tensors |= _open_safetensors(file)
    return tensors


def _open_safetensors(file: Path) -> dict[str, Stored]:
    """List the tensors of a file without reading them."""
    try:
        with safe_open(file, framework="numpy") as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}
            return {
                name: _StoredTensor(file, name, tuple(part.get_shape()), _dtype(part.get_dtype()))
                for name, part in slices.items()
            }
    except FileNotFoundError:
        raise InputError(f"{file} does not exist; download all parts of the model.") from None
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{file} is damaged or not a safetensors file ({error}); download it again, with git-lfs if from git."
        ) from None


def _dtype(name: str) -> np.dtype:
    # Whatever is no float is refused by its kind, not by its width.
    return jnp.dtype(_DTYPES.get(name, "int8"))


def _open_shards(index: Path) -> dict[str, Stored]:
    """List the tensors of the files that a sharded checkpoint's index refers to."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index} has no weight_map; download the file again.")
    tensors: dict[str, Stored] = {}
    for name in sorted(set(map(str, weight_map.values()))):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise InputError(f"{index} refers to {name!r}; expected the name of a safetensors file in the same folder.")
        tensors |= _open_safetensors(index.parent / name)
    return tensors


def _read_msgpack(file: Path, decode: Callable[[int, bytes], Any]) -> Mapping[str, Stored]:
    """Read a Flax file from its beginning to its end, each array becoming what `decode` makes of it as it comes."""
    try:
        with file.open("rb") as stream:
            unpacker = msgpack.Unpacker(stream, ext_hook=decode, strict_map_key=True, max_buffer_size=0)
            tree = unpacker.unpack()
    except (msgpack.exceptions.UnpackException, ValueError, TypeError) as error:
        raise InputError(
            f"{file} is damaged or not a flax msgpack file ({type(error).__name__}); download it again, with git-lfs "
            "if from git."
        ) from None
    if not isinstance(tree, dict):
        raise InputError(f"{file} holds a {type(tree).__name__}, not a tree of parameters; download it again.")
    leaves = flatten_dict(tree, sep="/")
    decoded = (jax.Array, jax.ShapeDtypeStruct)
    return {name: leaf if isinstance(leaf, decoded) else np.asarray(leaf) for name, leaf in leaves.items()}


def _array(code: int, data: bytes) -> jax.Array:
    """Decode one array of flax's msgpack, floats as float32."""
    array = _as_stored(code, data)
    return jnp.asarray(array, jnp.float32 if jnp.issubdtype(array.dtype, jnp.floating) else None)


def _described(code: int, data: bytes) -> jax.ShapeDtypeStruct:
    """Decode the shape and the dtype of one array."""
    array = _as_stored(code, data)
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


def _as_stored(code: int, data: bytes) -> np.ndarray:
    if code != _MSGPACK_ARRAY:
        raise ValueError(f"extension type {code}")
    shape, dtype, content = msgpack.unpackb(data, raw=True)
    return np.frombuffer(content, jnp.dtype(dtype.decode())).reshape(shape)
