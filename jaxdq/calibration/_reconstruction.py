"""Rounding and step sizes learned block by block, each on what the quantized network before it makes (Q-Diffusion)."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdq._common.devices import is_first_process, replicate
from jaxdq._common.errors import InputError
from jaxdq.calibration._base import Run, Work, calibrator, check_at_least, check_not_negative
from jaxdq.calibration.tools.evidence import group_of_step, schemes_of, with_acts
from jaxdq.calibration.tools.loop import learn
from jaxdq.calibration.tools.propagation import Sensitivity
from jaxdq.calibration.tools.rows import image_error
from jaxdq.calibration.tools.states import States, states_of_blocks
from jaxdq.checkpoint import has_state, restore_state, save_state
from jaxdq.grid import (
    SMALLEST_SCALE,
    Grid,
    QParams,
    QTensor,
    dequantize,
    fake_quantize,
    init_rounding_logits,
    quantize,
    rectified_sigmoid,
    round_learned,
    round_learned_hard,
    round_nearest,
)
from jaxdq.linen import (
    Acts,
    Block,
    Parts,
    Visitor,
    apply_visited,
    cut_into_blocks,
    dequantize_kernel,
    input_axis,
    kernel_at,
    on_pieces,
    round_parts,
    with_kernels,
)
from jaxdq.linen import quantize as quantize_network

UnitKind = Literal["block", "layer"]
_quantize_network = jax.jit(quantize_network)
_quantize = jax.jit(quantize, static_argnums=2)


@dataclasses.dataclass(frozen=True)
class ReconstructionSettings:
    """How blocks are reconstructed.

    Attributes:
        by: "block" for residual and transformer blocks as wholes (BRECQ), "layer" for every layer alone (AdaRound).
        blocks: Patterns of paths of modules that are blocks whatever their class.
        acts: Whether the activations' scales and zero points are learned along.
        num_updates: Updates of each block.
        rows: States in one update.
        num_states: States of each block, spread evenly over the steps.
        state_bytes: The most bytes of states that are held at a time.
        learning_rate: Adam's for the logits of the rounding.
        act_rate: Adam's for the logarithms of activations' scales, decaying to 0 by a cosine.
        zero_point_rate: The same for zero points, in codes.
        penalty: What undecided weights cost: with all of them half-way, this multiple of the error of nearest rounding.
        warmup: Share of the updates without that cost.
    """

    by: UnitKind = "block"
    blocks: tuple[str, ...] = ()
    acts: bool = True
    num_updates: int = 500
    rows: int = 16
    num_states: int = 256
    state_bytes: int = 2**30
    learning_rate: float = 0.05
    act_rate: float = 0.003
    zero_point_rate: float = 0.03
    penalty: float = 100.0
    warmup: float = 0.2

    def __post_init__(self) -> None:
        if self.by not in get_args(UnitKind):
            raise InputError(f"by is {self.by!r}; give one of {', '.join(map(repr, get_args(UnitKind)))}.")
        check_at_least(
            1, num_updates=self.num_updates, rows=self.rows, num_states=self.num_states, state_bytes=self.state_bytes
        )
        check_not_negative(
            learning_rate=self.learning_rate,
            act_rate=self.act_rate,
            zero_point_rate=self.zero_point_rate,
            penalty=self.penalty,
            warmup=self.warmup,
        )
        if self.warmup >= 1:
            raise InputError(f"warmup is {self.warmup!r}; give a share of the updates below 1.")


class Learned(NamedTuple):
    """What is learned of one block.

    Attributes:
        logits: Path in the block -> f32 of the kernel's shape; h of them is how far up each weight is rounded.
        act: f32[G, A], logarithms of its activations' scales.
        zero_point: f32[G, A].
    """

    logits: dict[str, jax.Array]
    act: jax.Array
    zero_point: jax.Array


class Fixed(NamedTuple):
    """What does not change while a block is learned.

    Attributes:
        params: Its own in float, with what codes say in place of kernels that were decided before.
        latents: Path in the block -> a kernel that is rounded.
        group_of_step: int32[S].
        power: f32[], the mean of `v |target|^2`.
        nearest: f32[], its relative error by nearest rounding.
    """

    params: Any
    latents: "dict[str, Latent]"
    group_of_step: jax.Array
    power: jax.Array
    nearest: jax.Array


class Latent(NamedTuple):
    """A kernel that is rounded.

    Attributes:
        value: f32, the float kernel.
        grid: Its grid.
    """

    value: jax.Array
    grid: Grid


class Penalty(NamedTuple):
    """What undecided weights cost in an update.

    Attributes:
        strength: f32[], 0 while the rounding warms up.
        sharpness: f32[], the exponent b.
    """

    strength: np.float32
    sharpness: np.float32


class Decided(NamedTuple):
    """What the blocks so far have come to; all that a killed run needs to go on.

    Attributes:
        codes: Path -> codes of a kernel.
        scale: f32[G, A] of all activations.
        zero_point: int32[G, A].
        errors: f32[B, 2], each block's relative error before and after.
    """

    codes: dict[str, jax.Array]
    scale: jax.Array
    zero_point: jax.Array
    errors: np.ndarray


_SHARPEST = 8.0
_SETTINGS = ReconstructionSettings()


@calibrator(needs=(Grid, Acts, Sensitivity), gives=(Grid, Acts))
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
        kernels = _latents(work)
        blocks, left = _blocks(work, kernels, settings)
        states_of = states_of_blocks(work, blocks, settings.num_states, settings.state_bytes, key)
        begun, decided = _begun(work, _start(work, kernels, len(blocks)))
        for index in range(begun, len(blocks)):
            block, before = blocks[index], _with_decided(work, kernels, decided)
            states = states_of(index, _quantize_network(work.denoiser.params, before.calib))
            decided = _reconstructed(before, block, kernels, states, settings, decided, index)
            if work.machine.folder is not None and is_first_process():
                save_state(work.machine.folder / "blocks", index + 1, decided)
        after = _with_decided(work, kernels, decided)
        tried = {"before": image_error(work), "reconstructed": image_error(after)} if blocks else {}
        keep = bool(tried) and tried["reconstructed"] <= tried["before"]
        ratios = decided.errors[:, 1] / np.maximum(decided.errors[:, 0], np.finfo(np.float32).tiny)
        log: dict[str, Any] = {
            "tried": tried,
            "kept": "reconstructed" if keep else "before",
            "block_error": {block.path: float(ratio) for block, ratio in zip(blocks, ratios, strict=True)},
            "left": left,
        }
        return (after if keep else work).logging("reconstruct", log)

    return run


def _blocks(
    work: Work, kernels: Mapping[str, Latent], settings: ReconstructionSettings
) -> tuple[tuple[Block, ...], dict[str, str]]:
    denoiser = work.denoiser
    x, t = jax.ShapeDtypeStruct((1, *denoiser.shape), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
    return cut_into_blocks(
        denoiser.module,
        denoiser.params,
        tuple(kernels),
        x,
        t,
        *denoiser.abstract_args(1),
        max_kernels=10 if settings.by == "block" else 1,
        chosen=settings.blocks,
    )


def _latents(work: Work) -> dict[str, Latent]:
    return {
        path: Latent(kernel_at(work.denoiser.params, path).astype(jnp.float32), grid)
        for path, grid in work.calib.weights.items()
        if isinstance(grid, Grid)
    }


def _start(work: Work, kernels: Mapping[str, Latent], num_blocks: int) -> Decided:
    """Where everything starts: nearest rounding, and the grids as they are."""
    codes = {path: _quantize(value, grid.qparams, grid.scheme).qvalue for path, (value, grid) in kernels.items()}
    return Decided(codes, work.acts.scale, work.acts.zero_point, np.zeros((num_blocks, 2), np.float32))


def _begun(work: Work, start: Decided) -> tuple[int, Decided]:
    """(blocks that are done, what they have come to), from disk where a run was killed."""
    folder = work.machine.folder
    if folder is None or not has_state(folder / "blocks"):
        return 0, start
    done, decided = restore_state(folder / "blocks", start)
    return done, decided._replace(errors=np.asarray(decided.errors))


def _with_decided(work: Work, kernels: Mapping[str, Latent], decided: Decided) -> Work:
    codes = {path: _tensor(decided.codes[path], latent.grid) for path, latent in kernels.items()}
    work = work.deciding(weights={**work.calib.weights, **codes})
    return with_acts(work, group_of_step(work), decided.scale, decided.zero_point)


def _reconstructed(
    work: Work,
    block: Block,
    kernels: Mapping[str, Latent],
    states: States,
    settings: ReconstructionSettings,
    decided: Decided,
    index: int,
) -> Decided:
    """One block more."""
    mesh, folder = work.machine.mesh, work.machine.folder
    columns = _columns(work, block)
    own = {_relative(block, path): kernels[path] for path in block.kernels}
    start = Learned(
        {path: _start_logits(latent.value, latent.grid.qparams.scale) for path, latent in own.items()},
        jnp.log(decided.scale[:, columns]),
        jnp.asarray(decided.zero_point[:, columns], jnp.float32),
    )
    power = np.mean(
        states.weight * sum(np.sum(np.square(leaf), axis=tuple(range(1, leaf.ndim))) for leaf in states.target)
    )
    fixed = Fixed(
        _params_of(work, block),
        own,
        jnp.asarray(group_of_step(work)),
        jnp.float32(max(power, np.finfo(np.float32).tiny)),
        jnp.float32(0),
    )
    error = _make_error(work, block, columns)
    hard = jax.jit(functools.partial(_mean_error, error, min(settings.rows, len(states.step))))
    nearest = float(hard(start, _with_codes(fixed, block, decided.codes), states))
    fixed = replicate(fixed._replace(nearest=jnp.float32(nearest)), mesh)
    optimizer = _optimizer(settings, start)

    def update(state: Any, inputs: tuple[Fixed, States, Penalty]) -> Any:
        def loss(learned: Learned, fixed: Fixed, states: States, penalty: Penalty) -> jax.Array:
            soft = {}
            for path, (value, grid) in fixed.latents.items():
                rounding = functools.partial(round_learned, logits=learned.logits[path])
                soft[path] = fake_quantize(value, grid.qparams, grid.scheme, rounding)
            fit = error(learned, fixed._replace(params=with_kernels(fixed.params, soft)), states)
            open_ = [
                1.0 - jnp.abs(2.0 * rectified_sigmoid(v) - 1.0) ** penalty.sharpness for v in learned.logits.values()
            ]
            share = sum(jnp.sum(each) for each in open_) / sum(each.size for each in open_)
            return fit + penalty.strength * fixed.nearest * share

        learned, opt_state = state
        value, gradient = jax.value_and_grad(loss)(learned, *inputs)
        change, opt_state = optimizer.update(gradient, opt_state)
        return (optax.apply_updates(learned, change), opt_state), value

    def batch_of(turn: int) -> tuple[Fixed, States, Penalty]:
        draw = np.random.default_rng((index, turn)).permutation(len(states.step))[: settings.rows]
        return fixed, states.at(draw), _penalty(settings, turn)

    (learned, _), _ = learn(
        update,
        (start, optimizer.init(start)),
        batch_of,
        settings.num_updates,
        label=f"reconstruct {block.path}",
        checkpoint=None if folder is None else folder / f"block_{index}",
        mesh=mesh,
    )
    bounds = np.array([schemes_of(work)[column].bounds for column in columns]).reshape(-1, 2).T
    learned = learned._replace(zero_point=jnp.clip(jnp.round(learned.zero_point), *bounds))
    codes = {path: _hard(*kernels[path], learned.logits[_relative(block, path)]) for path in block.kernels}
    after = float(hard(learned, _with_codes(fixed, block, codes), states))
    errors = decided.errors.copy()
    errors[index] = nearest, min(nearest, after)
    if after >= nearest:
        return decided._replace(errors=errors)
    if not settings.acts:
        return decided._replace(codes={**decided.codes, **codes}, errors=errors)
    scale = jnp.asarray(decided.scale).at[:, columns].set(jnp.maximum(jnp.exp(learned.act), SMALLEST_SCALE))
    zero_point = jnp.asarray(decided.zero_point).at[:, columns].set(learned.zero_point.astype(jnp.int32))
    return Decided({**decided.codes, **codes}, scale, zero_point, errors)


@jax.jit
def _start_logits(kernel: jax.Array, scale: jax.Array) -> jax.Array:
    return init_rounding_logits(kernel.astype(jnp.float32) / scale)


def _tensor(codes: jax.Array, grid: Grid) -> QTensor:
    return QTensor(codes, grid.qparams, grid.scheme)


def _hard(value: jax.Array, grid: Grid, logits: jax.Array) -> jax.Array:
    return quantize(value, grid.qparams, grid.scheme, functools.partial(round_learned_hard, logits=logits)).qvalue


def _relative(block: Block, path: str) -> str:
    return path[len(block.path) :].lstrip("/")


def _columns(work: Work, block: Block) -> np.ndarray:
    """The columns of the activations that the block's layers take."""
    inside = [column for name, (column, _) in work.plan.activations.items() if _is_inside(block, name)]
    return np.array(sorted(set(inside)), int)


