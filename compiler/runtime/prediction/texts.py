"""`TextEmbedder`: maps texts to unit vectors, by a compiled module and its tokenizer.

`TextReranker`: relevance of texts to a query, by a cross-encoder and its tokenizer.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from compiler.errors import InputError, OptionError, storage_errors
from compiler.runtime.identity import module_identity
from compiler.runtime.prediction.results import Ranking
from compiler.support.tokenizer_file import library_errors, read_tokenizer

if TYPE_CHECKING:
    from compiler.artifact import TensorDescription
    from compiler.runtime.module import Module

Array = np.ndarray
TOKENS = ("input_ids", "ids", "tokens")
MASKS = ("attention_mask", "mask")
_LIMIT = 512


class Embedder(Protocol):
    """Maps texts to vectors such that similar meanings are close."""

    @property
    def identity(self) -> str:
        """A digest of everything that determines the vectors: a calibration is only valid for the same identity."""

    def embed(self, texts: Sequence[str]) -> Array:
        """Unit vectors, float32 (texts, dimensions)."""


class TextEmbedder:
    """An embedder made by `compile`: from token ids (and a mask, and segments) to one vector per text, or one per
    token, which are averaged. Safe to use from several threads."""

    def __init__(self, module: Module, tokenizer: str | os.PathLike[str] | None = None) -> None:
        """Create an embedder.

        Args:
            tokenizer: a tokenizer.json of the tokenizers library; None: the module's own.

        Raises:
            StorageError, ArtifactError: the tokenizer cannot be read.
            OptionError: the module has no tokenizer, or does not map tokens to vectors.
            MissingDependencyError: the package tokenizers is not installed.
        """
        self._module = module
        content = tokenizer_bytes(self._module, tokenizer)
        self._tokenizer = read_tokenizer(content, "the tokenizer")
        inputs = {each.name: each for each in self._module.inputs}
        self._ids = next((name for name in TOKENS if name in inputs), "")
        self._mask = next((name for name in MASKS if name in inputs), None)
        output = self._module.outputs[0]
        if not self._ids or len(inputs[self._ids].shape) != 2 or len(output.shape) not in (2, 3):
            listed = "; ".join(map(str, (*self._module.inputs, *self._module.outputs)))
            raise OptionError(
                f"the module maps no token ids to vectors: {listed}",
                "an embedder takes input_ids (batch, length) and gives (batch, size) or (batch, length, size)",
            )
        batch, length = inputs[self._ids].shape
        self._batch = batch if isinstance(batch, int) else None
        self._length = length if isinstance(length, int) else None
        self._tokenizer.enable_truncation(self._length or _LIMIT)
        self._tokenizer.enable_padding(length=self._length)
        self.identity = hashlib.sha256(module_identity(self._module).encode() + content).hexdigest()

    def embed(self, texts: Sequence[str]) -> Array:
        """Unit vectors, float32 (texts, dimensions). Raises InputError if the tokenizer fails on a text."""
        step = self._batch or len(texts) or 1
        parts = [self._embedded(texts[start : start + step]) for start in range(0, len(texts), step)]
        vectors: Array = np.concatenate(parts).astype(np.float32)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

    def _embedded(self, texts: Sequence[str]) -> Array:
        padded = [*texts, *([""] * ((self._batch or len(texts)) - len(texts)))]
        with library_errors(InputError, "the tokenizer cannot read the text"):
            encoded = self._tokenizer.encode_batch(padded)
        ids = np.array([each.ids for each in encoded])
        mask = np.array([each.attention_mask for each in encoded])
        inputs = {}
        for tensor in self._module.inputs:
            value = ids if tensor.name == self._ids else mask if tensor.name == self._mask else np.zeros_like(ids)
            inputs[tensor.name] = value.astype(tensor.dtype)
        (first, *_) = self._module.run(inputs).values()
        if first.ndim == 3:
            weights = mask[:, :, None].astype(np.float32)
            first = (first * weights).sum(axis=1) / np.maximum(weights.sum(axis=1), 1)
        return np.asarray(first)[: len(texts)]


def tokenizer_bytes(module: Module, path: str | os.PathLike[str] | None) -> bytes:
    """The tokenizer.json at a path, or the module's. Raises StorageError, OptionError."""
    if path is not None:
        with storage_errors(path, what="the tokenizer "):
            return Path(path).read_bytes()
    content = module.artifact.assets.get("tokenizer.json")
    if content is None:
        raise OptionError("the module carries no tokenizer", "name a tokenizer.json")
    return bytes(content)


