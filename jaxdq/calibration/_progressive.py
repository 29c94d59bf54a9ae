"""Grids of each step, fitted where the quantized sampler arrives with the steps before it on theirs (PCR)."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdq._common.devices import gather, replicate, shard
from jaxdq._common.progress import track
from jaxdq.calibration._base import Run, Work, calibrator, check_at_least
from jaxdq.calibration.tools.evidence import group_of_step, names_of, schemes_of, tables_of, with_acts
from jaxdq.calibration.tools.walking import closest, walk_of
from jaxdq.grid import Grid, QParams, fake_quantize
from jaxdq.linen import Acts, Instead, Plan, apply_visited, dequantize_params, on_pieces, quantize
from jaxdq.observers import Observer, mse
from jaxdq.sampling import Past, Walk

_quantize = jax.jit(quantize)
_MSE = mse(2.0)


@calibrator(needs=(Grid, Acts), gives=(Acts,), precedes=(Instead,))
def fit_progressively(observer: Observer = _MSE, num_images: int = 32) -> Run:
    """PCR: walks with the quantized network and fits the activations' grids of each step before it goes on.

    From the noisiest step to the last one, with x the states at which the quantized sampler arrives, earlier steps on
    their new grids: the network, quantized as it was, shows the observer the inputs of all its layers at x; their new
    grids are this step's from then on, and the network on them makes the step. Latents are kept, so that this costs two
    calls of the network for each step and batch.

    Stays where images on the integer path come closer.

    Args:
        observer: Chooses the grids.
        num_images: Images whose states are seen.

    Returns:
        A calibrator that gives every step of the sampler a time group of its own.

    Raises:
        InputError: No images.

    Where we deviate from the public code: the last step is fitted too, ranges are of all images alike (its moving
    average keeps 61% of the first batch), and latents are kept, where it starts each step from the noise.

    Source: Tang et al., arXiv 2311.06322 (ECCV 2024).
    """
    check_at_least(1, num_images=num_images)

    def run(work: Work, key: jax.Array) -> Work:
        if not work.plan.columns:
            return work
        way = walk_of(work, num_images, key)
        work, fitted = _fitted(work, way, observer)
        kept, tried, name = closest(work, {"step by step": fitted})
        return kept.logging("fit_progressively", {"tried": tried, "kept": name})

    return run


def _fitted(work: Work, way: Walk, observer: Observer) -> tuple[Work, Work]:
    """The work with a group for each step, and what it becomes once all of them are fitted."""
    first = np.unique(way.t, return_index=True)  # a sampler may call the network twice at one time: one grid
    group = {float(t): index for index, t in enumerate(first[0])}
    own = group_of_step(work)[first[1]]
    groups = np.array([group[float(t)] for t in way.t])
    scale, zero_point = (np.array(table)[own] for table in (work.acts.scale, work.acts.zero_point))
    started = at = with_acts(work, groups, scale, zero_point)
    float_twin = dequantize_params(_quantize(work.denoiser.params, dataclasses.replace(work.calib, tables={})))
    qparams = _quantize(work.denoiser.params, started.calib)
    x, past = way.start(), Past()
    for step in track(range(way.num_steps), "fit step by step"):
        row = groups[step]
        states = _seen(at, way, observer, float_twin, x, step)
        scale[row], zero_point[row] = (np.asarray(table[0]) for table in _tables(observer, schemes_of(work), states))
        at = with_acts(work, groups, scale, zero_point)
        qparams = dataclasses.replace(qparams, acts=at.acts.select(qparams.plan.columns))
        x, past = way.advance(x, way.output(qparams, x, step), step, past, params=qparams)
    return work, at


def _seen(work: Work, way: Walk, observer: Observer, params: Any, x: np.ndarray, step: int) -> Any:
    """The observer's states [1, A] of every quantized array at these states of a step."""
    empty = jax.tree.map(lambda leaf: jnp.tile(leaf, (len(names_of(work)), *(1,) * leaf.ndim)), observer.init())
    row = group_of_step(work)[step]
    grids = work.acts.scale[row], work.acts.zero_point[row]
    states, fixed = replicate((empty, (params, *grids, jnp.asarray(way.t[step]))), way.mesh)
    for index in way.batches:
        rows = index % way.num_images
        here = shard((x[rows], work.denoiser.args(jnp.asarray(index))), way.mesh)
        states = _observe(work.denoiser.module, work.plan, observer, states, *fixed, *here)
    return jax.tree.map(lambda leaf: leaf[None], gather(states, way.mesh))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _observe(
    module: Any,
    plan: Plan,
    observer: Observer,
    states: Any,
    params: Any,
    scale: jax.Array,
    zero_point: jax.Array,
    t: jax.Array,
    x: jax.Array,
    args: tuple[jax.Array, ...],
) -> Any:
    """States after the inputs of one batch, each layer behind those before it on their grids of this step."""
    columns: dict[int, Any] = {}

    def on_grid(name: str, value: jax.Array) -> jax.Array:
        index, scheme = plan.activations[name]
        if index not in columns:  # layers that are called with one array share its column
            columns[index] = observer.update(jax.tree.map(lambda leaf: leaf[index], states), value)
        grid = QParams(scale[index], None if scheme.symmetric else zero_point[index])
        return fake_quantize(value, grid, scheme).astype(value.dtype)

    def visitor(name: str, value: jax.Array) -> jax.Array:
        return on_pieces(plan.activations, name, value, on_grid)

    apply_visited(module, params, visitor, x, t, *args)
    found = [columns[index] for index in range(len(plan.columns))]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _tables(observer: Observer, schemes: Any, states: Any) -> tuple[jax.Array, jax.Array]:
    return tables_of(observer, states, schemes)
