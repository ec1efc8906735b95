"""Images as the encoders of vision-language models read them, and what stands for them in a prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from compiler.artifact.language_model import ImagePreparation
from compiler.errors import InputError
from compiler.support.media_files import Image, read_image

Array = np.ndarray
_LONGEST = 4096


def prepared_images(images: Sequence[Image], preparation: ImagePreparation) -> tuple[Array, list[str]]:
    """Pixels float32 (tiles, 3, height, width), and for each image the text that stands for it.

    Raises:
        InputError: an image cannot be read, or is too large.
        MissingDependencyError: Pillow is not installed.
    """
    tiles: list[Array] = []
    texts = []
    for image in images:
        parts, rows, columns = _tiles(read_image(image), preparation)
        tiles += [_normalized(part, preparation) for part in parts]
        texts.append(_text(preparation, rows, columns))
    return np.stack(tiles), texts


def with_images(text: str, texts: Sequence[str], preparation: ImagePreparation) -> str:
    """A prompt with the texts of images in their places. Raises InputError where it has other numbers of places."""
    parts = text.split(preparation.text)
    if len(parts) != len(texts) + 1:
        raise InputError(
            f"the prompt has {len(parts) - 1} places for images ({preparation.text}), and {len(texts)} images are given"
        )
    return "".join(part + own for part, own in zip(parts, [*texts, ""], strict=True))


def _tiles(image: Any, preparation: ImagePreparation) -> tuple[list[Any], int, int]:
    """Tiles of an image for the encoder, and the numbers of rows and columns of tiles; 0 where it is not cut."""
    size, filter_ = (preparation.width, preparation.height), preparation.resample
    if preparation.shortest is not None:
        return [_cropped(image, preparation.shortest, size, filter_)], 0, 0
    if preparation.longest is None:
        return [image.resize(size, filter_)], 0, 0
    image = image.resize(_longest(image.width, image.height, preparation.longest), filter_)
    if not preparation.splits:
        return [image.resize(size, filter_)], 0, 0
    image = image.resize(_whole_tiles(image.width, image.height, preparation.width), filter_)
    rows, columns = image.height // preparation.height, image.width // preparation.width
    if rows == columns == 1:
        return [image], 0, 0
    boxes = [
        (x * size[0], y * size[1], (x + 1) * size[0], (y + 1) * size[1]) for y in range(rows) for x in range(columns)
    ]
    return [*(image.crop(box) for box in boxes), image.resize(size, filter_)], rows, columns


def _longest(width: int, height: int, longest: int) -> tuple[int, int]:
    """Sizes whose larger is `longest`, and the other one even."""
    ratio = width / height
    if width >= height:
        width, height = longest, int(longest / ratio)
        height += height % 2
    else:
        width, height = int(longest * ratio), longest
        width += width % 2
    if max(width, height) > _LONGEST:
        ratio = width / height
        width, height = (_LONGEST, int(_LONGEST / ratio)) if width >= height else (int(_LONGEST * ratio), _LONGEST)
    return max(width, 1), max(height, 1)


def _whole_tiles(width: int, height: int, side: int) -> tuple[int, int]:
    """The next multiples of the side of a tile, by the longer side first."""
    ratio = width / height
    if width >= height:
        width = math.ceil(width / side) * side
        return width, max(1, math.ceil(int(width / ratio) / side)) * side
    height = math.ceil(height / side) * side
    return max(1, math.ceil(int(height * ratio) / side)) * side, height


def _cropped(image: Any, shortest: int, size: tuple[int, int], filter_: int) -> Any:
    """The middle of an image whose shorter side has a length; what is beyond its edges is black."""
    width, height = image.size
    if width <= height:
        resized = image.resize((shortest, int(shortest * height / width)), filter_)
    else:
        resized = image.resize((int(shortest * width / height), shortest), filter_)
    left, top = (resized.width - size[0]) // 2, (resized.height - size[1]) // 2
    return resized.crop((left, top, left + size[0], top + size[1]))


def _normalized(image: Any, preparation: ImagePreparation) -> Array:
    mean, std = (np.asarray(each, np.float32) for each in (preparation.mean, preparation.std))
    values: Array = (np.asarray(image, np.float32) * np.float32(preparation.scale) - mean) / std
    return np.ascontiguousarray(values.transpose(2, 0, 1))


def _text(preparation: ImagePreparation, rows: int, columns: int) -> str:
    """Placeholder text of an image of this many tiles."""
    own, frame = preparation.text * preparation.rows, preparation.frame
    if not frame:
        return own
    tiles = "".join(
        "".join(f"{frame}<row_{row + 1}_col_{column + 1}>{own}" for column in range(columns)) + "\n"
        for row in range(rows)
    )
    whole = f"{frame}{preparation.overview}{own}{frame}"
    return f"{tiles}\n{whole}" if rows else whole
