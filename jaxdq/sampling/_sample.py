"""Sampling from a denoiser, in float or on integers, and the trajectories that calibration learns from."""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxdq import diffusion
from jaxdq._common.checks import check_count, check_float_params
from jaxdq._common.devices import gather, num_devices, replicate, round_up, shard
from jaxdq._common.errors import InputError
from jaxdq._common.progress import track
from jaxdq.diffusion import Coefficients, Denoiser, Sampler, check_key, check_sampler
from jaxdq.linen import (
    Calibration,
    QuantizedParams,
    Switch,
    apply,
    check_belongs,
    check_times,
    output_std_of,
    tables_in,
)

BATCH_SIZE = 32  # of calibration, sampling and evaluation alike, so that one program serves all three


class Trajectories(NamedTuple):
    """States of a model on its way from noise to images, on the host.

    Activations are never kept: they are computed again from the states, one batch at a time.

    Attributes:
        states: f32[S, N, H, W, C], x before each step, the noisiest first.
        outputs: f32[S, N, H, W, C], what the model said there.
        t: int32[S], the model time of each step (float32 where one lies between two).
        image_index: int32[N], which images these are: image i has the noise and the conditions of index i.
        images: f32[N, H, W, C], where the trajectories end: what `sample` draws from the same key.
    """

    states: np.ndarray
    outputs: np.ndarray
    t: np.ndarray
    image_index: np.ndarray
    images: np.ndarray

    @property
    def num_steps(self) -> int:
        """S."""
        return self.states.shape[0]

    @property
    def num_images(self) -> int:
        """N."""
        return self.states.shape[1]

    def first(self, num_images: int) -> "Trajectories":
        """Those of the first images, or of all if there are fewer."""
        images = slice(0, num_images)
        return Trajectories(
            self.states[:, images], self.outputs[:, images], self.t, self.image_index[images], self.images[images]
        )


def sample(
    denoiser: Denoiser,
    params: Any,
    *,
    sampler: Sampler,
    num_images: int,
    key: jax.Array,
    batch_size: int = BATCH_SIZE,
    mesh: Mesh | None = None,
) -> jax.Array:
    """Draws images by one `lax.scan` over the sampler's steps; the network is traced once.

    Image i depends on the key and on i alone: neither `num_images` nor `batch_size` changes its noise, and two sets of
    params draw from the same noise.

    Args:
        denoiser: The module, its schedule and shapes.
        params: `denoiser.params` for the float model, or `QuantizedParams`.
        sampler: Such as `jaxdq.ddim(50)`.
        num_images: N >= 1.
        key: A random key.
        batch_size: Images at a time; the last batch is filled up and cut, so that nothing is traced again.
        mesh: Mesh of one axis. The images of a batch are sharded over its devices (a multiple of their number is drawn
            at a time); the params are replicated. None is one device. Over several hosts every process makes the same
            call and has all images.

    Returns:
        float32[N, H, W, C], clipped to the schedule's `clip_range` (images: [-1, 1]); where that is None the model
        draws latents, which have no bounds, and they are returned as they are.

    Raises:
        InputError: Num_images or batch_size below 1, a sampler that doesn't fit the schedule, a mesh of
            more axes than one; params that were not quantized from this denoiser's.

    Example:
        `images = jaxdq.sample(denoiser, qparams, sampler=jaxdq.ddim(50), num_images=64, key=jax.random.key(1))`
    """
    check_arguments(denoiser, params, sampler, key)
    fixed = replicate((params, sampler.coefficients(denoiser.schedule), key), mesh)
    images = []
    for index in track(batches_of(num_images, batch_size, mesh), "sample"):
        rows = shard((index, denoiser.args(jnp.asarray(index))), mesh)
        images.append(gather(_sample_batch(denoiser.module, sampler, denoiser.shape, *fixed, *rows), mesh))
    return jnp.clip(jnp.concatenate(images)[:num_images], *_bounds(denoiser))


