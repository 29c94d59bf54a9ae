"""Codes at their true size on disk: `b` bits a code, for every b."""

import numpy as np

from jaxdq._common.errors import InputError


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes as bit planes, eight codes to a byte of each plane.

    Planes rather than neighbouring fields, since then 3, 5, 6 and 7 bits need no case of their own.

    Args:
        codes: int[...] within `[-2**(bits-1), 2**(bits-1) - 1]`.
        bits: 2 to 8.

    Returns:
        uint8[bits, ceil(codes.size / 8)]; plane p holds bit p of the two's complement.

    Raises:
        InputError: A code that does not fit.

    Example:
        >>> pack(np.array([-1, 0, 1]), bits=2).tolist()
        [[160], [128]]
    """
    flat = np.asarray(codes).ravel()
    half = 2 ** (bits - 1)
    low, high = (int(flat.min()), int(flat.max())) if flat.size else (0, 0)
    if low < -half or high >= half:
        raise InputError(f"codes from {low} to {high} do not fit {bits} bits; clip to {-half}..{half - 1}.")
    flat = flat.astype(np.int8).view(np.uint8)
    # A plane at a time: all of them as numbers would be sixteen times the codes.
    return np.stack([np.packbits(flat >> bit & 1) for bit in range(bits)])


def unpack(packed: np.ndarray, bits: int, shape: tuple[int, ...]) -> np.ndarray:
    """The codes that `pack` packed, int8[*shape].

    Raises:
        InputError: An array whose size does not belong to that shape.

    Example:
        >>> unpack(pack(np.array([[-2, 1]]), bits=2), bits=2, shape=(1, 2)).tolist()
        [[-2, 1]]
    """
    size = int(np.prod(shape, dtype=np.int64))
    if packed.shape != (bits, -(-size // 8)):
        raise InputError(
            f"packed codes have shape {packed.shape}; {bits}-bit codes of shape {shape} take {(bits, -(-size // 8))}."
        )
    codes = np.zeros(size, np.uint8)
    for bit, plane in enumerate(packed):
        codes |= np.unpackbits(plane, count=size) << bit
    # The highest bit is the sign: it is worth -half and not half, modulo 256.
    half = np.uint8(2 ** (bits - 1))
    return ((codes ^ half) - half).view(np.int8).reshape(shape)
