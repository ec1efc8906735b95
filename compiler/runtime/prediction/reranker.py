"""`TextReranker`: relevance of texts to a query, by a cross-encoder and its tokenizer."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from compiler.errors import InputError, OptionError
from compiler.runtime.prediction.embedder import MASKS, TOKENS, tokenizer_bytes
from compiler.runtime.prediction.results import Ranking
from compiler.support.tokenizer_file import library_errors, read_tokenizer

if TYPE_CHECKING:
    from compiler.artifact import TensorDescription
    from compiler.runtime.module import Module

Array = np.ndarray
LIMIT = 512
SEGMENTS = ("token_type_ids", "segment_ids")
_AT_ONCE = 32  # pairs per run


class TextReranker:
    """A cross-encoder as `compile` makes it: token ids of a query and a text (a mask, and segments) to one number, of
    which the sigmoid is the score, as in the sentence-transformers library. Safe to use from several threads."""

    def __init__(self, module: Module, tokenizer: str | os.PathLike[str] | None = None) -> None:
        """Make one.

        Args:
            tokenizer: a tokenizer.json of the tokenizers library; None: the one that the module carries.

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
    """The input of this name, int64 (pairs, length), from encodings of the tokenizers library. Raises OptionError."""
    fields: Mapping[tuple[str, ...], str] = {TOKENS: "ids", MASKS: "attention_mask", SEGMENTS: "type_ids"}
    field = next((field for names, field in fields.items() if name in names), None)
    if field is None:
        raise OptionError(f"the module takes {name!r}, which is not made of texts", "make it a constant: constants=")
    return np.array([getattr(each, field) for each in encoded], np.int64)


def check_reranker(ids: TensorDescription | None, output: TensorDescription) -> None:
    """Raise OptionError unless token ids (batch, length) become one number of each pair: (batch, 1) or (batch,)."""
    if ids is None or len(ids.shape) != 2 or tuple(output.shape[1:]) not in ((), (1,)):
        raise OptionError(
            f"the module does not map pairs of texts to one number: {ids} to {output}",
            "a cross-encoder takes input_ids (batch, length) and gives (batch, 1)",
        )


def sigmoid(logits: Array) -> Array:
    """Scores from 0 to 1, float32."""
    return (1 / (1 + np.exp(-np.clip(logits.astype(np.float64), -700, 700)))).astype(np.float32)
