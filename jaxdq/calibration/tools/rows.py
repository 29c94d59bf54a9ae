"""The batch of one update of a loop that learns from the network's output, and how its result is judged."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdq._common.devices import round_up, shard
from jaxdq.calibration._base import Work
from jaxdq.calibration.tools.propagation import Sensitivity
from jaxdq.calibration.tools.selection import counts_of
from jaxdq.linen import Visitor, apply_visited, quantize
from jaxdq.sampling import turns, walk

_quantize = jax.jit(quantize)


class Rows(NamedTuple):
    """R states, each of its own step.

    Attributes:
        x: f32[R, H, W, C].
        t: int32[R].
        step: int32[R].
        target: f32[R, H, W, C], the float model's output.
        weight: f32[R], what a squared error there counts for.
        args: The module's further arguments.
    """

    x: jax.Array
    t: jax.Array
    step: jax.Array
    target: jax.Array
    weight: jax.Array
    args: tuple[jax.Array, ...] = ()


def rows_of_steps(work: Work, weight: np.ndarray, num_rows: int, key: jax.Array) -> Callable[[int], Rows]:
    """The i-th update's rows: a function of i alone, so that a resumed loop sees what an unbroken one saw.

    Args:
        work: Work, for its selected states.
        weight: f64[S], what a squared error counts for at each step.
        num_rows: R at most, each of another step. Over a mesh, its next multiple of the number of devices: rows that
            weigh nothing are added.
        key: Key of the draws.
    """
    data, counts, mesh = work.data, counts_of(work), work.machine.mesh
    seen, turn = np.flatnonzero(counts), turns(counts)
    num_rows = min(num_rows, len(seen))
    seed = int(np.asarray(jax.random.bits(key, (), np.uint32)))

    def rows_of(index: int) -> Rows:
        draw = np.random.default_rng((seed, index))
        step = np.sort(draw.permutation(seen)[:num_rows])
        image = (turn[step] + draw.integers(counts[step])) % data.num_images
        added = round_up(num_rows, mesh) - num_rows
        step, image = (np.resize(drawn, num_rows + added) for drawn in (step, image))
        real = np.arange(num_rows + added) < num_rows
        rows = Rows(
            x=data.states[step, image],
            t=jnp.asarray(data.t[step]),
            step=jnp.asarray(step, jnp.int32),
            target=data.outputs[step, image],
            weight=jnp.asarray(real * weight[step] * len(seen) / num_rows, jnp.float32),
            args=work.denoiser.args(jnp.asarray(data.image_index[image])),
        )
        return shard(rows, mesh)

    return rows_of


def apply_by_row(module: Any, params: Any, visitor_at: Callable[[jax.Array], Visitor], rows: Rows) -> jax.Array:
    """The visited network on each row alone, at its own scalar t: float[R, ...].

    Under `vmap`, and not as one batch with a vector t: modules need not take one, a guided network makes two rows of
    each, and a site's batch need not be its leading axis.

    Args:
        module: The network.
        params: Params in float.
        visitor_at: `step int32[] -> visitor`.
        rows: R states.
    """

    def one(row: Rows) -> jax.Array:
        args = (arg[None] for arg in row.args)
        return apply_visited(module, params, visitor_at(row.step), row.x[None], row.t, *args)[0]

    return jax.vmap(one)(rows)


def first_non_finite(module: Any, params: Any, visitor_at: Callable[[jax.Array], Visitor], rows: Rows) -> str:
    """Where NaN or infinity shows first in a visited network: the site and the step, in words."""
    names: list[str] = []

    @jax.jit
    @jax.vmap
    def look(row: Rows) -> list[jax.Array]:
        visitor, finite = visitor_at(row.step), []

        def looking(name: str, x: jax.Array) -> jax.Array:
            x = visitor(name, x)
            names.append(name)
            finite.append(jnp.isfinite(x).all())
            return x

        output = apply_visited(module, params, looking, row.x[None], row.t, *(arg[None] for arg in row.args))
        names.append("the output")
        return [*finite, jnp.isfinite(output).all()]

    finite = look(rows)
    for name, good in zip(names, finite, strict=True):
        if not good.all():
            row = int(jnp.argmin(good))
            return f"first at '{name}', step {int(rows.step[row])}, t = {int(rows.t[row])}"
    return "every activation is finite: the gradient is not"


def step_weights(work: Work) -> np.ndarray:
    """f64[S]: what a squared error of the output counts for at each step; a network that says 0 has a loss of 1."""
    power = np.mean(np.sum(np.float64(work.data.outputs) ** 2, axis=(2, 3, 4)), axis=1)
    power = np.maximum(power, np.finfo(np.float32).tiny)
    in_image = work.fact(Sensitivity).output
    return 0.5 * (1 / (len(power) * power) + in_image / max(np.sum(in_image * power), np.finfo(np.float32).tiny))


def image_error(work: Work, params: Any = None, *, num_images: int = 32) -> float:
    """How far images on the integer path, or with these params, are from the float ones.

    From noise that calibrators do not learn from.

    The geometric mean over images of the mean squared error: here and there a trajectory leaves the float one's for
    another image, and in a plain mean that one image would decide. Infinite where an image is not finite.
    """
    judge = work.problem.judge
    num_images = min(num_images, len(judge.images))
    params = _quantize(work.denoiser.params, work.calib) if params is None else params
    images = walk(
        work.denoiser,
        work.problem.sampler,
        num_images=num_images,
        key=judge.key,
        batch_size=work.machine.batch_size,
        mesh=work.machine.mesh,
    ).draw(params)
    error = np.mean((np.float64(images) - judge.images[:num_images]) ** 2, axis=(1, 2, 3))
    mean = np.exp(np.mean(np.log(np.maximum(error, np.finfo(np.float32).tiny))))
    # Nothing is less than NaN: it would be kept for ever as the best.
    return float(np.where(np.isnan(mean), np.inf, mean))