def check_arguments(denoiser: Denoiser, params: Any, sampler: Sampler, key: jax.Array) -> None:
    """Refuses what can't be sampled from, and quantized params of another network or schedule than the denoiser's.

    Raises:
        InputError: Says what is wrong, or what differs; float params are flax's to check.
    """
    if not isinstance(denoiser, Denoiser):
        raise InputError(f"denoiser is a {type(denoiser).__name__}; pass a jaxdq.Denoiser.")
    check_sampler(sampler)
    check_key(key)
    if isinstance(params, Calibration):
        raise InputError("params is a calibration; pass jaxdq.quantize(denoiser.params, calib).")
    for network in params.choices if isinstance(params, Switch) else (params,):
        if isinstance(network, QuantizedParams):
            _check_fits(denoiser, network)
            check_times(tables_in(network.params), sampler.coefficients(denoiser.schedule).t)
        else:
            remedy = "denoiser.params, or what jaxdq.quantize returned"
            check_float_params(network, remedy, may_be_empty=not denoiser.params)


def _check_fits(denoiser: Denoiser, params: QuantizedParams) -> None:
    came, own = params.acts.group_of_t.shape[0], denoiser.schedule.num_timesteps
    if came != own:
        raise InputError(
            f"qparams were calibrated for {came} timesteps and the schedule of '{denoiser.name}' has {own}; pass the "
            f"schedule that the network was calibrated with, or calibrate again."
        )
    remedy = "pass qparams that were quantized from this denoiser's params"
    check_belongs(denoiser.params, params.plan, f"the params of '{denoiser.name}'", remedy)
    check_belongs(params.params, params.plan, "qparams", remedy, quantized=True)


def trajectories(
    denoiser: Denoiser,
    params: Any,
    *,
    sampler: Sampler,
    num_images: int,
    key: jax.Array,
    batch_size: int = BATCH_SIZE,
    mesh: Mesh | None = None,
) -> Trajectories:
    """The states of N trajectories and the model's outputs there, moved to the host batch by batch.

    Args and errors as in `sample`.
    """
    check_arguments(denoiser, params, sampler, key)
    coefficients = sampler.coefficients(denoiser.schedule)
    fixed = replicate((params, coefficients, key), mesh)
    parts = []
    for index in track(batches_of(num_images, batch_size, mesh), "trajectories"):
        rows = shard((index, denoiser.args(jnp.asarray(index))), mesh)
        part = _trajectory_batch(denoiser.module, sampler, denoiser.shape, *fixed, *rows)
        parts.append(jax.tree.map(np.asarray, gather(part, mesh)))
    all_images, all_states, all_outputs = zip(*parts, strict=True)
    return Trajectories(
        states=np.concatenate(all_states, axis=1)[:, :num_images],
        outputs=np.concatenate(all_outputs, axis=1)[:, :num_images],
        t=np.asarray(coefficients.t),
        image_index=np.arange(num_images, dtype=np.int32),
        images=np.clip(np.concatenate(all_images)[:num_images], *_bounds(denoiser)),
    )


def _bounds(denoiser: Denoiser) -> tuple[float, float]:
    """Between what the drawn arrays lie; latents, whose schedule does not clip, lie anywhere."""
    clip_range = denoiser.schedule.clip_range
    return (-np.inf, np.inf) if clip_range is None else (-clip_range, clip_range)


