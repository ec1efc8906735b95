"""`predict`: runs a module on an image, a text or a recording."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from compiler.artifact.processing import PROCESSING_ASSET, decoded
from compiler.errors import InputError, OptionError
from compiler.runtime.prediction.results import Prediction, Ranking, Segment, Speech, Vector, of_image
from compiler.runtime.prediction.texts import TextEmbedder, TextReranker
from compiler.support.media_files import pixels_of, read_audio
from compiler.support.processing import Processing

if TYPE_CHECKING:
    from compiler.runtime.module import Module

Array = np.ndarray
Given: TypeAlias = str | Path | bytes | Array
"""An image or a recording, by the path or the bytes of its file or as an array; or a text."""


def processing_of(module: Module) -> Processing:
    """The processing that a module was compiled with. Raises OptionError if there is none, and ArtifactError."""
    asset = module.artifact.assets.get(PROCESSING_ASSET)
    if asset is None:
        raise OptionError(
            "the module was compiled without processing",
            'compile it with processing="auto" (--processing) or tensorwright.Processing(task=...) (--task), or give '
            "tensors: run(...), --input",
        )
    return decoded(asset.tobytes())


def predict(module: Module, given: Given | list[Given] | tuple[Given, ...]) -> Prediction | list[Any]:
    """See `Module.predict`."""
    processing = processing_of(module)
    if processing.task == "rerank":
        raise InputError("the module orders texts by a query", "give both: module.rank(query, texts)")
    if not isinstance(given, list | tuple):
        return _predicted(module, [given], processing)[0]
    return _predicted(module, given, processing)


def rank(module: Module, query: str, texts: Sequence[str]) -> Ranking:
    """See `Module.rank`."""
    processing = processing_of(module)
    if processing.task != "rerank":
        raise OptionError(f"the module was compiled to {processing.task}", 'compile it with task="rerank"')
    if not isinstance(query, str) or isinstance(texts, str) or not all(isinstance(each, str) for each in texts):
        raise InputError("the module orders texts by a query", "give a string, and a list of strings")
    return _reranker(module).rank(query, texts)


def _predicted(module: Module, inputs: Sequence[Given], processing: Processing) -> list[Any]:
    """One prediction per item. All texts are one run; images differ in size, and are one run each."""
    if processing.task == "embed":
        texts = [each for each in inputs if isinstance(each, str)]
        if len(texts) < len(inputs):
            raise InputError("the module embeds texts", "give a string (--text)")
        return [Vector(each) for each in _embedder(module).embed(texts)] if texts else []
    if processing.task == "speech":
        return [_speech(module, each, processing) for each in inputs]
    return [_of_image(module, each, processing) for each in inputs]


def _of_image(module: Module, source: Given, processing: Processing) -> Prediction:
    other_inputs = [each.name for each in module.inputs if each.name != "image"]
    if other_inputs:
        raise InputError(
            f"the module has inputs other than an image: {', '.join(other_inputs)}",
            "run it: run({...}), or make these inputs constants when compiling",
        )
    image = pixels_of(source)
    return of_image(processing, module.run({"image": image}), image)


@lru_cache(maxsize=8)
def _embedder(module: Module) -> TextEmbedder:
    return TextEmbedder(module)


@lru_cache(maxsize=8)
def _reranker(module: Module) -> TextReranker:
    return TextReranker(module)


def _speech(module: Module, source: Given, processing: Processing) -> Speech:
    """Process the windows of a recording in order; the last one is padded with silence."""
    rate, window, context = (int(each or 0) for each in (processing.rate, processing.window, processing.context))
    samples = read_audio(source, rate)
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
    """A function from a window of samples to the probability of speech; a session keeps the states."""
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
