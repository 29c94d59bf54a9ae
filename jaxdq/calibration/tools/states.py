"""What the blocks of a network on integers are called with, and what the float ones return: kept on the host."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdq._common.devices import gather, replicate, replicated
from jaxdq._common.progress import track
from jaxdq.calibration._base import Work
from jaxdq.calibration.tools.rows import Rows, rows_of_steps, step_weights
from jaxdq.linen import Block, QuantizedParams, apply, values_at_blocks


class States(NamedTuple):
    """N states as one block sees them, each with a batch of one.

    Attributes:
        args: The arrays that the block is called with, f32[N, 1, ...] each, from the network on integers.
        target: The arrays that it returns in the float network.
        step: int32[N].
        weight: f32[N], what a squared error there counts for, of mean 1.
    """

    args: tuple[np.ndarray, ...]
    target: tuple[np.ndarray, ...]
    step: np.ndarray
    weight: np.ndarray

    def at(self, index: np.ndarray) -> "States":
        """These states."""
        return jax.tree.map(lambda leaf: leaf[index], self)


def states_of_blocks(
    work: Work, blocks: tuple[Block, ...], num_states: int, state_bytes: int, key: jax.Array
) -> Callable[[int, QuantizedParams], States]:
    """Returns `(index of a block, the network on integers) -> States`.

    States are spread evenly over the steps, as many of each as of any other to within one. Two programs are compiled,
    whatever the number of blocks: each returns the arrays of all blocks for one batch, and those of one are kept.

    Args:
        work: Work, for its trajectories.
        blocks: In the order of execution.
        num_states: N.
        state_bytes: The most bytes of states that are held at a time; fewer states are taken where they are larger.
        key: Which states.
    """
    module, mesh = work.denoiser.module, work.machine.mesh
    rows_of = rows_of_steps(work, step_weights(work), work.machine.batch_size, key)

    def seen(params: Any, rows: Rows) -> list[tuple[tuple, tuple]]:
        def one(row: Rows) -> Any:
            args = (row.x[None], row.t, *(arg[None] for arg in row.args))
            return values_at_blocks(blocks, lambda: apply(module, params, *args))

        return jax.vmap(one)(rows)

    @functools.partial(jax.jit, out_shardings=replicated(mesh))
    def given(params: Any, rows: Rows) -> list[tuple]:
        return [args for args, _ in seen(params, rows)]

    @functools.partial(jax.jit, out_shardings=replicated(mesh))
    def returned(params: Any, rows: Rows) -> list[tuple]:
        return [output for _, output in seen(params, rows)]

    params = replicate(work.denoiser.params, mesh)

    def states(index: int, qparams: QuantizedParams) -> States:
        made: list[States] = []
        count, enough = 0, num_states
        quantized = replicate(qparams, mesh)
        for batch in track(range(-(-num_states // work.machine.batch_size)), f"states of {blocks[index].path}"):
            if count >= enough:
                break
            rows = rows_of(batch)
            arrays = given(quantized, rows)[index], returned(params, rows)[index], rows.step, rows.weight
            own = States(*jax.tree.map(np.asarray, gather(arrays, mesh)))
            own = own.at(np.flatnonzero(own.weight))  # without rows that were added for the devices
            made.append(own)
            count += len(own.step)
            size = sum(leaf.nbytes for leaf in jax.tree.leaves(own)) // len(own.step)
            enough = min(num_states, max(1, state_bytes // size))
        whole: States = jax.tree.map(lambda *leaves: np.concatenate(leaves)[:enough], *made)
        return whole._replace(weight=whole.weight / np.mean(whole.weight))

    return states
