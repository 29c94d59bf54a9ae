"""The cost to the image of an error in one activation at one step: errors propagated along the trajectory."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdq._common.devices import gather, replicate, round_up, shard
from jaxdq.calibration._base import Work, kind
from jaxdq.calibration.tools.evidence import indices
from jaxdq.diffusion import Coefficients, left_by, step
from jaxdq.linen import Plan, Visitor, apply_visited, on_pieces

Adjoints = tuple[jax.Array, tuple[jax.Array, ...]]  # of the state f32[B, H, W, C], and of what steps have left


@kind("sensitivities", "measure_sensitivity()")
class Sensitivity(NamedTuple):
    """How much of an error arrives in the image; see `sensitivity`.

    Attributes:
        arrays: Names of the N quantized arrays.
        sites: f64[S, N], of an error in each array at each step.
        output: f64[S], of an error in the network's output.
    """

    arrays: tuple[str, ...]
    sites: np.ndarray
    output: np.ndarray

    def of(self, names: tuple[str, ...]) -> np.ndarray:
        """f64[S, A]: those of these arrays, in this order."""
        return self.sites[:, indices(self.arrays, names, "sensitivity")]


def sensitivity(work: Work, key: jax.Array, *, num_images: int = 32, num_draws: int = 4) -> Sensitivity:
    """How much of an error in an activation arrives in the image, by step and activation.

    With `x_0` an image and `a_s` an activation at step s, `J[s, a] = |d x_0 / d a_s|^2` is the squared Frobenius norm
    of a Jacobian (`squared_norms`), and independent errors of variance `m[s, a]` give that image, to first order, the
    squared error `E = sum_{s, a} J[s, a] m[s, a]`. Images are judged by the geometric mean of E (`image_error`), whose
    logarithm has the derivative

        sensitivity[s, a] = mean over images of J[s, a] / E,

    taken where errors are in proportion to the network's output: `E = sum_s J_output[s] |output_s|^2`. So every image
    has the same say. The plain mean of J is heavy-tailed: an image whose trajectory is about to turn into another
    image's is hundreds of times as sensitive as the others at every early step, and decides alone.

    Args:
        work: With trajectories.
        key: Draws the directions.
        num_images: Trajectories averaged over.
        num_draws: Directions for each.

    Returns:
        Sensitivity, all entries >= 0. Only their ratios mean something.
    """
    data = work.data.first(num_images)
    draws = [jax.random.normal(jax.random.fold_in(key, draw), data.images.shape) for draw in range(num_draws)]
    norms = np.mean([squared_norms(work, np.asarray(directions)) for directions in draws], axis=0)
    power = np.sum(np.float64(data.outputs) ** 2, axis=(2, 3, 4)).T
    error = np.sum(norms[:, :, 0] * power, axis=1)
    moved = error > 0  # an image that no output moves has no say
    if moved.any():
        norms = norms[moved] / error[moved, None, None]
    mean = norms.mean(axis=0)
    return Sensitivity(_arrays(work.plan), sites=mean[:, 1:], output=mean[:, 0])


def squared_norms(work: Work, directions: np.ndarray) -> np.ndarray:
    """f64[N, S, 1 + A]: `|J^T v|^2` of each image's Jacobians J, of the output first, then of the activations.

    For random `v ~ N(0, 1)` of the image's shape its mean is `|J|^2` (Hutchinson 1990), and one sweep back along a
    recorded trajectory gives it for all steps and activations: the adjoint of the sampler's step carries v from the
    image to each state, the network's own vector-Jacobian product takes it into the network.

    Args:
        work: With trajectories.
        directions: f32[N, H, W, C], a `v` for each of the first N images.

    Source: the propagation identity of DDIM (weights `sqrt(abar_0) (sigma_{t-1} - sigma_t)`), here with the sampler's
    clipping and the network's reaction to its own drift included.
    """
    data, (batch_size, mesh, _) = work.data.first(len(directions)), work.machine
    coefficients = work.problem.sampler.coefficients(work.denoiser.schedule)
    params = replicate(work.denoiser.params, mesh)
    size = round_up(min(batch_size, data.num_images), mesh)
    norms = np.zeros((data.num_images, data.num_steps, 1 + len(_arrays(work.plan))))
    for start in range(0, data.num_images, size):
        images = np.arange(start, start + size) % data.num_images  # the last batch is filled up, and cut
        args, adjoint = shard((work.denoiser.args(jnp.asarray(data.image_index[images])), directions[images]), mesh)
        of_past = (jnp.zeros_like(adjoint),) * coefficients.num_past
        for index in reversed(range(data.num_steps)):
            numbers = replicate(coefficients.at(index), mesh)
            x = shard(data.states[index, images], mesh)
            adjoints = (adjoint, of_past)
            (adjoint, of_past), found = _back_one_step(
                work.denoiser.module, work.plan, params, numbers, x, args, adjoints
            )
            norms[start : start + size, index] = np.asarray(gather(found, mesh))[: data.num_images - start]
    return norms


@functools.partial(jax.jit, static_argnums=(0, 1))
def _back_one_step(
    module: Any,
    plan: Plan,
    params: Any,
    numbers: Coefficients,
    x: jax.Array,
    args: tuple[jax.Array, ...],
    adjoints: Adjoints,
) -> tuple[Adjoints, jax.Array]:
    """Carries the adjoints of the states after a step, and of its past, to those before it, f32[B, 1 + A] beside them.

    A program for one step, called in a loop: in a `lax.scan` XLA:CPU keeps the kernels of the backward convolutions in
    an order for which it has no fast code, and takes 40 times as long. Each image is in a batch of its own, as in
    `apply_by_row`.
    """
    names = _arrays(plan)

    def of_one(x: jax.Array, args: tuple[jax.Array, ...], adjoints: Adjoints) -> tuple[Adjoints, jax.Array]:
        def forward(x: jax.Array, nudges: dict[str, list[jax.Array]]) -> jax.Array:
            return apply_visited(module, params, _nudged(plan, nudges), x, numbers.t, *args).astype(jnp.float32)

        shapes = _shapes_of(module, names, params, x, numbers.t, args)
        zeros = {name: [jnp.zeros(shape, jnp.float32) for shape in shapes[name]] for name in names}
        output, back_network = jax.vjp(forward, x, zeros)
        # Linear in the past: what it is does not matter.
        past = jax.tree.map(jnp.zeros_like, adjoints[1])
        _, back_step = jax.vjp(lambda *state: _step(numbers, *state), x, output, past)
        to_x, to_output, to_past = back_step(adjoints)
        through_network, to_nudges = back_network(to_output)
        calls = [[to_output], *(to_nudges[name] for name in names)]
        return (to_x + through_network, to_past), jnp.stack(
            [sum(jnp.sum(gradient**2) for gradient in of) for of in calls]
        )

    rows = jax.tree.map(lambda leaf: leaf[:, None], (x, args, adjoints))
    adjoints, norms = jax.vmap(of_one)(*rows)
    return jax.tree.map(lambda leaf: leaf[:, 0], adjoints), norms


def _step(numbers: Coefficients, x: jax.Array, output: jax.Array, past: tuple[jax.Array, ...]) -> Adjoints:
    """(the next state, what the steps after it see of the past)."""
    return step(numbers, x, output, None, past), (left_by(numbers, x, output), *past[:-1]) if past else ()


def _nudged(plan: Plan, nudges: dict[str, list[jax.Array]]) -> Visitor:
    """Adds an error to each planned activation, one for each call; the same wherever the same codes are read."""
    left = {name: iter(calls) for name, calls in nudges.items()}
    latest: dict[str, jax.Array] = {}

    def visitor(name: str, value: jax.Array) -> jax.Array:
        if name in left:  # the array's first reader, which may itself stay in float
            latest[name] = next(left[name])

        def nudged(piece: str, value: jax.Array) -> jax.Array:
            if piece != name:
                latest[piece] = next(left[piece])
            array, _ = plan.columns[plan.activations[piece][0]]
            return value + latest[array].astype(value.dtype)

        return on_pieces(plan.activations, name, value, nudged)

    return visitor


def _arrays(plan: Plan) -> tuple[str, ...]:
    """Names of the quantized arrays."""
    return tuple(dict.fromkeys(name for name, _ in plan.columns))


def _shapes_of(
    module: Any, names: tuple[str, ...], params: Any, x: jax.Array, t: jax.Array, args: tuple[jax.Array, ...]
) -> dict[str, list[tuple[int, ...]]]:
    """Shapes of the named activations, one for each call of a module that is called more than once; by tracing."""
    shapes: dict[str, list[tuple[int, ...]]] = {name: [] for name in names}

    def record(name: str, value: jax.Array) -> jax.Array:
        shapes[name].append(value.shape)
        return value

    def visitor(name: str, value: jax.Array) -> jax.Array:
        return on_pieces(shapes, name, value, record)

    jax.eval_shape(lambda params, x, *args: apply_visited(module, params, visitor, x, t, *args), params, x, *args)
    return shapes
