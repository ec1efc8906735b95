"""Results of `Module.predict`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from compiler.errors import OptionError, StorageError
from compiler.support.optional import optional_module

Array = np.ndarray
_COLORS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000", "#000075", "#e6007e")
_LINE_SHARE = 300  # of the longer edge of a picture is one pixel of a line's width


class Detection(NamedTuple):
    """One box: its class's name, its score, and left, top, right and bottom in pixels of the image."""

    name: str
    score: float
    box: tuple[float, float, float, float]


class Class(NamedTuple):
    """One class: its name and score."""

    name: str
    score: float


class Segment(NamedTuple):
    """A part of a recording, in seconds."""

    start: float
    end: float


@dataclass(frozen=True)
class Detections:
    """Boxes in an image, the surest first.

    Attributes:
        boxes: float32 (boxes, 4): left, top, right and bottom in pixels.
        scores: float32 (boxes,).
        classes: int64 (boxes,).
        image: uint8 (height, width, 3).
        names: of all classes; None where the module has none.
    """

    boxes: Array
    scores: Array
    classes: Array
    image: Array = field(repr=False)
    names: tuple[str, ...] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Detection]:
        for box, score, number in zip(self.boxes, self.scores, self.classes, strict=True):
            left, top, right, bottom = map(float, box)
            yield Detection(name_of(self.names, int(number)), float(score), (left, top, right, bottom))

    def picture(self) -> Any:
        """The image with its boxes, as an image of Pillow. Raises MissingDependencyError."""
        pillow = optional_module("PIL.Image", "images", "draws boxes")
        draw_module = optional_module("PIL.ImageDraw", "images", "draws boxes")
        fonts = optional_module("PIL.ImageFont", "images", "draws boxes")
        picture = pillow.fromarray(self.image)
        draw = draw_module.Draw(picture)
        width = max(2, round(max(picture.size) / _LINE_SHARE))
        font = fonts.load_default(max(10, 6 * width))
        # The surest last, so that it lies on top.
        for number, each in reversed(list(zip(self.classes, self, strict=True))):
            color = _COLORS[int(number) % len(_COLORS)]
            draw.rectangle(each.box, outline=color, width=width)
            text = f"{each.name} {each.score:.2f}"
            left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
            x, y = each.box[0], max(0.0, each.box[1] - (bottom - top) - 2 * width)
            draw.rectangle((x, y, x + right - left + 2 * width, y + bottom - top + 2 * width), fill=color)
            draw.text((x + width - left, y + width - top), text, fill="white", font=font)
        return picture

    def save(self, path: str | Path) -> None:
        """Write the image with its boxes; the file's name says its format. Raises StorageError, OptionError."""
        try:
            self.picture().save(path)
        except OSError as error:
            raise StorageError(f"{path} cannot be written: {error}") from error
        except (ValueError, KeyError) as error:
            raise OptionError(f"{path}: {error}", "end the name in .jpg or .png") from error

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        height, width = self.image.shape[:2]
        found = [{**each._asdict(), "class": int(number)} for each, number in zip(self, self.classes, strict=True)]
        return {"width": width, "height": height, "detections": found}

    def _repr_png_(self) -> bytes:
        """The picture in notebooks."""
        import io

        buffer = io.BytesIO()
        self.picture().save(buffer, "PNG")
        return buffer.getvalue()


@dataclass(frozen=True)
class Classes:
    """Classes of an image, the surest first.

    Attributes:
        scores: float32 (classes,).
        classes: int64 (classes,).
        names: of all classes; None where the module has none.
    """

    scores: Array
    classes: Array
    names: tuple[str, ...] | None = field(default=None, repr=False)

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
        segments: from where to where the probability is at least the least score, in order.
        probabilities: of each window, float32 (windows,).
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


Prediction = Detections | Classes | Vector | Speech


def name_of(names: tuple[str, ...] | None, number: int) -> str:
    """The name of a class, or its number."""
    return names[number] if names is not None and 0 <= number < len(names) else str(number)
