"""`predict`: runs a module on a picture, a text or a recording."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from compiler.artifact.processing import PROCESSING_ASSET, decoded
from compiler.errors import InputError, OptionError
from compiler.runtime.prediction.embedder import TextEmbedder
from compiler.runtime.prediction.results import Classes, Detections, Prediction, Segment, Speech, Vector
from compiler.support.audio_files import read_audio
from compiler.support.image_files import pixels_of
from compiler.support.processing import Processing

if TYPE_CHECKING:
    from compiler.runtime.module import Module

Array = np.ndarray
Given: TypeAlias = str | Path | bytes | Array
"""A picture or a recording, by the path or the bytes of its file or as an array; or a text."""


def processing_of(module: Module) -> Processing:
    """The processing that a module was compiled with. Raises OptionError where there is none, and ArtifactError."""
    asset = module.artifact.assets.get(PROCESSING_ASSET)
    if asset is None:
        raise OptionError(
            "the module was compiled without processing",
            'compile it with processing="auto", or tensorwright.Processing(task=...); or run it on tensors: run(...)',
        )
    return decoded(asset.tobytes())


def predict(module: Module, given: Given) -> Prediction:
    """See `Module.predict`."""
    processing = processing_of(module)
    if processing.task == "embed":
        if not isinstance(given, str):
            raise InputError("the module embeds texts", "give a string")
        return Vector(_embedder(module).embed([given])[0])
    if processing.task == "speech":
        return _speech(module, given, processing)
    others = [each.name for each in module.inputs if each.name != "image"]
    if others:
        raise InputError(
            f"the module takes more than an image: {', '.join(others)}",
            "run it: run({...}), or make these inputs constants when compiling",
        )
    image = pixels_of(given)
    outputs = module.run({"image": image})
    if processing.task == "classify":
        return Classes(outputs["scores"], outputs["classes"], processing.names)
    return Detections(outputs["boxes"], outputs["scores"], outputs["classes"], image, processing.names)


@lru_cache(maxsize=8)
def _embedder(module: Module) -> TextEmbedder:
    return TextEmbedder(module)


def _speech(module: Module, given: Given, processing: Processing) -> Speech:
    """Windows of a recording, one after another; the rest of the last one is silence."""
    rate, window, context = (int(each or 0) for each in (processing.rate, processing.window, processing.context))
    samples = read_audio(given, rate)
    count = -(-len(samples) // window)
    padded = np.zeros(context + count * window, np.float32)
    padded[context : context + len(samples)] = samples
    run = _stream(module, context + window)
    probabilities = np.array(
        [run(padded[start : start + context + window]) for start in range(0, count * window, window)], np.float32
    )
    active = np.concatenate([[False], probabilities >= (processing.score or 0.5), [False]])
    edges = np.flatnonzero(np.diff(active.astype(np.int8))) * window / rate
    segments = [Segment(float(start), float(end)) for start, end in edges.reshape(-1, 2)]
    return Speech(tuple(segments), probabilities, window / rate)


def _stream(module: Module, length: int) -> Any:
    """A function of the samples of a window that returns the probability of speech; a session keeps the states."""
    session = module.session() if module.manifest.states else None
    inputs = session.inputs if session is not None else module.inputs
    if len(inputs) != 1 or inputs[0].shape[-1] != length:
        listed = "; ".join(map(str, inputs))
        raise OptionError(
            f"the module does not read windows of {length} samples alone: {listed}",
            "compile it with shapes=, constants= for its other inputs, and state=",
        )
    name = inputs[0].name

    def run(samples: Array) -> float:
        given: Mapping[str, Array] = {name: samples[None] if len(inputs[0].shape) == 2 else samples}
        outputs = session.run(given) if session is not None else module.run(given)
        return float(next(iter(outputs.values())).ravel()[-1])

    return run
