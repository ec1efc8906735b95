"""`Limits`: bounds on the time and memory of one request, checked in advance; settings of the server."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from compiler.errors import InputError, OptionError

INLINE_TEXT = 4096
"""Maximum characters of a request's texts that are tokenized without a sandbox: a few milliseconds."""


class LimitError(InputError):
    """A request exceeds a limit of the server.

    Attributes:
        limit: name of the limit.
        status: HTTP status of the answer: 400, or 413, 431 and 503 for a number of bytes.
    """

    def __init__(self, name: str, message: str, status: int) -> None:
        super().__init__(message, f"the server's limit {name!r}; its operator sets it: serve --limit {name}=NUMBER")
        self.limit, self.status = name, status


def _limit(default: int, what: str, status: int = 400) -> Any:
    """Define a limit: its default, what it counts, and the HTTP status for a request that exceeds it."""
    return dataclasses.field(default=default, metadata={"what": what, "status": status})


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits on one request. `docs/guides/serve.md` gives the reason for each default.

    Attributes:
        max_request_bytes: size of a body, after decompression.
        held_bytes: total size of bodies that one process receives or answers.
        body_seconds: time limit for receiving the whole body, and for a client that does not read its answer.
        header_bytes: size of a request's target, and of its headers, each of which counts 32 bytes more.
        json_values: values in the JSON of a request, including elements of lists; the JSON of tensors is limited only
            by `sandbox_bytes`.
        tensors: number of inputs, and of outputs, of an inference request.
        prompts: number of prompts of a completion.
        texts: number of texts of an embeddings request.
        text_bytes: total size of the texts of a request, in UTF-8.
        messages: number of messages of a chat.
        parts: total number of parts of a chat's messages (texts and images).
        images: number of images of a chat.
        stops, stop_bytes: number of stop texts, and their total size in UTF-8.
        form_parts: number of fields of a form.
        form_header_bytes: size of each header line of a part.
        form_text_bytes: size of each field other than the file.
        grammar_bytes: size of a JSON schema, as JSON.
        grammar_nesting: nesting of a JSON schema, and of the groups in its patterns.
        grammar_repetitions: repetitions of an element, by minItems or {n} in a pattern; nested ones multiply.
        audio_seconds: duration of speech.
        sandbox_seconds: processor time of a sandbox process that reads texts, schemas, images or speech; its wall clock
            time is limited to six times that.
        sandbox_bytes: memory of a sandbox process.
        sandboxes: number of concurrent sandbox processes; other requests wait for one to end.
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
        """Raise LimitError if a request exceeds the limit of that name."""
        most: int = getattr(self, name)
        if value > most:
            raise self.passed(name, f"the request has {value} {_FIELDS[name]['what']}, and {most} at most are taken")

    def passed(self, name: str, message: str) -> LimitError:
        """Return the error for a request that exceeds the limit of that name."""
        return LimitError(name, message, _FIELDS[name]["status"])

    def too_large(self) -> LimitError:
        """Return the error for a request whose body is too large, of unknown size."""
        return self.passed("max_request_bytes", f"the request is larger than {self.max_request_bytes} bytes")


class HeldBytes:
    """Counter of the bytes of bodies that a process holds, which bounds many large, slow bodies together."""

    def __init__(self, limits: Limits) -> None:
        self._limits, self.count = limits, 0

    def add(self, count: int) -> None:
        """Count received bytes. Raises LimitError, and counts nothing, if there are too many."""
        if self.count + count > self._limits.held_bytes:
            message = f"requests of more than {self._limits.held_bytes} bytes arrive at once: try again later"
            raise self._limits.passed("held_bytes", message)
        self.count += count

    def remove(self, count: int) -> None:
        """Uncount released bytes."""
        self.count -= count


def utf8_size(text: str) -> int:
    """Return the size of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


_FIELDS = {field.name: field.metadata for field in dataclasses.fields(Limits)}
DEFAULT_LIMITS = Limits()
