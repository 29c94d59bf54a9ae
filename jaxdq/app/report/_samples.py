"""Pictures of samples: small images enlarged so that a person sees their pixels, large ones made smaller."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

MAX_COLUMNS = 16
_SIDE, _MAX_SIDE = 64, 192  # small images are enlarged to about the first, large ones made as small as the second
_GAP, _PAIR_GAP, _MARGIN = 2, 14, 14
# Dark, and lighter between the tiles: images with black and with white backgrounds both keep their edges.
_BACKGROUND, _TILE_EDGE, _INK = (24, 26, 29), (52, 55, 60), (158, 164, 172)


def paired_grid(float_images: np.ndarray, quantized_images: np.ndarray, label: str) -> bytes:
    """Rows of float images, each above the quantized ones from the same noise.

    Args:
        float_images: f32[N, H, W, C] in [-1, 1].
        quantized_images: The same shape.
        label: What the lower rows are, such as "W8A8".

    Returns:
        A PNG file.
    """
    columns = _num_columns(len(float_images))
    rows = []
    for start in range(0, len(float_images), columns):
        rows += [float_images[start : start + columns], quantized_images[start : start + columns]]
    return _draw(rows, ("float", label))


def image_grid(images: np.ndarray) -> bytes:
    """Rows of images, without labels.

    Args:
        images: f32[N, H, W, C] in [-1, 1].

    Returns:
        A PNG file.
    """
    columns = _num_columns(len(images))
    return _draw([images[start : start + columns] for start in range(0, len(images), columns)], ())


def _num_columns(num_images: int) -> int:
    """As few rows as 16 columns allow, filled evenly."""
    num_rows = -(-num_images // MAX_COLUMNS)
    return -(-num_images // num_rows)


def _draw(rows: Sequence[np.ndarray], labels: Sequence[str]) -> bytes:
    """Draws rows of tiles; with labels, rows go in blocks of as many and each block is labelled at the left."""
    tiles = [[_tile(image) for image in row] for row in rows]
    width, height = tiles[0][0].size
    font = ImageFont.load_default(size=14)
    gutter = max((round(font.getlength(text)) + 12 for text in labels), default=0)
    block = len(labels) or len(rows)
    tops = [
        _MARGIN + index * (height + _GAP) + index // block * (_PAIR_GAP - _GAP if labels else 0)
        for index in range(len(rows))
    ]
    left = _MARGIN + gutter
    size = (left + len(tiles[0]) * (width + _GAP) - _GAP + _MARGIN, tops[-1] + height + _MARGIN)
    picture = Image.new("RGB", size, _BACKGROUND)
    draw = ImageDraw.Draw(picture)
    for index, (row, top) in enumerate(zip(tiles, tops, strict=True)):
        if labels:
            at = (left - 10, top + height // 2)
            draw.text(at, labels[index % block], fill=_INK, font=font, anchor="rm")
        for column, tile in enumerate(row):
            x = left + column * (width + _GAP)
            draw.rectangle((x - 1, top - 1, x + width, top + height), outline=_TILE_EDGE)
            picture.paste(tile, (x, top))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _tile(image: np.ndarray) -> Image.Image:
    """One image in RGB, each pixel a square; channels that are no colours are shown by their mean."""
    colours = image if image.shape[-1] == 3 else np.repeat(image.mean(-1, keepdims=True), 3, axis=-1)
    pixels = np.clip(np.round((colours + 1.0) * 127.5), 0, 255).astype(np.uint8)
    times = max(1, _SIDE // max(pixels.shape[:2]))
    tile = Image.fromarray(pixels.repeat(times, 0).repeat(times, 1))
    tile.thumbnail((_MAX_SIDE, _MAX_SIDE))
    return tile
