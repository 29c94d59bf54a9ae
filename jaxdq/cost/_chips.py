"""What the modelled chips can do, one core of each."""

from typing import NamedTuple

from jaxdq._common.errors import InputError


class Chip(NamedTuple):
    """One core, by its data sheet.

    Attributes:
        name: Name that users write, "v5e".
        topology: The compiler's name of a machine with one such chip.
        clock: Hz.
        bandwidth: Bytes a second from and to its memory (HBM).
        lanes: Elements that its vector unit adds or multiplies in a cycle.
    """

    name: str
    topology: str
    clock: float
    bandwidth: float
    lanes: int = 8 * 128 * 4


# Clocks follow from the published peak rates and the size of the matrix units.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", "v5e:1x1", 1.50e9, 8.2e11),
        Chip("v6e", "v6e:1x1", 1.75e9, 1.64e12),
    )
}


def chip_of(platform: str) -> Chip:
    """The chip of a platform such as "tpu:v5e".

    Raises:
        InputError: One that is not modelled.
    """
    name = platform.removeprefix("tpu:")
    if name not in CHIPS:
        raise InputError(
            f"'{platform}' is no platform of jaxdq; give cpu, gpu or tpu to measure here, or {_listed()} to model one."
        )
    return CHIPS[name]


def _listed() -> str:
    return ", ".join(f"tpu:{name}" for name in CHIPS)
