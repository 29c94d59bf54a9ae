"""Walking along a trajectory a step at a time, with the latents of every image kept on the host between two steps.

Sampling is one `lax.scan`; a method that measures or changes something on the way wants the loop in its own hands:

    w = walk(denoiser, sampler, num_images=32, key=key)
    x, past = w.start(), ()
    for step in range(w.num_steps):
        exact, found = (w.output(params, x, step) for params in (denoiser.params, qparams))
        ...                                   # measure, correct, fit the grids of this step
        x, past = w.advance(x, found, step, past)

so that progressive calibration, timestep correction and serial-to-parallel calibration cost about two calls of the
network a step and batch, and never a sweep from the noise. Programs are compiled once for all steps.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxdq import diffusion
from jaxdq._common.devices import gather, replicate, shard
from jaxdq._common.errors import InputError
from jaxdq._common.progress import track
from jaxdq.diffusion import Coefficients, Denoiser, Sampler, left_by
from jaxdq.linen import apply
from jaxdq.sampling._sample import BATCH_SIZE, batches_of, initial_latents, with_noise_left, with_noise_of

Past = tuple[np.ndarray, ...]


class Walk(NamedTuple):
    """A sampler's steps over N images; see the module's docstring. Arrays go in and out as numpy, f32[N, H, W, C].

    Attributes:
        denoiser: The network, its shapes and conditions.
        sampler: Says whether fresh noise enters.
        coefficients: The sampler's numbers of every step.
        key: Key of the images' noise: image i is that of `jaxdq.sample` with this key.
        num_images: N.
        batches: Indices of the images, in batches of one size; the last one is filled up.
        mesh: Mesh whose devices share a batch; None is one device.
    """

    denoiser: Denoiser
    sampler: Sampler
    coefficients: Coefficients
    key: jax.Array
    num_images: int
    batches: tuple[np.ndarray, ...]
    mesh: Mesh | None = None

    @property
    def num_steps(self) -> int:
        """S."""
        return len(self.coefficients.t)

    @property
    def t(self) -> np.ndarray:
        """int32[S], the model time of each step."""
        return np.asarray(self.coefficients.t)

    def start(self) -> np.ndarray:
        """The noise that sampling starts from."""
        shape = self.denoiser.shape
        return self._by_batch(lambda index: initial_latents(self.coefficients, self.key, index, shape))

    def output(self, params: Any, x: np.ndarray, step: int) -> np.ndarray:
        """What a network says of these latents at a step: one call for each batch.

        Args:
            params: Float params, `QuantizedParams` or a `Switch`, with its correction.
            x: The latents.
            step: 0 is the noisiest.
        """
        t = self.t[self._checked(step)]
        index = np.arange(self.num_images, dtype=np.int32)
        return predict(self.denoiser, params, x, t, index, self.batches, mesh=self.mesh)

    def advance(
        self,
        x: np.ndarray,
        output: np.ndarray,
        step: int,
        past: Past = (),
        *,
        params: Any = None,
        output_std: float = 0.0,
    ) -> tuple[np.ndarray, Past]:
        """The latents after the sampler's step, with each image's own fresh noise, and its past; no network is called.

        Args:
            x: The latents before.
            output: What the network said of them, corrected or not.
            step: 0 is the noisiest.
            past: What the last call returned beside the latents; () at the first step.
            params: Params, whose correction may set how much fresh noise enters; None leaves it to the sampler.
            output_std: Standard deviation of the error that is left in the output, for which the noise makes room.
        """
        coefficients = self.coefficients if params is None else with_noise_of(params, self.coefficients)
        numbers = with_noise_left(coefficients.at(self._checked(step)), np.float32(output_std))
        fixed = replicate((numbers, self.key, np.int32(step)), self.mesh)

        def call(index: jax.Array, x: jax.Array, output: jax.Array, *past: jax.Array) -> jax.Array:
            return _advance(self.sampler.is_stochastic, *fixed, shard(index, self.mesh), x, output, past)

        past = past or (np.zeros_like(x),) * coefficients.num_past
        after = self._by_batch(call, x, output, *past)
        return after, ((np.asarray(left_by(numbers, jnp.asarray(x), jnp.asarray(output))), *past[:-1]) if past else ())

    def images(self, x: np.ndarray) -> np.ndarray:
        """The latents after the last step as `jaxdq.sample` returns them: clipped, where the schedule clips."""
        clip_range = self.denoiser.schedule.clip_range
        return x if clip_range is None else np.clip(x, -clip_range, clip_range)

    def draw(self, params: Any) -> np.ndarray:
        """The images that `jaxdq.sample` draws, one call at a time: `output`'s program serves it, whatever the steps.

        Args:
            params: Float params, `QuantizedParams` or a `Switch`, with its correction.
        """
        x, past = self.start(), Past()
        for step in track(range(self.num_steps), "sample"):
            x, past = self.advance(x, self.output(params, x, step), step, past, params=params)
        return self.images(x)

    def _checked(self, step: int) -> int:
        if not 0 <= step < self.num_steps:
            raise InputError(f"step is {step} and the walk has {self.num_steps}; give 0 to {self.num_steps - 1}.")
        return step

    def _by_batch(self, call: Callable[..., jax.Array], *arrays: np.ndarray) -> np.ndarray:
        parts = []
        for index in self.batches:
            rows = index % self.num_images
            here = shard(tuple(np.asarray(array)[rows] for array in arrays), self.mesh)
            parts.append(np.asarray(gather(call(index, *here), self.mesh)))
        return np.concatenate(parts)[: self.num_images]


def walk(
    denoiser: Denoiser,
    sampler: Sampler,
    *,
    num_images: int,
    key: jax.Array,
    batch_size: int = BATCH_SIZE,
    mesh: Mesh | None = None,
) -> Walk:
    """A walk along N trajectories, of the float network, a quantized one, or both in turn.

    Args:
        denoiser: The network, its schedule and shapes.
        sampler: Such as `jaxdq.ddim(50)`.
        num_images: N >= 1.
        key: A random key, as `jaxdq.sample` takes it.
        batch_size: Images at a time.
        mesh: Mesh of one axis, whose devices share a batch.

    Returns:
        Walk.

    Raises:
        InputError: Num_images or batch_size below 1, a sampler that doesn't fit the schedule, a mesh of more axes.
    """
    coefficients = jax.tree.map(np.asarray, sampler.coefficients(denoiser.schedule))
    batches = tuple(batches_of(num_images, batch_size, mesh))
    return Walk(denoiser, sampler, coefficients, key, num_images, batches, mesh)


def predict(
    denoiser: Denoiser,
    params: Any,
    x: np.ndarray,
    t: np.ndarray,
    image_index: np.ndarray,
    batches: Sequence[np.ndarray],
    *,
    mesh: Mesh | None = None,
) -> np.ndarray:
    """What a network says of N latents at one time: a call for each batch, and one program for all times.

    Args:
        denoiser: The module and its conditions.
        params: Float params, `QuantizedParams` or a `Switch`, with its correction.
        x: f32[N, H, W, C], the latents.
        t: int32[], the model time.
        image_index: int32[N], whose conditions these latents have.
        batches: Positions 0..N-1 in batches of one size (`batches_of`); the last one goes on from 0.
        mesh: Mesh whose devices share a batch; None is one device.

    Returns:
        f32[N, H, W, C].
    """
    params, t = replicate((params, t), mesh)
    parts = []
    for batch in batches:
        rows = batch % len(x)
        here, args = shard((x[rows], denoiser.args(jnp.asarray(image_index[rows]))), mesh)
        parts.append(np.asarray(gather(_output(denoiser.module, params, here, t, args), mesh)))
    return np.concatenate(parts)[: len(x)]


@functools.partial(jax.jit, static_argnums=0)
def _output(module: Any, params: Any, x: jax.Array, t: jax.Array, args: tuple[jax.Array, ...]) -> jax.Array:
    return apply(module, params, x, t, *args).astype(jnp.float32)


@functools.partial(jax.jit, static_argnums=0)
def _advance(
    is_stochastic: bool,
    numbers: Coefficients,
    key: jax.Array,
    step: jax.Array,
    index: jax.Array,
    x: jax.Array,
    output: jax.Array,
    past: tuple[jax.Array, ...],
) -> jax.Array:
    keys = diffusion.image_keys(key, index)
    noise = diffusion.step_noise(keys, step, x.shape[1:]) if is_stochastic else None
    return diffusion.step(numbers, x, output, noise, past)
