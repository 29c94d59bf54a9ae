"""Grids of weights from the weights alone."""

import functools

import jax

from jaxdq.calibration._base import Run, Work, calibrator
from jaxdq.grid import Grid
from jaxdq.linen import Plan, fit_in_parts, kernel_at
from jaxdq.observers import WeightQParams


@calibrator(gives=(Grid,))
def fit_weights(weight_range: WeightQParams) -> Run:
    """A grid for every planned kernel, to which its weights are rounded to nearest.

    Args:
        weight_range: Such as `jaxdq.observers.mse_weights()`.

    Returns:
        A calibrator that fits the weights' grids.
    """

    def run(work: Work, key: jax.Array) -> Work:
        return work.deciding(weights=weight_grids(work.denoiser.params, work.plan, weight_range))

    return run


def weight_grids(params: object, plan: Plan, weight_range: WeightQParams) -> dict[str, Grid]:
    """Path -> grid of every planned kernel."""
    of_one = jax.jit(functools.partial(fit_in_parts, weight_range), static_argnums=(1, 2, 3))
    return {
        site.path: Grid(of_one(kernel_at(params, site.path), site.weight, site.parts, site.input_axis), site.weight)
        for site in plan.sites
        if site.weight is not None
    }
