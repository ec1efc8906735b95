"""Ranks texts by relevance to a query, with the request format of Cohere, Jina, vLLM and llama.cpp."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np

from compiler.errors import InputError
from compiler.serving.app.http import Call, Reply, check_method, flag, json_reply, mapping
from compiler.serving.app.openai_models import named_model, unknown_fields
from compiler.serving.app.predictions import served_tokenizer
from compiler.serving.limits import Limits, utf8_size
from compiler.serving.metrics import Metrics
from compiler.serving.repository import Repository
from compiler.serving.service import Service
from compiler.serving.text.reranker import ServiceReranker
from compiler.support.shown import shown

_PATHS = ("/v1/rerank", "/v2/rerank", "/rerank")
FIELDS = frozenset({"model", "query", "documents", "top_n", "return_documents"})


class Rerank:
    """`POST /v1/rerank`."""

    def __init__(self, repository: Repository, metrics: Metrics) -> None:
        self._repository, self._metrics = repository, metrics
        self._rerankers: weakref.WeakKeyDictionary[Service, ServiceReranker] = weakref.WeakKeyDictionary()

    async def answer(self, call: Call) -> Reply | None:
        """See `Routes`."""
        if call.path not in _PATHS:
            return None
        check_method(call, "POST")
        call.route = "rerank"
        body = mapping(await call.json(), "the request")
        unknown_fields(body, FIELDS, frozenset())
        name = named_model(self._repository, body, call)
        query, texts = _texts(body, call.limits)
        most, with_texts = _top(body.get("top_n"), len(texts)), flag(body, "return_documents")
        with self._repository.lease(name) as service:
            reranker = await self._reranker(name, service)
            pairs = await reranker.pairs(query, texts, call.required_sandbox)
            request = call.request({}, self._repository.options(name).latency_ms)
            scores, responses = await reranker.score(pairs, request)
        call.observe(responses, self._metrics)
        results = []
        for index in np.argsort(-scores, kind="stable")[:most]:
            document = {"document": {"text": texts[index]}} if with_texts else {}
            results.append({"index": int(index), "relevance_score": float(scores[index]), **document})
        count = sum(len(tokens) for tokens, _ in pairs)
        usage = {"prompt_tokens": count, "total_tokens": count}
        return json_reply({"object": "list", "model": name, "results": results, "usage": usage})

    async def _reranker(self, name: str, service: Service) -> ServiceReranker:
        reranker = self._rerankers.get(service)
        if reranker is None:
            content = await served_tokenizer(self._repository, name, service)
            if content is None:
                raise InputError(
                    f"model {name!r} is served without a tokenizer",
                    "compile it with the task rerank, or serve it with --tokenizer tokenizer.json",
                )
            most = self._repository.options(name).text.max_tokens
            reranker = self._rerankers[service] = ServiceReranker(service, content, most)
        return reranker


def _texts(body: Mapping[str, Any], limits: Limits) -> tuple[str, list[str]]:
    query, documents = body.get("query"), body.get("documents")
    if not isinstance(query, str):
        raise InputError(f"'query' must be a text, not {shown(query)}")
    if not isinstance(documents, list) or not documents:
        raise InputError("'documents' must be a list of texts")
    texts: list[str] = []
    for document in documents:
        text = document.get("text") if isinstance(document, dict) else document
        if not isinstance(text, str):
            raise InputError(f'a document must be a text, or {{"text": ...}}, not {shown(document)}')
        texts.append(text)
    limits.check("texts", len(texts))
    # The query is tokenized once per text.
    limits.check("text_bytes", utf8_size(query) * len(texts) + sum(map(utf8_size, texts)))
    return query, texts


def _top(value: object, count: int) -> int:
    if value is None:
        return count
    if type(value) is not int or value < 1:
        raise InputError(f"'top_n' must be a number of documents, not {shown(value)}")
    return value
