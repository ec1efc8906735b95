"""OpenAI's transcriptions and translations of speech."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compiler.artifact.fields import encode
from compiler.errors import InputError
from compiler.generation.options import GenerationOptions
from compiler.generation.transcription import Speech, joined, prepared_speech, speech_preparation
from compiler.serving.app.http import Call, Reply, check_method, json_reply
from compiler.serving.app.openai_models import named_model, unknown_fields
from compiler.serving.limits import Limits
from compiler.serving.metrics import Metrics
from compiler.serving.repository import Repository
from compiler.serving.text.service import ReadPrompt, TextService
from compiler.support.optional import optional_module
from compiler.support.shown import shown

_TASKS = {"/v1/audio/transcriptions": "transcribe", "/v1/audio/translations": "translate"}
FIELDS = frozenset({"model", "file", "language", "temperature", "response_format"})
_FORMATS = ("json", "text", "verbose_json")


@dataclass(frozen=True)
class _TranscriptionRequest:
    """A request for a transcription, from its form."""

    audio: bytes
    language: str | None
    form: str
    options: GenerationOptions


class Transcriptions:
    """`POST /v1/audio/transcriptions` and `POST /v1/audio/translations`."""

    def __init__(self, repository: Repository, metrics: Metrics) -> None:
        self._repository, self._metrics = repository, metrics

    async def answer(self, call: Call) -> Reply | None:
        """See `Routes`."""
        task = _TASKS.get(call.path)
        if task is None:
            return None
        check_method(call, "POST")
        call.route = "transcriptions"
        fields = await asyncio.to_thread(form_fields, call)  # slow for a large file: it is Python
        texts = text_fields(fields)
        name = named_model(self._repository, texts, call)
        parsed = _wanted(fields, texts)
        with self._repository.lease(name) as service:
            if not isinstance(service, TextService):
                raise InputError(f"{name!r} is not a language model")
            how = encode(speech_preparation(service.model))
            sandbox, longest = call.required_sandbox, call.limits.audio_seconds
            parts, seconds = await sandbox.run("speech", None, parsed.audio, how, longest)
            call.hold(sum(each.nbytes for each in parts))
            speech = await asyncio.to_thread(prepared_speech, service.model, parts, language=parsed.language, task=task)
            text = await self._text_of(name, service, speech, parsed.options)
        if parsed.form == "text":
            return Reply(f"{text}\n".encode(), headers=((b"content-type", b"text/plain; charset=utf-8"),))
        if parsed.form == "json":
            return json_reply({"text": text})
        return json_reply({"task": task, "language": speech.language, "duration": seconds, "text": text})

    async def _text_of(self, name: str, service: TextService, speech: Speech, options: GenerationOptions) -> str:
        """Transcribe all parts, which enter the model's queue one after another."""
        texts = []
        for media in speech.media:
            handle = await service.submit(ReadPrompt(list(speech.prompt), media.inputs), options)
            try:
                texts.append((await handle.finished()).text)
            finally:
                handle.cancel()
                self._metrics.tokens.labels(name, "prompt").inc(handle.usage.prompt_tokens)
                self._metrics.tokens.labels(name, "generated").inc(handle.usage.generated_tokens)
        return joined(texts)


def _wanted(fields: Mapping[str, bytes], texts: Mapping[str, str]) -> _TranscriptionRequest:
    unknown_fields(texts, FIELDS, frozenset())
    if not fields.get(FILE):
        raise InputError("the form has no 'file', or an empty one", "send a WAV file")
    form = texts.get("response_format", "json")
    if form not in _FORMATS:
        raise InputError(f"the response_format {shown(form)} is not supported", f"use {', '.join(_FORMATS)}")
    try:
        temperature = float(texts.get("temperature", "0"))
    except ValueError as error:
        raise InputError(f"'temperature' must be a number, not {shown(texts['temperature'])}") from error
    options = GenerationOptions(max_new_tokens=1 << 20, temperature=temperature)
    return _TranscriptionRequest(fields[FILE], texts.get("language") or None, form, options)


FILE = "file"
"""The field that may be large: an uploaded file."""
_PIECE = 64 << 10  # bytes that are parsed before limits are checked


def form_fields(call: Call) -> dict[str, bytes]:
    """Return the fields of a form by name; the last of several with the same name.

    Raises InputError if there is no form, LimitError if it exceeds limits.
    """
    multipart: Any = optional_module("python_multipart.multipart", "serve", "parses forms")
    limits = call.limits
    content_type = call.headers.get(b"content-type", b"")
    limits.check("form_header_bytes", len(content_type))
    kind, options = multipart.parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise InputError("the request is not a form", "send multipart/form-data")
    reader = _Reader(limits, multipart.parse_options_header)
    try:
        parser = multipart.MultipartParser(boundary, reader.callbacks(), max_header_size=limits.form_header_bytes)
        body = memoryview(call.body)
        for start in range(0, len(body), _PIECE):
            parser.write(bytes(body[start : start + _PIECE]))
        parser.finalize()
    except multipart.FormParserError as error:  # also raised for too long headers, which have no class of their own
        hint = f"a header of it may have {limits.form_header_bytes} bytes (the server's limit 'form_header_bytes')"
        raise InputError(f"the form cannot be read: {error}", hint) from error
    if not reader.ended:
        raise InputError("the form does not end")
    return {name: b"".join(pieces) for name, pieces in reader.fields.items()}


class _Reader:
    """Collects the parser's results."""

    def __init__(self, limits: Limits, parse_header: Any) -> None:
        self._limits, self._parse_header = limits, parse_header
        self._name, self._value, self._parts, self._size = b"", b"", 0, 0
        self._field: str | None = None
        self.fields: dict[str, list[bytes]] = {}
        self.ended = False

    def callbacks(self) -> dict[str, Any]:
        """Callbacks of the parser."""
        names = ("part_begin", "part_data", "header_field", "header_value", "header_end", "headers_finished", "end")
        return {f"on_{name}": getattr(self, f"_{name}") for name in names}

    def _part_begin(self) -> None:
        self._parts += 1
        self._limits.check("form_parts", self._parts)
        self._field, self._size = None, 0

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        name, value, self._name, self._value = self._name, self._value, b"", b""
        if name.lower() == b"content-disposition":
            found = self._parse_header(value)[1].get(b"name")
            self._field = None if found is None else found.decode("utf-8", "replace")

    def _headers_finished(self) -> None:
        if self._field is None:
            raise InputError("a field of the form has no name")
        self.fields[self._field] = []

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        assert self._field is not None
        self._size += end - start
        if self._field != FILE:
            self._limits.check("form_text_bytes", self._size)
        self.fields[self._field].append(data[start:end])

    def _end(self) -> None:
        self.ended = True


def text_fields(fields: dict[str, bytes]) -> dict[str, str]:
    """Return the fields other than the file, as texts. Raises InputError."""
    try:
        return {name: value.decode() for name, value in fields.items() if name != FILE}
    except UnicodeDecodeError as error:
        names = ", ".join(map(shown, fields))
        raise InputError(f"one of the fields {names} is not valid UTF-8") from error
