"""Tiles of images whose encoder rows are put together to the rows of the whole image, as LLaVA-NeXT does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from compiler.artifact.language_model import ImagePreparation, TilePacking
from compiler.generation.image_inputs import cut_into_tiles, mean_color, normalized, padded
from compiler.support.media_files import Image, read_image

Array = np.ndarray
Size = tuple[int, int]  # height, width
_BLACK = (0, 0, 0)
_FIRST = np.array([1, 0, 0, 0], np.float32)  # weights of a row that is one of the encoder's


def prepared_tiles(
    images: Sequence[Image], preparation: ImagePreparation, packing: TilePacking
) -> tuple[dict[str, Array], list[str]]:
    """Return the encoder's inputs, and the placeholder text of each image.

    The inputs are tiles `pixel_values` float32 (tiles, 3, height, width), and for each row of the images `taps` int64
    (rows, 4) and `weights` float32 (rows, 4): it is the weighted sum of rows of the encoder, counted from 1 over all
    tiles; the row 0 ends a line.

    Raises as `prepared_images`.
    """
    tiles: list[Array] = []
    taps, weights, texts = [], [], []
    for image in images:
        read, first = read_image(image), len(tiles)
        if packing.alone and len(images) > 1:
            parts, rows = [_squared(read, preparation)], whole_rows(first, packing.side)
        else:
            target = nearest_size((read.height, read.width), packing.sizes)
            parts = _split(read, target, preparation)
            grid = (target[0] // preparation.height, target[1] // preparation.width)
            rows = packed_rows(first, grid, (read.height, read.width), packing)
        tiles += [normalized(part, preparation) for part in parts]
        taps.append(rows[0])
        weights.append(rows[1])
        texts.append(preparation.text * len(rows[0]))
    inputs = {"pixel_values": np.stack(tiles), "taps": np.concatenate(taps), "weights": np.concatenate(weights)}
    return inputs, texts


def nearest_size(image: Size, sizes: Sequence[Size]) -> Size:
    """Return the size that shows the most of an image, and wastes the least."""

    def shown(size: Size) -> int:
        scale = min(size[1] / image[1], size[0] / image[0])
        return min(int(image[1] * scale) * int(image[0] * scale), image[0] * image[1])

    return max(sizes, key=lambda size: (shown(size), shown(size) - size[0] * size[1]))


def packed_rows(first: int, grid: Size, image: Size, packing: TilePacking) -> tuple[Array, Array]:
    """Return taps and weights of the rows of an image: those of the whole image, and those of its tiles line by line,
    without padding.

    Args:
        first: number of tiles of earlier images; the whole image precedes the tiles.
        grid: numbers of tiles down and across.
    """
    side = packing.side
    down, across = np.indices((grid[0] * side, grid[1] * side))
    tile = first + 1 + down // side * grid[1] + across // side
    lines = _unpadded(1 + tile * side**2 + down % side * side + across % side, image)
    found, weights = _reduced(lines, packing)
    ends = np.zeros((len(found), 1, 4), np.int64), np.tile(_FIRST, (len(found), 1, 1))
    taps = np.concatenate([found, ends[0]], 1).reshape(-1, 4)
    whole, ones = (each[: side**2] for each in whole_rows(first, side))
    return np.concatenate([whole, taps]), np.concatenate([ones, np.concatenate([weights, ends[1]], 1).reshape(-1, 4)])


def whole_rows(tile: int, side: int) -> tuple[Array, Array]:
    """Return taps and weights of the rows of an image that is one tile, and of the end of a line."""
    taps = np.zeros((side**2 + 1, 4), np.int64)
    taps[: side**2, 0] = 1 + tile * side**2 + np.arange(side**2)
    return taps, np.tile(_FIRST, (side**2 + 1, 1))


def _unpadded(lines: Array, image: Size) -> Array:
    """Cut the lines and columns that show nothing of an image that was scaled to fit."""
    (height, width), (down, across) = image, lines.shape
    if width / height > across / down:
        padding = (down - int(round(height * (across / width), 7))) // 2
        return lines[padding : down - padding]
    padding = (across - int(round(width * (down / height), 7))) // 2
    return lines[:, padding : across - padding]


def _reduced(lines: Array, packing: TilePacking) -> tuple[Array, Array]:
    """Return taps and weights (lines, columns, 4), interpolated if there are more rows than `most` tiles have."""
    height, width = lines.shape
    ratio = 1.0 if packing.most is None else math.sqrt(height * width / (packing.most * packing.side**2))
    if ratio <= 1.1:
        taps = np.stack([lines, *3 * [np.zeros_like(lines)]], -1)
        return taps, np.tile(_FIRST, (height, width, 1))
    (top, bottom, down), (left, right, along) = (_linear(size, max(1, int(size // ratio))) for size in (height, width))
    rows, columns = ((top, 1 - down), (bottom, down)), ((left, 1 - along), (right, along))
    corners = [(row, column) for row in rows for column in columns]
    taps = np.stack([lines[np.ix_(row[0], column[0])] for row, column in corners], -1)
    weights = np.stack([np.outer(row[1], column[1]) for row, column in corners], -1)
    return taps, weights.astype(np.float32)


def _linear(size: int, target: int) -> tuple[Array, Array, Array]:
    """Return lower and upper neighbors, and the weight of the upper one, of linear interpolation to another size."""
    places = np.maximum((np.arange(target) + 0.5) * (size / target) - 0.5, 0)
    lower = np.minimum(places.astype(np.int64), size - 1)
    return lower, np.minimum(lower + 1, size - 1), places - lower


def _split(image: Any, target: Size, preparation: ImagePreparation) -> list[Any]:
    """Return the resized image, and its tiles after it was scaled to fit into `target`, and centered."""
    down, across = target[0] / image.height, target[1] / image.width
    if across < down:
        size = (target[1], min(math.ceil(image.height * across), target[0]))
    else:
        size = (min(math.ceil(image.width * down), target[1]), target[0])
    canvas = padded(image.resize(size, preparation.resample), (target[1], target[0]), _BLACK)
    tile = (preparation.width, preparation.height)
    return [image.resize(tile, preparation.resample), *cut_into_tiles(canvas, tile)]


def _squared(image: Any, preparation: ImagePreparation) -> Any:
    """Return an image in the middle of a square of the mean color, resized to a tile."""
    square = padded(image, (max(image.size), max(image.size)), mean_color(preparation))
    return square.resize((preparation.width, preparation.height), preparation.resample)
