"""How far two sets of numbers, or of images, lie apart. Pure functions; decibels where the name says `_db`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from jaxdq._common.errors import InputError


def sqnr_db(reference: Any, approximation: Any, axis: int | tuple[int, ...] | None = None) -> jax.Array:
    """Signal to quantization noise ratio: `10 log10(sum reference^2 / sum (reference - approximation)^2)`.

    Args:
        reference: float[...].
        approximation: float[...], of the same shape.
        axis: The axes to sum over; None sums over all.

    Returns:
        f32[...] (dB), the axes summed over gone; +inf where the two are equal. Jittable.

    Raises:
        InputError: The shapes differ.

    Example:
        >>> float(sqnr_db(np.array([10.0, 0.0]), np.array([9.0, 0.0])))
        20.0
    """
    reference, approximation = _same_shape(reference, approximation)
    noise = jnp.sum(jnp.square(reference - approximation), axis)
    signal = jnp.sum(jnp.square(reference), axis)
    # 0 / 0 would be NaN, yet an all-zero signal that is met exactly has no noise.
    return jnp.where(noise == 0, jnp.inf, 10 * jnp.log10(signal / jnp.where(noise == 0, 1, noise)))


def psnr_db(reference: Any, image: Any, peak: float = 2.0) -> jax.Array:
    """Peak signal to noise ratio: `10 log10(peak^2 / mean (reference - image)^2)`, over all pixels of all images.

    Args:
        reference: float[...].
        image: float[...], of the same shape.
        peak: The width of the pixels' range; 2 for images in [-1, 1].

    Returns:
        f32[] (dB); +inf where the two are equal. Jittable.

    Raises:
        InputError: The shapes differ.

    Example:
        >>> float(psnr_db(np.zeros(4), np.full(4, 0.2)))
        20.0
    """
    reference, image = _same_shape(reference, image)
    return 10 * jnp.log10(peak**2 / jnp.mean(jnp.square(reference - image)))


def psnr_per_image_db(reference: Any, images: Any, peak: float = 2.0) -> np.ndarray:
    """Peak signal-to-noise ratio of each image by itself.

        10 log10(peak^2 / mean_pixels (reference_n - image_n)^2)

    `psnr_db` averages the squared error over all images first, so the few worst images decide it; take the median and
    the tail (`mean_of_worst`) of these values to see the others.

    Args:
        reference: float[N, ...].
        images: float[N, ...], of the same shape.
        peak: The width of the pixels' range; 2 for images in [-1, 1].

    Returns:
        float64[N] (dB); +inf for images that are equal.

    Raises:
        InputError: The shapes differ, or there is no leading axis of images.

    Example:
        >>> psnr_per_image_db(np.zeros((2, 1)), np.array([[0.2], [0.02]])).round(3).tolist()
        [20.0, 40.0]
    """
    reference, images = (np.asarray(part, np.float64) for part in (reference, images))
    if reference.shape != images.shape or reference.ndim < 1 or reference.size == 0:
        raise InputError(
            f"The reference images have shape {reference.shape} and those compared with them {images.shape}; pass two "
            "arrays of the same shape, images along the first axis."
        )
    error = np.mean(np.square(reference - images).reshape(len(reference), -1), axis=1)
    return ratio_db(np.full(len(error), float(peak) ** 2), error)


def ssim_per_image(reference: Any, images: Any, peak: float = 2.0) -> np.ndarray:
    """Structural similarity of each image to its reference, averaged over pixels and channels.

        (2 mx my + c1) (2 cov + c2) / ((mx^2 + my^2 + c1) (vx + vy + c2)),    c1 = (0.01 peak)^2, c2 = (0.03 peak)^2

    with means, variances and covariance in a Gaussian window of deviation 1.5 that is cut at 5 pixels.

    Args:
        reference: float[N, H, W, C].
        images: float[N, H, W, C].
        peak: The width of the pixels' range; 2 for images in [-1, 1].

    Returns:
        float64[N] in [-1, 1]; 1 for images that are equal.

    Raises:
        InputError: The shapes differ, or are not those of images.

    Example:
        >>> bool(ssim_per_image(np.ones((1, 16, 16, 1)), np.ones((1, 16, 16, 1)))[0] == 1)
        True

    Source: Wang et al. 2004, with its window and constants. Windows are mirrored at the border, whose pixels count: the
    original leaves a margin of 5 out, which would be most of a 16 x 16 image.
    """
    x, y = (np.asarray(part, np.float64) for part in (reference, images))
    if x.shape != y.shape or x.ndim != 4 or x.size == 0:
        raise InputError(
            f"The reference images have shape {x.shape} and those compared with them {y.shape}; pass two arrays of the "
            "same shape (N, H, W, C)."
        )

    def local_mean(z: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(z, 1.5, axes=(1, 2), truncate=5 / 1.5)

    mean_x, mean_y = local_mean(x), local_mean(y)
    var_x, var_y = local_mean(x * x) - mean_x**2, local_mean(y * y) - mean_y**2
    covariance = local_mean(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    above = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return np.mean(above / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)), axis=(1, 2, 3))


def mean_of_worst(values_db: Any, percent: int = 5) -> float:
    """The mean of the lowest `percent` of some decibels, at least one of them.

    Args:
        values_db: float[N], N >= 1.
        percent: 1 to 100; the number of values is rounded up.

    Returns:
        The mean in dB, exact images (+inf) left out; +inf where all of the lowest are exact.

    Raises:
        InputError: No values, or a percentage out of its range.

    Example:
        >>> mean_of_worst(np.arange(40.0))  # the 2 lowest of 40
        0.5
    """
    values = np.sort(np.asarray(values_db, np.float64).ravel())
    if not values.size or not 1 <= percent <= 100:
        raise InputError(f"Got {values.size} values and percent {percent}; pass at least one value, and 1 to 100.")
    lowest = values[: -(-values.size * percent // 100)]
    return mean_of_finite(lowest)


def mean_of_finite(values_db: Any) -> float:
    """The mean of the decibels that are finite: of the steps, or images, that are not exact.

    Args:
        values_db: float[...].

    Returns:
        The mean in dB; +inf where none is finite, since nothing differs then.

    Example:
        >>> mean_of_finite([10.0, 20.0, np.inf])
        15.0
    """
    values = np.asarray(values_db, np.float64)
    finite = values[np.isfinite(values)]
    return float(np.mean(finite)) if finite.size else float("inf")


def ratio_db(signal: Any, noise: Any) -> np.ndarray:
    """Decibels of one energy over another, on the host: `10 log10(signal / noise)`, elementwise.

    Args:
        signal: float[...] >= 0.
        noise: float[...] >= 0, of a shape that broadcasts.

    Returns:
        float64[...] (dB); +inf where there is no noise.

    Example:
        >>> ratio_db([100.0, 0.0], [1.0, 0.0]).tolist()
        [20.0, inf]
    """
    signal, noise = np.asarray(signal, np.float64), np.asarray(noise, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        # 0 / 0 would be NaN, yet zeros that are met exactly have no noise.
        return np.where(noise == 0, np.inf, 10.0 * np.log10(signal / noise))


def pooled_pixels(images: Any, size: int = 8) -> np.ndarray:
    """Average each image down to at most `size` by `size` pixels: the feature space of our Fréchet distance.

    Each output pixel is the mean over its exact share of the area, also where that cuts through input pixels. An
    image that is already smaller stays as it is. Unlike the Inception features of the usual FID, these need no
    network and no download, and say nothing about fine detail: use them to compare runs of one model.

    Args:
        images: float[N, H, W, C].
        size: >= 1.

    Returns:
        float64[N, min(size, H) * min(size, W) * C].

    Raises:
        InputError: Images has other than four axes or no pixels, or size < 1.

    Example:
        >>> pooled_pixels(np.arange(4.0).reshape(1, 2, 2, 1), size=1)
        array([[1.5]])
    """
    pixels = np.asarray(images, np.float64)
    if pixels.ndim != 4 or pixels.size == 0:
        raise InputError(f"images has shape {pixels.shape}; pass at least one image, shape (N, H, W, C).")
    if size < 1:
        raise InputError(f"size is {size}; pass the number of pixels along a side, at least 1.")
    rows, columns = (_area_weights(length, min(size, length)) for length in pixels.shape[1:3])
    return np.einsum("nhwc,ih,jw->nijc", pixels, rows, columns, optimize=True).reshape(len(pixels), -1)


def frechet_distance(features_a: Any, features_b: Any) -> float:
    """Squared Fréchet distance between Gaussians fitted to two sets of features.

        |mean_a - mean_b|^2 + trace(A + B - 2 (A^(1/2) B A^(1/2))^(1/2)),    A, B the covariances

    Args:
        features_a: float[N, D], N >= 2.
        features_b: float[M, D], M >= 2.

    Returns:
        The distance, >= 0, in the features' squared unit. It is biased upwards by small sets: hold it against the
        distance between two sets of the same sizes from one source.

    Raises:
        InputError: The sets are not two matrices of the same width, hold fewer than two samples, or NaN or infinity.

    Example:
        >>> frechet_distance([[0.0], [2.0]], [[3.0], [5.0]])
        9.0

    Source:
        Dowson & Landau 1982; Heusel et al. 2017 (FID). Deviation: the usual `sqrtm(A B)` is not symmetric and may
        come out complex; this equal form needs only symmetric eigendecompositions.
    """
    a, b = _checked_features("features_a", features_a), _checked_features("features_b", features_b)
    if a.shape[1] != b.shape[1]:
        raise InputError(f"features_a has {a.shape[1]} features and features_b {b.shape[1]}; compute both alike.")
    mean_a, mean_b = a.mean(0), b.mean(0)
    covariance_a = (a - mean_a).T @ (a - mean_a) / (len(a) - 1)
    covariance_b = (b - mean_b).T @ (b - mean_b) / (len(b) - 1)
    values, vectors = np.linalg.eigh(covariance_a)
    # Rank-deficient covariances (fewer samples than features) have eigenvalues of about -1e-17.
    root_a = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    product = root_a @ covariance_b @ root_a
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh((product + product.T) / 2), 0)).sum()
    distance = np.sum((mean_a - mean_b) ** 2) + np.trace(covariance_a) + np.trace(covariance_b) - 2 * cross
    return max(float(distance), 0.0)


def _area_weights(length: int, bins: int) -> np.ndarray:
    """float64[bins, length]: the share of each input pixel in each bin's mean; rows sum to 1."""
    edges = np.linspace(0, length, bins + 1)
    pixel = np.arange(length)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    return np.maximum(overlap, 0) * (bins / length)


def _same_shape(reference: Any, other: Any) -> tuple[jax.Array, jax.Array]:
    reference, other = jnp.asarray(reference, jnp.float32), jnp.asarray(other, jnp.float32)
    if reference.shape != other.shape:
        raise InputError(
            f"The reference has shape {reference.shape} and what is compared with it {other.shape}; "
            "pass two arrays of the same shape."
        )
    return reference, other


def _checked_features(name: str, features: Any) -> np.ndarray:
    matrix = np.asarray(features, np.float64)
    if matrix.ndim != 2 or len(matrix) < 2 or matrix.shape[1] < 1:
        raise InputError(f"{name} has shape {matrix.shape}; pass at least two samples, shape (N, D).")
    if not np.isfinite(matrix).all():
        faulty = int((~np.isfinite(matrix).all(1)).sum())
        raise InputError(f"{name} holds NaN or infinity in {faulty} of {len(matrix)} samples; leave out or fix them.")
    return matrix
