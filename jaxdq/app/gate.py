"""Figures that a run must reach: `--fail-under psnr=30`, for someone's continuous integration."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jaxdq._common.errors import InputError
from jaxdq.app.arguments import pairs

_FIGURES: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "psnr": lambda metrics: metrics["image_psnr_db"],
    "median_psnr": lambda metrics: metrics["image_psnr_median_db"],
    "worst5_psnr": lambda metrics: metrics["image_psnr_worst5_db"],
    "worst_psnr": lambda metrics: metrics["image_psnr_worst_db"],
    "ssim": lambda metrics: metrics["image_ssim"],
    "worst_ssim": lambda metrics: metrics["image_ssim_worst"],
    "sqnr": lambda metrics: metrics["noise_sqnr_db"]["mean"],
    "pooled_sqnr": lambda metrics: metrics["noise_sqnr_pooled_db"],
}
"""Word -> the figure of metrics.json that it stands for: the larger, the closer to the float model."""


def parse_limits(words: Iterable[str]) -> dict[str, float]:
    """{"psnr": 30.0} of ["psnr=30"].

    Raises:
        InputError: A figure that no run has, or a limit that is no number.
    """
    words, limits = list(words), {}
    for word in words:
        if "=" not in word.strip("="):
            raise InputError(f"--fail-under is '{word}'; give a figure and its limit, such as psnr=30.")
    for name, value in pairs(words).items():
        if name not in _FIGURES:
            raise InputError(f"--fail-under names '{name}'; the figures are {', '.join(_FIGURES)}.")
        try:
            limits[name] = float(value)
        except ValueError:
            limits[name] = float("nan")
        if math.isnan(limits[name]):
            raise InputError(f"--fail-under sets {name} to '{value}'; give a number, such as {name}=30.")
    return limits


def shortfalls(metrics: Mapping[str, Any], limits: Mapping[str, float]) -> list[str]:
    """A sentence for each figure below its limit.

    Decibels that are null are infinite: nothing differs. A similarity is never infinite, and null is none.
    """
    found = {name: _FIGURES[name](metrics) for name in limits}
    none = [f"{name} is no number" for name, value in found.items() if value is None and name.endswith("ssim")]
    return none + [
        f"{name} is {value:.4g}, below {limits[name]:g}"
        for name, value in found.items()
        if value is not None and value < limits[name]
    ]
