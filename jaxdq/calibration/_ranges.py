"""Ranges learned by gradient: the grids that minimise the error of the network's output, not of each activation.

With the groups fixed, every group's scale and zero point, and the weights' scales, follow the gradient of

    sum_s w_s |eps_float - eps^|^2,     w_s = 1/2 (1 / (S E|eps_s|^2)  +  c_s / sum_s c_s E|eps_s|^2)

over states of float trajectories: half of the weight makes the relative error of every step count alike, the other half
is what an error at that step costs the image (`c = Sensitivity.output`). eps^ comes from fake-quantized weights
and activations with straight-through rounding, whose gradient to a scale is that of Esser et al.
(`grid.fake_quantize`).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdq._common.devices import replicate
from jaxdq.calibration._base import Run, Work, calibrator, check_at_least, check_not_negative
from jaxdq.calibration.tools.evidence import group_of_step, schemes_of, with_acts
from jaxdq.calibration.tools.loop import learn
from jaxdq.calibration.tools.propagation import Sensitivity
from jaxdq.calibration.tools.rows import (
    Rows,
    apply_by_row,
    first_non_finite,
    image_error,
    rows_of_steps,
    step_weights,
)
from jaxdq.grid import SMALLEST_SCALE, Grid, QParams, QTensor, fake_quantize, round_nearest
from jaxdq.linen import (
    Acts,
    Parts,
    Plan,
    SitePlan,
    Visitor,
    along_parts,
    dequantize_kernel,
    kernel_at,
    on_pieces,
    one_for_each_part,
    round_parts,
    with_kernels,
)


@dataclasses.dataclass(frozen=True)
class RangeSettings:
    """How ranges are learned.

    Attributes:
        num_updates: Number of updates of all ranges at once.
        learning_rate: Adam's for the logarithms of activations' scales, decaying to 0 by a cosine.
        zero_point_rate: The same for zero points, in codes.
        weight_rate: The same for the logarithms of the weights' scales.
        weights: Whether the weights' scales are learned too.
        rows: States seen in one update, spread over the steps.
        judge_every: Updates between two looks at images drawn on the integer path; the best ranges are kept.
    """

    num_updates: int = 120
    learning_rate: float = 0.01
    zero_point_rate: float = 0.1
    weight_rate: float = 0.003
    weights: bool = True
    rows: int = 50
    judge_every: int = 30

    def __post_init__(self) -> None:
        check_at_least(1, num_updates=self.num_updates, rows=self.rows, judge_every=self.judge_every)
        check_not_negative(
            learning_rate=self.learning_rate, zero_point_rate=self.zero_point_rate, weight_rate=self.weight_rate
        )


class Learned(NamedTuple):
    """What is learned.

    Attributes:
        act: f32[G, A], logarithms of scales.
        zero_point: f32[G, A].
        weights: Path -> logarithms of a kernel's scales; none where they stay, or where the codes are decided.
    """

    act: jax.Array
    zero_point: jax.Array
    weights: dict[str, jax.Array]


class Fixed(NamedTuple):
    """What does not change while ranges are learned.

    Attributes:
        params: The network's, in float.
        weights: Path -> the kernel's grid before, or what was decided of it.
        group_of_step: int32[S].
    """

    params: Any
    weights: Mapping[str, Grid | QTensor | Parts]
    group_of_step: jax.Array


_LEARNING = RangeSettings()


@calibrator(needs=(Grid, Acts, Sensitivity), gives=(Grid, Acts))
def learn_ranges(settings: RangeSettings = _LEARNING) -> Run:
    """Moves the ranges of the groups, and of the weights, down the gradient of the output's error (see `_ranges`).

    Kept are the ranges, among those it began with and those after every `judge_every`-th update, whose images on the
    integer path come closest to the float ones, from noise that nothing was learned from.

    Args:
        settings: Settings of the learning.

    Returns:
        A calibrator that replaces the grids of activations and weights; codes that were decided stay.

    Raises:
        InputError: A loss or a range that becomes NaN.
    """

    def run(work: Work, key: jax.Array) -> Work:
        start, mesh = starting_from(work, settings), work.machine.mesh
        optimizer = _optimizer(settings, start)
        loss = _make_loss(work.denoiser.module, work.plan)
        # Handed over as arguments: what a jitted function closes over becomes part of its program.
        of_step = jnp.asarray(group_of_step(work))
        fixed = replicate(Fixed(work.denoiser.params, work.calib.weights, of_step), mesh)
        rows_of = rows_of_steps(work, step_weights(work), settings.rows, key)

        def update(state: Any, inputs: tuple[Fixed, Rows]) -> Any:
            learned, opt_state = state
            value, gradient = jax.value_and_grad(loss)(learned, *inputs)
            change, opt_state = optimizer.update(gradient, opt_state)
            return (optax.apply_updates(learned, change), opt_state), value

        def explain(state: Any, inputs: tuple[Fixed, Rows]) -> str:
            (learned, _), (fixed, rows) = state, inputs
            params = _fake_quantized(work.plan, learned, fixed)
            return first_non_finite(
                work.denoiser.module, params, lambda step: _visitor_at(work.plan, learned, fixed, step), rows
            )

        def judge(state: Any) -> float:
            return image_error(with_ranges(work, state[0]))

        (best, _), history = learn(
            update,
            (start, optimizer.init(start)),
            lambda index: (fixed, rows_of(index)),
            settings.num_updates,
            label="learn ranges",
            checkpoint=work.machine.folder,
            judge=judge,
            judge_every=settings.judge_every,
            explain=explain,
            mesh=mesh,
        )
        log = {**_tried(history.errors), "updates": {"loss": [float(value) for value in history.infos]}}
        return with_ranges(work, best).logging("learn_ranges", log)

    return run


def starting_from(work: Work, settings: RangeSettings = _LEARNING) -> Learned:
    """What is learned, as it stands in the calibration."""
    grids = {path: grid for path, grid in work.calib.weights.items() if isinstance(grid, Grid) and settings.weights}
    # On the host: eager jnp would compile a program for every shape of a kernel.
    return Learned(
        jnp.asarray(np.log(work.acts.scale)),
        jnp.asarray(np.float32(work.acts.zero_point)),
        {path: jnp.asarray(np.log(_narrow(work.plan.by_path[path], grid))) for path, grid in grids.items()},
    )


def _tried(errors: list[float]) -> dict[str, Any]:
    """The errors of the images by when they were drawn, and when the ranges that stay were found."""
    names = ["before", *(f"look {index + 1}" for index in range(len(errors) - 1))]
    tried = dict(zip(names, errors, strict=True))
    return {"tried": tried, "kept": min(tried, key=lambda name: tried[name])}


def with_ranges(work: Work, learned: Learned) -> Work:
    """Work with these ranges in place of its own."""
    before = work.calib.weights
    scale, scales = _scales((learned.act, learned.weights))
    weights = {path: _with_scale(work.plan.by_path[path], before[path], own) for path, own in scales.items()}
    bounds = np.array([scheme.bounds for scheme in schemes_of(work)]).reshape(-1, 2).T
    zero_point = np.clip(np.round(learned.zero_point), *bounds)
    work = work.deciding(weights={**before, **weights})
    return with_acts(work, group_of_step(work), scale, zero_point)


def _narrow(site: SitePlan, grid: Grid) -> np.ndarray:
    """The scales of a kernel; of one that is cut, one for each part."""
    scale = np.asarray(grid.qparams.scale)
    return one_for_each_part(scale, site.parts, site.input_axis) if site.parts else scale


def _with_scale(site: SitePlan, grid: Any, scale: jax.Array) -> Grid:
    scale = along_parts(scale, site.parts, site.input_axis) if site.parts else scale
    return Grid(grid.qparams._replace(scale=scale), grid.scheme)


def scale_of(logarithm: jax.Array) -> jax.Array:
    """exp, but never below the smallest scale of a grid: exp(log(x)) of a tiny x is 0."""
    return jnp.maximum(jnp.exp(logarithm), SMALLEST_SCALE)


_scales = jax.jit(lambda logarithms: jax.tree.map(scale_of, logarithms))


def _optimizer(settings: RangeSettings, start: Learned) -> optax.GradientTransformation:
    def adam(rate: float) -> optax.GradientTransformation:
        return optax.adam(optax.cosine_decay_schedule(rate, settings.num_updates))

    rates = {"act": settings.learning_rate, "zero_point": settings.zero_point_rate, "weights": settings.weight_rate}
    labels: Any = Learned("act", "zero_point", jax.tree.map(lambda _: "weights", start.weights))  # type: ignore[arg-type]
    return optax.multi_transform({name: adam(rate) for name, rate in rates.items()}, labels)


def _fake_quantized(plan: Plan, learned: Learned, fixed: Fixed) -> Any:
    """The params tree with every planned kernel on its learned grid, in float; differentiable."""
    quantized = {}
    for site in plan.sites:
        if site.weight is not None:
            kernel, grid = kernel_at(fixed.params, site.path), fixed.weights[site.path]
            if site.path in learned.weights:
                grid = _with_scale(site, grid, scale_of(learned.weights[site.path]))
            if isinstance(grid, Grid):
                on_grid = _fake_quantize(kernel, grid.qparams, site.weight)
            else:
                on_grid = dequantize_kernel(_in_codes(grid, kernel, site), site.site.kind)
            quantized[site.path] = on_grid.astype(kernel.dtype)
    return with_kernels(fixed.params, quantized)


def _in_codes(decided: QTensor | Parts, kernel: jax.Array, site: SitePlan) -> QTensor | Parts:
    if isinstance(decided, QTensor):
        return decided
    assert site.weight is not None
    return round_parts(kernel, decided, site.parts, site.input_axis, site.weight)


def _visitor_at(plan: Plan, learned: Learned, fixed: Fixed, step: jax.Array) -> Visitor:
    """Puts the activations of `step: int32[]` on their group's grids."""
    group = fixed.group_of_step[step]

    def visitor(name: str, x: jax.Array) -> jax.Array:
        return on_pieces(plan.activations, name, x, on_grid)

    def on_grid(name: str, x: jax.Array) -> jax.Array:
        index, scheme = plan.activations[name]
        own = 0 if index in plan.step_invariant_columns else group
        # A zero point is a code: borders are padded with it.
        zero_point = jnp.clip(round_nearest(learned.zero_point[own, index]), *scheme.bounds)
        grid = QParams(scale_of(learned.act[own, index]), None if scheme.symmetric else zero_point)
        return _fake_quantize(x, grid, scheme).astype(x.dtype)

    return visitor


# Made again on the way back, where its masks would outweigh the values themselves.
_fake_quantize = jax.checkpoint(fake_quantize, static_argnums=2)


def _make_loss(module: Any, plan: Plan) -> Callable[[Learned, Fixed, Rows], jax.Array]:
    def loss(learned: Learned, fixed: Fixed, rows: Rows) -> jax.Array:
        params = _fake_quantized(plan, learned, fixed)
        output = apply_by_row(module, params, lambda step: _visitor_at(plan, learned, fixed, step), rows)
        axes = tuple(range(1, output.ndim))
        return jnp.sum(rows.weight * jnp.sum((rows.target - output.astype(jnp.float32)) ** 2, axis=axes))

    return loss
