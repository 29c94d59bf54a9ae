import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import SHAPE, tiny_quantized

from jaxdq import InputError, ddim, evaluate
from jaxdq.diffusion import Denoiser, linear_schedule
from jaxdq.evaluation import noise_sqnr_per_step_db
from jaxdq.metrics import frechet_distance
from jaxdq.sampling import trajectories

KEY = jax.random.key(9)


class Bias:
    """Says the same everywhere: `bias[t]`."""

    def apply(self, variables, x, t):
        return jnp.zeros_like(x) + variables["params"]["bias"][t]


def says(bias, prediction_type="sample"):
    schedule = linear_schedule(4, 0.1, 0.5, prediction_type=prediction_type)
    return Denoiser(Bias(), {"bias": jnp.asarray(bias, jnp.float32)}, schedule, SHAPE)


def measure(denoiser, params, **kwargs):
    return evaluate(denoiser, params, sampler=ddim(4), key=KEY, **{"num_images": 4, **kwargs})


def test_golden_distances_of_a_perturbed_answer():
    denoiser = says([0.5, 1.0, 1.0, 0.5])
    found = measure(denoiser, {"bias": jnp.array([0.6, 1.0, 0.9, 0.0])})
    # Noisiest first, t = 3 to 0. 0.5 for 0.0: 0 dB; 1.0 for 0.9: 20 dB; none; 0.5 for 0.6: 10 log10 25.
    assert found.t.tolist() == [3, 2, 1, 0]
    # 0.1 as a difference of float32 numbers near 1 is right to 2**-23 / 0.1, 1e-5 dB.
    np.testing.assert_allclose(found.noise_sqnr_db, [0.0, 20.0, np.inf, 10 * np.log10(25)], atol=1e-4)
    # Energies 0.25 + 1 + 1 + 0.25 over errors 0.25 + 0.01 + 0 + 0.01, alike at every pixel.
    np.testing.assert_allclose(found.noise_sqnr_pooled_db, 10 * np.log10(2.5 / 0.27), atol=1e-4)
    # The model's last answer is the image: 0.5 everywhere beside 0.6. Peak 2, so 20 log10(2 / 0.1).
    np.testing.assert_allclose(found.float_images, 0.5, atol=1e-6)
    np.testing.assert_allclose(found.quantized_images, 0.6, atol=1e-6)
    np.testing.assert_allclose(found.image_psnr_db, 20 * np.log10(20), atol=1e-4)
    of_one = found.image_psnr_median_db, found.image_psnr_worst_db, found.image_psnr_worst5_db
    np.testing.assert_allclose(of_one, 20 * np.log10(20), atol=1e-4)
    # No spread, means 0.1 apart in each of 8 x 8 x 2 features; other noise changes nothing.
    np.testing.assert_allclose(found.fd_to_float, 128 * 0.01, rtol=1e-4)
    np.testing.assert_allclose(found.fd_float_floor, 0, atol=1e-9)
    np.testing.assert_allclose(found.fd_other_noise, 128 * 0.01, rtol=1e-4)


def test_figures_of_single_images():
    found = measure(says([0.5] * 4), {"bias": jnp.full(4, 0.6)})
    per_image = np.array([50.0, 10.0, 20.0, *[40.0] * 20])
    found = found._replace(psnr_per_image_db=per_image)
    assert (found.image_psnr_median_db, found.image_psnr_worst_db, found.image_psnr_worst5_db) == (40, 10, 15)


def test_an_evaluation_compiles_each_network_once():
    shapes = []

    class Counted(Bias):
        def apply(self, variables, x, t):
            if isinstance(x, jax.core.Tracer):
                shapes.append((x.shape, variables["params"]["bias"].dtype))
            return super().apply(variables, x, t)

    denoiser = Denoiser(Counted(), {"bias": jnp.ones(4)}, linear_schedule(4, 0.1, 0.5, prediction_type="sample"), SHAPE)
    measure(denoiser, {"bias": jnp.ones(4, jnp.bfloat16)}, batch_size=2)
    # A scan may trace its body more than once; noise error, images and other noise are one program of the other one.
    assert shapes.count(((2, *SHAPE), jnp.bfloat16)) == 1
    assert {shape for shape, _ in shapes} == {(2, *SHAPE)}


def test_a_model_beside_itself_has_no_error():
    denoiser = says([0.5, 1.0, 0.0, 0.5], "epsilon")
    found = measure(denoiser, denoiser.params)
    # 0 beside 0 is no error either.
    np.testing.assert_array_equal(found.noise_sqnr_db, np.inf)
    assert found.image_psnr_db == found.noise_sqnr_pooled_db == found.image_psnr_worst_db == np.inf
    assert found.image_psnr_median_db == found.image_psnr_worst5_db == np.inf
    assert found.fd_to_float < 1e-9
    np.testing.assert_array_equal(found.float_images, found.quantized_images)
    # Epsilon says nothing about the noise here, so other noise gives other images.
    assert found.fd_float_floor > 0.01
    # What stands beside the floor is of the floor's noise, so that a model beside itself scores the floor and not 0.
    assert found.fd_other_noise == found.fd_float_floor