def _is_inside(block: Block, name: str) -> bool:
    return name == block.path or name.startswith((f"{block.path}/", f"{block.path}:", f"{block.path}["))


def _params_of(work: Work, block: Block) -> Any:
    """The block's params in float, with what codes or parts say in place of kernels that are not rounded here."""
    params = block.params_in(work.denoiser.params)
    decided = {}
    for site in work.plan.sites:
        if site.weight is None or site.path in block.kernels or not _is_inside(block, site.path):
            continue
        kernel, weight = kernel_at(work.denoiser.params, site.path), work.calib.weights[site.path]
        if isinstance(weight, Parts):
            weight = round_parts(kernel, weight, site.parts, input_axis(site.site.shape, site.site.kind), site.weight)
        if isinstance(weight, QTensor | Parts):
            decided[_relative(block, site.path)] = dequantize_kernel(weight, site.site.kind).astype(kernel.dtype)
    return with_kernels(params, decided)


def _with_codes(fixed: Fixed, block: Block, codes: Mapping[str, jax.Array]) -> Fixed:
    """The block on these codes."""
    tensors = {path: _tensor(codes[block.name_of(path)], grid) for path, (_, grid) in fixed.latents.items()}
    return fixed._replace(params=with_kernels(fixed.params, {path: dequantize(each) for path, each in tensors.items()}))


