"""`SemanticCache`: texts with the same meaning share an answer; requires a calibration that measured false hits."""

from __future__ import annotations

import asyncio
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from compiler.errors import InputError, OptionError
from compiler.runtime import load
from compiler.runtime.prediction.texts import Embedder, TextEmbedder
from compiler.serving.caches.digests import request_digest
from compiler.serving.caches.memory import Answer, Clock
from compiler.serving.caches.semantic_calibration import (
    SemanticCalibration,
    Wording,
    agree,
    read_calibration,
    synonym_table,
    wording_of,
)
from compiler.serving.limits import INLINE_TEXT
from compiler.serving.metrics import NO_OBSERVER, Observer
from compiler.serving.parts import Parts
from compiler.serving.request import Array, Request, Response, Timing
from compiler.serving.service import Service, Wrapper
from compiler.support.tokenizer_file import library_errors, read_tokenizer_file

_NAME = "semantic"
Value = TypeVar("Value")
TextOf = Callable[[Request], str | None]


@dataclass(frozen=True)
class Hit(Generic[Value]):
    """Hit of a semantic index: the value, the text for which it was stored, and the cosine of the two texts."""

    value: Value
    text: str
    similarity: float


@dataclass(frozen=True)
class _Entry(Generic[Value]):
    text: str
    wording: Wording
    vector: Array
    value: Value
    stored: float


