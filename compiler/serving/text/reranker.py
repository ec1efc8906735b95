"""`ServiceReranker`: scores texts by relevance to a query, with a service whose model reads both as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from compiler.artifact.dtypes import ELEMENT_TYPES
from compiler.errors import InputError, OptionError
from compiler.runtime.prediction.texts import LIMIT, MASKS, SEGMENTS, TOKENS, check_reranker, sigmoid
from compiler.serving.gathering import gathered
from compiler.serving.limits import INLINE_TEXT
from compiler.serving.request import Array, Request, Response
from compiler.serving.sandbox.client import Sandbox, State
from compiler.serving.service import Service
from compiler.support.tokenizer_file import library_errors, read_tokenizer

Pair = tuple[Array, Array]  # tokens and their segment (query or text), int64 (length,)
_AT_ONCE = 64  # queued pairs per request, so that there is room for others


class ServiceReranker:
    """Scores pairs of texts, each in a separate request, so that a batcher combines those of equal length."""

    def __init__(self, service: Service, tokenizer: bytes, max_tokens: int | None = None) -> None:
        """Determine the token inputs of the service.

        Raises:
            InputError: it does not map pairs of texts to a number.
            ArtifactError: the tokenizer cannot be read.
            MissingDependencyError: the package tokenizers is missing.
        """
        self._service = service
        inputs = {each.name: each for each in service.inputs}
        name = next((each for each in TOKENS if each in inputs), "")
        try:
            check_reranker(inputs.get(name), service.outputs[0])
        except OptionError as error:
            raise InputError(f"model {service.name!r} does not rerank texts", error.hint) from error
        unknown = [each for each in inputs if each not in (*TOKENS, *MASKS, *SEGMENTS)]
        if unknown:
            raise InputError(f"model {service.name!r} takes {unknown[0]!r}, which is not made of texts")
        self._output = service.outputs[0].name
        length = inputs[name].shape[1]
        self._length = length if isinstance(length, int) else None
        most = min(each for each in (self._length, max_tokens, LIMIT if self._length is None else None) if each)
        self._tokenizer = read_tokenizer(tokenizer, "the tokenizer")
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(most)
        self._state = State("text tokenizer", self._tokenizer.to_str(), most)

    async def pairs(self, query: str, texts: Sequence[str], sandbox: Sandbox) -> list[Pair]:
        """Tokenize the query with each text; if there are too many tokens, the longer one is truncated. Short texts are
        tokenized in this process, others in a sandbox. Raises InputError if the tokenizer fails on a text."""
        if len(query) * len(texts) + sum(map(len, texts)) <= INLINE_TEXT:
            return encoded_pairs(self._tokenizer, query, texts)
        found = await sandbox.run("pairs", self._state, query, list(texts))
        return [(tokens, segments) for tokens, segments in found]

    async def score(self, pairs: Sequence[Pair], request: Request) -> tuple[Array, list[Response]]:
        """Return scores from 0 to 1, float32 (pairs,), and the underlying answers. Raises as the service."""
        responses = await gathered(len(pairs), _AT_ONCE, lambda index: self._infer(pairs[index], request))
        return sigmoid(np.array([float(each.outputs[self._output].reshape(-1)[0]) for each in responses])), responses

    async def _infer(self, pair: Pair, request: Request) -> Response:
        tokens, segments = pair
        inputs = {}
        for spec in self._service.inputs:
            row = np.zeros((1, self._length or len(tokens)), np.int64)
            row[0, : len(tokens)] = tokens if spec.name in TOKENS else segments if spec.name in SEGMENTS else 1
            inputs[spec.name] = row.astype(ELEMENT_TYPES[spec.dtype].numpy)
        return await self._service.infer(request._replace(inputs=inputs, outputs=(self._output,)))


def encoded_pairs(tokenizer: Any, query: str, texts: Sequence[str]) -> list[Pair]:
    """Tokenize a query with each text. Raises InputError if the tokenizer fails on a text."""
    with library_errors(InputError, "the tokenizer cannot read the text"):
        encoded = tokenizer.encode_batch([(query, each) for each in texts])
    return [(np.array(each.ids, np.int64), np.array(each.type_ids, np.int64)) for each in encoded]