LIMIT = 512
SEGMENTS = ("token_type_ids", "segment_ids")
_AT_ONCE = 32  # pairs per run


class TextReranker:
    """A cross-encoder made by `compile`: from token ids of a query and a text (a mask, and segments) to one number,
    whose sigmoid is the score, as in the sentence-transformers library. Safe to use from several threads."""

    def __init__(self, module: Module, tokenizer: str | os.PathLike[str] | None = None) -> None:
        """Create a reranker.

        Args:
            tokenizer: a tokenizer.json of the tokenizers library; None: the module's own.

        Raises:
            StorageError, ArtifactError: the tokenizer cannot be read.
            OptionError: the module has no tokenizer, or does not map tokens to a number.
            MissingDependencyError: the package tokenizers is not installed.
        """
        self._module = module
        inputs = {each.name: each for each in module.inputs}
        ids = next((name for name in TOKENS if name in inputs), "")
        check_reranker(inputs.get(ids), module.outputs[0])
        self._tokenizer = read_tokenizer(tokenizer_bytes(module, tokenizer), "the tokenizer")
        batch, length = inputs[ids].shape
        self._batch = batch if isinstance(batch, int) else None
        self._tokenizer.enable_truncation(length if isinstance(length, int) else LIMIT)
        self._tokenizer.enable_padding(length=length if isinstance(length, int) else None)

    def rank(self, query: str, texts: Sequence[str]) -> Ranking:
        """Score the texts. Raises InputError if the tokenizer fails on a text."""
        step = self._batch or _AT_ONCE
        parts = [self._scores(query, texts[start : start + step]) for start in range(0, len(texts), step)]
        return Ranking(tuple(texts), sigmoid(np.concatenate(parts) if parts else np.zeros(0)))

    def _scores(self, query: str, texts: Sequence[str]) -> Array:
        padded = [*texts, *([""] * ((self._batch or len(texts)) - len(texts)))]
        with library_errors(InputError, "the tokenizer cannot read the text"):
            encoded = self._tokenizer.encode_batch([(query, each) for each in padded])
        given = {each.name: pair_input(each.name, encoded).astype(each.dtype) for each in self._module.inputs}
        (logits, *_) = self._module.run(given).values()
        return np.asarray(logits, np.float32).reshape(len(padded), -1)[: len(texts), 0]


def pair_input(name: str, encoded: Sequence[Any]) -> Array:
    """The input with this name, int64 (pairs, length), from encodings of the tokenizers library. Raises OptionError."""
    fields: Mapping[tuple[str, ...], str] = {TOKENS: "ids", MASKS: "attention_mask", SEGMENTS: "type_ids"}
    field = next((field for names, field in fields.items() if name in names), None)
    if field is None:
        raise OptionError(f"the module takes {name!r}, which is not made of texts", "make it a constant: constants=")
    return np.array([getattr(each, field) for each in encoded], np.int64)


def check_reranker(ids: TensorDescription | None, output: TensorDescription) -> None:
    """Raise OptionError unless token ids (batch, length) become one number per pair: (batch, 1) or (batch,)."""
    if ids is None or len(ids.shape) != 2 or tuple(output.shape[1:]) not in ((), (1,)):
        raise OptionError(
            f"the module does not map pairs of texts to one number: {ids} to {output}",
            "a cross-encoder takes input_ids (batch, length) and gives (batch, 1)",
        )


def sigmoid(logits: Array) -> Array:
    """Scores from 0 to 1, float32."""
    return (1 / (1 + np.exp(-np.clip(logits.astype(np.float64), -700, 700)))).astype(np.float32)
