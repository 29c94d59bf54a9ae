"""Putting right, step by step along the sampler's way, what quantization does to a network's output (PTQD, TAC)."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import numpy as np

from jaxdq._common.errors import InputError
from jaxdq._common.progress import track
from jaxdq.calibration._base import Run, Work, calibrator, check_at_least, check_not_negative, check_truth
from jaxdq.calibration.tools.corrections import (
    LinearError,
    at_all_times,
    corrected,
    linear_error,
    linear_error_as_published,
    masked_gain,
    normality,
)
from jaxdq.calibration.tools.walking import closest, walk_of
from jaxdq.grid import Grid
from jaxdq.linen import Acts, Correction, quantize
from jaxdq.sampling import with_noise_left

Estimator = Literal["closed-loop", "paper"]

_quantize = jax.jit(quantize)


class Step(NamedTuple):
    """What a method sees of one step, N images of its own noise.

    Attributes:
        step: The sampler's index, 0 is the noisiest.
        x: f32[N, H, W, C], where the quantized sampler is, earlier steps corrected.
        x_float: f32[N, H, W, C], where the float sampler is.
        exact: Latents -> what the float network says of them at this step.
        found: Latents -> what the quantized one says.
    """

    step: int
    x: np.ndarray
    x_float: np.ndarray
    exact: Callable[[np.ndarray], np.ndarray]
    found: Callable[[np.ndarray], np.ndarray]


class Fix(NamedTuple):
    """What a method does at one step.

    Attributes:
        output: f32[N, H, W, C], the corrected output, with which the quantized sampler goes on.
        exact: f32[N, H, W, C], the float network's at `x_float`, if the method asked for it; None lets the float
            sampler stand still.
        rows: Name -> what the method found, an array each.
        output_std: Standard deviation of what is left of the output's error, for which fresh noise makes room.
    """

    output: np.ndarray
    exact: np.ndarray | None
    rows: dict[str, Any]
    output_std: float = 0.0


def correct_along(work: Work, fix: Callable[[Step], Fix], num_images: int, key: jax.Array) -> dict[str, np.ndarray]:
    """Walks with the quantized network and corrects each step before the next: name -> [S, ...] of what was found.

    Latents are kept, so that a step costs as many calls of networks as the method makes, never a sweep from the noise.
    """
    way = walk_of(work, num_images, key)
    float_params, params = work.denoiser.params, _quantize(work.denoiser.params, work.calib)
    x = x_float = way.start()
    past: tuple = ()
    past_float: tuple = ()
    found = []
    for index in track(range(way.num_steps), "correct"):

        def by(params: Any, index: int = index) -> Callable[[np.ndarray], np.ndarray]:
            return lambda latents: way.output(params, latents, index)

        made = fix(Step(index, x, x_float, by(float_params), by(params)))
        found.append(made.rows)
        x, past = way.advance(x, made.output, index, past, output_std=made.output_std)
        if made.exact is not None:
            x_float, past_float = way.advance(x_float, made.exact, index, past_float)
    return {name: np.stack([rows[name] for rows in found]) for name in found[0]}


@calibrator(needs=(Grid, Acts), gives=())
def correct_noise(estimator: Estimator = "closed-loop", variance: bool = True, num_images: int = 32) -> Run:
    """PTQD: takes out of the output what of its error is linear, and out of the sampler's noise what is left.

    At each step the quantized output is fitted by `(1 + k) exact + mu + r`, with one slope k, a bias mu for each
    channel and a residual of standard deviation s. Then

        output <- (output - mu) / (1 + k),    sigma'^2 = max(0, sigma^2 - c^2 s^2 / (1 + k)^2)

    with c the derivative of the next state by the output, for any prediction type and sampler that is affine in it.
    Bias and slope stay where images on the integer path come closer; otherwise s is all of the error. Fresh noise
    differs from the float sampler's by design, so that the variance is for the distribution of the images of a
    stochastic sampler, and does nothing without fresh noise. Where c s is larger than sigma the excess stays.

    Args:
        estimator: "closed-loop" fits on the way of the quantized sampler, earlier steps corrected, k signed, mu the
            intercept and s pooled; "paper" as the public code does, on float trajectories (see `linear_error`).
        variance: Whether fresh noise makes room for the error that is left.
        num_images: Images of each step.

    Returns:
        A calibrator that corrects the network's output by model time.

    Raises:
        InputError: An unknown estimator, no images.

    Where we deviate from the source: closed loop; sigma in the direction term of DDIM stays the sampler's own, since
    that is what c was computed with.

    Source: He et al., arXiv 2305.10657 (NeurIPS 2023).
    """
    _check(estimator, num_images)
    check_truth(variance=variance)
    fit = linear_error if estimator == "closed-loop" else linear_error_as_published

    def run(work: Work, key: jax.Array) -> Work:
        def fix(step: Step) -> Fix:
            on_float = estimator == "paper"
            x = step.x_float if on_float else step.x
            exact, found = step.exact(x), step.found(x)
            error = fit(exact, found)
            output = found if on_float else np.asarray((found - error.bias) / (1 + error.slope), np.float32)
            residual = found - exact - error.slope * exact - error.bias
            rows = {**error._asdict(), "normality": normality(residual)}
            left = error.std / (1 + error.slope) if variance and not on_float else 0.0
            return Fix(output, exact if on_float else None, rows, left)

        rows = correct_along(work, fix, num_images, key)
        error = LinearError(*(rows[name] for name in LinearError._fields))
        gain = 1 / (1 + error.slope)
        mean = _tables(work, output_gain=gain, output_shift=-error.bias * gain[:, None])
        tried, kept = _accepted(work, {"corrected": mean})
        std = error.std * gain if kept == "corrected" else error.total
        after = _corrected(work, mean) if kept == "corrected" else work
        if variance:
            after = _corrected(after, _tables(work, output_std=std))
        log = {
            "tried": tried,
            "kept": kept,
            "t": work.data.t.tolist(),
            "slope": error.slope.tolist(),
            "residual_std": error.std.tolist(),
            "normality": rows["normality"].tolist(),
            "noise_left": _noise_left(work, std).tolist() if variance else [],
        }
        return after.logging("correct_noise", log)

    return run


@calibrator(needs=(Grid, Acts), gives=())
def correct_trajectory(
    estimator: Estimator = "closed-loop", input_bias: bool = True, mask: float = 0.0, num_images: int = 32
) -> Run:
    """TAC: a factor for each channel of the output at each step, and the mean drift of the states added back.

    From the noisiest step on, with x the quantized sampler's state, earlier steps corrected, and x* the float one's of
    the same noise,

        B_c = mean_c (x* - x),    K_c = sum_M found exact / sum_M found^2,    output <- K quantized(x + B)

    with found = quantized(x + B) and the sums of `masked_gain`. B enters the network alone, not the state. Factors
    alone (B = 0), and factors with B, stay where images on the integer path come closer.

    Args:
        estimator: "closed-loop" takes the float network's output of the same input for exact; "paper" that of x*. Where
            the two samplers have drifted apart the latter's factors fall below 1, whatever the network's error:
            `digits` at W4A4 has 0.77 to 1 in place of 0.99 to 1.07, and images 4 dB worse than uncorrected.
        input_bias: Whether B is tried.
        mask: Entries count where the exact output is at least this multiple of its mean size.
        num_images: Images of each step.

    Returns:
        A calibrator that corrects the network's output, and perhaps its input, by model time.

    Raises:
        InputError: An unknown estimator, no images, a negative mask.

    Source: Yao et al., arXiv 2407.03917 (ECCV 2024), by its equations as third parties give them.
    """
    _check(estimator, num_images)
    check_not_negative(mask=mask)
    check_truth(input_bias=input_bias)

    def run(work: Work, key: jax.Array) -> Work:
        def fixing(moves: bool) -> Callable[[Step], Fix]:
            def fix(step: Step) -> Fix:
                drift = moves * np.mean(step.x_float - step.x, axis=tuple(range(step.x.ndim - 1)), dtype=np.float64)
                x = np.asarray(step.x + drift, np.float32)
                of_float = step.exact(step.x_float) if moves or estimator == "paper" else None
                exact = of_float if of_float is not None and estimator == "paper" else step.exact(x)
                gain = masked_gain(exact, found := step.found(x), mask)
                return Fix(np.asarray(gain * found, np.float32), of_float, {"gain": gain, "drift": drift})

            return fix

        found = {"factors": correct_along(work, fixing(False), num_images, key)}
        if input_bias:
            found["factors and input"] = correct_along(work, fixing(True), num_images, key)
        tables = {
            name: _tables(work, output_gain=rows["gain"], input_shift=rows["drift"] if rows["drift"].any() else None)
            for name, rows in found.items()
        }
        tried, kept = _accepted(work, tables)
        log: dict[str, Any] = {"tried": tried, "kept": kept, "gain": found["factors"]["gain"].mean(1).tolist()}
        return (_corrected(work, tables[kept]) if kept in tables else work).logging("correct_trajectory", log)

    return run


def _check(estimator: str, num_images: int) -> None:
    if estimator not in get_args(Estimator):
        raise InputError(f"estimator is {estimator!r}; give one of {', '.join(map(repr, get_args(Estimator)))}.")
    check_at_least(1, num_images=num_images)


def _tables(work: Work, **rows: np.ndarray | None) -> Correction:
    """The correction that has these rows at the sampler's steps."""
    num_timesteps = work.denoiser.schedule.num_timesteps
    given = {name: found for name, found in rows.items() if found is not None}
    tables: Any = {name: at_all_times(found, work.data.t, num_timesteps) for name, found in given.items()}
    return Correction(**tables)


def _corrected(work: Work, correction: Correction) -> Work:
    return work._replace(calib=corrected(work.calib, correction))


def _accepted(work: Work, corrections: dict[str, Correction]) -> tuple[dict[str, float], str]:
    """(the error of the images without and with each correction, the name of the one that stays)."""
    return closest(work, {name: _corrected(work, correction) for name, correction in corrections.items()})[1:]


def _noise_left(work: Work, std: np.ndarray) -> np.ndarray:
    """f64[S]: the share of the sampler's fresh variance that is still drawn; 1 where it draws none."""
    c = work.problem.sampler.coefficients(work.denoiser.schedule)
    own, left = (np.float64(one.noise_std) ** 2 for one in (c, with_noise_left(c, std)))
    return np.where(own > 0, left / np.where(own > 0, own, 1), 1.0)
