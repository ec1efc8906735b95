"""Media inputs of a model's encoder: preprocessed images for vision-language models, log-mel spectrograms for models
like Whisper, or arrays without preprocessing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from compiler.artifact.language_model import (
    AudioPreparation,
    ImagePreparation,
    LanguageModelDescription,
    PatchPreparation,
)
from compiler.errors import InputError
from compiler.support.media_files import Audio, Image, read_audio, read_image


@dataclass(frozen=True, kw_only=True)
class Media:
    """Media of a prompt.

    Attributes:
        images: in the order of their markers in the prompt.
        audio: speech; models like Whisper read only its first window.
        inputs: the encoder's inputs by name, instead of images and audio.
    """

    images: Sequence[Image] = ()
    audio: Audio | None = None
    inputs: Mapping[str, Any] | None = None

    def prepared(
        self, description: LanguageModelDescription, name: str, rank: int
    ) -> tuple[Mapping[str, Any] | None, list[str], str]:
        """Return the encoder's inputs, the placeholder text of each image or of the sound, and the marker to replace.

        Args:
            name, rank: name and rank of the encoder's first input.

        Raises:
            InputError: the model does not read such media, or they cannot be read.
            MissingDependencyError: Pillow is not installed.
        """
        if sum((bool(self.images), self.audio is not None, self.inputs is not None)) > 1:
            raise InputError("give images, audio or the encoder's inputs, not several of them")
        if self.images:
            return self._prepared_images(description, name, rank)
        if self.audio is not None:
            audio = description.audio
            if audio is None:
                raise InputError(_no("audio", description), "give its inputs as arrays: inputs={...}")
            samples = read_audio(self.audio, audio.rate)
            if audio.text:
                return *prepared_sound(samples, audio, name), audio.text
            return {name: log_mel(samples[: audio.samples], audio)}, [], ""
        return self.inputs, [], ""

    def _prepared_images(
        self, description: LanguageModelDescription, name: str, rank: int
    ) -> tuple[Mapping[str, Any], list[str], str]:
        images = description.images
        if images is None:
            raise InputError(_no("images", description), "give its inputs as arrays: inputs={...}")
        marker = images.place or images.text
        if images.patches is not None:
            return *prepared_patches(self.images, images, images.patches), marker
        pixels, texts = prepared_images(self.images, images)
        return {name: pixels[None] if rank == 5 else pixels}, texts, marker


def _no(what: str, description: LanguageModelDescription) -> str:
    return f"the model ({description.architecture}) does not say how it reads {what}"


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
        tiles += [_normalized(part, preparation) for part in parts]
        texts.append(_text(preparation, len(parts), rows, columns))
    return np.stack(tiles), texts


def prepared_patches(
    images: Sequence[Image], preparation: ImagePreparation, patches: PatchPreparation
) -> tuple[dict[str, Array], list[str]]:
    """Return patches float32 (patches, values) of all images, and the (frames, rows, columns) and text of each image.

    Raises as `prepared_images`.
    """
    side, merge = preparation.height, patches.merge
    found, grids, texts = [], [], []
    for image in images:
        read = read_image(image)
        size = _in_area(read.width, read.height, side * merge, patches)
        if preparation.longest is not None:
            size = _within(read.width, read.height, side * merge, preparation.longest)
        values = _normalized(read.resize(size, preparation.resample), preparation)
        columns, rows = size[0] // side, size[1] // side
        cells = values.reshape(len(values), rows // merge, merge, side, columns // merge, merge, side)
        cells = cells.transpose(1, 4, 2, 5, 0, 3, 6)[..., None, :, :].repeat(patches.frames, -3)
        found.append(cells.reshape(rows * columns, -1))
        grids.append((1, rows, columns))
        lines = [preparation.text * (columns // merge)] * (rows // merge)
        texts.append(f"{preparation.before}{preparation.between.join(lines)}{preparation.after}")
    return {"pixel_values": np.concatenate(found), "image_grid_thw": np.array(grids, np.int64)}, texts


def _in_area(width: int, height: int, side: int, patches: PatchPreparation) -> tuple[int, int]:
    """Return sizes near those of an image that are multiples of `side`, with between `least` and `most` pixels."""
    if patches.fills:
        return _filling(width, height, side, patches.most)
    if max(width, height) > 200 * min(width, height):
        raise InputError(f"an image of {width} x {height} pixels is more than 200 times as long as it is wide")
    across, down = (round(each / side) * side for each in (width, height))
    if across * down > patches.most:
        factor = math.sqrt(width * height / patches.most)
        across, down = (max(side, math.floor(each / factor / side) * side) for each in (width, height))
    elif across * down < patches.least:
        factor = math.sqrt(patches.least / (width * height))
        across, down = (math.ceil(each * factor / side) * side for each in (width, height))
    return across, down


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


def with_media(text: str, texts: Sequence[str], marker: str) -> str:
    """Replace the markers in a prompt by texts of images or of a sound. Raises InputError if their numbers differ."""
    parts = text.split(marker)
    if len(parts) != len(texts) + 1:
        raise InputError(
            f"the prompt has {len(parts) - 1} markers of images or sounds ({marker}), and {len(texts)} are given"
        )
    return "".join(part + own for part, own in zip(parts, [*texts, ""], strict=True))


def _tiles(image: Any, preparation: ImagePreparation) -> tuple[list[Any], int, int]:
    """Cut an image into tiles; return them with the numbers of rows and columns of tiles, 0 if it is not cut."""
    size, filter_ = (preparation.width, preparation.height), preparation.resample
    if preparation.shortest is not None:
        return [_cropped(image, preparation.shortest, size, filter_)], 0, 0
    if preparation.canvas is not None:
        return _on_canvas(image, size, preparation.canvas, filter_), 0, 0
    if preparation.longest is None:
        return [image.resize(size, filter_)], 0, 0
    image = image.resize(_longest(image.width, image.height, preparation.longest), filter_)
    if not preparation.splits:
        return [image.resize(size, filter_)], 0, 0
    image = image.resize(_whole_tiles(image.width, image.height, preparation.width), filter_)
    rows, columns = image.height // preparation.height, image.width // preparation.width
    if rows == columns == 1:
        return [image], 0, 0
    return [*_cut(image, size), image.resize(size, filter_)], rows, columns


def _cut(image: Any, size: tuple[int, int]) -> list[Any]:
    """Cut an image into tiles of a size, row by row."""
    width, height = size
    corners = [(x, y) for y in range(0, image.height, height) for x in range(0, image.width, width)]
    return [image.crop((x, y, x + width, y + height)) for x, y in corners]


def _on_canvas(image: Any, size: tuple[int, int], tiles: tuple[int, int], filter_: int) -> list[Any]:
    """Cut an image into the grid, with a number of tiles within `tiles`, whose aspect ratio is closest; and append the
    image itself."""
    least, most = tiles
    sides = range(1, most + 1)
    grids = [(columns, rows) for columns in sides for rows in sides if least <= columns * rows <= most]
    best, nearest = (1, 1), math.inf
    for columns, rows in sorted(grids, key=math.prod):
        distance = abs(image.width / image.height - columns / rows)
        covered = 0.5 * size[0] * size[1] * columns * rows
        if distance < nearest or (distance == nearest and image.width * image.height > covered):
            best, nearest = (columns, rows), distance
    cut = _cut(image.resize((best[0] * size[0], best[1] * size[1]), filter_), size)
    return cut if len(cut) == 1 else [*cut, image.resize(size, filter_)]


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


def _normalized(image: Any, preparation: ImagePreparation) -> Array:
    mean, std = (np.asarray(each, np.float32) for each in (preparation.mean, preparation.std))
    values: Array = (np.asarray(image, np.float32) * np.float32(preparation.scale) - mean) / std
    return np.ascontiguousarray(values.transpose(2, 0, 1))


def _text(preparation: ImagePreparation, parts: int, rows: int, columns: int) -> str:
    """Return the placeholder text of an image with this many parts; framed tiles have row and column markers."""
    image_text, frame = preparation.text * preparation.rows, preparation.frame
    if not frame:
        return f"{preparation.before}{image_text * parts}{preparation.after}"
    tiles = "".join(
        "".join(f"{frame}<row_{row + 1}_col_{column + 1}>{image_text}" for column in range(columns)) + "\n"
        for row in range(rows)
    )
    whole = f"{frame}{preparation.overview}{image_text}{frame}"
    return f"{tiles}\n{whole}" if rows else whole


_HIGHEST = 8000.0  # Hz of the last band
_LINEAR = 1000.0  # Hz up to which the mel scale is linear
_STEP = math.log(6.4) / 27


def windows(samples: Array, preparation: AudioPreparation) -> list[Array]:
    """Yield the windows of speech that a model reads at once."""
    return [samples[start : start + preparation.samples] for start in range(0, len(samples), preparation.samples)]


def prepared_sound(samples: Array, preparation: AudioPreparation, name: str) -> tuple[dict[str, Array], list[str]]:
    """Return inputs of an encoder whose feature rows replace tokens, by the name of the spectrograms, and the text of a
    sound. Raises InputError for sounds that are too long for a masked encoder."""
    parts = max(1, -(-len(samples) // preparation.samples))
    if not preparation.masked:
        features = log_mel(samples, preparation, parts)
        return {name: features}, [preparation.text * preparation.rows * parts]
    if parts > 1:
        seconds = preparation.samples / preparation.rate
        raise InputError(f"the model reads at most {seconds:g} s of sound at once", "give a shorter part")
    frames = -(-len(samples) // preparation.hop)
    mask = (np.arange(preparation.samples // preparation.hop) < frames).astype(np.int64)[None]
    rows = ((frames - 1) // 2 + 1 - 2) // 2 + 1  # two steps of a stride of two
    if rows < 1:
        raise InputError("the sound is too short", f"give at least {4 * preparation.hop} samples")
    return {name: log_mel(samples, preparation), "feature_attention_mask": mask}, [preparation.text * rows]


def log_mel(samples: Array, preparation: AudioPreparation, parts: int = 1) -> Array:
    """Return the spectrogram of at most `parts` times `preparation.samples` samples: float32 (parts, mels, frames)."""
    window, hop, length = preparation.window, preparation.hop, parts * preparation.samples
    padded = np.zeros(length, np.float64)
    padded[: len(samples)] = samples
    padded = np.pad(padded, window // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop][: length // hop]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    power = abs(np.fft.rfft(frames * hann, axis=-1)) ** 2
    levels = np.log10(np.maximum(power @ _bands(window, preparation.mels, preparation.rate), 1e-10))
    levels = (np.maximum(levels, levels.max() - 8) + 4) / 4
    levels = levels.reshape(parts, -1, preparation.mels).transpose(0, 2, 1)
    return np.ascontiguousarray(levels, np.float32)


@cache
def _bands(window: int, mels: int, rate: int) -> Array:
    """Return triangular filters of equal area, evenly spaced in mels: (frequencies, mels)."""
    frequencies = np.linspace(0, rate / 2, window // 2 + 1)
    edges = _hertz(np.linspace(0, _mel(_HIGHEST), mels + 2))
    rising = (frequencies[:, None] - edges[:-2]) / np.diff(edges)[:-1]
    falling = (edges[2:] - frequencies[:, None]) / np.diff(edges)[1:]
    found: Array = np.maximum(0, np.minimum(rising, falling)) * (2 / (edges[2:] - edges[:-2]))
    return found


def _mel(frequency: float) -> float:
    linear = 3 * frequency / 200
    return linear if frequency < _LINEAR else 15 + math.log(frequency / _LINEAR) / _STEP


def _hertz(mels: Array) -> Array:
    return np.where(mels < 15, 200 * mels / 3, _LINEAR * np.exp(_STEP * (np.maximum(mels, 15) - 15)))
