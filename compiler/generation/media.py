"""Media inputs of a model's encoder: images as the encoders of vision-language models read them, speech as models like
Whisper read it (log-mel spectrograms), or arrays as they are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from compiler.artifact.language_model import AudioPreparation, ImagePreparation, LanguageModelDescription
from compiler.errors import InputError
from compiler.support.media_files import Audio, Image, read_audio, read_image


@dataclass(frozen=True, kw_only=True)
class Media:
    """Media that a prompt refers to.

    Attributes:
        images: in the order of their places in the prompt.
        audio: speech, of which the model reads the first part that it reads at once.
        inputs: the encoder's inputs by name, in place of both.
    """

    images: Sequence[Image] = ()
    audio: Audio | None = None
    inputs: Mapping[str, Any] | None = None

    def prepared(
        self, description: LanguageModelDescription, name: str, rank: int
    ) -> tuple[Mapping[str, Any] | None, list[str]]:
        """The encoder's inputs, and for each image the text that stands for it.

        Args:
            name, rank: of the encoder's first input.

        Raises:
            InputError: the model does not read such things, or they cannot be read.
            MissingDependencyError: Pillow is not installed.
        """
        if sum((bool(self.images), self.audio is not None, self.inputs is not None)) > 1:
            raise InputError("give images, audio or the encoder's inputs, not several of them")
        if self.images:
            if description.images is None:
                raise InputError(_no("images", description), "give its inputs as arrays: inputs={...}")
            pixels, texts = prepared_images(self.images, description.images)
            return {name: pixels[None] if rank == 5 else pixels}, texts
        if self.audio is not None:
            if description.audio is None:
                raise InputError(_no("audio", description), "give its inputs as arrays: inputs={...}")
            samples = read_audio(self.audio, description.audio.rate)
            return {name: log_mel(samples[: description.audio.samples], description.audio)}, []
        return self.inputs, []


def _no(what: str, description: LanguageModelDescription) -> str:
    return f"the model ({description.architecture}) does not say how it reads {what}"


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
    place = preparation.place or preparation.text
    parts = text.split(place)
    if len(parts) != len(texts) + 1:
        raise InputError(
            f"the prompt has {len(parts) - 1} places for images ({place}), and {len(texts)} images are given"
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
        return f"{preparation.before}{own}{preparation.after}"
    tiles = "".join(
        "".join(f"{frame}<row_{row + 1}_col_{column + 1}>{own}" for column in range(columns)) + "\n"
        for row in range(rows)
    )
    whole = f"{frame}{preparation.overview}{own}{frame}"
    return f"{tiles}\n{whole}" if rows else whole


_HIGHEST = 8000.0  # Hz of the last band
_LINEAR = 1000.0  # Hz up to which the scale of mels is linear
_STEP = math.log(6.4) / 27


def windows(samples: Array, preparation: AudioPreparation) -> list[Array]:
    """The parts of speech that a model reads at once, one after another."""
    return [samples[start : start + preparation.samples] for start in range(0, len(samples), preparation.samples)]


def log_mel(samples: Array, preparation: AudioPreparation) -> Array:
    """The spectrogram of at most `preparation.samples` samples: float32 (1, mels, frames)."""
    window, hop = preparation.window, preparation.hop
    padded = np.zeros(preparation.samples, np.float64)
    padded[: len(samples)] = samples
    padded = np.pad(padded, window // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop][: preparation.samples // hop]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    power = abs(np.fft.rfft(frames * hann, axis=-1)) ** 2
    levels = np.log10(np.maximum(power @ _bands(window, preparation.mels, preparation.rate), 1e-10))
    levels = (np.maximum(levels, levels.max() - 8) + 4) / 4
    return np.ascontiguousarray(levels.T[None], np.float32)


@cache
def _bands(window: int, mels: int, rate: int) -> Array:
    """Triangles of equal area over the frequencies, evenly spaced in mels: (frequencies, mels)."""
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
