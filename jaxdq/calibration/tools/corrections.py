"""What of a network's error at one step can be put right at its output, and tables of that over all times."""

import dataclasses
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from jaxdq.linen import Calibration, Correction

_LEAST_SLOPE = -0.5  # 1 / (1 + k) doubles the output there, and what is left of the error with it


class LinearError(NamedTuple):
    """`found = (1 + k) exact + mu + r`, at one step.

    Attributes:
        slope: f64[], k: how much of the error follows the output itself.
        bias: f64[C], mu.
        std: f64[], standard deviation of r.
        total: f64[], root mean square of the whole error.
    """

    slope: Any
    bias: Any
    std: Any
    total: Any


def linear_error(exact: np.ndarray, found: np.ndarray) -> LinearError:
    """The least-squares fit with one slope and an intercept for each channel.

    With D = found - exact, means over images and pixels, and sums over all entries,

        k = sum (exact - mean_c exact) (D - mean_c D) / sum (exact - mean_c exact)^2,    mu_c = mean_c (D - k exact).

    Args:
        exact: f32[N, H, W, C], what the float network says.
        found: f32[N, H, W, C], what the quantized one says of the same states.

    Source: He et al., arXiv 2305.10657 (PTQD), with k signed, mu the intercept and the variance pooled over images: its
    public code cuts k at 0, takes mu of the whole error and averages the images' standard deviations.
    """
    exact = np.asarray(exact, np.float64)
    error = np.asarray(found, np.float64) - exact
    axes = tuple(range(exact.ndim - 1))
    centred = exact - exact.mean(axes)
    power = np.sum(centred**2)
    slope = max(np.sum(centred * (error - error.mean(axes))) / power, _LEAST_SLOPE) if power > 0 else 0.0
    bias = np.mean(error - slope * exact, axis=axes)
    return LinearError(slope, bias, np.sqrt(np.mean((error - slope * exact - bias) ** 2)), np.sqrt(np.mean(error**2)))


def linear_error_as_published(exact: np.ndarray, found: np.ndarray) -> LinearError:
    """The same as PTQD's public code has it; see `linear_error`."""
    exact = np.asarray(exact, np.float64)
    error = np.asarray(found, np.float64) - exact
    centred = exact - exact.mean()
    power = np.sum(centred**2)
    slope = max(np.sum(centred * error) / power, 0.0) if power > 0 else 0.0
    axes = tuple(range(1, exact.ndim))
    std = np.mean(np.std(error - slope * exact, axis=axes))
    return LinearError(slope, error.mean((0, *axes[:-1])), std, np.sqrt(np.mean(error**2)))


def masked_gain(exact: np.ndarray, found: np.ndarray, mask: float = 0.0) -> np.ndarray:
    """f64[C], the factor of each channel with which the found output comes closest to the exact one.

        K = sum_M found exact / sum_M found^2

    over the entries M of the channel where |exact| is at least `mask` times its mean; 1 where found is 0 there.

    Source: Yao et al., arXiv 2407.03917 (TAC), without its relative term, which entries near 0
    would decide, and without the one that draws K to 1: the sums run over thousands of entries.
    """
    exact, found = np.asarray(exact, np.float64), np.asarray(found, np.float64)
    axes = tuple(range(exact.ndim - 1))
    large = np.abs(exact) >= mask * np.abs(exact).mean(axes)
    below, above = np.sum(large * found**2, axis=axes), np.sum(large * found * exact, axis=axes)
    return np.where(below > 0, above / np.where(below > 0, below, 1), 1.0)


def at_all_times(rows: np.ndarray, t: np.ndarray, num_timesteps: int) -> jax.Array:
    """f32[T, ...]: the rows of a sampler's steps at every model time, where there is none the nearest step's."""
    return jnp.asarray(np.asarray(rows)[nearest_steps(t, num_timesteps)], jnp.float32)


def nearest_steps(t: np.ndarray, num_timesteps: int) -> np.ndarray:
    """int[T]: which of the S steps at times t is nearest to each model time; of two as near, the first."""
    return np.argmin(np.abs(np.arange(num_timesteps)[:, None] - np.asarray(t)), axis=1)


def followed_by(before: Correction | None, after: Correction) -> Correction:
    """One correction that does what two do: `before` at the network, `after` around it."""
    if before is None:
        return after

    def combined(a: Any, b: Any, operation: Callable[[Any, Any], Any]) -> Any:
        if a is None or b is None:
            return b if a is None else a
        # Rows broadcast against the last axes of an image: axes of one follow the times.
        ndim = max(a.ndim, b.ndim)
        a, b = (x.reshape(*x.shape[:1], *(1,) * (ndim - x.ndim), *x.shape[1:]) for x in (a, b))
        return operation(a, b)

    shift = before.output_shift
    if shift is not None and after.output_gain is not None:
        shift = combined(shift, after.output_gain, operator.mul)
    return Correction(
        combined(before.output_gain, after.output_gain, operator.mul),
        combined(shift, after.output_shift, operator.add),
        combined(before.input_shift, after.input_shift, operator.add),
        before.output_std if after.output_std is None else after.output_std,
    )


def corrected(calib: Calibration, correction: Correction) -> Calibration:
    """The calibration, and the one that runs in its place at some times, with this correction after their own."""
    instead = calib.instead
    if instead is not None and instead.calib is not None:
        other = instead.calib
        if isinstance(other, Calibration):
            other = corrected(other, correction)
        else:
            other = dataclasses.replace(other, correction=followed_by(other.correction, correction))
        instead = dataclasses.replace(instead, calib=other)
    return dataclasses.replace(calib, correction=followed_by(calib.correction, correction), instead=instead)


def normality(residual: np.ndarray, num: int = 1000) -> float:
    """P value of D'Agostino and Pearson's test of up to `num` entries, spread evenly, against normal distributions.

    Of more entries any real residual would be told from one, however near.
    """
    entries = np.asarray(residual, np.float64).ravel()
    entries = entries[:: max(1, entries.size // num)][:num]
    if entries.size < 20 or np.ptp(entries) == 0:  # the test is an approximation for 20 draws and more
        return 1.0
    return float(scipy.stats.normaltest(entries).pvalue)
