"""`Limits`: what one request may take. Checked before it is paid for; settings of the server."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from compiler.errors import InputError, OptionError

INLINE_TEXT = 4096
"""Characters of the texts of a request that are tokenized without a sandbox: a few milliseconds at most."""


class LimitError(InputError):
    """A request passes a limit of the server.

    Attributes:
        limit: its name.
        status: of the answer: 400, or 413, 431 and 503 for a number of bytes.
    """

    def __init__(self, name: str, message: str, status: int) -> None:
        super().__init__(message, f"the server's limit {name!r}; its operator sets it: serve --limit {name}=NUMBER")
        self.limit, self.status = name, status


def _limit(default: int, what: str, status: int = 400) -> Any:
    """A limit: its default, what it counts, and the status of the answer to a request that passes it."""
    return dataclasses.field(default=default, metadata={"what": what, "status": status})


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits on one request. `docs/guides/serve.md` gives the reason for each default.

    Attributes:
        max_request_bytes: of a body, after decompression.
        held_bytes: bodies of all requests that one process receives or answers.
        body_seconds: time limit for receiving the whole body, and for a client that does not read its answer.
        header_bytes: of a request's target, and of its headers, each of which counts 32 bytes more than its own.
        json_values: values in the JSON of a request, elements of lists included; the JSON of tensors is limited by
            `sandbox_bytes` alone.
        tensors: inputs, and outputs, of an inference request.
        prompts: of a completion.
        texts: of an embeddings request.
        text_bytes: all texts of a request, in UTF-8.
        messages: of a chat.
        parts: all parts of a chat's messages (texts and images).
        images: of a chat.
        stops, stop_bytes: stop texts, and all of them in UTF-8.
        form_parts: fields of a form.
        form_header_bytes: of each header line of a part.
        form_text_bytes: of each field but the file.
        grammar_bytes: a JSON schema, as JSON.
        grammar_nesting: nested values of a JSON schema, and nested groups of its patterns.
        grammar_repetitions: of an element, as minItems or {n} of a pattern ask for; nested ones multiply.
        audio_seconds: of speech.
        sandbox_seconds: processor time of a process that reads texts, schemas, images or speech; its time by the clock
            is six times that.
        sandbox_bytes: memory of such a process.
        sandboxes: such processes at once; other requests wait for one to end.
    """

    max_request_bytes: int = _limit(64 << 20, "bytes", 413)
    held_bytes: int = _limit(1 << 30, "bytes of all requests", 503)
    body_seconds: float = 30.0
    header_bytes: int = _limit(64 << 10, "bytes of target or headers", 431)
    json_values: int = _limit(1 << 19, "values in its JSON")
    tensors: int = _limit(1024, "tensors")
    prompts: int = _limit(128, "prompts")
    texts: int = _limit(2048, "texts")
    text_bytes: int = _limit(16 << 20, "bytes of text", 413)
    messages: int = _limit(4096, "messages")
    parts: int = _limit(4096, "parts of messages")
    images: int = _limit(32, "images")
    stops: int = _limit(64, "stop texts")
    stop_bytes: int = _limit(4096, "bytes of stop texts", 413)
    form_parts: int = _limit(64, "fields in its form")
    form_header_bytes: int = _limit(4096, "bytes in a header of its form", 413)
    form_text_bytes: int = _limit(64 << 10, "bytes in a field of its form", 413)
    grammar_bytes: int = _limit(256 << 10, "bytes of JSON schema", 413)
    grammar_nesting: int = _limit(128, "nested levels in its JSON schema or a pattern of it")
    grammar_repetitions: int = _limit(100_000, "repetitions of an element in its JSON schema or a pattern of it")
    audio_seconds: int = _limit(3600, "seconds of speech", 413)
    sandbox_seconds: int = 10
    sandbox_bytes: int = 1 << 30
    sandboxes: int = 8

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if not getattr(self, field.name) > 0:
                raise OptionError(f"the limit {field.name!r} must be above 0")

    def check(self, name: str, value: int) -> None:
        """Raise LimitError where a request has more than the limit of that name."""
        most: int = getattr(self, name)
        if value > most:
            raise self.passed(name, f"the request has {value} {_FIELDS[name]['what']}, and {most} at most are taken")

    def passed(self, name: str, message: str) -> LimitError:
        """The error of a request that passes the limit of that name."""
        return LimitError(name, message, _FIELDS[name]["status"])

    def too_large(self) -> LimitError:
        """The error of a request whose body is too large; how large it would be is not known."""
        return self.passed("max_request_bytes", f"the request is larger than {self.max_request_bytes} bytes")


class HeldBytes:
    """Counts the bytes of bodies that a process holds: many large ones that arrive slowly are bounded together."""

    def __init__(self, limits: Limits) -> None:
        self._limits, self.count = limits, 0

    def add(self, count: int) -> None:
        """Count bytes that arrived. Raises LimitError, and counts nothing, where they are too many."""
        if self.count + count > self._limits.held_bytes:
            message = f"requests of more than {self._limits.held_bytes} bytes arrive at once: try again later"
            raise self._limits.passed("held_bytes", message)
        self.count += count

    def remove(self, count: int) -> None:
        """Bytes that are gone."""
        self.count -= count


def utf8_size(text: str) -> int:
    """Bytes of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


_FIELDS = {field.name: field.metadata for field in dataclasses.fields(Limits)}
DEFAULT_LIMITS = Limits()
