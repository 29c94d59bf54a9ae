"""The two nouns of the grid: the parameters of a quantized tensor, and the tensor itself."""

import dataclasses
import math
from typing import NamedTuple

import jax

from jaxdq.grid._scheme import Scheme


class QParams(NamedTuple):
    """Where the grid lies: `x ~ scale * (qvalue - zero_point)`.

    Attributes:
        scale: f32[...] > 0, the step size; a scalar, or broadcastable to the tensor (size 1 along axes that share it).
        zero_point: int32 of scale's shape, within the scheme's bounds: the code of 0.0; None where symmetric.
    """

    scale: jax.Array
    zero_point: jax.Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QTensor:
    """A tensor of real integers and the grid that they lie on. Data only: arithmetic is in `jaxdq.ops`.

    Attributes:
        qvalue: int8, int4 or int2 [*shape], every code within `scheme.bounds`.
        qparams: The grid.
        scheme: Bits, symmetry and channel axes (static).
        code_sum: int32, the codes summed over all but the channel axes (kept as size 1), where it was computed ahead:
            what the other operand's zero point multiplies (see `jaxdq.ops.dot_general`).
    """

    qvalue: jax.Array
    qparams: QParams
    scheme: Scheme = dataclasses.field(metadata={"static": True})
    code_sum: jax.Array | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the tensor that the codes stand for."""
        return self.qvalue.shape

    @property
    def ndim(self) -> int:
        """Its number of axes."""
        return self.qvalue.ndim


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Grid:
    """A grid that a tensor is to be rounded to, and the scheme that it was fitted for: a `QTensor` without codes.

    Attributes:
        qparams: Where the grid lies.
        scheme: Bits, symmetry and channel axes (static).
    """

    qparams: QParams
    scheme: Scheme = dataclasses.field(metadata={"static": True})


def stored_bytes(tree: object) -> int:
    """Bytes that the arrays of a pytree take, narrow integers at their packed size.

    `Array.nbytes` counts a whole byte for an int4, which the device packs two to a byte.

    Args:
        tree: Any pytree of arrays (or of `jax.ShapeDtypeStruct`).

    Returns:
        The sum over all leaves, each rounded up to whole bytes.

    Example:
        >>> import jax.numpy as jnp
        >>> stored_bytes({"a": jnp.zeros(3, jnp.int4), "b": jnp.zeros(2, jnp.float32)})
        10
    """
    return sum(_bits_of(leaf.dtype) * math.prod(leaf.shape) + 7 >> 3 for leaf in jax.tree.leaves(tree))


def _bits_of(dtype: jax.typing.DTypeLike) -> int:
    return jax.dtypes.itemsize_bits(dtype)