Error = Callable[[Learned, Fixed, States], jax.Array]


def _make_error(work: Work, block: Block, columns: np.ndarray) -> Error:
    """(learned, fixed, states) -> the block's relative error with its kernels as they stand in `fixed.params`."""
    plan, local = work.plan, {int(column): index for index, column in enumerate(columns)}

    def visitor_at(learned: Learned, fixed: Fixed, step: jax.Array) -> Visitor:
        group = fixed.group_of_step[step]

        def on_grid(name: str, x: jax.Array) -> jax.Array:
            column, scheme = plan.activations[name]
            own = 0 if column in plan.step_invariant_columns else group
            zero_point = jnp.clip(round_nearest(learned.zero_point[own, local[column]]), *scheme.bounds)
            scale = jnp.maximum(jnp.exp(learned.act[own, local[column]]), SMALLEST_SCALE)
            return fake_quantize(x, QParams(scale, None if scheme.symmetric else zero_point), scheme).astype(x.dtype)

        return lambda name, x: on_pieces(plan.activations, block.name_of(name), x, on_grid)

    def error(learned: Learned, fixed: Fixed, states: States) -> jax.Array:
        def one(state: States) -> jax.Array:
            found = apply_visited(block, fixed.params, visitor_at(learned, fixed, state.step), *state.args)  # type: ignore[arg-type]
            pairs = zip(jax.tree.leaves(found), state.target, strict=True)
            errors = [jnp.sum((ours.astype(jnp.float32) - theirs) ** 2) for ours, theirs in pairs]
            return jnp.sum(jnp.stack(errors)) * state.weight

        return jnp.mean(jax.vmap(one)(states)) / fixed.power

    return error


