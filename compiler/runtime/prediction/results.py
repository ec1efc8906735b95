"""Results of `Module.predict`."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from compiler.errors import OptionError, StorageError
from compiler.support.optional import optional_module
from compiler.support.processing import Processing

Array = np.ndarray
_COLORS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000", "#000075", "#e6007e")
_LINE_SHARE = 300  # a line is one pixel wide per this many pixels of the longer edge


class Detection(NamedTuple):
    """One box: its class's name, its score, and left, top, right and bottom in pixels of the image."""

    name: str
    score: float
    box: tuple[float, float, float, float]


class Class(NamedTuple):
    """One class: its name and score."""

    name: str
    score: float


class Area(NamedTuple):
    """A class's fraction of an image's pixels."""

    name: str
    share: float


class Ranked(NamedTuple):
    """A text, its index in the given list, and its score."""

    place: int
    score: float
    text: str


class Segment(NamedTuple):
    """A part of a recording, in seconds."""

    start: float
    end: float


@dataclass(frozen=True)
class Detections:
    """Boxes in an image, by descending score.

    Attributes:
        boxes: float32 (boxes, 4): left, top, right and bottom in pixels.
        scores: float32 (boxes,).
        classes: int64 (boxes,).
        image: uint8 (height, width, 3).
        names: names of all classes; None if the module has none.
        masks: 1 for pixels of a box's object, uint8 (boxes, rows, columns), of the whole image, in the net's
            resolution; None if the net returns none. `mask` scales one to the image's size.
    """

    boxes: Array
    scores: Array
    classes: Array
    image: Array = field(repr=False)
    names: tuple[str, ...] | None = field(default=None, repr=False)
    masks: Array | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        return f"Detections({_listed(self)})"

    def __len__(self) -> int:
        return len(self.scores)

    def mask(self, index: int) -> Array:
        """The pixels of the object of one box: bool (height, width). Raises OptionError if there are no masks."""
        if self.masks is None:
            raise OptionError("the net returns no masks")
        mask, sizes = self.masks[index], self.image.shape[:2]
        rows, columns = (np.arange(size) * count // size for size, count in zip(sizes, mask.shape, strict=True))
        return mask[np.ix_(rows, columns)] > 0

    def __iter__(self) -> Iterator[Detection]:
        for box, score, number in zip(self.boxes, self.scores, self.classes, strict=True):
            left, top, right, bottom = map(float, box)
            yield Detection(name_of(self.names, int(number)), float(score), (left, top, right, bottom))

    def picture(self) -> Any:
        """The image with its boxes and masks, as a Pillow image. Raises MissingDependencyError."""
        pillow = optional_module("PIL.Image", "images", "draws boxes")
        draw_module = optional_module("PIL.ImageDraw", "images", "draws boxes")
        fonts = optional_module("PIL.ImageFont", "images", "draws boxes")
        picture = pillow.fromarray(self._masked())
        draw = draw_module.Draw(picture)
        width = max(2, round(max(picture.size) / _LINE_SHARE))
        font = fonts.load_default(max(10, 6 * width))
        # Highest score last, so that it is drawn on top.
        for number, detection in reversed(list(zip(self.classes, self, strict=True))):
            color = _COLORS[int(number) % len(_COLORS)]
            draw.rectangle(detection.box, outline=color, width=width)
            text = f"{detection.name} {detection.score:.2f}"
            left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
            x, y = detection.box[0], max(0.0, detection.box[1] - (bottom - top) - 2 * width)
            draw.rectangle((x, y, x + right - left + 2 * width, y + bottom - top + 2 * width), fill=color)
            draw.text((x + width - left, y + width - top), text, fill="white", font=font)
        return picture

    def _masked(self) -> Array:
        """The image with a color over each mask."""
        image = self.image.copy()
        for index in reversed(range(0 if self.masks is None else len(self))):
            mask, color = self.mask(index), _rgb(int(self.classes[index]))
            image[mask] = (image[mask].astype(np.int64) + color) // 2
        return image

    def save(self, path: str | Path) -> None:
        """Write the image with its boxes, in the format given by the file's name. Raises StorageError, OptionError."""
        _save(self.picture(), path)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        height, width = self.image.shape[:2]
        detections = [{**each._asdict(), "class": int(number)} for each, number in zip(self, self.classes, strict=True)]
        for each, mask in zip(detections, () if self.masks is None else self.masks, strict=False):
            each["mask"] = _encoded(mask * np.uint8(255))
        return {"width": width, "height": height, "detections": detections}

    def _repr_png_(self) -> bytes:
        """The picture in notebooks."""
        return _png(self.picture())


@dataclass(frozen=True)
class Segmentation:
    """The class of each pixel of an image.

    Attributes:
        mask: uint8 (height, width), numbers of classes.
        image: uint8 (height, width, 3).
        scores: scores of the class, float32 (height, width), if the model has only one; otherwise None.
        names: names of all classes; None if the module has none.
    """

    mask: Array = field(repr=False)
    image: Array = field(repr=False)
    scores: Array | None = field(default=None, repr=False)
    names: tuple[str, ...] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(np.unique(self.mask))

    def __iter__(self) -> Iterator[Area]:
        counts = np.bincount(self.mask.reshape(-1), minlength=1)
        for number in np.argsort(-counts, kind="stable"):
            if counts[number]:
                yield Area(name_of(self.names, int(number)), float(counts[number] / self.mask.size))

    def picture(self) -> Any:
        """The image with a color over each class except the first, as a Pillow image. Raises MissingDependencyError."""
        pillow = optional_module("PIL.Image", "images", "draws masks")
        palette = np.array([_rgb(number) for number in range(len(_COLORS))])
        colors = palette[(self.mask.astype(np.int64) - 1) % len(palette)]
        mixed = (self.image.astype(np.int64) + colors) // 2
        return pillow.fromarray(np.where(self.mask[:, :, None] > 0, mixed, self.image).astype(np.uint8))

    def cutout(self) -> Any:
        """The masked part of the image on a transparent background (with scores as alpha, if any), as an RGBA Pillow
        image.
        Raises MissingDependencyError."""
        pillow = optional_module("PIL.Image", "images", "cuts out")
        opaque = (self.mask > 0) * 255.0 if self.scores is None else np.clip(self.scores, 0, 1) * 255
        return pillow.fromarray(np.dstack([self.image, np.rint(opaque).astype(np.uint8)]))

    def save(self, path: str | Path) -> None:
        """Write the image with its mask, in the format given by the file's name. Raises StorageError, OptionError."""
        _save(self.picture(), path)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; the mask as a base64 PNG file."""
        height, width = self.mask.shape
        classes = [each._asdict() for each in self]
        return {"width": width, "height": height, "classes": classes, "mask": _encoded(self.mask)}

    def _repr_png_(self) -> bytes:
        """The picture in notebooks."""
        return _png(self.picture())


@dataclass(frozen=True)
class Text:
    """The text of a line.

    Attributes:
        text: its characters are the names of the classes.
        scores: score of each character, float32 (characters,).
    """

    text: str
    scores: Array = field(repr=False)

    def __str__(self) -> str:
        return self.text

    @property
    def score(self) -> float:
        """Mean score of the characters; 0 if there are none."""
        return float(self.scores.mean()) if len(self.scores) else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"text": self.text, "score": self.score}


@dataclass(frozen=True)
class Ranking:
    """Texts by descending score.

    Attributes:
        texts: the given texts.
        scores: score of each text, float32 (texts,).
    """

    texts: tuple[str, ...]
    scores: Array

    def __len__(self) -> int:
        return len(self.texts)

    def __iter__(self) -> Iterator[Ranked]:
        for index in np.argsort(-self.scores, kind="stable"):
            yield Ranked(int(index), float(self.scores[index]), self.texts[index])

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"results": [{"index": each.place, "score": each.score, "text": each.text} for each in self]}


@dataclass(frozen=True)
class Classes:
    """Classes of an image, by descending score.

    Attributes:
        scores: float32 (classes,).
        classes: int64 (classes,).
        names: names of all classes; None if the module has none.
    """

    scores: Array
    classes: Array
    names: tuple[str, ...] | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        return f"Classes({_listed(self)})"

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Class]:
        for number, score in zip(self.classes, self.scores, strict=True):
            yield Class(name_of(self.names, int(number)), float(score))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        found = [{**each._asdict(), "class": int(number)} for each, number in zip(self, self.classes, strict=True)]
        return {"classes": found}


@dataclass(frozen=True)
class Vector:
    """The vector of a text, of length 1: float32 (dimensions,)."""

    values: Array

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"vector": self.values.tolist()}


@dataclass(frozen=True)
class Speech:
    """Segments of speech in a recording.

    Attributes:
        segments: intervals with a probability of at least the minimum score, in order.
        probabilities: probability of each window, float32 (windows,).
        window: seconds of a window.
    """

    segments: tuple[Segment, ...]
    probabilities: Array = field(repr=False)
    window: float

    def __len__(self) -> int:
        return len(self.segments)

    def __iter__(self) -> Iterator[Segment]:
        return iter(self.segments)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"segments": [each._asdict() for each in self.segments], "window": self.window}


Prediction = Detections | Segmentation | Classes | Text | Vector | Speech
for _public in (Detections, Segmentation, Classes, Text, Ranking, Vector, Speech):
    _public.__module__ = "tensorwright"  # public import path, for reprs, tracebacks and pickles


def _listed(found: Iterable[Detection] | Iterable[Class]) -> str:
    """Names and scores, for `repr`."""
    return ", ".join(f"{each.name} {each.score:.2f}" for each in found) or "nothing found"


def name_of(names: tuple[str, ...] | None, number: int) -> str:
    """The name of a class, or its number."""
    return names[number] if names is not None and 0 <= number < len(names) else str(number)


def of_image(
    processing: Processing, outputs: Mapping[str, Array], image: Array
) -> Detections | Segmentation | Classes | Text:
    """Convert the outputs of a module with image processing to predictions.

    Args:
        processing: the module's processing.
        image: the image that it was run on, uint8 (height, width, 3).
    """
    names = processing.names
    if processing.task == "classify":
        return Classes(outputs["scores"], outputs["classes"], names)
    if processing.task == "segment":
        return Segmentation(outputs["mask"], image, outputs.get("scores"), names)
    if processing.task == "read":
        text = "".join(name_of(names, int(each)) for each in outputs["classes"])
        return Text(text, outputs["scores"])
    masks = outputs.get("masks")
    if masks is not None:
        rows, columns = _image_in_frame(processing, image)
        masks = masks[:, rows, columns]
    return Detections(outputs["boxes"], outputs["scores"], outputs["classes"], image, names, masks)


def _image_in_frame(processing: Processing, image: Array) -> tuple[slice, slice]:
    """Rows and columns of the image within the net's input frame, as placed by
    `compiler.frontends.processing.geometry`."""
    assert processing.size is not None
    if processing.resize == "stretch":
        return slice(None), slice(None)
    gain = min(frame / size for frame, size in zip(processing.size, image.shape[:2], strict=False))
    lengths = [max(round(size * gain), 1) for size in image.shape[:2]]
    margins = [(frame - length) // 2 for frame, length in zip(processing.size, lengths, strict=True)]
    starts = margins if processing.resize == "letterbox" else [0, 0]
    rows, columns = (slice(start, start + length) for start, length in zip(starts, lengths, strict=True))
    return rows, columns


def _save(picture: Any, path: str | Path) -> None:
    try:
        picture.save(path)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error}") from error
    except (ValueError, KeyError) as error:
        raise OptionError(f"{path}: {error}", "end the name in .jpg or .png") from error


def _rgb(number: int) -> Array:
    """The color of a class."""
    color = _COLORS[number % len(_COLORS)]
    return np.array([int(color[at : at + 2], 16) for at in (1, 3, 5)])


def _encoded(mask: Array) -> str:
    """A mask uint8 (rows, columns) as a base64 PNG file."""
    pillow = optional_module("PIL.Image", "images", "writes masks")
    return base64.b64encode(_png(pillow.fromarray(mask))).decode()


def _png(picture: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
