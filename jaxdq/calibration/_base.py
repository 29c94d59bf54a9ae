"""The roles of calibration.

- `Work` is what is known so far: the float model's trajectories, the evidence that observers gathered on them, and the
  calibration that follows from it.
- A *calibrator* is a function `(work, key) -> work` that knows one thing more, or the same thing better. What it needs
  to be told (an observer, a number of groups, an optimizer) it captures when it is made.
- A *recipe* is a plan and a tuple of calibrators, run in order.

So min-max quantization, as everyone does it, is `(observe(minmax()), share_uniformly(1))`; a scale for each of eight
equal spans of time is `(observe(minmax()), share_uniformly(8))`; a searched partition puts its search in second place.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxdq import diffusion
from jaxdq._errors import InputError
from jaxdq.diffusion import Denoiser, Sampler
from jaxdq.grid import QParams, Scheme
from jaxdq.linen import Calibration, Plan
from jaxdq.observers import Observer
from jaxdq.sampling import Trajectories


class Evidence(NamedTuple):
    """What observers saw of every quantized activation at every step.

    Attributes:
        observer: made the states, and turns them into grids.
        states: the observer's state, each leaf with leading axes [S, A].
    """

    observer: Observer
    states: Any


class Sensitivity(NamedTuple):
    """How much of an error arrives in the image: squared Frobenius norms of Jacobians, per image.

    Attributes:
        sites: f64[S, A], `|d x_0 / d a_s|^2` of each activation at each step.
        output: f64[S], `|d x_0 / d eps_s|^2` of the network's output.
    """

    sites: np.ndarray
    output: np.ndarray


class Work(NamedTuple):
    """What is known so far: values on the host of every process.

    Attributes:
        denoiser: the float model.
        sampler: drew the trajectories.
        plan: which site runs on which integers.
        weights: path -> QParams of the kernels.
        data: the float model's trajectories.
        key: their noise: sampling with it draws `data.images` again.
        counts: int[S], how many states of each step calibrators may look at, its images in turn; None is all N.
        evidence: ranges of activations by step, once observed.
        sensitivity: of the image to errors, once measured.
        group_of_step: int32[S] or int32[S, A], once chosen.
        calib: the calibration, once there is one.
        log: (name, numbers) of each calibrator that has something to report.
        checkpoint_dir: where loops keep their state (a path, local or of etils.epath), so that a killed run goes on;
            None keeps none.
        batch_size: images that a network is shown at a time, where a calibrator has no number of its own.
        mesh: of one axis, whose devices share the rows that a network is shown; None is one device.
    """

    denoiser: Denoiser
    sampler: Sampler
    plan: Plan
    weights: dict[str, QParams]
    data: Trajectories
    key: jax.Array
    counts: np.ndarray | None = None
    evidence: Evidence | None = None
    sensitivity: Sensitivity | None = None
    group_of_step: np.ndarray | None = None
    calib: Calibration | None = None
    log: tuple[tuple[str, dict[str, Any]], ...] = ()
    checkpoint_dir: Any | None = None
    batch_size: int = 32
    mesh: Mesh | None = None

    @property
    def counts_or_all(self) -> np.ndarray:
        """int[S], how many states of each step may be looked at."""
        return np.full(self.data.num_steps, self.data.num_images) if self.counts is None else self.counts


Calibrator = Callable[[Work, jax.Array], Work]


class Ranges(NamedTuple):
    """What the activations spanned in the float model.

    Attributes:
        t: int32[S].
        low: f32[S, A], the smallest value at each step.
        high: f32[S, A], the largest.
    """

    t: np.ndarray
    low: np.ndarray
    high: np.ndarray


def observed_ranges(work: Work) -> Ranges | None:
    """The ranges by step that the evidence holds; None where nothing was observed, or by an observer without them."""
    if work.evidence is None or not work.plan.tables or not hasattr(work.evidence.states, "low"):
        return None
    return Ranges(work.data.t, np.asarray(work.evidence.states.low), np.asarray(work.evidence.states.high))


def share(work: Work, group_of_step: np.ndarray, num_groups: int) -> Work:
    """Gives every group one grid per activation, fitted to the union of what its steps saw.

    Args:
        work: with evidence.
        group_of_step: int[S], one partition for the network; or int[S, A], one for each activation. Every group that
            occurs holds at least one step.
        num_groups: G.

    Returns:
        work with `group_of_step` and `calib`.

    Raises:
        InputError: no evidence yet.
    """
    if work.evidence is None:
        raise InputError("no ranges were observed yet; put observe(...) before this calibrator in the recipe.")
    return with_tables(work, group_of_step, *_group_tables(work, jnp.asarray(group_of_step, jnp.int32), num_groups))


def with_tables(work: Work, group_of_step: np.ndarray, scale: jax.Array, zero_point: jax.Array) -> Work:
    """Work with the calibration that these tables and this partition of the steps make.

    Where an array is the same at every step, all groups take the grid of the first.

    Args:
        work: what is known so far.
        group_of_step: int[S] or int[S, A].
        scale: f32[G, A].
        zero_point: int32[G, A].
    """
    num_timesteps = work.denoiser.schedule.num_timesteps
    by_column = group_of_step.T if group_of_step.ndim == 2 else group_of_step[None]
    group_of_t = np.stack([diffusion.groups_of_steps(work.data.t, row, num_timesteps) for row in by_column], axis=-1)
    same = np.isin(np.arange(scale.shape[1]), work.plan.conditions)
    scale, zero_point = (jnp.where(same, rows[:1], rows) for rows in (scale, zero_point))
    calib = Calibration(
        weights=work.weights,
        act_scale=jnp.asarray(scale, jnp.float32),
        act_zero_point=jnp.asarray(zero_point, jnp.int32),
        group_of_t=jnp.asarray(group_of_t if group_of_step.ndim == 2 else group_of_t[:, 0], jnp.int32),
        plan=work.plan,
        variables=work.denoiser.variables,
    )
    return work._replace(group_of_step=np.asarray(group_of_step), calib=calib)


def tables_of(observer: Observer, states: Any, schemes: tuple[Scheme, ...]) -> tuple[jax.Array, jax.Array]:
    """(f32[R, A], int32[R, A]): the grids that the observer makes of states with leading axes [R, A]."""
    num_rows = jax.tree.leaves(states)[0].shape[0]
    scale = jnp.ones((num_rows, len(schemes)), jnp.float32)
    zero_point = jnp.zeros((num_rows, len(schemes)), jnp.int32)
    for scheme in dict.fromkeys(schemes):
        columns = np.flatnonzero([other == scheme for other in schemes])
        of_row = jax.vmap(lambda state, scheme=scheme: observer.qparams(state, scheme))
        # Row by row: of two batch axes XLA:CPU makes a loop that takes three times as long.
        qparams = jax.lax.map(of_row, jax.tree.map(lambda leaf, columns=columns: leaf[:, columns], states))
        scale = scale.at[:, columns].set(qparams.scale)
        if qparams.zero_point is not None:
            zero_point = zero_point.at[:, columns].set(qparams.zero_point)
    return scale, zero_point


def merge_by_group(evidence: Evidence, group_of_step: jax.Array, num_groups: int) -> Any:
    """Observer states [G, A] from states [S, A]: each group's is the union of its steps', a column at a time.

    Args:
        evidence: by step.
        group_of_step: int32[S] or int32[S, A].
        num_groups: G.
    """
    observer, states = evidence
    num_steps, num_columns = jax.tree.leaves(states)[0].shape[:2]
    groups = jnp.broadcast_to(group_of_step.reshape(num_steps, -1), (num_steps, num_columns))
    empty = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (num_columns, num_groups, *leaf.shape)), observer.init())

    def add(groups_of_column: Any, group: jax.Array, state: Any) -> Any:
        merged = observer.merge(jax.tree.map(lambda leaf: leaf[group], groups_of_column), state)
        return jax.tree.map(lambda leaf, new: leaf.at[group].set(new), groups_of_column, merged)

    def body(merged: Any, step: tuple[jax.Array, Any]) -> tuple[Any, None]:
        return jax.vmap(add)(merged, *step), None

    merged, _ = jax.lax.scan(body, empty, (groups, states))
    return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), merged)


def _group_tables(work: Work, group_of_step: jax.Array, num_groups: int) -> tuple[jax.Array, jax.Array]:
    assert work.evidence is not None
    schemes = tuple(scheme for _, scheme in work.plan.tables)
    if not schemes:
        return jnp.ones((num_groups, 0), jnp.float32), jnp.zeros((num_groups, 0), jnp.int32)
    evidence = work.evidence
    if work.plan.conditions:  # all steps are the first group's
        same = jnp.isin(jnp.arange(len(schemes)), jnp.asarray(work.plan.conditions))
        group_of_step = jnp.where(same, 0, group_of_step if group_of_step.ndim == 2 else group_of_step[:, None])

    @jax.jit
    def tables(states: Any, group_of_step: jax.Array) -> tuple[jax.Array, jax.Array]:
        merged = merge_by_group(Evidence(evidence.observer, states), group_of_step, num_groups)
        return tables_of(evidence.observer, merged, schemes)

    return tables(evidence.states, group_of_step)


def check_not_negative(**settings: float) -> None:
    """Refuses a rate or a weight that is negative, infinite or no number."""
    for name, value in settings.items():
        if not isinstance(value, int | float | np.number) or not 0 <= value < np.inf:
            raise InputError(f"{name} is {value!r}; give a finite number of at least 0.")


def check_at_least(least: int, **settings: int) -> None:
    """Refuses a setting that is no whole number, or too small for a loop."""
    for name, value in settings.items():
        if not isinstance(value, int | np.integer) or value < least:
            raise InputError(f"{name} is {value!r}; give a whole number of at least {least}.")
