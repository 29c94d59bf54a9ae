import io

import numpy as np
import pytest
from PIL import Image

from jaxdq.app import report


def read(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def count(picture: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((picture == colour).all(-1).sum())


def test_every_pixel_is_a_square_and_every_image_is_there_once():
    images = np.full((3, 8, 8, 3), -1.0, np.float32)
    images[:, 0, 0] = (1.0, 0.0, -1.0)  # one pixel of each image in a colour of its own
    quantized = images.copy()
    quantized[:, 0, 0] = (-1.0, 1.0, 0.0)
    picture = read(report.paired_grid(images, quantized, "W8A8"))
    assert count(picture, (255, 128, 0)) == count(picture, (0, 255, 128)) == 3 * 8 * 8


def test_float_stands_above_quantized():
    up, low = np.ones((2, 4, 4, 1)), -np.ones((2, 4, 4, 1))
    picture = read(report.paired_grid(up, low, "W4A8"))
    rows = {colour: np.flatnonzero((picture == colour).all(-1).sum(1) > 100) for colour in (0, 255)}
    assert rows[255].max() < rows[0].min()


@pytest.mark.parametrize(("num_images", "num_rows"), [(1, 1), (16, 1), (17, 2), (64, 4)])
def test_sixteen_columns_at_most(num_images, num_rows):
    picture = read(report.image_grid(np.ones((num_images, 64, 64, 3))))
    assert picture.shape[0] // 64 == num_rows
    assert picture.shape[1] < 16 * 66 + 30


def test_values_outside_the_range_are_clipped_and_other_channels_averaged():
    images = np.zeros((1, 64, 64, 2))
    images[..., 0], images[..., 1] = 5.0, 1.0
    assert count(read(report.image_grid(images)), (255, 255, 255)) == 64 * 64