class SemanticIndex(Generic[Value]):
    """Values by the meaning of a text. For one thread at a time."""

    def __init__(
        self,
        embedder: Embedder,
        calibration: SemanticCalibration,
        *,
        max_entries: int = 10_000,
        max_age: float | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        """Raises OptionError if there is no calibration, or it was made for another embedder."""
        if not isinstance(calibration, SemanticCalibration):
            raise OptionError(
                "a semantic cache does not start without a calibration",
                "make one of labelled pairs: `tensorwright calibrate semantic-cache`",
            )
        if calibration.embedder != embedder.identity:
            raise OptionError("the calibration was made for another embedder", "calibrate again with this one")
        if max_entries < 1 or (max_age is not None and max_age <= 0):
            raise OptionError(f"max_entries={max_entries}, max_age={max_age}", "use numbers above 0")
        self._embedder, self._calibration = embedder, calibration
        self._synonyms = synonym_table(calibration.synonyms)
        self._max_entries, self._max_age, self._clock = max_entries, max_age, clock
        self._scopes: dict[str, OrderedDict[str, _Entry[Value]]] = {}
        self._order: OrderedDict[tuple[str, str], None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._order)

    def find(self, text: str, scope: str = "") -> Hit[Value] | None:
        """Return the value of the nearest text in that scope that passes the calibrated threshold."""
        entries = list(self._scopes.get(scope, {}).values())
        if not entries:
            return None
        wording = wording_of(text, self._synonyms)
        now = self._clock()
        young = [each for each in entries if self._max_age is None or now - each.stored <= self._max_age]
        # Words first: comparing them is cheaper than embedding, and most texts agree with none.
        agreeing = [each for each in young if agree(each.wording, wording, self._calibration.extra)]
        if not agreeing:
            return None
        (vector,) = self._embedder.embed([text])
        similarities = np.stack([each.vector for each in agreeing]) @ vector
        best = int(np.argmax(similarities))
        if similarities[best] < self._calibration.threshold:
            return None
        found = agreeing[best]
        self._order.move_to_end((scope, found.text))
        return Hit(found.value, found.text, float(similarities[best]))

    def add(self, text: str, value: Value, scope: str = "") -> None:
        """Store a value; the least recently used one is evicted if there are too many."""
        (vector,) = self._embedder.embed([text])
        wording = wording_of(text, self._synonyms)
        if not wording.words:
            return  # nothing that the gate could compare
        self._scopes.setdefault(scope, OrderedDict())[text] = _Entry(text, wording, vector, value, self._clock())
        self._order[scope, text] = None
        self._order.move_to_end((scope, text))
        while len(self._order) > self._max_entries:
            (old_scope, old_text), _ = self._order.popitem(last=False)
            del self._scopes[old_scope][old_text]
            if not self._scopes[old_scope]:
                del self._scopes[old_scope]


@dataclass(frozen=True, kw_only=True)
class SemanticCacheOptions:
    """Options of a semantic cache.

    Attributes:
        embedder: the module that embeds texts.
        calibration: the file that `tensorwright calibrate semantic-cache` wrote for it.
        tokenizer: the tokenizer.json of the served model, to decode its token ids; also used for the embedder if its
            module contains none.
        tokens: the served model's input of token ids.
        ignored: inputs that follow from the tokens (a mask), in which requests may differ.
        max_entries, max_age: maximum number of answers, and their lifetime in seconds (None: unlimited).
    """

    embedder: Path
    calibration: Path
    tokenizer: Path
    tokens: str = "input_ids"
    ignored: Sequence[str] = ("attention_mask", "token_type_ids", "position_ids")
    max_entries: int = 10_000
    max_age: float | None = None


class SemanticCache(Wrapper):
    """A cache by the meaning of a request's text; requests without a single text, such as batches, bypass it.

    Everything but the text must be equal: the model, the requested outputs, other inputs, and the level's accuracy.
    """

    def __init__(
        self,
        inner: Service,
        index: SemanticIndex[Answer],
        text_of: TextOf,
        observer: Observer = NO_OBSERVER,
        *,
        textual: Sequence[str] = (),
    ) -> None:
        """`textual`: inputs that `text_of` reads or that follow from those; all others must be equal."""
        super().__init__(inner)
        self._index, self._text_of, self._observer, self._textual = index, text_of, observer, frozenset(textual)
        # One thread: the index is not thread-safe, and embedding must not block the event loop.
        self._thread = ThreadPoolExecutor(1, "tensorwright-semantic")

    async def infer(self, request: Request) -> Response:
        """Return the cached answer to a text with the same meaning, or a new one."""
        text = None if request.traced else self._text_of(request)
        if text is None:
            return await self.inner.infer(request)
        others = {name: array for name, array in request.inputs.items() if name not in self._textual}
        scope = f"{request.level.min_accuracy} " + request_digest(self.identity, others, request.outputs)
        loop = asyncio.get_running_loop()
        hit = await loop.run_in_executor(self._thread, self._index.find, text, scope)
        self._observer.observe_cache(self.name, _NAME, int(hit is not None), 1)
        if hit is not None:
            outputs = {name: np.array(array) for name, array in hit.value.outputs.items()}
            # Without the text for which it was computed, which may be another client's.
            notes = {**hit.value.notes, "similarity": hit.similarity}
            return Response(outputs, hit.value.served_by, Timing(), _NAME, notes)
        response = await self.inner.infer(request)
        if not response.notes.get("degraded"):
            kept = {name: np.array(array) for name, array in response.outputs.items()}
            answer = Answer(kept, response.served_by, dict(response.notes))
            await loop.run_in_executor(self._thread, self._index.add, text, answer, scope)
        return response

    async def close(self) -> None:
        """Close the inner service."""
        await self.inner.close()
        self._thread.shutdown()


def token_text(tokenizer: str | os.PathLike[str], tokens: str) -> TextOf:
    """Create a function that decodes the text of a single-row request from its input of token ids.

    Long texts are not cached: an embedder reads only their beginning, and decoding happens in this process. Raises
    StorageError or ArtifactError if the tokenizer cannot be read, and MissingDependencyError if the package tokenizers
    is not installed.
    """
    reader = read_tokenizer_file(tokenizer)

    def text_of(request: Request) -> str | None:
        ids = request.inputs.get(tokens)
        if ids is None or ids.ndim != 2 or len(ids) != 1 or ids.shape[1] > INLINE_TEXT:
            return None
        with library_errors(InputError, f"the tokenizer cannot write the tokens in {tokens!r}"):
            text: str = reader.decode(ids[0].tolist(), skip_special_tokens=True)
        return None if len(text) > INLINE_TEXT else text.strip() or None

    return text_of


def build(options: SemanticCacheOptions, inner: Service, parts: Parts) -> Service:
    """Build the cache around `inner`.

    Raises OptionError if `inner` has no such input of tokens, and as `TextEmbedder`, `SemanticIndex` and
    `token_text`.
    """
    names = [each.name for each in inner.inputs]
    if options.tokens not in names:
        raise OptionError(
            f"the semantic cache reads input {options.tokens!r}, which model {inner.name!r} does not have",
            f"name the one with the token ids (tokens=); its inputs are {', '.join(names)}",
        )
    calibration = read_calibration(options.calibration)
    module = TextEmbedder(load(options.embedder), options.tokenizer)
    index: SemanticIndex[Answer] = SemanticIndex(
        module, calibration, max_entries=options.max_entries, max_age=options.max_age
    )
    text_of = token_text(options.tokenizer, options.tokens)
    return SemanticCache(inner, index, text_of, parts.observer, textual=(options.tokens, *options.ignored))
