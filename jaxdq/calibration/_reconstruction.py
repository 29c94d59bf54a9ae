"""Rounding and step sizes learned block by block, each on what the quantized network before it makes (Q-Diffusion)."""

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdq._common.devices import is_first_process
from jaxdq._common.errors import InputWarning
from jaxdq.calibration._base import Run, Work, calibrator
from jaxdq.calibration.tools.evidence import group_of_step, with_acts
from jaxdq.calibration.tools.propagation import Sensitivity
from jaxdq.calibration.tools.reconstruction import Decision, Latent, ReconstructionSettings, learn_block
from jaxdq.calibration.tools.rows import image_error
from jaxdq.calibration.tools.states import states_of_blocks
from jaxdq.checkpoint import has_state, restore_state, save_state
from jaxdq.grid import Grid, QTensor, quantize
from jaxdq.linen import Acts, Block, Instead, cut_into_blocks, kernel_at
from jaxdq.linen import quantize as quantize_network

_quantize_network = jax.jit(quantize_network)
_quantize = jax.jit(quantize, static_argnums=2)


class Progress(NamedTuple):
    """What the blocks so far have come to; all that a killed run needs to go on.

    Attributes:
        decision: Codes and grids as they stand.
        errors: f32[B, 2], each block's relative error before and after.
    """

    decision: Decision
    errors: np.ndarray


_SETTINGS = ReconstructionSettings()


@calibrator(needs=(Grid, Acts, Sensitivity), gives=(Grid, Acts), precedes=(Instead,))
def reconstruct(settings: ReconstructionSettings = _SETTINGS) -> Run:
    """Learns, block after block in the order of execution, whether each weight is rounded up or down.

    With the block f, what its float twin returns on the float trajectory, f(u), and the input u~ that the quantized
    network before it makes of the same state,

        sum_n v_n |f(u_n) - f^(u~_n)|^2 / sum_n v_n |f(u_n)|^2  +  penalty * e_0 * mean(1 - |2 h(V) - 1|^b)

    is minimised by Adam over the logits V of the rounding, `w^ = scale (clip(floor(w / scale) + h(V) + z) - z)`, and
    over the scales and zero points of the block's activations in every time group, by the gradient of Esser et al.
    e_0 is the first term with nearest rounding, v_n what an error at that step counts for; b falls from 8 to 2 after
    the warm-up. In the end h becomes 0 or 1. A block keeps what it had where that is no worse on its states, and so
    does the network where its images on the integer path come no closer.

    Kernels that were decided before or that the plan cuts into parts keep what they have, as do those that no block
    holds, which the log names.

    Where we deviate from the source: rounding and step sizes are learned together, on u~ of the network on integers,
    activations included (there the step sizes are learned afterwards, on float inputs); blocks come in the order of
    execution, not of registration; errors are relative and weighted by step; zero points are learned too; b
    starts at 8, since at 20 a weight that is undecided feels nothing; hundreds of updates in place of 20,000.

    Args:
        settings: Settings of the reconstruction.

    Returns:
        A calibrator that puts codes in place of grids, and moves the activations' grids.

    Raises:
        InputError: A loss that becomes NaN, by the name of the block.

    Source: Li et al., arXiv 2302.04304 (Q-Diffusion); Li et al., arXiv 2102.05426 (BRECQ); Nagel et al., arXiv
    2004.10568 (AdaRound).
    """

    def run(work: Work, key: jax.Array) -> Work:
        latents = _latents(work)
        blocks, left = _blocks(work, latents, settings)
        _warn_of_most(left, len(latents))
        states_of = states_of_blocks(work, blocks, settings.num_states, settings.state_bytes, key)
        begun, (decision, errors) = _begun(work, _start(work, latents, len(blocks)))
        for index in range(begun, len(blocks)):
            here = _with_decision(work, latents, decision)
            states = states_of(index, _quantize_network(work.denoiser.params, here.calib))
            decision, errors[index] = learn_block(here, blocks[index], latents, states, settings, decision, index)
            if work.machine.folder is not None and is_first_process():
                save_state(work.machine.folder / "blocks", index + 1, Progress(decision, errors))
        after = _with_decision(work, latents, decision)
        tried = {"before": image_error(work), "reconstructed": image_error(after)} if blocks else {}
        keep = bool(tried) and tried["reconstructed"] <= tried["before"]
        ratios = errors[:, 1] / np.maximum(errors[:, 0], np.finfo(np.float32).tiny)
        log: dict[str, Any] = {
            "tried": tried,
            "kept": "reconstructed" if keep else "before",
            "block_error": {block.path: float(ratio) for block, ratio in zip(blocks, ratios, strict=True)},
            "left": left,
        }
        return (after if keep else work).logging("reconstruct", log)

    return run


def _blocks(
    work: Work, latents: Mapping[str, Latent], settings: ReconstructionSettings
) -> tuple[tuple[Block, ...], dict[str, str]]:
    denoiser = work.denoiser
    x, t = jax.ShapeDtypeStruct((1, *denoiser.shape), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
    return cut_into_blocks(
        denoiser.module,
        denoiser.params,
        tuple(latents),
        x,
        t,
        *denoiser.abstract_args(1),
        max_kernels=10 if settings.by == "block" else 1,
        chosen=settings.blocks,
    )


def _warn_of_most(left: Mapping[str, str], num_kernels: int) -> None:
    if 2 * len(left) > num_kernels:
        shown = ", ".join(f"'{path}' ({reason})" for path, reason in list(left.items())[:3])
        warnings.warn(
            f"{len(left)} of {num_kernels} kernels are in no block that can be taken alone, and keep nearest rounding: "
            f"{shown}{', ...' if len(left) > 3 else ''}.",
            InputWarning,
            stacklevel=2,
        )


def _latents(work: Work) -> dict[str, Latent]:
    return {
        path: Latent(kernel_at(work.denoiser.params, path).astype(jnp.float32), grid)
        for path, grid in work.calib.weights.items()
        if isinstance(grid, Grid)
    }


def _start(work: Work, latents: Mapping[str, Latent], num_blocks: int) -> Progress:
    """Where everything starts: nearest rounding, and the grids as they are."""
    codes = {path: _quantize(value, grid.qparams, grid.scheme).qvalue for path, (value, grid) in latents.items()}
    errors = np.zeros((num_blocks, 2), np.float32)
    return Progress(Decision(codes, work.acts.scale, work.acts.zero_point), errors)


def _begun(work: Work, start: Progress) -> tuple[int, Progress]:
    """(blocks that are done, what they have come to), from disk where a run was killed."""
    folder = work.machine.folder
    if folder is None or not has_state(folder / "blocks"):
        return 0, start
    done, progress, _ = restore_state(folder / "blocks", start)
    return done, progress._replace(errors=np.array(progress.errors))


def _with_decision(work: Work, latents: Mapping[str, Latent], decision: Decision) -> Work:
    grids = {path: latent.grid for path, latent in latents.items()}
    codes = {path: QTensor(decision.codes[path], grid.qparams, grid.scheme) for path, grid in grids.items()}
    work = work.deciding(weights={**work.calib.weights, **codes})
    return with_acts(work, group_of_step(work), decision.scale, decision.zero_point)
