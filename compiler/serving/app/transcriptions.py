"""OpenAI's transcriptions and translations of speech."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from compiler.artifact.fields import encode
from compiler.errors import InputError
from compiler.generation.options import GenerationOptions
from compiler.generation.transcription import Speech, joined, prepared_speech, speech_preparation
from compiler.serving.app.http import Call, Reply, check_method, json_reply
from compiler.serving.app.multipart import FILE, form_fields, text_fields
from compiler.serving.app.openai_models import named_model, unknown_fields
from compiler.serving.metrics import Metrics
from compiler.serving.repository import Repository
from compiler.serving.text.service import ReadPrompt, TextService
from compiler.support.shown import shown

_TASKS = {"/v1/audio/transcriptions": "transcribe", "/v1/audio/translations": "translate"}
_FIELDS = frozenset({"model", "file", "language", "temperature", "response_format"})
_FORMATS = ("json", "text", "verbose_json")


@dataclass(frozen=True)
class _Wanted:
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
        fields = await asyncio.to_thread(form_fields, call)  # of a large file it takes long; it is Python
        texts = text_fields(fields)
        name = named_model(self._repository, texts, call)
        wanted = _wanted(fields, texts)
        with self._repository.lease(name) as service:
            if not isinstance(service, TextService):
                raise InputError(f"{name!r} is not a language model")
            how = encode(speech_preparation(service.model))
            sandbox, longest = call.required_sandbox, call.limits.audio_seconds
            parts, seconds = await sandbox.run("speech", None, wanted.audio, how, longest)
            speech = await asyncio.to_thread(prepared_speech, service.model, parts, language=wanted.language, task=task)
            text = await self._text_of(name, service, speech, wanted.options)
        if wanted.form == "text":
            return Reply(f"{text}\n".encode(), headers=((b"content-type", b"text/plain; charset=utf-8"),))
        if wanted.form == "json":
            return json_reply({"text": text})
        return json_reply({"task": task, "language": speech.language, "duration": seconds, "text": text})

    async def _text_of(self, name: str, service: TextService, speech: Speech, options: GenerationOptions) -> str:
        """Of all parts, which wait in the model's queue one after another."""
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


def _wanted(fields: Mapping[str, bytes], texts: Mapping[str, str]) -> _Wanted:
    unknown_fields(texts, _FIELDS, frozenset())
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
    return _Wanted(fields[FILE], texts.get("language") or None, form, options)