def batches_of(num_images: int, batch_size: int, mesh: Mesh | None) -> list[np.ndarray]:
    """Image indices in batches of one size, so that one program serves all of them."""
    check_count(num_images, batch_size)
    # Even batches: 65 images at 64 at a time are two batches of 33, not one of 64 and one of 64 with 63 thrown away.
    count = -(-num_images // round_up(batch_size, mesh))
    size = round_up(-(-num_images // count), mesh)
    return [np.arange(start, start + size, dtype=np.int32) for start in range(0, count * size, size)]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _sample_batch(
    module: Any, sampler: Sampler, shape: tuple, params: Any, coefficients: Coefficients, *rest: Any
) -> jax.Array:
    return diffusion.sample(*_loop_arguments(module, sampler, shape, params, coefficients, *rest))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _trajectory_batch(
    module: Any, sampler: Sampler, shape: tuple, params: Any, coefficients: Coefficients, *rest: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    return diffusion.trajectory(*_loop_arguments(module, sampler, shape, params, coefficients, *rest))


def _loop_arguments(
    module: Any,
    sampler: Sampler,
    shape: tuple,
    params: Any,
    coefficients: Coefficients,
    key: jax.Array,
    index: jax.Array,
    args: tuple,
) -> tuple:
    def model(x: jax.Array, t: jax.Array) -> jax.Array:
        return apply(module, params, x, t, *args)

    noise = initial_latents(coefficients, key, index, shape)
    return model, sampler, with_noise_of(params, coefficients), noise, diffusion.image_keys(key, index)


def initial_latents(coefficients: Coefficients, key: jax.Array, index: jax.Array, shape: tuple) -> jax.Array:
    """f32[B, H, W, C]: the noise that a sampler starts from."""
    noise = diffusion.initial_noise(key, index, shape)
    return noise if coefficients.initial_std is None else coefficients.initial_std[0] * noise


def with_noise_of(params: Any, coefficients: Coefficients) -> Coefficients:
    """The steps with as much fresh noise as the network's own error leaves room for, where its correction knows it."""
    output_std = output_std_of(params)
    if output_std is None:
        return coefficients
    return with_noise_left(coefficients, output_std[jnp.round(jnp.asarray(coefficients.t)).astype(jnp.int32)])


def with_noise_left(coefficients: Coefficients, output_std: Any) -> Coefficients:
    """The steps with as much fresh noise as errors of the output leave room for.

    Args:
        coefficients: Of all steps, or of one.
        output_std: Standard deviation of what is left of the output's error, of as many.
    """
    c = coefficients
    left = jnp.sqrt(jnp.maximum(c.noise_std**2 - (c.of_output * output_std) ** 2, 0))
    return c._replace(noise_std=jnp.where(output_std > 0, left, c.noise_std))


class Batch(NamedTuple):
    """What one update of a calibrator sees: B images at one step.

    Attributes:
        x: f32[B, H, W, C], the state.
        t: int32[], its model time.
        step: int32[], its sampler index.
        target: f32[B, H, W, C], what the float model says there.
        args: The module's further arguments, leading axis B.
    """

    x: jax.Array
    t: jax.Array
    step: jax.Array
    target: jax.Array
    args: tuple[jax.Array, ...] = ()


def batch_at(
    denoiser: Denoiser, data: Trajectories, step: int, images: slice | np.ndarray, *, mesh: Mesh | None = None
) -> Batch:
    """The batch of these images (positions 0..N-1) at this step, as device arrays; rows sharded where they divide."""
    rows: Any = (
        data.states[step, images],
        data.outputs[step, images],
        denoiser.args(jnp.asarray(data.image_index[images])),
    )
    x, target, args = shard(rows, mesh)
    t, index = replicate((jnp.asarray(data.t[step]), jnp.asarray(step, jnp.int32)), mesh)
    return Batch(x=x, t=t, step=index, target=target, args=args)


def one_pass(
    denoiser: Denoiser,
    data: Trajectories,
    batch_size: int,
    counts: np.ndarray | None = None,
    *,
    mesh: Mesh | None = None,
) -> Iterator[Batch]:
    """Every state once, step by step, in batches of one size: a step's last batch is filled up with its own images.

    Over a mesh these are the same batches as on one device, which its devices share; where they can't share one evenly,
    the rows that are left over follow as a batch that each of them holds whole.

    Args:
        denoiser: Gives the module's further arguments.
        data: The states.
        batch_size: Images at a time.
        counts: int[S], how many images of each step are shown, in turn (`turns`); None is all.
        mesh: Mesh whose devices share a batch.
    """
    counts = np.full(data.num_steps, data.num_images) if counts is None else counts
    turn = turns(counts)
    size = batch_size_of(counts, batch_size)
    shared = size - size % num_devices(mesh)
    for step in np.flatnonzero(counts):
        shown = (turn[step] + np.arange(counts[step])) % data.num_images
        images = np.resize(shown, (-(-counts[step] // size), size))
        for batch in images:
            for part in (batch[:shared], batch[shared:]):
                if len(part):
                    yield batch_at(denoiser, data, int(step), part, mesh=mesh)


def turns(counts: np.ndarray) -> np.ndarray:
    """int[S]: the image, modulo their number, whose state is a step's first where each step shows `counts[s]` of them.

    A step goes on where the one before left off, so that few states are of many images, and of all conditions.
    """
    return np.cumsum(counts) - counts


def num_batches(counts: np.ndarray, batch_size: int, mesh: Mesh | None = None) -> int:
    """How many batches `one_pass` makes."""
    size = batch_size_of(counts, batch_size)
    parts = 1 if size < num_devices(mesh) or size % num_devices(mesh) == 0 else 2
    return parts * int(np.sum(-(-counts // size)))


def batch_size_of(counts: np.ndarray, batch_size: int) -> int:
    """Images at a time: no more than an average step has, so that few of them are seen twice."""
    return max(1, min(batch_size, int(np.mean(counts[counts > 0]))))
