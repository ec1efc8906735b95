"""Each field of each request with each hostile value, in otherwise valid requests with all fields."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Iterator
from typing import Any

from tests.fuzz.serving.attacks import FORM, Attack, png, wav

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63 - 1, 2**64 - 1, -(2**63), 0.5, -0.0, 1e308, 5e-324, "", "a", "\0",
    "\N{GRINNING FACE}" * 50, "a" * 5000, "\\", "{{7*7}}", "<|end|>", [], [[]], [None], [0] * 300, {}, {"a": {"b": []}},
    ["a", 1], [[1, 2], [3]], "../../etc/passwd", "FP32", "INT64", "dense", "data:image/png;base64,AAAA",
)  # fmt: skip
"""Values of JSON that some field does not expect."""
_TEXTS = (b"", b"\xff", b"\0", b"nan", b"-1", b"1e400", b"a" * 60_000, b"a" * 70_000, b"chat", b"{}", b"en\r\n", b"xx")

_SCHEMA = {"type": "object", "properties": {"a": {"type": "string", "pattern": "[a-z]{1,4}"}}, "required": ["a"]}
_PICTURE = {"url": f"data:image/png;base64,{base64.b64encode(png(24, 16)).decode()}"}
_SAMPLING = {
    "temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.01, "repetition_penalty": 1.1, "seed": 1,
    "stop": ["x", "yz"], "n": 2, "max_tokens": 3, "stream": False, "stream_options": {"include_usage": True},
    "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": _SCHEMA}},
    "user": "a", "metadata": {}, "store": False, "service_tier": "auto", "safety_identifier": "a",
    "prompt_cache_key": "a", "frequency_penalty": 0.5, "presence_penalty": -1, "logit_bias": {"7": -2}, "echo": False,
    "suffix": "", "best_of": 1, "tools": [], "tool_choice": "none", "parallel_tool_calls": True,
}  # fmt: skip
_PARTS = [{"type": "image_url", "image_url": _PICTURE}, {"type": "text", "text": "what is it?"}]
_DENSE = {"name": "x", "datatype": "FP32", "shape": [1, 16], "data": [0.25] * 16, "parameters": {}}
_LEVEL = {"latency_ms": 10_000, "min_accuracy": 0.5, "max_cost": 1000, "timeout": 0, "binary_data_output": False}

COMPLETION: dict[str, Any] = {"model": "chat", "prompt": ["hello", "you"], "logprobs": 2, **_SAMPLING}
CHAT: dict[str, Any] = {
    "model": "chat", "messages": [{"role": "system", "content": "be"}, {"role": "user", "content": "hi"}],
    "logprobs": True, "top_logprobs": 2, "max_completion_tokens": 3, **_SAMPLING, "chat_template_kwargs": {"a": [1]},
}  # fmt: skip
EMBEDDINGS: dict[str, Any] = {
    "model": "embed", "input": ["a text", "b"], "encoding_format": "float", "dimensions": 4, "user": "a"
}  # fmt: skip
RERANK: dict[str, Any] = {
    "model": "rank", "query": "a", "documents": ["a text", {"text": "b"}], "top_n": 2, "return_documents": True
}  # fmt: skip
TRANSCRIPTION: dict[str, bytes] = {
    "model": b"speech", "file": wav(1600), "language": b"en", "temperature": b"0", "response_format": b"verbose_json"
}  # fmt: skip
_SOUND: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/v1/completions", COMPLETION),
    ("/v1/chat/completions", CHAT),
    ("/v1/chat/completions", {"model": "vision", "messages": [{"role": "user", "content": _PARTS}], "max_tokens": 2}),
    ("/v1/embeddings", EMBEDDINGS),
    ("/v1/embeddings", {"model": "embed", "input": [1, 2, 3], "encoding_format": "base64"}),
    ("/v1/rerank", RERANK),
    ("/v2/models/dense/infer", {"inputs": [_DENSE], "id": "1", "parameters": _LEVEL,
                                "outputs": [{"name": "y", "parameters": {"binary_data": True}}]}),
)  # fmt: skip


def field_requests() -> Iterator[tuple[str, Attack]]:
    """Requests by name; those named "sound" must be answered with 200."""
    for path, body in _SOUND:
        yield f"sound {path}", _json(path, body)
        for place in _places(body):
            for value in VALUES:
                changed = copy.deepcopy(body)
                _set(changed, place, value)
                yield f"{path} {'.'.join(map(str, place))} = {str(value)[:30]}", _json(path, changed)
    for path in ("/v1/audio/transcriptions", "/v1/audio/translations"):
        yield f"sound {path}", _form(path, TRANSCRIPTION)
        for name in TRANSCRIPTION:
            for text in _TEXTS:
                yield f"{path} {name} = {text[:30]!r}", _form(path, {**TRANSCRIPTION, name: text})


def _json(path: str, body: Any) -> Attack:
    content = json.dumps(body).encode()
    return Attack("POST", path, lambda: content)


def _form(path: str, fields: dict[str, bytes]) -> Attack:
    parts = (b'--B\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (name.encode(), value)
             for name, value in fields.items())  # fmt: skip
    content = b"".join(parts) + b"--B--\r\n"
    return Attack("POST", path, lambda: content, {"Content-Type": FORM})


def _places(value: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Paths of values: all values of objects, the first and last of lists."""
    if isinstance(value, dict):
        keys: list[Any] = list(value)
    elif isinstance(value, list):
        keys = sorted({0, len(value) - 1}) if value else []
    else:
        return
    for key in keys:
        yield (*place, key)
        yield from _places(value[key], (*place, key))


def _set(body: Any, place: tuple[str | int, ...], value: Any) -> None:
    for key in place[:-1]:
        body = body[key]
    body[place[-1]] = copy.deepcopy(value)
