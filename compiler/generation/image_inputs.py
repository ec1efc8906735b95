"""Preprocessing of images: tiles or patches for an encoder, and the text that represents them in a prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from compiler.artifact.language_model import ImagePreparation, PatchPreparation
from compiler.errors import InputError
from compiler.support.media_files import Image, read_image
from compiler.support.optional import optional_module

Array = np.ndarray
_LONGEST = 4096


def prepared_images(images: Sequence[Image], preparation: ImagePreparation) -> tuple[Array, list[str]]:
    """Return pixels float32 (tiles, 3, height, width), and the placeholder text of each image.

    Raises:
        InputError: an image cannot be read, or is too large.
        MissingDependencyError: Pillow is not installed.
    """
    tiles: list[Array] = []
    texts = []
    for image in images:
        parts, rows, columns = _tiles(read_image(image), preparation)
        tiles += [normalized(part, preparation) for part in parts]
        texts.append(_text(preparation, len(parts), rows, columns))
    return np.stack(tiles), texts


def prepared_patches(
    images: Sequence[Image], preparation: ImagePreparation, patches: PatchPreparation
) -> tuple[dict[str, Array], list[str]]:
    """Return patches float32 (patches, values) of all images, and the (frames, rows, columns) and text of each image.

    Raises as `prepared_images`.
    """
    found, grids, texts = [], [], []
    for image in images:
        parts, columns = _patch_parts(read_image(image), preparation, patches)
        cells = [_cells(part, preparation, patches) for part in parts]
        found += [each.reshape(-1, each[0, 0].size) for each in cells]
        grids += [(1, *each.shape[:2]) for each in cells]
        texts.append(_patch_text(preparation, patches, grids[-len(cells) :], columns))
    return {"pixel_values": np.concatenate(found), "image_grid_thw": np.array(grids, np.int64)}, texts


def _patch_parts(image: Any, preparation: ImagePreparation, patches: PatchPreparation) -> tuple[list[Any], int]:
    """Return the tiles of an image and the resized image, and the number of columns of tiles, 0 if it is not split."""
    side = preparation.height * patches.merge
    size = _in_area(image.width, image.height, side, patches)
    if preparation.longest is not None:
        size = _within(image.width, image.height, side, preparation.longest)
    whole, tiles = image.resize(size, preparation.resample), patches.tiles
    rounded = math.prod(max(preparation.height, round(each / side) * side) for each in (image.width, image.height))
    if tiles is None or rounded <= tiles.above:
        return [whole], 0
    square = (tiles.side, tiles.side)
    columns, rows = _nearest_aspect(image, square, (tiles.least, tiles.most))
    cut = cut_into_tiles(image.resize((columns * tiles.side, rows * tiles.side), preparation.resample), square)
    return [*cut, *([whole] if tiles.overview else [])], columns


def _cells(image: Any, preparation: ImagePreparation, patches: PatchPreparation) -> Array:
    """Return patches (rows, columns, ...) of an image, of which blocks that make one row are consecutive."""
    side, merge = preparation.height, patches.merge
    values = normalized(image, preparation)
    rows, columns = values.shape[1] // side, values.shape[2] // side
    cells = values.reshape(len(values), rows // merge, merge, side, columns // merge, merge, side)
    cells = cells.transpose(1, 4, 2, 5, 0, 3, 6)[..., None, :, :].repeat(patches.frames, -3)
    return cells.reshape(rows, columns, *cells.shape[4:])


def _patch_text(
    preparation: ImagePreparation, patches: PatchPreparation, grids: list[tuple[int, ...]], tiles_across: int
) -> str:
    """Return the text of an image whose parts have these (frames, rows, columns) of patches."""
    lines = [[preparation.text * (columns // patches.merge)] * (rows // patches.merge) for _, rows, columns in grids]
    parts = [preparation.between.join(each) for each in lines]
    if tiles_across and patches.tiles is not None:
        number = len(parts) - patches.tiles.overview
        places = [(index // tiles_across + 1, index % tiles_across + 1) for index in range(number)]
        mark = patches.tiles.mark
        marks = [mark.replace("{row}", str(row)).replace("{column}", str(column)) for row, column in places]
        parts = [mark + part for mark, part in zip([*marks, preparation.overview], parts, strict=False)]
    return f"{preparation.before}{''.join(parts)}{preparation.after}"


def _in_area(width: int, height: int, side: int, patches: PatchPreparation) -> tuple[int, int]:
    """Return sizes near those of an image that are multiples of `side`, with between `least` and `most` pixels."""
    if patches.fills:
        return _filling(width, height, side, patches.most)
    if patches.enlarges in ("down", "nearest"):
        width, height = _enlarged(width, height, side, patches.enlarges)
    shortest = side if patches.enlarges == "side" else 0
    if not shortest and max(width, height) > 200 * min(width, height):
        raise InputError(f"an image of {width} x {height} pixels is more than 200 times as long as it is wide")
    across, down = (max(shortest, round(each / side) * side) for each in (width, height))
    if across * down > patches.most:
        factor = math.sqrt(width * height / patches.most)
        across, down = (max(side, math.floor(each / factor / side) * side) for each in (width, height))
    elif across * down < patches.least:
        factor = math.sqrt(patches.least / (width * height))
        across, down = (math.ceil(each * factor / side) * side for each in (width, height))
    return across, down


def _enlarged(width: int, height: int, side: int, rounding: str) -> tuple[int, int]:
    """Enlarge sizes of which one is less than `side`."""
    if min(width, height) >= side:
        return width, height
    if rounding == "down":
        factor = max(side / height, side / width)
        return int(width * factor), int(height * factor)
    if height < side:
        width, height = round(width * side / height), side
    return (side, round(height * side / width)) if width < side else (width, height)


def _within(width: int, height: int, side: int, longest: int) -> tuple[int, int]:
    """Return sizes near those of an image, at most `longest`, rounded up to multiples of `side`."""
    ratio = max(1.0, width / longest, height / longest)
    across, down = (-(-math.floor(each / ratio) // side) * side for each in (width, height))
    return max(side, across), max(side, down)


def _filling(width: int, height: int, side: int, most: int) -> tuple[int, int]:
    """Return the largest multiples of `side` with an image's aspect ratio, rounded down, and at most `most` pixels."""
    factor = math.sqrt(most / (width * height))
    across, down = (math.floor(each * factor / side) * side for each in (width, height))
    longest = most // side**2 * side
    if not down:
        return min(width // height * side, longest), side
    return (across, down) if across else (side, min(height // width * side, longest))


def _tiles(image: Any, preparation: ImagePreparation) -> tuple[list[Any], int, int]:
    """Cut an image into tiles; return them with the numbers of rows and columns of tiles, 0 if it is not cut."""
    size, filter_ = (preparation.width, preparation.height), preparation.resample
    if preparation.shortest is not None:
        return [_cropped(image, preparation.shortest, size, filter_)], 0, 0
    if preparation.padded is not None:
        least, factor = preparation.padded, preparation.height / max(image.size)
        width, height = (max(round(each * factor), least) for each in image.size)
        return [padded(image.resize((width, height), filter_), size, mean_color(preparation))], 0, 0
    if preparation.canvas is not None:
        choose = _NEAREST[preparation.grid]
        columns, rows = choose(image, size, preparation.canvas)
        cut = cut_into_tiles(image.resize((columns * size[0], rows * size[1]), filter_), size)
        return (cut if len(cut) == 1 else [*cut, image.resize(size, filter_)]), 0, 0
    if preparation.longest is None:
        return [image.resize(size, filter_)], 0, 0
    image = image.resize(_longest(image.width, image.height, preparation.longest), filter_)
    if not preparation.splits:
        return [image.resize(size, filter_)], 0, 0
    image = image.resize(_whole_tiles(image.width, image.height, preparation.width), filter_)
    rows, columns = image.height // preparation.height, image.width // preparation.width
    if rows == columns == 1:
        return [image], 0, 0
    return [*cut_into_tiles(image, size), image.resize(size, filter_)], rows, columns


def cut_into_tiles(image: Any, size: tuple[int, int]) -> list[Any]:
    """Cut an image into tiles of a size, row by row."""
    width, height = size
    corners = [(x, y) for y in range(0, image.height, height) for x in range(0, image.width, width)]
    return [image.crop((x, y, x + width, y + height)) for x, y in corners]


def _nearest_aspect(image: Any, size: tuple[int, int], tiles: tuple[int, int]) -> tuple[int, int]:
    """Return columns and rows of the grid of tiles whose aspect ratio is closest to an image's."""
    least, most = tiles
    sides = range(1, most + 1)
    grids = [(columns, rows) for columns in sides for rows in sides if least <= columns * rows <= most]
    best, nearest = (1, 1), math.inf
    for columns, rows in sorted(grids, key=math.prod):
        distance = abs(image.width / image.height - columns / rows)
        covered = 0.5 * size[0] * size[1] * columns * rows
        if distance < nearest or (distance == nearest and image.width * image.height > covered):
            best, nearest = (columns, rows), distance
    return best


def _nearest_scale(image: Any, size: tuple[int, int], tiles: tuple[int, int]) -> tuple[int, int]:
    """Return columns and rows of the grid of tiles to which an image is enlarged the least, or reduced the least."""
    sides = range(1, tiles[1] + 1)
    grids = sorted(
        ((columns, rows) for columns in sides for rows in sides if columns * rows <= tiles[1]), key=math.prod
    )

    def scale(grid: tuple[int, int]) -> float:
        return min(grid[0] * size[0] / image.width, grid[1] * size[1] / image.height)

    larger = [grid for grid in grids if scale(grid) >= 1]
    return min(larger, key=scale) if larger else max(grids, key=scale)


_NEAREST = {"aspect": _nearest_aspect, "scale": _nearest_scale}


def _longest(width: int, height: int, longest: int) -> tuple[int, int]:
    """Scale sizes so that the larger one is `longest` and the other one is even."""
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
    """Round sizes up to multiples of a tile's side, the longer side first."""
    ratio = width / height
    if width >= height:
        width = math.ceil(width / side) * side
        return width, max(1, math.ceil(int(width / ratio) / side)) * side
    height = math.ceil(height / side) * side
    return max(1, math.ceil(int(height * ratio) / side)) * side, height


def _cropped(image: Any, shortest: int, size: tuple[int, int], filter_: int) -> Any:
    """Resize the shorter side of an image, and crop its center; pixels beyond the edges are black."""
    width, height = image.size
    if width <= height:
        resized = image.resize((shortest, int(shortest * height / width)), filter_)
    else:
        resized = image.resize((int(shortest * width / height), shortest), filter_)
    left, top = (resized.width - size[0]) // 2, (resized.height - size[1]) // 2
    return resized.crop((left, top, left + size[0], top + size[1]))


def padded(image: Any, size: tuple[int, int], color: tuple[int, ...]) -> Any:
    """Return an image in the middle of one of another width and height."""
    operations = optional_module("PIL.ImageOps", "images", "reads images")
    left, top = (size[0] - image.width) // 2, (size[1] - image.height) // 2
    border = (left, top, size[0] - image.width - left, size[1] - image.height - top)
    return operations.expand(image, border, color)


def mean_color(preparation: ImagePreparation) -> tuple[int, ...]:
    """Return the color, of 0 to 255 per channel, that is normalized to nearly zero."""
    return tuple(int(each * 255) for each in preparation.mean)


def normalized(image: Any, preparation: ImagePreparation) -> Array:
    mean, std = (np.asarray(each, np.float32) for each in (preparation.mean, preparation.std))
    values: Array = (np.asarray(image, np.float32) * np.float32(preparation.scale) - mean) / std
    return np.ascontiguousarray(values.transpose(2, 0, 1))


def _text(preparation: ImagePreparation, parts: int, rows: int, columns: int) -> str:
    """Return the placeholder text of an image with this many parts; framed tiles have row and column markers."""
    image_text, frame = preparation.text * preparation.rows, preparation.frame
    if not frame:
        marks = [preparation.mark.replace("{number}", str(number + 1)) for number in range(parts - 1)]
        rows_of_parts = "".join(f"{mark}{image_text}{preparation.end}" for mark in [*marks, preparation.overview])
        return f"{preparation.before}{rows_of_parts}{preparation.after}"
    tiles = "".join(
        "".join(f"{frame}<row_{row + 1}_col_{column + 1}>{image_text}" for column in range(columns)) + "\n"
        for row in range(rows)
    )
    whole = f"{frame}{preparation.overview}{image_text}{frame}"
    return f"{tiles}\n{whole}" if rows else whole
