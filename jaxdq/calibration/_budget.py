"""Bits of weights for each layer within a budget: a database of losses, a dynamic programme, a search around it."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxdq._common.devices import replicate
from jaxdq._common.errors import InputError
from jaxdq._common.progress import track
from jaxdq.calibration._base import Run, Work, calibrator, check_at_least
from jaxdq.calibration.tools.allocation import allocate
from jaxdq.calibration.tools.propagation import Sensitivity
from jaxdq.calibration.tools.rows import Rows, apply_by_row, image_error, rows_of_steps, step_weights
from jaxdq.grid import Grid, Scheme, fake_quantize, stored_bytes
from jaxdq.linen import Instead, Plan, SitePlan, fit_in_parts, kernel_at, quantize, with_kernels
from jaxdq.observers import WeightQParams

Resource = Literal["bytes", "disk", "bit-operations"]
LEVELS = (2, 3, 4, 6, 8)


class Database(NamedTuple):
    """What every layer loses and costs at every level.

    Attributes:
        paths: Of the L kernels.
        grids: Grids of each at the K levels.
        losses: f64[L, K].
        costs: f64[L, K].
        fixed: What all that stays as it is costs.
        whole: What the budget is a share of.
    """

    paths: tuple[str, ...]
    grids: tuple[tuple[Grid, ...], ...]
    losses: np.ndarray
    costs: np.ndarray
    fixed: float
    whole: float


@calibrator(needs=(Grid, Sensitivity), gives=(Grid,), precedes=(Instead,))
def spend_budget(
    budget: float,
    weight_range: WeightQParams,
    resource: Resource = "bytes",
    levels: tuple[int, ...] = LEVELS,
    num_rows: int = 50,
    tries: int = 12,
) -> Run:
    """Gives every kernel the bits with which the network's output loses least, within a budget.

    The loss of a kernel at b bits is the squared error of the network's output when that kernel alone is rounded, with
    activations in float, over states of all steps, each weighted by what an error there costs the image
    (`tools.rows.step_weights`). The sum of losses is minimised within the budget by a dynamic programme. It counts
    errors as if they were independent; so losses are multiplied by coefficients that are searched around 1, and the
    choice stays whose images, with these weights, come closest to the float ones.

    Where we deviate from the source: losses are measured at the output of the whole network and weighted by step; the
    codes that they are measured with are rounded to nearest, and are rounded anew by what follows in the recipe.

    Args:
        budget: Share of what the float network takes, (0, 1]: of its bytes, scales and all that stays in float
            counted; or of the bit-operations of the plan with 8 bits of weights.
        weight_range: Such as `jaxdq.observers.mse_weights()`; fits the grids at every level.
        resource: "bytes" in memory, where codes of 3 bits take 4 and those of 5 to 7 take 8; "disk", where codes are
            packed; or "bit-operations", the sum over integer sites of multiply-accumulates times bits of weights times
            bits of activations.
        levels: Bits to choose from.
        num_rows: States that losses are measured on, each of another step.
        tries: Choices that are looked at beside the dynamic programme's own.

    Returns:
        A calibrator that changes the plan's bits of weights and fits their grids anew.

    Raises:
        InputError: A budget outside (0, 1] or below what the lowest levels cost; levels outside 2 to 8.

    Source: Frantar et al., arXiv 2208.11580 (Optimal Brain Compression), section 6; Frantar & Alistarh, arXiv
    2201.13096 (SPDY).
    """
    if not isinstance(budget, int | float) or not 0 < budget <= 1:
        raise InputError(f"budget is {budget!r}; give a share of the float network in (0, 1], such as 0.12.")
    if resource not in get_args(Resource):
        raise InputError(f"resource is {resource!r}; give one of {', '.join(map(repr, get_args(Resource)))}.")
    if not levels or any(level not in range(2, 9) for level in levels) or list(levels) != sorted(set(levels)):
        raise InputError(f"levels is {levels!r}; give different numbers of bits from 2 to 8, the smallest first.")
    check_at_least(1, num_rows=num_rows)
    check_at_least(0, tries=tries)

    def run(work: Work, key: jax.Array) -> Work:
        database = measure(work, weight_range, levels, resource, num_rows, key)
        room = budget * database.whole - database.fixed
        least = (database.fixed + database.costs.min(axis=1).sum()) / database.whole
        if room < database.costs.min(axis=1).sum():
            raise InputError(
                f"the budget is {budget:g}x of the float network's {resource} and the lowest levels take {least:.3f}x; "
                f"give at least that."
            )
        chosen, tried = _search(work, database, room, tries, key)
        after = _with_levels(work, database, chosen)
        rows = range(len(chosen))
        losses = database.losses[rows, chosen]
        log: dict[str, Any] = {
            "tried": tried,
            "kept": min(tried, key=lambda name: tried[name]),
            "bits": {path: levels[level] for path, level in zip(database.paths, chosen, strict=True)},
            "share_of_error": dict(zip(database.paths, map(float, losses / max(losses.sum(), 1e-30)), strict=True)),
            "spent": float((database.fixed + database.costs[rows, chosen].sum()) / database.whole),
        }
        return after.logging("spend_budget", log)

    return run


def measure(
    work: Work,
    weight_range: WeightQParams,
    levels: tuple[int, ...],
    resource: Resource,
    num_rows: int,
    key: jax.Array,
) -> Database:
    """The losses and the costs of every kernel that is to be rounded, at every level."""
    denoiser, mesh = work.denoiser, work.machine.mesh
    sites = [site for site in work.plan.sites if isinstance(work.calib.weights.get(site.path), Grid)]

    @functools.partial(jax.jit, static_argnums=(1, 2, 3))  # one program for all levels of a kernel's shape
    def fit(kernel: jax.Array, schemes: tuple[Scheme, ...], parts: tuple[int, ...], axis: int) -> tuple[Grid, ...]:
        return tuple(Grid(fit_in_parts(weight_range, kernel, scheme, parts, axis), scheme) for scheme in schemes)

    rows = rows_of_steps(work, step_weights(work), num_rows, key)(0)

    @jax.jit
    def loss(params: Any, rows: Rows) -> jax.Array:
        output = apply_by_row(denoiser.module, params, lambda step: lambda name, x: x, rows)
        axes = tuple(range(1, output.ndim))
        return jnp.sum(rows.weight * jnp.sum((rows.target - output.astype(jnp.float32)) ** 2, axis=axes))

    params = replicate(denoiser.params, mesh)
    grids, losses = [], []
    for site in track(sites, "losses of layers"):
        kernel = kernel_at(denoiser.params, site.path)
        own = fit(kernel, tuple(_at(site, bits) for bits in levels), site.parts, site.input_axis)
        grids.append(own)
        losses.append([float(loss(with_kernels(params, {site.path: _rounded(kernel, grid)}), rows)) for grid in own])
    shape, paths = (len(sites), len(levels)), tuple(site.path for site in sites)
    costs = np.array([[_cost(site, bits, resource) for bits in levels] for site in sites]).reshape(shape)
    return Database(paths, tuple(grids), np.array(losses).reshape(shape), costs, *_fixed(work, sites, resource))


def _rounded(kernel: jax.Array, grid: Grid) -> jax.Array:
    return _fake_quantize(kernel, grid.qparams, grid.scheme).astype(kernel.dtype)


_fake_quantize = jax.jit(fake_quantize, static_argnums=2)


def _at(site: SitePlan, bits: int) -> Scheme:
    assert site.weight is not None
    return dataclasses.replace(site.weight, bits=bits)


def _cost(site: SitePlan, bits: int, resource: Resource) -> float:
    if resource == "bytes":
        return float(stored_bytes(jax.ShapeDtypeStruct(site.site.shape, _at(site, bits).storage_dtype)))
    if resource == "disk":
        return float(bits * -(-np.prod(site.site.shape) // 8))
    return float(site.site.macs * bits * site.act.bits) if site.act is not None else 0.0


def _fixed(work: Work, sites: list[SitePlan], resource: Resource) -> tuple[float, float]:
    """(what everything but the codes of these sites costs, what the budget is a share of)."""
    if resource == "bit-operations":
        return 0.0, sum(_cost(site, 8, resource) for site in sites)
    whole = stored_bytes(jax.eval_shape(quantize, work.denoiser.params, work.calib))
    codes = sum(_cost(site, site.weight.bits, "bytes") for site in sites if site.weight is not None)
    return float(whole - codes), float(stored_bytes(work.denoiser.params))


def _search(
    work: Work, database: Database, room: float, tries: int, key: jax.Array
) -> tuple[np.ndarray, dict[str, float]]:
    """The best choice found, and the error of the images for each that was tried."""
    draw = np.random.default_rng(int(np.asarray(jax.random.bits(key, (), np.uint32))))
    coefficients = np.ones(len(database.losses))
    best = allocate(database.losses, database.costs, room)
    seen = {best.tobytes(): _image_error(work, database, best)}
    tried, least = {"as measured": seen[best.tobytes()]}, seen[best.tobytes()]
    for turn in track(range(tries), "search around it"):
        moved = draw.random(len(coefficients)) < max(0.1, 1 / len(coefficients))
        other = np.where(moved, coefficients * np.exp(draw.normal(0, 1, len(coefficients))), coefficients)
        levels = allocate(database.losses * other[:, None], database.costs, room)
        if levels.tobytes() not in seen:
            seen[levels.tobytes()] = _image_error(work, database, levels)
        error = seen[levels.tobytes()]
        if error < least:
            best, least, coefficients = levels, error, other
            tried[f"try {turn + 1}"] = error
    return best, tried


def _image_error(work: Work, database: Database, levels: np.ndarray) -> float:
    """That of the float network with these weights: one program for all choices."""
    kernels = {
        path: _rounded(kernel_at(work.denoiser.params, path), grids[level])
        for path, grids, level in zip(database.paths, database.grids, levels, strict=True)
    }
    return image_error(work, with_kernels(work.denoiser.params, kernels), num_images=16)


def _with_levels(work: Work, database: Database, levels: np.ndarray) -> Work:
    chosen = {path: own[level] for path, own, level in zip(database.paths, database.grids, levels, strict=True)}
    return work.deciding(plan=_with_schemes(work.plan, chosen), weights={**work.calib.weights, **chosen})


def _with_schemes(plan: Plan, grids: Mapping[str, Grid]) -> Plan:
    sites = tuple(
        dataclasses.replace(site, weight=grids[site.path].scheme) if site.path in grids else site for site in plan.sites
    )
    return dataclasses.replace(plan, sites=sites)
