"""`Processing`: how images are converted to model inputs, and model outputs to boxes or classes."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from compiler.errors import OptionError

Task = Literal["detect", "classify", "segment", "read", "embed", "rerank", "speech"]
IMAGE_TASKS = ("detect", "classify", "segment", "read")
Resize = Literal["stretch", "crop", "letterbox", "fit"]
Filter = Literal["bilinear", "bicubic"]
Colors = Literal["rgb", "bgr", "gray"]
Boxes = Literal["yolo", "yolo-objectness", "end-to-end", "detr", "rt-detr"]
Activation = Literal["softmax", "sigmoid", "none"]

MAX_PIXELS = 1 << 26
"""Maximum number of pixels of an image."""
_MAX_SAMPLES = 1 << 24  # maximum samples per second or per run


def _help(text: str) -> dict[str, str]:
    return {"help": text}


@dataclass(frozen=True, kw_only=True)
class Processing:
    """Processing that is part of a module, before and after the network.

    The input of a module that detects, classifies, segments or reads is an RGB image of any size: uint8 (height, width,
    3). It returns `scores` and `classes`. Detectors also return `boxes` in pixels of that image, and, if the network
    has mask prototypes, `masks` as uint8 (boxes, height, width) at the network's input size. Segmentation returns a
    `mask` of the image's size. Modules that embed or rerank texts or detect speech keep their inputs; `Module.predict`
    creates them from texts or a recording. A None field is taken from the model's metadata, or has the task's default.

    Attributes:
        task: "detect" (boxes), "classify", "segment" (a class for each pixel), "read" (the text of a line in an image,
            by CTC), "embed" (converts a text to a vector), "rerank" (orders texts by how well they answer a query) or
            "speech" (finds speech in a recording).
        size: height and width of the network's input image; None for the size of the model's input, which must then be
            fixed.
        resize: "stretch" changes the aspect ratio. "crop" resizes the shorter side to `shortest` and crops the center.
            "letterbox" fits the whole image and fills the rest with `fill`; "fit" does the same with the image at the
            left and top edges instead of the center.
        shortest: pixels of the shorter side before the crop; None for the shorter side of `size`.
        filter: "bilinear" or "bicubic" (a = -0.5), computed as in Pillow: bit for bit as its versions up to 12 do.
        antialias: average over all pixels that a smaller image covers, as Pillow and torchvision do; False interpolates
            between the nearest two on each axis, as OpenCV does (only for "bilinear").
        fill: value from 0 to 255 for the area outside of the image.
        colors: order of the network's input channels; "gray" is one channel, weighted as in Pillow.
        scale: factor for the values 0 to 255.
        mean, std: of each channel: the network's input is (value * scale - mean) / std.
        even_crop: an odd margin around a crop is halved to the even number, as in torchvision; False rounds down, as in
            the transformers library.
        activation: the activation for class scores, if the network does not contain it: "softmax", "sigmoid" or "none".
        top: number of classes that a classifier returns, or maximum number of boxes that a detector returns.
        boxes: format of a detector's boxes. "yolo": (1, 4 + classes, boxes), centers and sizes in pixels of its input,
            and scores (YOLOv8 and later). "yolo-objectness": (1, boxes, 5 + classes), with a score of the box before
            the class scores, which are multiplied by it (YOLOv5 to v7). "end-to-end": (1, boxes, 6), corners, score and
            class (YOLOv10, YOLO26). "detr", "rt-detr": logits (1, boxes, classes), and centers and sizes from 0 to 1 in
            (1, boxes, 4); the last class of "detr" is no object. In the first three formats, mask coefficients may
            follow the scores, with mask prototypes, (1, coefficients, rows, columns), as the second output.
        score: minimum score of a box; for segmentation with one class, minimum score of a pixel of that class.
        overlap: boxes whose intersection over union with a better box of the same class is larger are dropped.
        names: names of the classes, in order; for "read", the characters, with a name for the blank.
        blank: the class that represents no character, for "read".
        tokenizer: a tokenizer.json of the tokenizers library, for "embed" and "rerank"; it becomes part of the module.
        rate, window, context: for "speech", samples per second, samples per run, and samples of the previous run that
            precede them.
    """

    task: Task | None = field(default=None, metadata=_help("detect, classify, segment, read, embed, rerank or speech."))
    size: tuple[int, int] | None = field(default=None, metadata=_help("HEIGHTxWIDTH of the network's input image."))
    resize: Resize | None = field(
        default=None, metadata=_help("How images are resized: stretch, crop, letterbox or fit.")
    )
    shortest: int | None = field(default=None, metadata=_help("Pixels of the shorter side before a crop."))
    filter: Filter | None = field(default=None, metadata=_help("bilinear or bicubic."))
    antialias: bool | None = field(default=None, metadata=_help("Average when shrinking, as Pillow does."))
    fill: int | None = field(default=None, metadata=_help("Value from 0 to 255 around the image."))
    colors: Colors | None = field(default=None, metadata=_help("Channels of the network's input: rgb, bgr or gray."))
    scale: float | None = field(default=None, metadata=_help("Factor for the values 0 to 255."))
    mean: tuple[float, ...] | None = field(default=None, metadata=_help("Mean of each channel, scaled: R,G,B."))
    std: tuple[float, ...] | None = field(default=None, metadata=_help("Standard deviation of each channel: R,G,B."))
    even_crop: bool | None = field(default=None, metadata=_help("Halve odd margins as torchvision does."))
    activation: Activation | None = field(
        default=None, metadata=_help("Activation of scores: softmax, sigmoid or none.")
    )
    top: int | None = field(default=None, metadata=_help("Number of classes, or maximum number of boxes."))
    boxes: Boxes | None = field(default=None, metadata=_help("yolo, yolo-objectness, end-to-end, detr or rt-detr."))
    score: float | None = field(default=None, metadata=_help("Minimum score of a box."))
    overlap: float | None = field(default=None, metadata=_help("Overlap above which the worse box is dropped."))
    names: tuple[str, ...] | None = field(default=None, metadata=_help("A file with one class name per line."))
    blank: int | None = field(default=None, metadata=_help("Class that represents no character, for read."))
    tokenizer: str | None = field(default=None, metadata=_help("A tokenizer.json, for embed and rerank."))
    rate: int | None = field(default=None, metadata=_help("Samples per second, for speech."))
    window: int | None = field(default=None, metadata=_help("Samples per run, for speech."))
    context: int | None = field(default=None, metadata=_help("Samples before them, from the previous run."))

    def __post_init__(self) -> None:
        for name, kind in _CHOICES.items():
            given = getattr(self, name)
            if given is not None and given not in get_args(kind):
                raise OptionError(f"processing: {name}={given!r}", f"use one of {', '.join(get_args(kind))}")
        self._check_numbers()
        if self.filter == "bicubic" and self.antialias is False:
            raise OptionError("processing: bicubic filters always antialias", "leave antialias at None")

    def _check_numbers(self) -> None:
        if self.blank is not None and self.blank < 0:
            raise OptionError(f"processing: blank={self.blank} is not the number of a class")
        sizes = [*(self.size or ()), *(each for each in (self.shortest, self.top) if each is not None)]
        if any(not 1 <= each <= 1 << 16 for each in sizes) or (self.size is not None and len(self.size) != 2):
            raise OptionError("processing: size is (height, width), and sizes lie between 1 and 65536")
        if self.fill is not None and not 0 <= self.fill <= 255:
            raise OptionError(f"processing: fill={self.fill} is not a value from 0 to 255")
        for name in ("score", "overlap"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise OptionError(f"processing: {name}={value} does not lie between 0 and 1")
        if self.std is not None and any(not 0 < each < math.inf for each in self.std):
            raise OptionError(f"processing: std={self.std} must be above 0")
        numbers = [*(self.mean or ()), *(() if self.scale is None else (self.scale,))]
        if not all(map(math.isfinite, numbers)):
            raise OptionError(f"processing: mean={self.mean} and scale={self.scale} must be finite")
        for name, least in (("rate", 1), ("window", 1), ("context", 0)):
            value = getattr(self, name)
            if value is not None and not least <= value <= _MAX_SAMPLES:
                raise OptionError(f"processing: {name}={value} does not lie between {least} and {_MAX_SAMPLES}")

    def over(self, found: Processing | None) -> Processing:
        """These options, with None fields replaced by those of `found`."""
        own = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        other = found or Processing()
        return Processing(**{name: getattr(other, name) if value is None else value for name, value in own.items()})


_CHOICES = {
    "task": Task,
    "resize": Resize,
    "filter": Filter,
    "colors": Colors,
    "activation": Activation,
    "boxes": Boxes,
}

_SHARED = Processing(filter="bilinear", antialias=True, fill=0, colors="rgb", scale=1 / 255, even_crop=True)
_DEFAULTS = {
    "embed": Processing(),
    "rerank": Processing(),
    "speech": Processing(rate=16000, window=512, context=0, score=0.5),
    "classify": Processing(resize="crop", activation="softmax", top=5),
    "segment": Processing(resize="stretch", score=0.5, activation="none"),
    # PaddleOCR's preprocessing of lines, except for its fixed height of lines that are too wide
    "read": Processing(resize="fit", antialias=False, activation="softmax", blank=0),
    # ultralytics' defaults for `predict`
    "detect": Processing(resize="letterbox", antialias=False, fill=114, top=300, score=0.25, overlap=0.7),
}


def completed(processing: Processing) -> Processing:
    """The options with the defaults of their task. Raises OptionError if there is no task."""
    if processing.task is None:
        raise OptionError(
            "processing: the model's metadata states no task",
            f"give task= ({' or '.join(get_args(Task))}) and the fields that it needs: `tensorwright.Processing`",
        )
    return processing.over(_DEFAULTS[processing.task]).over(_SHARED)
