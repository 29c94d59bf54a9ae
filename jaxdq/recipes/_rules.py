"""The sites that recipes quantize by default."""

import re
from collections.abc import Callable, Sequence

from jaxdq.calibration import check_truth
from jaxdq.grid import Scheme
from jaxdq.linen import Rule, Site


def default_rules(weight_bits: int, act_bits: int, *, split: bool = False) -> Callable[[Sequence[Site]], list[Rule]]:
    """The rules of every recipe: all but the ends, the time path and attention's products run on integers.

    - The first and the last convolution stay in float: they read and write the image itself, with few channels, where
      an error costs most and integers gain nothing.
    - Sites of one row per image (the time embedding and its projections) keep float inputs: a product of a few rows is
      bound by reading its weights. The first two, whose error reaches every block, keep 8-bit weights.
    - Products of activations (attention) stay in float: int8 there is slower on TPU and costs accuracy.
    - Everything else: `weight_bits` symmetric per output channel, `act_bits` asymmetric per tensor. After a SiLU, which
      has one long tail, a symmetric grid has 3.3 to 3.8 times the rounding error (inputs of residual blocks' 3x3
      convolutions in `digits`). Elsewhere it has 1.06 to 1.57 times the error, and quantizing takes 0.76 of a v5e's
      cycles, 7% of a layer from 640 to 640 (`scripts/bench_qwix.py`); a rule with a symmetric `act` has it so.

    Args:
        weight_bits: 2 to 8.
        act_bits: 2 to 8.
        split: Whether arrays that a layer is given side by side (a decoder's features and an encoder's shortcut) have
            grids of their own, and the kernel's slices too: a sum of integer dots. `digits` at W4A8 (GPTQ, eight spans)
            has 33.0 dB noise SQNR and 28.1 dB image PSNR without, 37.8 and 34.3 with.

    Returns:
        The sites of a network -> its rules.
    """
    check_truth(split=split)
    weight = Scheme(weight_bits, symmetric=True, channel_axis=-1)
    act = Scheme(act_bits, symmetric=False)

    def rules(sites: Sequence[Site]) -> list[Rule]:
        kernels = [site for site in sites if site.kind != "product"]
        ends = {site.path for site in (_first(kernels), _first(kernels[::-1])) if site is not None}
        rows = [Rule(re.escape(path), reason="reads or writes the image") for path in sorted(ends)]
        wide = any(site.rows > 1 for site in kernels)  # in a network without, one row is all there is
        narrow = [site.path for site in kernels if wide and site.rows == 1 and site.path not in ends]
        for index, path in enumerate(narrow):
            scheme = Scheme(8, channel_axis=-1) if index < 2 else weight
            rows.append(Rule(re.escape(path), weight=scheme, reason="one row per image: weights only"))
        if any(site.kind == "product" for site in sites):
            rows.append(Rule(".*", kind="product", reason="attention stays in float"))
        if len(rows) < len(sites):
            rows.append(Rule(".*", weight=weight, act=act, cut="joined" if split else None))
        return rows

    return rules


def _first(sites: Sequence[Site]) -> Site | None:
    """The first site that touches every position of an image, if there are more than two of them."""
    wide = [site for site in sites if site.rows > 1]
    return wide[0] if len(wide) > 2 else None
