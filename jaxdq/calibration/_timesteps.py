"""Which timesteps' states enter the calibration set, under a fixed budget.

A policy is a function `(work, budget, key) -> int[S]`: how many states of each step are taken, `budget` in all. Three
know nothing of the model; `structural_risk` and `visits_penalised` ask it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdq._common.checks import is_whole
from jaxdq._common.errors import InputError
from jaxdq.calibration._base import Run, Work, calibrator, check_at_least
from jaxdq.calibration.tools.evidence import Evidence, gather_evidence, grids_by_step, names_of, schemes_of
from jaxdq.calibration.tools.propagation import Sensitivity, sensitivity
from jaxdq.calibration.tools.proxy import build_proxy
from jaxdq.calibration.tools.selection import Selection
from jaxdq.observers import HistogramState, mse, points_and_shares
from jaxdq.sampling import Trajectories

Policy = Callable[[Work, int, jax.Array], np.ndarray]


@calibrator(gives=(Selection,), precedes=(Evidence,))
def select_timesteps(policy: Policy, budget: int) -> Run:
    """Takes `budget` of the sampled states, at the steps that the policy chooses, as the calibration set.

    Observers and loops that learn see those and no others; the images take turns, so that few states are of many.
    Outside of the budget are a policy's own pilot images, what the weights of errors are measured on
    (`measure_sensitivity`), the outputs' power by step, and the images that judge a result.

    Args:
        policy: Such as `structural_risk()`.
        budget: States, each one image at one step; from 1 to S N.

    Returns:
        A calibrator that gives a `Selection`; it stands before anything is observed.

    Raises:
        InputError: A budget that is larger than what was sampled, or smaller than 1.
    """

    def run(work: Work, key: jax.Array) -> Work:
        available = work.data.num_steps * work.data.num_images
        if not is_whole(budget) or not 1 <= budget <= available:
            raise InputError(
                f"a budget of {budget} states was asked for and {available} were sampled ({work.data.num_steps} steps "
                f"of {work.data.num_images} images); give 1 to {available}."
            )
        counts = _checked(policy(work, budget, key), budget, work.data)
        return work.knowing(Selection(counts)).logging("select_timesteps", {"counts": counts.tolist()})

    return run


def _checked(counts: Any, budget: int, data: Trajectories) -> np.ndarray:
    """What a policy chose, as int[S]; policies are written by users too."""
    found = np.asarray(counts)
    whole = np.issubdtype(found.dtype, np.integer) and found.shape == (data.num_steps,)
    if not whole or found.min() < 0 or found.max() > data.num_images or found.sum() != budget:
        raise InputError(
            f"the policy chose {counts!r}; it must return {data.num_steps} whole numbers, one for each step, of 0 to "
            f"{data.num_images} states each and {budget} in all."
        )
    return found


def uniform_timesteps() -> Policy:
    """The same number of states at equally spaced steps (Q-Diffusion)."""

    def policy(work: Work, budget: int, key: jax.Array) -> np.ndarray:
        num_steps = work.data.num_steps
        positions = np.arange(budget) * num_steps // budget
        return _limited(np.bincount(positions, minlength=num_steps), work.data.num_images)

    return policy


def random_timesteps() -> Policy:
    """Steps drawn at random, all alike."""

    def policy(work: Work, budget: int, key: jax.Array) -> np.ndarray:
        num_steps = work.data.num_steps
        drawn = np.asarray(jax.random.choice(key, num_steps, (budget,)))
        return _limited(np.bincount(drawn, minlength=num_steps), work.data.num_images)

    return policy


def normal_timesteps(mean: float = 0.4, deviation: float = 0.4) -> Policy:
    """Steps drawn from a normal distribution over the sampler's steps, clipped to its ends (PTQ4DM's NDTC).

    Args:
        mean: Mean as a fraction of S, counted from the image (PTQ4DM prefers steps near it).
        deviation: Standard deviation as a fraction of S.
    """
    _check_finite(mean=mean, deviation=deviation)

    def policy(work: Work, budget: int, key: jax.Array) -> np.ndarray:
        num_steps = work.data.num_steps
        drawn = mean * num_steps + deviation * num_steps * np.asarray(jax.random.normal(key, (budget,)))
        steps = num_steps - 1 - np.clip(np.round(drawn), 0, num_steps - 1).astype(int)
        return _limited(np.bincount(steps, minlength=num_steps), work.data.num_images)

    return policy


def structural_risk(redundancy: float = 1.0, pilot_images: int = 2) -> Policy:
    """Structural risk minimisation: steps whose states expose error and are not yet represented.

    A state is taken, one after another, at the step of largest

        score(s) = gain(s) / max risk  -  redundancy * n MMD^2(chosen + s, all) / max_s MMD^2(s, all),
        gain(s) = 2 risk(s) / ((n_s + 1) (n_s + 2))

    with n_s states chosen there so far and n in all, this one among them. `risk(s)`, the empirical risk, is what the
    discretisation error of the step's activations on one grid for all steps costs the image (`sensitivity`). What is
    not known of it falls as 1 / (n_s + 1), and the gain is in proportion to what one more state takes off that. The
    maximum mean discrepancy, the structural term, compares the chosen states with the whole trajectory by the
    logarithms of the activations' scales at each step, under a Gaussian kernel of median width.

    Args:
        redundancy: Weight of the structural term; 0 looks at risk alone. With 0.1, sixteen states of fifty steps leave
            twenty steps on end without one: better for grids as observed, worse for ranges that are learned.
        pilot_images: Images on which risk and features are measured.

    Source: arXiv 2305.18723 (the criterion; weights and features are ours, for the paper does not state them). Tried,
    and judged by the priced error of the grids that came of it: errors in parts of the activations' power were no
    better than equal spacing; a risk that no state lowers went to two or three steps alone; without the structural term
    it was worse than chance where states were few. Images of the bundled model do not tell the policies apart.
    """
    check_at_least(1, pilot_images=pilot_images)
    _check_finite(redundancy=redundancy)

    def policy(work: Work, budget: int, key: jax.Array) -> np.ndarray:
        risk, features = _pilot(work, pilot_images, key, priced=True)
        kernel = _gaussian_kernel(features)
        to_all = kernel.mean(axis=1)
        num_steps = work.data.num_steps
        counts = np.zeros(num_steps, int)
        risk = risk / max(risk.max(), np.finfo(float).tiny)
        scale = max(_mmd2(kernel, to_all, np.eye(num_steps)).max(), np.finfo(float).tiny)
        for taken in range(1, budget + 1):
            # One state among `taken` moves the discrepancy by about 1 / taken of what the first one did.
            distance = taken * _mmd2(kernel, to_all, counts + np.eye(num_steps)) / scale
            gain = 2 * risk / ((counts + 1) * (counts + 2))
            score = np.where(counts < work.data.num_images, gain - redundancy * distance, -np.inf)
            counts[np.argmax(score)] += 1
        return counts

    return policy


def visits_penalised(weight: float = 2.0, eligible: float = 0.7, pilot_images: int = 2) -> Policy:
    """The rule of the paper's public code: the largest `uncertainty(s) - weight * visits(s)`, without the first steps.

    Uncertainty there is the entropy of undecided logits; here, where choices are one-hot, the discretisation error
    stands in for it, scaled to the entropy's range, log 8.

    Args:
        weight: 2 in that code.
        eligible: Share of the steps, counted from the image, that may be chosen (there, 70 of 100).
        pilot_images: Images on which the error is measured.
    """
    check_at_least(1, pilot_images=pilot_images)
    _check_finite(weight=weight, eligible=eligible)

    def policy(work: Work, budget: int, key: jax.Array) -> np.ndarray:
        risk, _ = _pilot(work, pilot_images, key, priced=False)
        num_steps = work.data.num_steps
        counts = np.zeros(num_steps, int)
        uncertainty = np.log(8) * risk / max(risk.max(), np.finfo(float).tiny)
        barred = np.arange(num_steps) < round((1 - eligible) * num_steps)
        for _ in range(budget):
            if (counts[~barred] >= work.data.num_images).all():
                barred = np.zeros_like(barred)  # the eligible steps are used up
            score = np.where(barred | (counts >= work.data.num_images), -np.inf, uncertainty - weight * counts)
            counts[np.argmax(score)] += 1
        return counts

    return policy


def _pilot(work: Work, num_images: int, key: jax.Array, *, priced: bool) -> tuple[np.ndarray, np.ndarray]:
    """(f64[S], f64[S, F]): the discretisation error, and features, of each step on a few images.

    The error is what it costs the image, summed over the activations, or its mean in parts of their power.
    """
    few = work._replace(problem=work.problem._replace(data=work.data.first(num_images)))
    names, schemes, num_steps = names_of(work), schemes_of(work), work.data.num_steps
    if not schemes:
        return np.ones(num_steps), np.zeros((num_steps, 1))
    evidence = gather_evidence(few, mse(2.0, 20))
    scale = np.asarray(grids_by_step(evidence, names, schemes))
    if priced:
        weight = (work.facts.get(Sensitivity) or sensitivity(few, key, num_images=num_images)).of(names)
    else:
        power = np.asarray(jax.jit(jax.vmap(jax.vmap(_power)))(evidence.of(names)), np.float64)
        weight = 1 / (len(schemes) * np.maximum(power, np.finfo(float).tiny))
    table = build_proxy(evidence, weight, work.plan.columns).table
    static = table.sum(axis=0).argmin(axis=-1)
    return np.take_along_axis(table, static[None, :, None], axis=2).sum(axis=(1, 2)), np.log(scale)


def _check_finite(**numbers: float) -> None:
    for name, number in numbers.items():
        if not np.isfinite(number):
            raise InputError(f"{name} is {number}; give a finite number.")


def _power(state: HistogramState) -> jax.Array:
    points, share = points_and_shares(state)
    return jnp.sum(share * points**2)


def _gaussian_kernel(features: np.ndarray) -> np.ndarray:
    distance = np.sum((features[:, None] - features[None]) ** 2, axis=-1)
    width = np.median(distance[distance > 0]) if (distance > 0).any() else 1.0
    return np.exp(-distance / width)


def _mmd2(kernel: np.ndarray, to_all: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """f64[R]: squared maximum mean discrepancy between R weightings of the steps, int[R, S], and all steps alike."""
    share = counts / counts.sum(axis=1, keepdims=True)
    return np.sum((share @ kernel) * share, axis=1) - 2 * share @ to_all + to_all.mean()


def _limited(counts: np.ndarray, most: int) -> np.ndarray:
    """No step more often than it has images; what is over goes to the nearest steps that have room."""
    counts = counts.copy()
    for step in np.flatnonzero(counts > most):
        while counts[step] > most:
            room = np.flatnonzero(counts < most)
            nearest = room[np.argmin(np.abs(room - step))]
            moved = min(counts[step] - most, most - counts[nearest])
            counts[step] -= moved
            counts[nearest] += moved
    return counts
