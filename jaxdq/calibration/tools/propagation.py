"""What an error in one activation at one step costs the image: errors propagated along the trajectory."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdq._devices import gather, replicate, round_up, shard
from jaxdq.calibration._base import Work, kind
from jaxdq.calibration.tools.evidence import indices, names_of
from jaxdq.diffusion import Coefficients, step
from jaxdq.linen import Plan, apply_visited


@kind("sensitivities", "measure_sensitivity()")
class Sensitivity(NamedTuple):
    """How much of an error arrives in the image: squared Frobenius norms of Jacobians, per image.

    Attributes:
        arrays: Names of the N quantized arrays.
        sites: f64[S, N], `|d x_0 / d a_s|^2` of each array at each step.
        output: f64[S], `|d x_0 / d eps_s|^2` of the network's output.
    """

    arrays: tuple[str, ...]
    sites: np.ndarray
    output: np.ndarray

    def of(self, names: tuple[str, ...]) -> np.ndarray:
        """f64[S, A]: those of these arrays, in this order."""
        return self.sites[:, indices(self.arrays, names, "sensitivity")]


def sensitivity(work: Work, key: jax.Array, *, num_images: int = 8, num_draws: int = 1) -> Sensitivity:
    """How much of an error in an activation arrives in the image, by step and activation.

    With `x_0` the image and `a_s` an activation at step s, the result estimates the squared Frobenius norm of the
    Jacobian `d x_0 / d a_s`, so that independent errors of variance `m[s, a]` at every activation give, to first order,

        E |error of x_0|^2 = sum_{s, a} sensitivity[s, a] m[s, a].

    For random `v ~ N(0, 1)` of the image's shape, `E_v |(d x_0 / d a_s)^T v|^2` is that norm (Hutchinson 1990), and one
    sweep back along a recorded trajectory gives it for all steps and activations: the adjoint of the sampler's step
    carries v from the image to each state, the network's own vector-Jacobian product takes it into the network.

    Args:
        work: with trajectories.
        key: draws v.
        num_images: trajectories averaged over.
        num_draws: directions v for each.

    Returns:
        Sensitivity, all entries >= 0.

    Source: the propagation identity of DDIM (weights `sqrt(abar_0) (sigma_{t-1} - sigma_t)`), here with the sampler's
    clipping and the network's reaction to its own drift included.
    """
    data, (batch_size, mesh, _) = work.data.first(num_images), work.machine
    fixed = replicate((work.denoiser.params, work.problem.sampler.coefficients(work.denoiser.schedule)), mesh)
    size = round_up(min(batch_size, data.num_images), mesh)
    arrays = tuple(dict.fromkeys(names_of(work)))
    total = np.zeros((data.num_steps, 1 + len(arrays)))
    for draw in range(num_draws):
        direction = np.asarray(jax.random.normal(jax.random.fold_in(key, draw), data.states.shape[1:]))
        for start in range(0, data.num_images, size):
            # Filled up with images whose v is 0: they add nothing.
            images = np.arange(start, start + size)
            v = np.resize(direction, (start + size, *direction.shape[1:]))[images]
            v[images >= data.num_images] = 0
            images %= data.num_images
            states = shard(data.states[:, images], mesh, axis=1)
            args = work.denoiser.args(jnp.asarray(data.image_index[images]))
            out = _sweep(work.denoiser.module, work.plan, *fixed, states, *shard((args, v), mesh))
            total += np.asarray(gather(out, mesh), np.float64) * size / data.num_images / num_draws
    return Sensitivity(arrays, sites=total[:, 1:], output=total[:, 0])


@functools.partial(jax.jit, static_argnums=(0, 1))
def _sweep(
    module: Any,
    plan: Plan,
    params: Any,
    coefficients: Coefficients,
    states: jax.Array,
    args: tuple[jax.Array, ...],
    direction: jax.Array,
) -> jax.Array:
    """f32[S, 1 + A]: one sweep from the image back to the noise; the output first, then the activations."""
    batch = states.shape[1]
    names = tuple(dict.fromkeys(name for name, _ in plan.columns))

    def forward(x: jax.Array, t: jax.Array, nudges: dict[str, list[jax.Array]]) -> jax.Array:
        left = {name: iter(calls) for name, calls in nudges.items()}
        latest: dict[str, jax.Array] = {}

        def visitor(name: str, value: jax.Array) -> jax.Array:
            if name not in plan.activations:
                return value
            first, _ = plan.columns[plan.activations[name][0]]
            if name == first:
                latest[name] = next(left[name])
            return value + latest[first].astype(value.dtype)  # the same error wherever the same codes are read

        return apply_visited(module, params, visitor, x, t, *args).astype(jnp.float32)

    shapes = _shapes_of(module, names, params, states[0], coefficients.t[0], args)
    zeros = {name: [jnp.zeros(shape, jnp.float32) for shape in shapes[name]] for name in names}

    def body(adjoint: jax.Array, inputs: tuple[jax.Array, Coefficients]) -> tuple[jax.Array, jax.Array]:
        x, numbers = inputs
        output, back_network = jax.vjp(lambda x, nudges: forward(x, numbers.t, nudges), x, zeros)
        _, back_step = jax.vjp(lambda x, output: step(numbers, x, output), x, output)
        to_x, to_output = back_step(adjoint)
        through_network, to_nudges = back_network(to_output)
        calls = [[to_output], *(to_nudges[name] for name in names)]
        norms = [sum(jnp.sum(gradient**2) for gradient in gradients) / batch for gradients in calls]
        return to_x + through_network, jnp.stack(norms)

    coefficients = jax.tree.map(jnp.asarray, coefficients)
    _, norms = jax.lax.scan(body, direction, (states, coefficients), reverse=True)
    return norms


def _shapes_of(
    module: Any, names: tuple[str, ...], params: Any, x: jax.Array, t: jax.Array, args: tuple[jax.Array, ...]
) -> dict[str, list[tuple[int, ...]]]:
    """Shapes of the named activations, one for each call of a module that is called more than once; by tracing."""
    shapes: dict[str, list[tuple[int, ...]]] = {name: [] for name in names}

    def visitor(name: str, value: jax.Array) -> jax.Array:
        shapes.setdefault(name, []).append(value.shape)
        return value

    jax.eval_shape(lambda params, x, *args: apply_visited(module, params, visitor, x, t, *args), params, x, *args)
    return shapes
