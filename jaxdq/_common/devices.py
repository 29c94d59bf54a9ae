"""Data parallelism: rows sharded over the devices of one mesh, all else replicated, results on every host.

`mesh` is None (one device, and nothing here does anything) or a `jax.sharding.Mesh` of one axis, whatever its name. Its
devices may belong to several processes of `jax.distributed`: all of them run the same program on the same values, which
live on the host between two jitted calls. `jit` partitions by the shardings of its arguments.
"""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdq._common.errors import InputError

Tree = TypeVar("Tree")


def num_devices(mesh: Mesh | None) -> int:
    """How many share the rows.

    Raises:
        InputError: A mesh of more axes than one, or something else than a mesh.
    """
    if mesh is None:
        return 1
    if not isinstance(mesh, Mesh) or len(mesh.axis_names) != 1:
        came = f"axes {mesh.axis_names}" if isinstance(mesh, Mesh) else f"type {type(mesh).__name__}"
        raise InputError(
            f"mesh has {came} and one axis was expected, over which images are sharded; pass "
            f"jax.make_mesh((jax.device_count(),), ('batch',))."
        )
    return mesh.size


def round_up(rows: int, mesh: Mesh | None) -> int:
    """The next multiple of the number of devices."""
    return -(-rows // num_devices(mesh)) * num_devices(mesh)


def shard(tree: Tree, mesh: Mesh | None, *, axis: int = 0) -> Tree:
    """Device arrays, their rows spread over the devices; where these can't be shared out evenly, all on each device.

    Args:
        tree: Arrays on the host, or on this process's device.
        mesh: None makes them arrays of the default device.
        axis: Axis of the rows.
    """
    if mesh is None:
        return jax.tree.map(jnp.asarray, tree)

    def one(leaf: Any) -> jax.Array:
        even = leaf.shape[axis] % num_devices(mesh) == 0
        return _put(leaf, _sharding(mesh, *(None,) * axis, *mesh.axis_names) if even else _sharding(mesh))

    return jax.tree.map(one, tree)


def replicate(tree: Tree, mesh: Mesh | None) -> Tree:
    """The tree on each of the devices; unchanged where there is no mesh."""
    return tree if mesh is None else jax.tree.map(lambda leaf: _put(leaf, _sharding(mesh)), tree)


def replicated(mesh: Mesh | None) -> NamedSharding | None:
    """For `out_shardings` of a result that every device shall hold; None leaves it to jit."""
    return None if mesh is None else _sharding(mesh)


def gather(tree: Tree, mesh: Mesh | None) -> Tree:
    """The whole arrays as numpy, on the host of every process; unchanged where there is no mesh."""

    def one(leaf: Any) -> np.ndarray:
        here = not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated
        return np.asarray(leaf if here else multihost_utils.process_allgather(leaf, tiled=True))

    return tree if mesh is None else jax.tree.map(one, tree)


def is_same_everywhere(number: int, mesh: Mesh | None) -> bool:
    """Whether all processes came to this number."""
    return mesh is None or len(set(np.ravel(multihost_utils.process_allgather(np.int32(number))).tolist())) == 1


def is_first_process() -> bool:
    """Whether this process is the one that writes files."""
    return jax.process_index() == 0


def _sharding(mesh: Mesh, *axes: str | None) -> NamedSharding:
    num_devices(mesh)  # refuses what is no mesh of one axis
    # jax.make_mesh makes axes that every operation has to be told about; jit shall partition by itself.
    return NamedSharding(Mesh(mesh.devices, mesh.axis_names), PartitionSpec(*axes))


def _put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    if sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    whole = leaf if is_key else np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])
