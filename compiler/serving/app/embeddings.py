"""OpenAI's embeddings."""

from __future__ import annotations

import asyncio
import base64
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from compiler.errors import InputError
from compiler.serving.app.http import Call, Reply, check_method, json_bytes, mapping
from compiler.serving.app.openai_models import named_model, unknown_fields
from compiler.serving.app.predictions import served_tokenizer
from compiler.serving.limits import Limits, utf8_size
from compiler.serving.metrics import Metrics
from compiler.serving.repository import Repository
from compiler.serving.request import Array
from compiler.serving.service import Service
from compiler.serving.text.embedder import ServiceEmbedder
from compiler.support.shown import shown

_PATH = "/v1/embeddings"
FIELDS = frozenset({"model", "input", "encoding_format", "dimensions"})
IGNORED = frozenset({"user"})
_WRITTEN_AT_ONCE = 64  # vectors


class Embeddings:
    """`POST /v1/embeddings`."""

    def __init__(self, repository: Repository, metrics: Metrics) -> None:
        self._repository, self._metrics = repository, metrics
        self._embedders: weakref.WeakKeyDictionary[Service, ServiceEmbedder] = weakref.WeakKeyDictionary()

    async def answer(self, call: Call) -> Reply | None:
        """See `Routes`."""
        if call.path != _PATH:
            return None
        check_method(call, "POST")
        call.route = "embeddings"
        body = mapping(await call.json(), "the request")
        unknown_fields(body, FIELDS, IGNORED)
        name = named_model(self._repository, body, call)
        as_text = _is_base64(body)
        with self._repository.lease(name) as service:
            embedder = await self._embedder(name, service)
            texts = await embedder.tokens(_texts(body.get("input"), call.limits), call.required_sandbox)
            request = call.request({}, self._repository.options(name).latency_ms)
            vectors, responses = await embedder.embed(texts, request)
        call.observe(responses, self._metrics)
        _check_dimensions(body.get("dimensions"), vectors.shape[1])
        count = sum(map(len, texts))
        rest = json_bytes({"model": name, "usage": {"prompt_tokens": count, "total_tokens": count}})
        return Reply(b'{"object":"list","data":[%b],%b' % (await _written(vectors, as_text), rest[1:]))

    async def _embedder(self, name: str, service: Service) -> ServiceEmbedder:
        embedder = self._embedders.get(service)
        if embedder is None:
            embedder = ServiceEmbedder(service, self._repository.options(name).text)
            content = await served_tokenizer(self._repository, name, service)
            if content is not None:
                embedder.use_tokenizer(content)
            self._embedders[service] = embedder
        return embedder


def _is_base64(body: Mapping[str, object]) -> bool:
    encoding = body.get("encoding_format") or "float"
    if encoding not in ("float", "base64"):
        raise InputError(f"'encoding_format' must be float or base64, not {shown(encoding)}")
    return bool(encoding == "base64")


def _texts(given: object, limits: Limits) -> Sequence[str | list[int]]:
    """Return the texts of a request, or lists of tokens."""
    listed = [given] if isinstance(given, str) or (isinstance(given, list) and given and _is_tokens(given)) else given
    if not isinstance(listed, list) or not listed:
        raise InputError("'input' must be a text or tokens, or a list of these")
    limits.check("texts", len(listed))
    limits.check("text_bytes", sum(utf8_size(each) for each in listed if isinstance(each, str)))
    for text in listed:
        if not isinstance(text, str) and not (isinstance(text, list) and _is_tokens(text)):
            raise InputError(f"an input must be a text or a list of tokens, not {shown(text)}")
    return listed


def _is_tokens(given: list[Any]) -> bool:
    return all(type(each) is int and 0 <= each < 1 << 62 for each in given)


def _check_dimensions(given: object, size: int) -> None:
    if given is not None and given != size:
        raise InputError(f"the model's vectors have {size} dimensions, not {shown(given)}")


async def _written(vectors: Array, as_text: bool) -> bytes:
    """Yield the elements of a JSON list; many vectors are written in parts, so that others are served in between."""
    parts = []
    for index, vector in enumerate(vectors):
        written = base64.b64encode(vector.astype("<f4").tobytes()).decode() if as_text else vector
        parts.append(json_bytes({"object": "embedding", "index": index, "embedding": written}))
        if index % _WRITTEN_AT_ONCE == _WRITTEN_AT_ONCE - 1:
            await asyncio.sleep(0)
    return b",".join(parts)
