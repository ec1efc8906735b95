"""`ServiceEmbedder`: embeds texts with a service that maps token ids to vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from compiler.artifact import TensorDescription
from compiler.artifact.dtypes import ELEMENT_TYPES
from compiler.errors import InputError, OptionError
from compiler.generation.tokenizer import tokens_of
from compiler.serving.gathering import gathered
from compiler.serving.limits import INLINE_TEXT
from compiler.serving.request import Array, Request, Response
from compiler.serving.sandbox.client import Sandbox, State
from compiler.serving.service import Service
from compiler.serving.text.service import TextOptions
from compiler.support.tokenizer_file import read_tokenizer

Tokens: TypeAlias = Sequence[int] | Array
"""Tokens of a text: a list, or int64 (tokens,)."""

_IDS = ("input_ids", "ids", "tokens")
_MASKS = ("attention_mask", "mask")
_POSITIONS = ("position_ids",)
_MAX_TOKENS = 512
_AT_ONCE = 64  # queued texts per request, so that there is room for others
_MIN_NORM = 1e-12
_PADDED_TOLERANCE = 1e-3  # relative to a vector's largest number: masked tokens change the order of sums


class ServiceEmbedder:
    """Embeds texts, each in a separate request, so that a batcher combines those of equal length."""

    def __init__(self, service: Service, options: TextOptions) -> None:
        """Determine the token inputs of the service. Raises InputError if it does not map tokens to vectors."""
        self._service, self._options = service, options
        inputs = {each.name: each for each in service.inputs}
        name = next((each for each in _IDS if each in inputs), None)
        first = service.outputs[0] if service.outputs else None
        if name is None or len(inputs[name].shape) != 2 or first is None or len(first.shape) not in (2, 3):
            raise InputError(
                f"model {service.name!r} does not embed texts",
                "an embedder maps input_ids (batch, length) to (batch, size) or (batch, length, size)",
            )
        self._ids, self._output = name, first.name
        self._largest = np.iinfo(ELEMENT_TYPES[inputs[name].dtype].numpy).max
        length = inputs[name].shape[1]
        self._length = length if isinstance(length, int) else None
        most = self._length or _MAX_TOKENS
        self.max_tokens = most if options.max_tokens is None else min(most, options.max_tokens)
        self._tokenizer: Any = None
        self._state: State | None = None
        self._pad = 0
        self._padding_is_proven = self._length is not None or options.pad_to_multiple_of == 1

    def use_tokenizer(self, content: bytes) -> None:
        """Use a tokenizer.json for texts. Raises ArtifactError, and MissingDependencyError without tokenizers."""
        self._tokenizer = read_tokenizer(content, "the tokenizer")
        padding = self._tokenizer.padding
        self._pad = padding["pad_id"] if padding is not None else 0
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(self.max_tokens)
        self._state = State("text tokenizer", self._tokenizer.to_str(), self.max_tokens)

    async def tokens(self, given: Sequence[str | list[int]], sandbox: Sandbox) -> list[Tokens]:
        """Tokenize texts, truncated to the maximum length; lists of tokens are unchanged. Short texts are tokenized in
        this process, others in a sandbox.

        Raises InputError without a tokenizer, and if it fails on a text.
        """
        texts = [each for each in given if isinstance(each, str)]
        found = iter(await self._read(texts, sandbox) if texts else ())
        return [next(found) if isinstance(each, str) else each for each in given]

    async def _read(self, texts: list[str], sandbox: Sandbox) -> list[Tokens]:
        if self._tokenizer is None or self._state is None:
            raise InputError(
                f"model {self._service.name!r} is served without a tokenizer",
                "compile it with the task embed, serve it with --tokenizer tokenizer.json, or send tokens",
            )
        if sum(map(len, texts)) <= INLINE_TEXT:
            return [tokens_of(self._tokenizer, each) for each in texts]
        return list(await sandbox.run("texts", self._state, texts))

    async def embed(self, texts: Sequence[Tokens], request: Request) -> tuple[Array, list[Response]]:
        """Return vectors of tokenized texts, float32 (texts, size), and the answers without outputs.

        Raises InputError for an empty or too long text, OptionError if padding changes vectors, and the errors of the
        service.
        """
        for tokens in texts:
            if not 0 < len(tokens) <= self.max_tokens:
                raise InputError(f"a text has {len(tokens)} tokens; 1 to {self.max_tokens} are taken")
            if max(tokens) > self._largest:
                raise InputError(f"the token {max(tokens)} is none of the model's")
        if not self._padding_is_proven:
            await self._prove_padding(texts, request)
        lengths = [self._padded(len(each)) for each in texts]
        found = await gathered(len(texts), _AT_ONCE, lambda index: self._vector(texts[index], lengths[index], request))
        vectors = np.stack([vector for vector, _ in found])
        if self._options.normalize:
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), _MIN_NORM)
        return vectors, [response for _, response in found]

    def _padded(self, count: int) -> int:
        """Return the padded length of a text of `count` tokens."""
        if self._length is not None:
            return self._length
        multiple = self._options.pad_to_multiple_of
        return min(-(-count // multiple) * multiple, max(count, self.max_tokens))

    async def _prove_padding(self, texts: Sequence[Tokens], request: Request) -> None:
        """Compare the vectors of a text with and without padding."""
        text = next((each for each in texts if self._padded(len(each)) > len(each)), None)
        if text is None:
            return
        plain, padded = [
            (await self._vector(text, length, request))[0] for length in (len(text), self._padded(len(text)))
        ]
        if not np.allclose(padded, plain, rtol=0, atol=_PADDED_TOLERANCE * float(np.abs(plain).max())):
            raise OptionError(
                f"the vectors of model {self._service.name!r} depend on padding",
                "serve it without pad_to_multiple_of, or compile the model with its attention mask as an input",
            )
        self._padding_is_proven = True

    async def _vector(self, text: Tokens, length: int, request: Request) -> tuple[Array, Response]:
        """Compute the vector of a text. The underlying outputs, a vector per token, are not kept."""
        inputs = {each.name: self._input(each, text, length) for each in self._service.inputs}
        response = await self._service.infer(request._replace(inputs=inputs, outputs=(self._output,)))
        return self._pooled(response.outputs[self._output], len(text)), response._replace(outputs={})

    def _input(self, tensor: TensorDescription, tokens: Tokens, length: int) -> Array:
        row = np.zeros((1, length), np.int64)
        if tensor.name == self._ids:
            row[:] = self._pad
            row[0, : len(tokens)] = tokens
        elif tensor.name in _MASKS:
            row[0, : len(tokens)] = 1
        elif tensor.name in _POSITIONS:
            row[0] = np.arange(length)
        return row.astype(ELEMENT_TYPES[tensor.dtype].numpy)

    def _pooled(self, output: Array, count: int) -> Array:
        row: Array = output[0].astype(np.float32)
        if row.ndim == 1:
            return row
        valid = row[:count]
        if self._options.pooling == "mean":
            return np.asarray(valid.mean(axis=0))
        return np.asarray(valid[0] if self._options.pooling == "cls" else valid[-1])
