"""How close the integer network comes to the float one: on the integer path, from noise that calibration never saw."""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdq._common.checks import check_count, is_whole, shown
from jaxdq._common.errors import InputError
from jaxdq.diffusion import Denoiser, Sampler
from jaxdq.linen import QuantizedParams
from jaxdq.metrics import (
    frechet_distance,
    mean_of_worst,
    pooled_pixels,
    psnr_db,
    psnr_per_image_db,
    ratio_db,
    ssim_per_image,
)
from jaxdq.models.decoding import Decode, decoded
from jaxdq.models.perceptual import Distance, Features
from jaxdq.sampling import BATCH_SIZE, Trajectories, batches_of, check_arguments, predict, trajectories, walk

FEATURES = "{}, area-averaged to 8 x 8"


class Evaluation(NamedTuple):
    """The integer network beside the float one, both from the same noise.

    Attributes:
        t: int32[S], the sampler's times, the noisiest first.
        noise_sqnr_db: f64[S], `10 log10(sum eps^2 / sum (eps - eps_q)^2)` at each step, on states of the float model.
        noise_sqnr_pooled_db: The same with both sums over all steps: the steps with the largest errors decide it, where
            the mean of `noise_sqnr_db` is carried by the easy ones.
        image_psnr_db: PSNR of the quantized images against the float ones, peak 2, squared errors averaged over all
            images: the worst images decide it.
        psnr_per_image_db: f64[N], the PSNR of each image by itself.
        ssim_per_image: f64[N], the structural similarity of each image to the float one.
        fd_to_float: Fréchet distance between the two sets of images, which come from the same noise, in the features
            that were asked for, or as `FEATURES` says of the image space.
        fd_float_floor: Fréchet distance between the float images and as many float images from other noise.
        fd_other_noise: Fréchet distance between the float images and quantized images from that other noise: what
            compares with `fd_float_floor`. Equally good models score the same.
        float_images: f32[N, H, W, C].
        quantized_images: f32[N, H, W, C], from the same noise.
        seconds: Phase -> wall-clock seconds, compilation included.
        image_space: "pixels", or "latents" where the model draws those and there was no `decode`; in the latter case
            what is said of images here is true of latents.
        rows: int[R], rows of the model's conditions that the images cycle through.
        distance_per_image: f64[N], the distance that was asked for, of each quantized image to the float one; or None.
        distance_floor: The same between the float images and as many from other noise; or None.
    """

    t: np.ndarray
    noise_sqnr_db: np.ndarray
    noise_sqnr_pooled_db: float
    image_psnr_db: float
    psnr_per_image_db: np.ndarray
    ssim_per_image: np.ndarray
    fd_to_float: float
    fd_float_floor: float
    fd_other_noise: float
    float_images: np.ndarray
    quantized_images: np.ndarray
    seconds: dict[str, float]
    image_space: str = "pixels"
    rows: np.ndarray | None = None
    distance_per_image: np.ndarray | None = None
    distance_floor: np.ndarray | None = None

    @property
    def image_psnr_median_db(self) -> float:
        """The PSNR that half of the images exceed."""
        return float(np.median(self.psnr_per_image_db))

    @property
    def image_psnr_worst_db(self) -> float:
        """The PSNR of the worst image."""
        return float(np.min(self.psnr_per_image_db))

    @property
    def image_psnr_worst5_db(self) -> float:
        """The mean PSNR of the worst 5% of the images."""
        return mean_of_worst(self.psnr_per_image_db, 5)


def evaluate(
    denoiser: Denoiser,
    qparams: QuantizedParams,
    *,
    sampler: Sampler,
    key: jax.Array,
    num_images: int = 64,
    batch_size: int = BATCH_SIZE,
    decode: Decode | None = None,
    features: Features | None = None,
    distance: Distance | None = None,
) -> Evaluation:
    """Measures the integer network against the float one.

    Args:
        denoiser: The float model.
        qparams: The integer one.
        sampler: Draws the images of both.
        key: Another key than the calibration's: these are held-out trajectories.
        num_images: N >= 2 (a Fréchet distance needs a spread); where the model has more conditions, they are spread
            over all of them by a permutation that the key decides.
        batch_size: Images at a time.
        decode: For a model that draws latents: `latents f32[B, h, w, c] -> images f32[B, H, W, 3]` in [-1, 1], called
            with up to `batch_size` of them; images are then compared decoded. Predictions are compared as they are.
        features: Network in whose features Fréchet distances are computed, `images f32[B, H, W, C] in [-1, 1] ->
            float[B, D]`, such as `models.perceptual.inception_features(file)`; None averages pixels.
        distance: Distance of image pairs, `(f32[B, H, W, C], f32[B, H, W, C]) -> float[B]`, such as
            `models.perceptual.lpips_distance(file)`.

    Returns:
        Evaluation.

    Raises:
        InputError: Fewer than 2 images, quantized images that are not finite, naming what to look at, or a decode that
            returns no images; qparams that were not quantized from this denoiser's params.

    Example:
        `jaxdq.evaluate(denoiser, qparams, sampler=jaxdq.ddim(50), key=jax.random.key(1)).image_psnr_db`
    """
    _check(num_images, decode=decode, features=features, distance=distance)
    check_arguments(denoiser, qparams, sampler, key)
    denoiser, rows = denoiser.spread(num_images, key)
    float_run = functools.partial(trajectories, denoiser, denoiser.params, sampler=sampler, batch_size=batch_size)
    walk_of = functools.partial(walk, denoiser, sampler, num_images=num_images, batch_size=batch_size)
    key_images, key_floor = jax.random.split(key)
    seconds, start = dict[str, float](), time.perf_counter()

    def lap(phase: str) -> None:
        nonlocal start
        now = time.perf_counter()
        seconds[phase], start = now - start, now

    # One program of each network for all of it: the float one's trajectories, and one call of the quantized one.
    data = float_run(num_images=num_images, key=key_images)
    lap("sample float")
    energies = noise_energies(denoiser, qparams, data, batch_size=batch_size)
    lap("noise error")
    quantized = walk_of(key=key_images).draw(qparams)
    lap("sample quantized")
    floor = float_run(num_images=num_images, key=key_floor).images
    lap("sample float floor")
    other = walk_of(key=key_floor).draw(qparams)
    lap("sample quantized floor")
    _refuse_nan(quantized, other)
    drawn = [data.images, quantized, floor, other]
    if decode is not None:
        drawn = [decoded(decode, latents, batch_size) for latents in drawn]
        lap("decode")
    return Evaluation(
        t=data.t,
        noise_sqnr_db=ratio_db(*energies),
        noise_sqnr_pooled_db=float(ratio_db(*energies.sum(1))),
        **_compared(drawn, features, distance, batch_size),
        seconds=seconds,
        # Latents have no bounds, so samplers don't clip them.
        image_space="latents" if decode is None and denoiser.schedule.clip_range is None else "pixels",
        rows=rows,
    )


