"""Ranges learned by gradient: what grids make the network's output, and not each activation, least wrong.

With the groups fixed, every group's scale and zero point, and the weights' scales, follow the gradient of

    sum_s w_s |eps_float - eps^|^2,     w_s = 1/2 (1 / (S E|eps_s|^2)  +  c_s / sum_s c_s E|eps_s|^2)

over states of float trajectories: half of the weight makes the relative error of every step count alike, the other half
is what an error at that step costs the image (`c = work.cost.output`). eps^ comes from fake-quantized weights and
activations with straight-through rounding, whose gradient to a scale is that of Esser et al. (`grid.fake_quantize`).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdq._errors import InputError
from jaxdq.calibration._base import Calibrator, Work, with_tables
from jaxdq.calibration._loop import learn
from jaxdq.calibration._rows import Rows, first_non_finite, image_error, rows_of_steps, step_weights
from jaxdq.grid import QParams, fake_quantize, round_nearest
from jaxdq.linen import Plan, Visitor, apply_visited, kernel_at, with_kernels


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


class Logs(NamedTuple):
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

    Kept are the ranges, among those it began with and those it passed through, whose images on the integer path come
    closest to the float ones from the calibration's own noise.

    Args:
        settings: of the learning.

    Returns:
        A calibrator that replaces the ranges of `work.calib` and `work.weights`; needs both, and weighed errors.

    Raises:
        InputError: no calibration to start from; a loss or a range that becomes NaN.
    """
    settings = settings or RangeSettings()

    def calibrator(work: Work, key: jax.Array) -> Work:
        if work.calib is None or work.cost is None:
            raise InputError(
                "there are no ranges to learn from, or no costs; put weigh_errors() and a calibrator that shares "
                "ranges, such as search_groups(8), before learn_ranges() in the recipe."
            )
        start = Logs(
            jnp.log(work.calib.act_scale),
            work.calib.act_zero_point.astype(jnp.float32),
            {path: jnp.log(qparams.scale) for path, qparams in work.weights.items()} if settings.weights else {},
        )
        optimizer = _optimizer(settings, start)
        loss = _make_loss(work.denoiser.module, work.plan)
        # Handed over as arguments: what a jitted function closes over becomes part of its program.
        fixed = Fixed(work.denoiser.params, work.weights, jnp.asarray(work.group_of_step))
        rows_of = rows_of_steps(work, step_weights(work), settings.rows, key)

        def update(state: Any, inputs: tuple[Fixed, Rows]) -> Any:
            logs, opt_state = state
            value, gradient = jax.value_and_grad(loss)(logs, *inputs)
            change, opt_state = optimizer.update(gradient, opt_state)
            return (optax.apply_updates(logs, change), opt_state), value

        def explain(state: Any, inputs: tuple[Fixed, Rows]) -> str:
            params, visitor = _make_network(work.plan)(state[0], inputs[0], inputs[1].step)
            return first_non_finite(work.denoiser.module, params, visitor, inputs[1])

        errors: list[float] = []

        def judge(state: Any) -> float:
            errors.append(image_error(with_ranges(work, state[0])))
            return errors[-1]

        (logs, _), losses = learn(
            update,
            (start, optimizer.init(start)),
            lambda index: (fixed, rows_of(index)),
            settings.num_updates,
            label="learn ranges",
            checkpoint=None if work.checkpoint_dir is None else work.checkpoint_dir / "learn_ranges",
            judge=judge,
            judge_every=settings.judge_every,
            explain=explain,
        )
        log = {"loss": [float(value) for value in losses], "image_mse": errors}
        learned = with_ranges(work, logs)
        return learned._replace(log=(*work.log, ("learn_ranges", log)))

    return calibrator


def with_ranges(work: Work, logs: Logs) -> Work:
    """Work with these ranges in place of its own."""
    weights = {path: work.weights[path]._replace(scale=jnp.exp(log)) for path, log in logs.weights.items()}
    work = work._replace(weights={**work.weights, **weights})
    assert work.group_of_step is not None
    bounds = np.array([scheme.bounds for _, scheme in work.plan.tables]).reshape(-1, 2).T
    return with_tables(work, work.group_of_step, jnp.exp(logs.act), jnp.clip(jnp.round(logs.zero_point), *bounds))


def _optimizer(settings: RangeSettings, start: Logs) -> optax.GradientTransformation:
    def adam(rate: float) -> optax.GradientTransformation:
        return optax.adam(optax.cosine_decay_schedule(rate, settings.num_updates))

    rates = {"act": settings.learning_rate, "zero_point": settings.zero_point_rate, "weights": settings.weight_rate}
    labels: Any = Logs("act", "zero_point", jax.tree.map(lambda _: "weights", start.weights))  # type: ignore[arg-type]
    return optax.multi_transform({name: adam(rate) for name, rate in rates.items()}, labels)


def _make_network(plan: Plan) -> Callable[[Logs, Fixed, jax.Array], tuple[Any, Visitor]]:
    """`(logs, fixed, step int32[R]) -> (params, visitor)`: the fake-quantized network, differentiable in the logs."""
    columns = {name: (plan.column[name], scheme) for name, scheme in plan.tables}
    kernels = {site.path: site.weight for site in plan.sites if site.weight is not None}

    def network(logs: Logs, fixed: Fixed, step: jax.Array) -> tuple[Any, Visitor]:
        quantized = {}
        for path, scheme in kernels.items():
            kernel, grid = kernel_at(fixed.params, path), fixed.weights[path]
            scale = jnp.exp(logs.weights[path]) if path in logs.weights else grid.scale
            quantized[path] = fake_quantize(kernel, grid._replace(scale=scale), scheme).astype(kernel.dtype)
        group = fixed.group_of_step[step]

        def visitor(name: str, x: jax.Array) -> jax.Array:
            if name not in columns:
                return x
            index, scheme = columns[name]
            own = group if group.ndim == 1 else group[:, index]
            shape = (-1, *(1,) * (x.ndim - 1))
            # A zero point is a code: borders are padded with it.
            zero_point = jnp.clip(round_nearest(logs.zero_point[own, index]), *scheme.bounds).reshape(shape)
            grid = QParams(jnp.exp(logs.act[own, index]).reshape(shape), None if scheme.symmetric else zero_point)
            return fake_quantize(x, grid, scheme).astype(x.dtype)

        return with_kernels(fixed.params, quantized), visitor

    return network


def _make_loss(module: Any, plan: Plan) -> Callable[[Logs, Fixed, Rows], jax.Array]:
    network = _make_network(plan)

    def loss(logs: Logs, fixed: Fixed, rows: Rows) -> jax.Array:
        params, visitor = network(logs, fixed, rows.step)
        output = apply_visited(module, params, visitor, rows.x, rows.t, *rows.args)
        axes = tuple(range(1, output.ndim))
        return jnp.sum(rows.weight * jnp.sum((rows.target - output.astype(jnp.float32)) ** 2, axis=axes))

    return loss