def test_a_quantized_network_is_close_and_not_equal():
    denoiser, qparams = tiny_quantized()
    found = measure(denoiser, qparams)
    # Rounding to 8 bits is 59 dB below the peak of an activation, and peaks are 3 to 6 times the deviation: 45 dB.
    # At the noisiest step values beyond the range of the one call that was observed clip.
    assert (found.noise_sqnr_db > 15).all() and (found.noise_sqnr_db[1:] > 35).all()
    assert (found.noise_sqnr_db < 70).all()
    assert 20 < found.image_psnr_db < 70
    assert 0 < found.fd_to_float < found.fd_float_floor
    assert found.float_images.shape == found.quantized_images.shape == (4, *SHAPE)
    assert set(found.seconds) == {
        *("sample float", "noise error", "sample quantized"),
        *("sample float floor", "sample quantized floor"),
    }
    assert min(found.seconds.values()) > 0


def test_noise_error_does_not_depend_on_the_batch_size():
    denoiser = says([0.5, 1.0, 1.0, 0.5], "epsilon")
    data = trajectories(denoiser, denoiser.params, sampler=ddim(4), num_images=5, key=KEY)
    params = {"bias": jnp.array([0.6, 0.9, 0.9, 0.1])}
    whole, parts = (noise_sqnr_per_step_db(denoiser, params, data, batch_size=size) for size in (64, 2))
    # Sums of 5 * 128 equal numbers in float32: relative 640 * 2**-24, 2e-4 dB.
    np.testing.assert_allclose(whole, parts, atol=2e-4)
    assert whole.shape == (4,) and whole.dtype == np.float64


def says_latents(bias):
    return dataclasses.replace(
        says(bias), schedule=linear_schedule(4, 0.1, 0.5, prediction_type="sample", clip_range=None)
    )


@pytest.mark.slow
def test_latents_are_compared_decoded_where_there_is_a_decode():
    denoiser, params = says_latents([0.5] * 4), {"bias": jnp.array([0.6, 0.5, 0.5, 0.5])}
    seen = []

    def decode(latents):
        seen.append(latents.shape)
        return jnp.repeat(latents[..., :1] / 2, 3, -1).repeat(2, 1).repeat(2, 2)

    found = measure(denoiser, params, decode=decode, num_images=5, batch_size=3)
    assert found.image_space == "pixels" and "decode" in found.seconds
    assert found.float_images.shape == found.quantized_images.shape == (5, 16, 16, 3)
    assert seen == [(3, 8, 8, 2), (2, 8, 8, 2)] * 4
    # Half of 0.1 apart: 6 dB more than the latents are.
    np.testing.assert_allclose(found.image_psnr_db, 20 * np.log10(40), atol=1e-4)
    latents = measure(denoiser, params)
    assert latents.image_space == "latents" and latents.float_images.shape == (4, *SHAPE)
    np.testing.assert_allclose(latents.image_psnr_db, 20 * np.log10(20), atol=1e-4)
    # Sums of other numbers of images, in float32.
    np.testing.assert_allclose(found.noise_sqnr_db, latents.noise_sqnr_db, atol=1e-3)


@pytest.mark.parametrize(
    "decode", [lambda latents: latents[:1], lambda latents: latents[0], lambda latents: latents * jnp.nan]
)
def test_a_decode_that_returns_no_images_is_refused(decode):
    with pytest.raises(InputError, match=r"decode returned shape .* for latents of shape \(4, 8, 8, 2\)"):
        measure(says_latents([0.5] * 4), {"bias": jnp.full(4, 0.4)}, decode=decode)


def test_one_image_has_no_spread_and_is_refused():
    denoiser = says([0.5] * 4)
    with pytest.raises(InputError, match="num_images is 1"):
        measure(denoiser, denoiser.params, num_images=1)


def test_images_that_are_not_finite_are_refused():
    with pytest.raises(InputError, match="draws images with NaN"):
        measure(says([0.5] * 4), {"bias": jnp.full(4, jnp.nan)})


def test_images_are_compared_in_the_features_and_by_the_distance_that_are_passed():
    denoiser, qparams = tiny_quantized()
    seen = []

    def features(images):
        seen.append(images.shape)
        return np.asarray(images).mean((1, 2))

    def distance(one, two):
        return np.abs(one - two).mean((1, 2, 3))

    asked = {"sampler": ddim(2), "key": jax.random.key(5), "num_images": 5, "batch_size": 2}
    found = evaluate(denoiser, qparams, **asked, features=features, distance=distance)
    plain = evaluate(denoiser, qparams, **asked)
    assert len({shape for shape in seen}) == 1, "one shape, so that a network compiles once"
    own, other = (images.mean((1, 2)) for images in (found.float_images, found.quantized_images))
    assert found.fd_to_float == pytest.approx(frechet_distance(own, other))
    assert plain.fd_to_float != found.fd_to_float and plain.distance_per_image is None
    each = np.abs(found.float_images - found.quantized_images).mean((1, 2, 3))
    np.testing.assert_allclose(found.distance_per_image, each, rtol=1e-6)
    assert found.distance_floor.mean() > found.distance_per_image.mean()
    with pytest.raises(InputError, match=r"features returned shape \(5, .*\) for 5 images; return a row for each"):
        evaluate(denoiser, qparams, **asked, features=lambda images: images)
    with pytest.raises(InputError, match=r"distance returned shape \(\d+, 2\) for 5 pairs"):
        evaluate(denoiser, qparams, **asked, distance=lambda one, two: one.mean((1, 2)))