def _mean_error(error: Error, rows: int, learned: Learned, fixed: Fixed, states: States) -> jax.Array:
    """The error over all states, `rows` at a time; the few that are left over are not looked at."""
    count = len(states.step) // rows
    batches = jax.tree.map(lambda leaf: leaf[: count * rows].reshape(count, rows, *leaf.shape[1:]), states)
    return jnp.mean(jax.lax.map(lambda batch: error(learned, fixed, batch), batches))


def _penalty(settings: ReconstructionSettings, turn: int) -> Penalty:
    warm = settings.warmup * settings.num_updates
    share = np.clip((turn - warm) / max(1.0, settings.num_updates - warm), 0, 1)
    return Penalty(
        np.float32(settings.penalty if turn >= warm else 0.0), np.float32(_SHARPEST - (_SHARPEST - 2) * share)
    )


def _optimizer(settings: ReconstructionSettings, start: Learned) -> optax.GradientTransformation:
    def adam(rate: float, *, decays: bool = True) -> optax.GradientTransformation:
        return optax.adam(optax.cosine_decay_schedule(rate, settings.num_updates) if decays else rate)

    acts = (settings.act_rate, settings.zero_point_rate) if settings.acts else (0.0, 0.0)
    rates = dict(zip(("logits", "act", "zero_point"), (settings.learning_rate, *acts), strict=True))
    labels: Any = Learned(dict.fromkeys(start.logits, "logits"), "act", "zero_point")  # type: ignore[arg-type]
    return optax.multi_transform({name: adam(rate, decays=name != "logits") for name, rate in rates.items()}, labels)
