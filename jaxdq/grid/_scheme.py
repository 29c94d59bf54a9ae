"""What integers stand for a tensor: the only place where bounds are written down."""

import dataclasses
import operator

import jax.numpy as jnp

from jaxdq._common.errors import InputError

MIN_BITS, MAX_BITS = 2, 8


@dataclasses.dataclass(frozen=True)
class Scheme:
    """How a tensor is put on a grid of integers. Static under jit: frozen and hashable.

    The integer bounds of `b` bits are `[-(2**(b-1) - 1), 2**(b-1) - 1]` where symmetric (one code is given up, so that
    negation is exact and no int8 product exceeds 127 * 127), and `[-2**(b-1), 2**(b-1) - 1]`, all `2**b` codes, where
    asymmetric.

    Attributes:
        bits: 2 to 8.
        symmetric: Whether the zero point is 0 by construction.
        channel_axis: Axis or axes along which scales differ; None is one scale for the whole tensor.

    Raises:
        InputError: Bits outside 2..8.

    Example:
        >>> Scheme(bits=4).bounds, Scheme(bits=4, symmetric=False).bounds
        ((-7, 7), (-8, 7))
    """

    bits: int
    symmetric: bool = True
    channel_axis: int | tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        try:
            bits = operator.index(self.bits)
        except TypeError:
            bits = -1
        if isinstance(self.bits, bool) or not MIN_BITS <= bits <= MAX_BITS:
            raise InputError(f"bits is {self.bits!r}; give a whole number from {MIN_BITS} to {MAX_BITS}.")
        # A numpy integer of 8 bits would overflow where the bounds are computed, and JSON knows none of any size.
        object.__setattr__(self, "bits", bits)

    @property
    def bounds(self) -> tuple[int, int]:
        """The smallest and the largest code, both in use."""
        half = 2 ** (self.bits - 1)
        return (-(half - 1) if self.symmetric else -half), half - 1

    @property
    def storage_dtype(self) -> jnp.dtype:
        """The narrowest device integer that holds the codes: int2 for 2 bits, int4 for 3 and 4, int8 above.

        XLA packs int2 and int4 in memory (4 and 2 codes a byte), so that the bytes of an array are its true size.
        """
        narrow = jnp.int2 if self.bits == 2 else jnp.int4
        return jnp.dtype(narrow if self.bits <= 4 else jnp.int8)

    def channel_axes(self, ndim: int) -> tuple[int, ...]:
        """Axes along which scales differ, non-negative and sorted, for a tensor of `ndim` axes."""
        if self.channel_axis is None:
            return ()
        axes = (self.channel_axis,) if isinstance(self.channel_axis, int) else self.channel_axis
        wrong = [axis for axis in axes if not -ndim <= axis < ndim]
        if wrong:
            raise InputError(
                f"channel_axis {self.channel_axis} does not exist in a tensor of {ndim} axes; "
                f"give axes from {-ndim} to {ndim - 1}."
            )
        return tuple(sorted({axis % ndim for axis in axes}))

    def reduced_axes(self, ndim: int) -> tuple[int, ...]:
        """The other axes: those that share one scale."""
        kept = self.channel_axes(ndim)
        return tuple(axis for axis in range(ndim) if axis not in kept)

    def __str__(self) -> str:
        """For tables: `8`, or `8a` where asymmetric."""
        return f"{self.bits}{'' if self.symmetric else 'a'}"
