"""Observing: the ranges of every quantized activation at every step of the float model's trajectories."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxdq._devices import gather, replicate, replicated
from jaxdq._errors import InputError
from jaxdq._progress import track
from jaxdq.calibration._base import Calibrator, Evidence, Work, tables_of
from jaxdq.linen import apply_visited
from jaxdq.observers import Observer
from jaxdq.sampling import Batch, num_batches, one_pass


def observe(observer: Observer) -> Calibrator:
    """Runs an observer at every site and step, in one pass over the trajectories.

    Kept by step and not by group, so that any partition of the steps can be fitted afterwards without another pass.
    Activations of `work.batch_size` images at one step are all that is ever in memory.

    Args:
        observer: such as `jaxdq.observers.minmax()`.

    Returns:
        A calibrator that sets `work.evidence`; states of A activations at S steps. Steps of which no state was chosen
        (`work.counts`) have the evidence of the nearest step.
    """

    def calibrator(work: Work, key: jax.Array) -> Work:
        column = {name: index for index, (name, _) in enumerate(work.plan.tables)}
        module = work.denoiser.module

        @functools.partial(jax.jit, donate_argnums=1, out_shardings=replicated(work.mesh))
        def update(params: object, states: object, batch: Batch) -> object:
            here = jax.tree.map(lambda leaf: leaf[batch.step], states)
            columns = {name: jax.tree.map(lambda leaf, i=i: leaf[i], here) for name, i in column.items()}

            def visitor(name: str, x: jax.Array) -> jax.Array:
                if name in columns:
                    columns[name] = observer.update(columns[name], x)
                return x

            apply_visited(module, params, visitor, batch.x, batch.t, *batch.args)
            here = jax.tree.map(lambda *leaves: jnp.stack(leaves), *columns.values())
            return jax.tree.map(lambda leaf, new: leaf.at[batch.step].set(new), states, here)

        states = jax.tree.map(
            lambda leaf: jnp.tile(leaf, (work.data.num_steps, len(column), *(1,) * leaf.ndim)), observer.init()
        )
        counts = work.counts_or_all
        if column:
            params, states = replicate((work.denoiser.params, states), work.mesh)
            batches = one_pass(work.denoiser, work.data, work.batch_size, counts, mesh=work.mesh)
            for batch in track(batches, "observe ranges", total=num_batches(counts, work.batch_size, work.mesh)):
                states = update(params, states, batch)
            states = jax.tree.map(jnp.asarray, gather(states, work.mesh))
        seen = np.flatnonzero(counts)
        nearest = seen[np.argmin(np.abs(np.arange(len(counts))[:, None] - seen), axis=1)]
        evidence = Evidence(observer, jax.tree.map(lambda leaf: leaf[nearest], states))
        _refuse_non_finite(work, evidence)
        return work._replace(evidence=evidence)

    return calibrator


def _refuse_non_finite(work: Work, evidence: Evidence) -> None:
    if not work.plan.tables:
        return
    schemes = tuple(scheme for _, scheme in work.plan.tables)
    scale = np.asarray(jax.jit(lambda states: tables_of(evidence.observer, states, schemes)[0])(evidence.states))
    for step, column in np.argwhere(~np.isfinite(scale))[:1]:
        raise InputError(
            f"the input of '{work.plan.tables[column][0]}' holds NaN or infinity at t = {work.data.t[step]} in the "
            f"float model; check the model's weights and its schedule before quantizing it."
        )
