"""Tensor parallelism: where each array of a quantized network lies when its output channels are split over devices."""

import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdq._common.errors import InputError
from jaxdq.linen._plan import SitePlan
from jaxdq.linen._quantized import QuantizedParams


def shard_by_output(qparams: QuantizedParams, mesh: Mesh, axis: str) -> QuantizedParams:
    """A sharding for every array: kernels split along their output channels, their grids and biases with them.

    A site is split along the first of its output axes that the devices can share out evenly; scales, zero points, code
    sums and the bias follow where they vary along it. Everything else is replicated: sites without such an axis, and
    what stayed in float. Under `jit` the result is that of one device, but for the order of float sums elsewhere in the
    network: an integer dot over split channels adds up in int32, whose order does not matter.

    Args:
        qparams: What `jaxdq.quantize` returned; arrays or `jax.ShapeDtypeStruct`.
        mesh: Mesh of any number of axes.
        axis: The name of the one over which channels are split.

    Returns:
        qparams with a `NamedSharding` in the place of each array.

    Raises:
        InputError: The mesh has no such axis; qparams are not quantized.

    Example:
        `qparams = jax.device_put(qparams, jaxdq.linen.shard_by_output(qparams, mesh, "model"))`
    """
    if not isinstance(qparams, QuantizedParams):
        raise InputError(f"qparams is {type(qparams).__name__}; pass what jaxdq.quantize returned.")
    if axis not in mesh.shape:
        raise InputError(f"the mesh has axes {mesh.axis_names} and not '{axis}'; name one of them.")
    # jax.make_mesh makes axes that every operation has to be told about; jit shall partition by itself.
    mesh = Mesh(mesh.devices, mesh.axis_names)

    def place(leaf: Any, from_end: int = 0, size: int = 0) -> NamedSharding:
        """Split along axis -from_end, if there is one, and it is as long as the kernel's."""
        if not size or leaf.ndim < from_end or leaf.shape[-from_end] != size:
            return NamedSharding(mesh, PartitionSpec())
        return NamedSharding(mesh, PartitionSpec(*(None,) * (leaf.ndim - from_end), axis))

    def walk(node: Any, path: str) -> Any:
        site = qparams.plan.by_path.get(path)
        if site is not None and site.weight is not None:
            return jax.tree.map(lambda leaf: place(leaf, *_split(site, mesh.shape[axis])), node)
        if hasattr(node, "items"):
            return {name: walk(child, f"{path}/{name}" if path else name) for name, child in node.items()}
        return place(node)

    everywhere = jax.tree.map(place, qparams)
    return dataclasses.replace(everywhere, params=walk(qparams.params, ""))


def _split(site: SitePlan, parts: int) -> tuple[int, int]:
    """(k, size): the first output axis that divides into parts is axis -k of the kernel; (0, 0) where none does."""
    shape = site.site.shape
    outputs = (index for index in site.site.channel_axes if index not in site.site.stacked)
    found = (index for index in outputs if shape[index] % parts == 0)
    index = next(found, None)
    # Counted from the end, where the bias has its axes too.
    return (0, 0) if index is None else (len(shape) - index, shape[index])
