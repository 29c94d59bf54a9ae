"""One block learned: which of its weights are rounded up, and the grids of its activations (AdaRound, BRECQ, LSQ)."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdq._common.devices import replicate
from jaxdq._common.errors import InputError
from jaxdq.calibration._base import Work, check_at_least, check_not_negative, check_truth
from jaxdq.calibration.tools.evidence import group_of_step, schemes_of
from jaxdq.calibration.tools.loop import learn
from jaxdq.calibration.tools.states import States
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
    Block,
    Parts,
    Visitor,
    apply_visited,
    check_patterns,
    dequantize_kernel,
    kernel_at,
    on_pieces,
    round_parts,
    with_kernels,
)

UnitKind = Literal["block", "layer"]
_SHARPEST = 8.0


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
        check_truth(acts=self.acts)
        check_patterns(self.blocks)
        numbers = {name: value for name, value in vars(self).items() if name not in ("by", "blocks", "acts")}
        counts = {name: numbers.pop(name) for name in ("num_updates", "rows", "num_states", "state_bytes")}
        check_at_least(1, **counts)
        check_not_negative(**numbers)
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


class Decision(NamedTuple):
    """What a block has come to.

    Attributes:
        codes: Path in the network -> codes of a kernel.
        scale: f32[G, A] of all activations of the network.
        zero_point: int32[G, A].
    """

    codes: dict[str, jax.Array]
    scale: jax.Array
    zero_point: jax.Array


Error = Callable[[Learned, Fixed, States], jax.Array]


def learn_block(
    work: Work,
    block: Block,
    latents: Mapping[str, Latent],
    states: States,
    settings: ReconstructionSettings,
    start: Decision,
    index: int,
) -> tuple[Decision, tuple[float, float]]:
    """Learns one block (`reconstruct` has the equation).

    Args:
        work: Work, for its network, its plan and its machine.
        block: The block.
        latents: Path in the network -> kernel that is rounded; all of the block's `kernels` are among them.
        states: What it is called with, and its float twin's output.
        settings: Settings of the reconstruction.
        start: Codes and grids as they stand.
        index: Of the block, by which its draws and its state on disk are told from others'.

    Returns:
        The decision, which is `start` where nothing came closer, and the relative errors of `start` and of it.
    """
    columns, folder = _columns(work, block), work.machine.folder
    own = {block.relative(path): latents[path] for path in block.kernels}
    begin = Learned(
        {path: start_logits(latent.value, latent.grid.qparams.scale) for path, latent in own.items()},
        jnp.log(start.scale[:, columns]),
        jnp.asarray(start.zero_point[:, columns], jnp.float32),
    )
    error = _make_error(work, block, columns)
    hard = jax.jit(functools.partial(_mean_error, error, min(settings.rows, len(states.step))))
    of_step = jnp.asarray(group_of_step(work))
    fixed = Fixed(_params_of(work, block), own, of_step, jnp.float32(_power(states)), jnp.float32(0))
    before = float(hard(begin, _with_codes(fixed, block, start.codes), states))
    fixed = replicate(fixed._replace(nearest=jnp.float32(before)), work.machine.mesh)
    optimizer = _optimizer(settings, begin)

    def update(state: Any, inputs: tuple[Fixed, States, Penalty]) -> Any:
        learned, opt_state = state
        value, gradient = jax.value_and_grad(_make_loss(error))(learned, *inputs)
        change, opt_state = optimizer.update(gradient, opt_state)
        return (optax.apply_updates(learned, change), opt_state), value

    def batch_of(turn: int) -> tuple[Fixed, States, Penalty]:
        draw = np.random.default_rng((index, turn)).permutation(len(states.step))[: settings.rows]
        return fixed, states.at(draw), _penalty(settings, turn)

    label, place = f"reconstruct {block.path}", None if folder is None else folder / f"block_{index}"
    first, last = (begin, optimizer.init(begin)), settings.num_updates
    (learned, _), _ = learn(update, first, batch_of, last, label=label, checkpoint=place, mesh=work.machine.mesh)
    bounds = np.array([schemes_of(work)[column].bounds for column in columns]).reshape(-1, 2).T
    learned = learned._replace(zero_point=jnp.clip(jnp.round(learned.zero_point), *bounds))
    codes = {path: _hard(*latents[path], learned.logits[block.relative(path)]) for path in block.kernels}
    after = float(hard(learned, _with_codes(fixed, block, codes), states))
    if after >= before:
        return start, (before, before)
    decision = start._replace(codes={**start.codes, **codes})
    if settings.acts:
        scale = jnp.asarray(start.scale).at[:, columns].set(jnp.maximum(jnp.exp(learned.act), SMALLEST_SCALE))
        zero_point = jnp.asarray(start.zero_point).at[:, columns].set(learned.zero_point.astype(jnp.int32))
        decision = decision._replace(scale=scale, zero_point=zero_point)
    return decision, (before, after)


def _make_loss(error: Error) -> Callable[[Learned, Fixed, States, Penalty], jax.Array]:
    def loss(learned: Learned, fixed: Fixed, states: States, penalty: Penalty) -> jax.Array:
        soft, undecided = {}, []
        for path, (value, grid) in fixed.latents.items():
            rounding = functools.partial(round_learned, logits=learned.logits[path])
            soft[path] = fake_quantize(value, grid.qparams, grid.scheme, rounding)
            distance = jnp.abs(2.0 * rectified_sigmoid(learned.logits[path]) - 1.0)
            undecided.append(1.0 - distance.ravel() ** penalty.sharpness)
        fit = error(learned, fixed._replace(params=with_kernels(fixed.params, soft)), states)
        return fit + penalty.strength * fixed.nearest * jnp.mean(jnp.concatenate(undecided))

    return loss


def _power(states: States) -> float:
    """The mean of `v |target|^2`; a block that returns 0 has a power of the smallest number."""
    squares = [np.sum(np.square(np.float64(leaf)), axis=tuple(range(1, leaf.ndim))) for leaf in states.target]
    return max(float(np.mean(states.weight * np.sum(squares, axis=0))), float(np.finfo(np.float32).tiny))


@jax.jit
def start_logits(kernel: jax.Array, scale: jax.Array) -> jax.Array:
    """Logits with which a kernel, softly rounded, is what it is in float."""
    return init_rounding_logits(kernel.astype(jnp.float32) / scale)


def _hard(value: jax.Array, grid: Grid, logits: jax.Array) -> jax.Array:
    return quantize(value, grid.qparams, grid.scheme, functools.partial(round_learned_hard, logits=logits)).qvalue


def _columns(work: Work, block: Block) -> np.ndarray:
    """The columns of the activations that the block's layers take."""
    inside = [column for name, (column, _) in work.plan.activations.items() if block.holds(name)]
    return np.array(sorted(set(inside)), int)


def _params_of(work: Work, block: Block) -> Any:
    """The block's params in float, with what codes or parts say in place of kernels that are not rounded here."""
    params = block.params_in(work.denoiser.params)
    decided = {}
    for site in work.plan.sites:
        if site.weight is None or site.path in block.kernels or not block.holds(site.path):
            continue
        kernel, weight = kernel_at(work.denoiser.params, site.path), work.calib.weights[site.path]
        if isinstance(weight, Parts):
            weight = round_parts(kernel, weight, site.parts, site.input_axis, site.weight)
        if isinstance(weight, QTensor | Parts):
            decided[block.relative(site.path)] = dequantize_kernel(weight, site.site.kind).astype(kernel.dtype)
    return with_kernels(params, decided)


def _with_codes(fixed: Fixed, block: Block, codes: Mapping[str, jax.Array]) -> Fixed:
    """The block on these codes."""
    kernels = {
        path: dequantize(QTensor(codes[block.name_of(path)], grid.qparams, grid.scheme))
        for path, (_, grid) in fixed.latents.items()
    }
    return fixed._replace(params=with_kernels(fixed.params, kernels))


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
