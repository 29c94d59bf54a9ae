import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdq._common.errors import InputError
from jaxdq.metrics import (
    frechet_distance,
    mean_of_worst,
    pooled_pixels,
    psnr_db,
    psnr_per_image_db,
    ratio_db,
    sqnr_db,
    ssim_per_image,
)


def test_golden_sqnr():
    # signal 9 + 16 = 25, noise 0.25: 10 log10 100 = 20 dB.
    assert float(sqnr_db([3.0, 4.0], [3.0, 4.5])) == pytest.approx(20, abs=1e-4)


def test_sqnr_at_its_edges():
    assert sqnr_db([1.0, 2.0], [1.0, 2.0]) == np.inf
    assert sqnr_db([0.0], [0.0]) == np.inf
    assert sqnr_db([0.0], [1.0]) == -np.inf
    assert np.isnan(sqnr_db([1.0], [np.nan]))


def test_sqnr_over_axes():
    reference = np.array([[3.0, 4.0], [1.0, 0.0]])
    per_row = jax.jit(sqnr_db, static_argnums=2)(reference, reference + np.array([[0, 0.5], [0.1, 0]]), 1)
    np.testing.assert_allclose(per_row, [20, 20], atol=1e-4)


@settings(deadline=None, max_examples=30)
@given(st.floats(1e-3, 1e3))
def test_property_sqnr_ignores_the_unit(scale):
    reference, noise = np.random.default_rng(0).normal(size=(2, 50))
    expected = float(sqnr_db(reference, reference + 0.1 * noise))
    assert float(sqnr_db(scale * reference, scale * (reference + 0.1 * noise))) == pytest.approx(expected, abs=1e-3)


def test_golden_psnr():
    # mean squared error 0.01: 10 log10(4 / 0.01) = 26.0206 dB; with peak 1, 20 dB.
    images = np.zeros((2, 4, 4, 1))
    assert float(psnr_db(images, images + 0.1)) == pytest.approx(26.0206, abs=1e-3)
    assert float(psnr_db(images, images + 0.1, peak=1.0)) == pytest.approx(20, abs=1e-3)
    assert psnr_db(images, images) == np.inf


def test_golden_psnr_of_each_image():
    images = np.zeros((3, 4, 4, 1))
    found = psnr_per_image_db(images, images + np.array([0.2, 0.0, 0.02])[:, None, None, None])
    np.testing.assert_allclose(found, [20, np.inf, 40], atol=1e-9)
    assert psnr_per_image_db(images, images + 1, peak=1.0).tolist() == [0, 0, 0]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(1e-3, 1), min_size=1, max_size=50))
def test_property_pooled_psnr_lies_between_the_worst_image_and_the_mean_of_decibels(errors):
    images = np.zeros((len(errors), 2, 2, 1))
    wrong = images + np.array(errors)[:, None, None, None]
    per_image = psnr_per_image_db(images, wrong)
    assert per_image.min() - 1e-4 <= float(psnr_db(images, wrong)) <= per_image.mean() + 1e-4
    assert per_image.min() <= mean_of_worst(per_image) + 1e-9 <= per_image.mean() + 2e-9


@pytest.mark.parametrize(
    ("values", "percent", "mean"),
    [
        ([3.0], 5, 3.0),
        (np.arange(20), 5, 0.0),
        (np.arange(21), 5, 0.5),  # two of 21 are the first that are 5%
        (np.arange(100)[::-1], 5, 2.0),
        (np.arange(4), 100, 1.5),
        ([np.inf, 7.0], 100, 7.0),
        ([np.inf, np.inf], 5, np.inf),
    ],
)
def test_golden_mean_of_the_worst(values, percent, mean):
    assert mean_of_worst(values, percent) == mean


@pytest.mark.parametrize(("values", "percent"), [([], 5), ([1.0], 0), ([1.0], 101)])
def test_refuses_a_tail_of_nothing(values, percent):
    with pytest.raises(InputError, match="at least one value"):
        mean_of_worst(values, percent)


def test_ratios_at_their_edges():
    assert ratio_db([10.0, 0.0, 0.0, 1.0], [1.0, 0.0, 1.0, 0.0]).tolist() == [10.0, np.inf, -np.inf, np.inf]


@pytest.mark.parametrize("metric", [sqnr_db, psnr_db, psnr_per_image_db])
def test_refuses_different_shapes(metric):
    with pytest.raises(InputError, match=r"\(3,\) .* \(3, 1\)"):
        metric(np.zeros(3), np.zeros((3, 1)))


