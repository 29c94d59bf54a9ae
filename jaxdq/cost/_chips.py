"""What the modelled chips can do, one core of each."""

from typing import NamedTuple

from jaxdq._errors import InputError


class Chip(NamedTuple):
    """One core, by its data sheet.

    Attributes:
        name: as users write it, "v5e".
        topology: as the compiler names a machine with one of it.
        clock: Hz; the peak rate in bfloat16 is `2 * clock * macs` operations a second.
        bandwidth: bytes a second from and to its memory (HBM).
        macs: multiply-accumulates of bfloat16 in one cycle, over all matrix units.
        int8_rate: how many times as many of int8; 1 is a chip without an int8 rate.
    """

    name: str
    topology: str
    clock: float
    bandwidth: float
    macs: int
    int8_rate: int


# Clocks follow from the published peak rates and the size of the matrix units.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", "v5e:1x1", 1.50e9, 8.2e11, 4 * 128**2, 2),
        Chip("v6e", "v6e:1x1", 1.75e9, 1.64e12, 4 * 256**2, 2),
    )
}


def chip_of(platform: str) -> Chip:
    """The chip of a platform such as "tpu:v5e".

    Raises:
        InputError: one that is not modelled.
    """
    name = platform.removeprefix("tpu:")
    if name not in CHIPS:
        raise InputError(f"'{platform}' is no platform that is modelled; give one of {_listed()}.")
    return CHIPS[name]


def _listed() -> str:
    return ", ".join(f"tpu:{name}" for name in CHIPS)
