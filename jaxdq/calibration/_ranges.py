"""Ranges learned by gradient: what grids make the network's output, and not each activation, least wrong.

With the groups fixed, every group's scale and zero point, and the weights' scales, follow the gradient of

    sum_s w_s |eps_float - eps^|^2,     w_s = 1/2 (1 / (S E|eps_s|^2)  +  c_s / sum_s c_s E|eps_s|^2)

over states of float trajectories: half of the weight makes the relative error of every step count alike, the other half
is what an error at that step costs the image (`c = work.sensitivity.output`). eps^ comes from fake-quantized weights
and activations with straight-through rounding, whose gradient to a scale is that of Esser et al.
(`grid.fake_quantize`).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdq._devices import replicate
from jaxdq._errors import InputError
from jaxdq.calibration._base import Calibrator, Work, check_at_least, check_not_negative, with_tables
from jaxdq.calibration._loop import learn
from jaxdq.calibration._rows import (
    Rows,
    apply_by_row,
    first_non_finite,
    image_error,
    rows_of_steps,
    step_weights,
)
from jaxdq.grid import SMALLEST_SCALE, QParams, fake_quantize, round_nearest
from jaxdq.linen import Plan, Visitor, kernel_at, with_kernels


@dataclasses.dataclass(frozen=True)
class RangeSettings:
    """How ranges are learned.

    Attributes:
        num_updates: of all ranges at once.
        learning_rate: Adam's for the logarithms of activations' scales, decaying to 0 by a cosine.
        zero_point_rate: the same for zero points, in codes.
        weight_rate: the same for the logarithms of the weights' scales.
        weights: whether the weights' scales are learned too.
        rows: states seen in one update, spread over the steps.
        judge_every: updates between two looks at images drawn on the integer path; the best ranges are kept.
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
        weights: path -> logarithms of a kernel's scales; empty where they stay.
    """

    act: jax.Array
    zero_point: jax.Array
    weights: dict[str, jax.Array]


class Fixed(NamedTuple):
    """What does not change while ranges are learned.

    Attributes:
        params: the network's, in float.
        weights: path -> QParams, the kernels' grids before.
        group_of_step: int32[S] or int32[S, A].
    """

    params: Any
    weights: dict[str, QParams]
    group_of_step: jax.Array


def learn_ranges(settings: RangeSettings | None = None) -> Calibrator:
    """Moves the ranges of the groups, and of the weights, down the gradient of the output's error (see `_ranges`).

    Kept are the ranges, among those it began with and those after every `judge_every`-th update, whose images on the
    integer path come closest to the float ones from the calibration's own noise.

    Args:
        settings: of the learning.

    Returns:
        A calibrator that replaces the ranges of `work.calib` and `work.weights`; needs both, and a sensitivity.

    Raises:
        InputError: no calibration to start from; a loss or a range that becomes NaN.
    """
    settings = settings or RangeSettings()

    def calibrator(work: Work, key: jax.Array) -> Work:
        if work.calib is None or work.sensitivity is None:
            raise InputError(
                "there are no ranges to learn from, or no sensitivity; put measure_sensitivity() and a calibrator that "
                "shares ranges, such as search_groups(8), before learn_ranges() in the recipe."
            )
        start = Learned(
            jnp.log(work.calib.act_scale),
            work.calib.act_zero_point.astype(jnp.float32),
            {path: jnp.log(qparams.scale) for path, qparams in work.weights.items()} if settings.weights else {},
        )
        optimizer = _optimizer(settings, start)
        loss = _make_loss(work.denoiser.module, work.plan)
        # Handed over as arguments: what a jitted function closes over becomes part of its program.
        fixed = replicate(Fixed(work.denoiser.params, work.weights, jnp.asarray(work.group_of_step)), work.mesh)
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

        errors: list[float] = []

        def judge(state: Any) -> float:
            errors.append(image_error(with_ranges(work, state[0])))
            return errors[-1]

        (best, _), losses = learn(
            update,
            (start, optimizer.init(start)),
            lambda index: (fixed, rows_of(index)),
            settings.num_updates,
            label="learn ranges",
            checkpoint=None if work.checkpoint_dir is None else work.checkpoint_dir / "learn_ranges",
            judge=judge,
            judge_every=settings.judge_every,
            explain=explain,
            mesh=work.mesh,
        )
        log = {"image_error": errors, "updates": {"loss": [float(value) for value in losses]}}
        return with_ranges(work, best)._replace(log=(*work.log, ("learn_ranges", log)))

    return calibrator


def with_ranges(work: Work, learned: Learned) -> Work:
    """Work with these ranges in place of its own."""
    weights = {path: work.weights[path]._replace(scale=scale_of(log)) for path, log in learned.weights.items()}
    work = work._replace(weights={**work.weights, **weights})
    assert work.group_of_step is not None
    bounds = np.array([scheme.bounds for _, scheme in work.plan.tables]).reshape(-1, 2).T
    zero_point = jnp.clip(jnp.round(learned.zero_point), *bounds)
    return with_tables(work, work.group_of_step, scale_of(learned.act), zero_point)


def scale_of(logarithm: jax.Array) -> jax.Array:
    """exp, but never below the smallest scale of a grid: exp(log(x)) of a tiny x is 0."""
    return jnp.maximum(jnp.exp(logarithm), SMALLEST_SCALE)


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
            scale = scale_of(learned.weights[site.path]) if site.path in learned.weights else grid.scale
            on_grid = _fake_quantize(kernel, grid._replace(scale=scale), site.weight)
            quantized[site.path] = on_grid.astype(kernel.dtype)
    return with_kernels(fixed.params, quantized)


def _visitor_at(plan: Plan, learned: Learned, fixed: Fixed, step: jax.Array) -> Visitor:
    """Puts the activations of `step: int32[]` on their group's grids."""
    group = fixed.group_of_step[step]

    def visitor(name: str, x: jax.Array) -> jax.Array:
        if name not in plan.activations:
            return x
        index, scheme = plan.activations[name]
        own = 0 if index in plan.conditions else group if group.ndim == 0 else group[index]
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