def _compared(
    drawn: list[np.ndarray], features: Features | None, distance: Distance | None, batch_size: int
) -> dict[str, Any]:
    """The fields of an evaluation that follow from its four sets of images: float and quantized, from two noises."""
    exact, quantized, floor, _ = drawn
    own, *others = (_featured(features, images, batch_size) for images in drawn)
    fd_to_float, fd_float_floor, fd_other_noise = (frechet_distance(own, other) for other in others)
    apart = (
        {}
        if distance is None
        else {
            name: _apart(distance, exact, images, batch_size)
            for name, images in (("distance_per_image", quantized), ("distance_floor", floor))
        }
    )
    return {
        "image_psnr_db": float(psnr_db(exact, quantized)),
        "psnr_per_image_db": psnr_per_image_db(exact, quantized),
        "ssim_per_image": ssim_per_image(exact, quantized),
        "fd_to_float": fd_to_float,
        "fd_float_floor": fd_float_floor,
        "fd_other_noise": fd_other_noise,
        "float_images": exact,
        "quantized_images": quantized,
        **apart,
    }


def _in_batches(function: Callable[..., Any], batch_size: int, *sets: np.ndarray) -> np.ndarray:
    """A function of images over all of them, in batches of one size: the last one is filled up and cut."""
    parts = []
    for index in batches_of(len(sets[0]), batch_size, None):
        parts.append(np.asarray(function(*(images[index % len(images)] for images in sets)), np.float64))
    return np.concatenate(parts)[: len(sets[0])]


def _featured(features: Features | None, images: np.ndarray, batch_size: int) -> np.ndarray:
    if features is None:
        return pooled_pixels(images)
    found = _in_batches(features, batch_size, images)
    if found.ndim != 2 or len(found) != len(images):
        raise InputError(f"features returned shape {found.shape} for {len(images)} images; return a row for each.")
    return found


def _apart(distance: Distance, one: np.ndarray, two: np.ndarray, batch_size: int) -> np.ndarray:
    found = _in_batches(distance, batch_size, one, two)
    if found.shape != one.shape[:1]:
        raise InputError(f"distance returned shape {found.shape} for {len(one)} pairs; return a number for each.")
    return found


def _check(num_images: Any, **functions: Any) -> None:
    if not is_whole(num_images) or num_images < 2:
        raise InputError(f"num_images is {shown(num_images)}; a Fréchet distance needs at least 2 images.")
    check_count(num_images)
    for name, function in functions.items():
        if function is not None and (not callable(function) or isinstance(function, type)):
            raise InputError(f"{name} is {shown(function)}; pass a function of images, or None.")


def _refuse_nan(*images: np.ndarray) -> None:
    if not all(np.isfinite(some).all() for some in images):
        raise InputError(
            "the quantized network draws images with NaN; a scale or a weight is not finite: quantize again from "
            "parameters that are."
        )


def noise_sqnr_per_step_db(
    denoiser: Denoiser, params: Any, data: Trajectories, *, batch_size: int = BATCH_SIZE
) -> np.ndarray:
    """Signal to quantization noise of the model's output at each step of float trajectories, f64[S] in dB.

    `10 log10(sum eps^2 / sum (eps - eps_q)^2)`, see `noise_energies`.
    """
    return ratio_db(*noise_energies(denoiser, params, data, batch_size=batch_size))


def noise_energies(denoiser: Denoiser, params: Any, data: Trajectories, *, batch_size: int = BATCH_SIZE) -> np.ndarray:
    """Energies of the model's output and of its quantization error at each step of float trajectories.

    The float model's own states go into both networks, so that errors of earlier steps don't count here.

    Args:
        denoiser: The float model, which drew `data`.
        params: Quantized or float parameters to compare with it.
        data: Trajectories of the float model.
        batch_size: Images at a time.

    Returns:
        f64[2, S]: `sum eps^2` and `sum (eps - eps_q)^2`, over the images and pixels of each step.
    """
    batches = batches_of(data.num_images, batch_size, None)

    def of_step(step: int) -> list[float]:
        found = predict(denoiser, params, data.states[step], data.t[step], data.image_index, batches)
        target = np.float64(data.outputs[step])
        return [np.sum(target**2), np.sum((target - found) ** 2)]

    return np.array([of_step(step) for step in range(data.num_steps)]).T