def test_golden_pooled_pixels():
    images = np.arange(16.0).reshape(1, 4, 4, 1)
    np.testing.assert_allclose(pooled_pixels(images, 2), [[2.5, 4.5, 10.5, 12.5]])
    # Three pixels onto two: each output covers one and a half.
    np.testing.assert_allclose(pooled_pixels(np.array([3.0, 6.0, 9.0]).reshape(1, 1, 3, 1), 2), [[4.0, 8.0]])


def test_pooled_pixels_keep_small_images_and_the_mean():
    small = np.random.default_rng(0).normal(size=(3, 4, 6, 2))
    np.testing.assert_allclose(pooled_pixels(small), small.reshape(3, -1))
    large = np.random.default_rng(0).normal(size=(3, 28, 30, 2))
    pooled = pooled_pixels(large)
    assert pooled.shape == (3, 8 * 8 * 2) and pooled.dtype == np.float64
    np.testing.assert_allclose(pooled.reshape(3, 64, 2).mean(1), large.mean((1, 2)), atol=1e-12)


@pytest.mark.parametrize(("shape", "size"), [((4, 4, 1), 8), ((0, 4, 4, 1), 8), ((1, 4, 4, 1), 0)])
def test_refuses_what_is_no_image(shape, size):
    with pytest.raises(InputError, match="pass"):
        pooled_pixels(np.zeros(shape), size)


def ssim_by_hand(x, y, peak):
    """Wang's formula at every pixel of one channel, the window summed entry by entry, mirrored at the border."""
    reach = np.arange(-5, 6)
    window = np.exp(-(reach[:, None] ** 2 + reach**2) / (2 * 1.5**2))
    window /= window.sum()

    def mean(z):
        padded = np.pad(z, 5, mode="symmetric")
        return np.array(
            [[np.sum(window * padded[i : i + 11, j : j + 11]) for j in range(z.shape[1])] for i in range(len(z))]
        )

    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    return np.mean((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))


def test_golden_structural_similarity():
    random = np.random.default_rng(0)
    x = np.tanh(random.normal(size=(3, 12, 9, 2)))
    y = np.clip(x + 0.3 * random.normal(size=x.shape), -1, 1)
    expected = [np.mean([ssim_by_hand(x[n, ..., c], y[n, ..., c], 2.0) for c in range(2)]) for n in range(3)]
    np.testing.assert_allclose(ssim_per_image(x, y), expected, rtol=1e-9)
    np.testing.assert_allclose(ssim_per_image(x, x), 1)
    assert (ssim_per_image(x, y, peak=20.0) > ssim_per_image(x, y)).all()


@pytest.mark.parametrize("shapes", [((1, 4, 4, 1), (2, 4, 4, 1)), ((4, 4, 1), (4, 4, 1)), ((0, 4, 4, 1), (0, 4, 4, 1))])
def test_structural_similarity_is_of_images(shapes):
    with pytest.raises(InputError, match="pass two arrays of the same shape"):
        ssim_per_image(*map(np.zeros, shapes))


def test_golden_frechet_distance_of_commuting_gaussians():
    # Diagonal covariances: the distance is |mean|^2 + sum (std_a - std_b)^2. Samples +-e_i have exact moments.
    corners = np.concatenate([np.eye(3), -np.eye(3)]) * np.sqrt(5 / 2)  # covariance 1
    a, b = corners * [1, 2, 3], corners * [4, 2, 1] + [0, 0, 6]
    assert frechet_distance(a, b) == pytest.approx(36 + 9 + 0 + 4)


def test_oracle_frechet_distance_is_that_of_the_matrix_root():
    linalg = pytest.importorskip("scipy.linalg")
    random = np.random.default_rng(0)
    a, b = random.normal(size=(60, 5)) @ random.normal(size=(5, 5)), random.normal(size=(50, 5)) + 1
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    cross = np.trace(linalg.sqrtm(cov_a @ cov_b).real)
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(cov_a) + np.trace(cov_b) - 2 * cross
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_property_frechet_distance_is_symmetric_and_zero_on_itself():
    random = np.random.default_rng(0)
    a, b = random.normal(size=(10, 40)), 2 * random.normal(size=(12, 40))  # fewer samples than features
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-6)
    assert frechet_distance(a, b) > 1


@pytest.mark.parametrize(
    ("b", "word"),
    [
        (np.zeros(5), "features_b has shape"),
        (np.zeros((1, 2)), "at least two samples"),
        (np.zeros((5, 3)), "2 features and features_b 3"),
        (np.array([[0.0, np.nan], [1.0, 2.0]]), "1 of 2 samples"),
    ],
)
def test_refuses_features_without_a_gaussian(b, word):
    with pytest.raises(InputError, match=word):
        frechet_distance(np.ones((4, 2)), b)
