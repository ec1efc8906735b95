"""OpenAI's completions and chats, complete or streamed as server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from compiler.errors import InputError
from compiler.generation.handle import SequenceHandle, Usage
from compiler.generation.options import TokenLogprob
from compiler.generation.output import Piece
from compiler.serving.app.completion_options import CompletionRequest, chat_request, completion_request
from compiler.serving.app.http import Call, Reply, StreamReply, check_method, failure, json_reply, mapping, orjson
from compiler.serving.app.openai_models import named_model
from compiler.serving.app.tool_calls import CalledTools, RequiredCalls
from compiler.serving.limits import Limits, utf8_size
from compiler.serving.metrics import Metrics
from compiler.serving.repository import Repository
from compiler.serving.text.service import TextService

TokenText = Callable[[int], str]


class Format(Protocol):
    """The format of one kind of response."""

    def choice(self, index: int, text: str, reason: str, logprobs: Sequence[TokenLogprob] | None) -> dict[str, Any]:
        """Return a complete text."""

    def begin(self, index: int) -> dict[str, Any] | None:
        """Return the first part of a streamed text."""

    def piece(self, index: int, text: str, logprob: TokenLogprob | None) -> dict[str, Any] | None:
        """Return a part of a streamed text; None if there is nothing to send yet."""

    def end(self, index: int, reason: str) -> Sequence[dict[str, Any]]:
        """Return the last parts of a streamed text."""


@dataclass
class Envelope:
    """Fields shared by all parts of a response."""

    kind: str
    model: str
    prefix: str
    created: int = field(default_factory=lambda: int(time.time()))
    number: str = field(default_factory=lambda: secrets.token_hex(12))

    def around(self, choices: Sequence[dict[str, Any]], usage: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return a response, or a part of it."""
        content: dict[str, Any] = {
            "id": f"{self.prefix}-{self.number}",
            "object": self.kind,
            "created": self.created,
            "model": self.model,
            "choices": list(choices),
        }
        return content if usage is None else {**content, "usage": usage}


class ChatFormat:
    """The format of chat completions."""

    def __init__(self, text_of: TokenText, request: CompletionRequest) -> None:
        self._text_of, self._request = text_of, request
        self._called: dict[int, CalledTools | RequiredCalls] = {}

    def choice(self, index: int, text: str, reason: str, logprobs: Sequence[TokenLogprob] | None) -> dict[str, Any]:
        """See `Format`."""
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if self._request.tools is not None:
            called = self._calls(index)
            content = called.say(text)
            rest, calls = called.ended()
            if calls:
                message |= {"content": (content + rest).strip() or None, "tool_calls": calls}
                reason = _reason(reason)
        return {
            "index": index,
            "message": message,
            "logprobs": None if logprobs is None else {"content": [self._logprob(each) for each in logprobs]},
            "finish_reason": reason,
        }

    def begin(self, index: int) -> dict[str, Any]:
        """See `Format`."""
        return self._delta(index, {"role": "assistant", "content": ""}, None, None)

    def piece(self, index: int, text: str, logprob: TokenLogprob | None) -> dict[str, Any] | None:
        """See `Format`."""
        logprobs = None if logprob is None else {"content": [self._logprob(logprob)]}
        if self._request.tools is not None:
            text = self._calls(index).say(text)
        return self._delta(index, {"content": text}, None, logprobs) if text or logprobs else None

    def end(self, index: int, reason: str) -> Sequence[dict[str, Any]]:
        """See `Format`."""
        if self._request.tools is None:
            return [self._delta(index, {}, reason, None)]
        rest, calls = self._calls(index).ended()
        if calls:
            reason = _reason(reason)
        numbered = [{"index": number, **each} for number, each in enumerate(calls)]
        delta: dict[str, Any] = {"tool_calls": numbered} if calls else {"content": rest}
        last = self._delta(index, {}, reason, None)
        return [self._delta(index, delta, None, None), last] if calls or rest else [last]

    def _calls(self, index: int) -> CalledTools | RequiredCalls:
        if index not in self._called:
            request = self._request
            tools, syntax = request.tools or {}, request.syntax
            self._called[index] = (
                RequiredCalls(tools, syntax)
                if request.required and syntax is not None
                else CalledTools(tools, several=request.several_calls, syntax=syntax)
            )
        return self._called[index]

    def _delta(self, index: int, delta: dict[str, Any], reason: str | None, logprobs: object) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}

    def _logprob(self, each: TokenLogprob) -> dict[str, Any]:
        alternatives = [self._token(token, value) for token, value in each.alternatives]
        return {**self._token(each.token, each.logprob), "top_logprobs": alternatives}

    def _token(self, token: int, value: float) -> dict[str, Any]:
        text = self._text_of(token)
        return {"token": text, "logprob": value, "bytes": list(text.encode())}


def _reason(reason: str) -> str:
    """Return why a text with calls ended."""
    return "tool_calls" if reason == "stop" else reason


class TextFormat:
    """The format of completions."""

    def __init__(self, text_of: TokenText, request: CompletionRequest) -> None:
        self._text_of = text_of
        self._offsets: dict[int, int] = {}

    def choice(self, index: int, text: str, reason: str, logprobs: Sequence[TokenLogprob] | None) -> dict[str, Any]:
        """See `Format`."""
        return self._choice(index, text, reason, logprobs)

    def begin(self, index: int) -> None:
        """See `Format`."""
        return

    def piece(self, index: int, text: str, logprob: TokenLogprob | None) -> dict[str, Any]:
        """See `Format`."""
        return self._choice(index, text, None, None if logprob is None else [logprob])

    def end(self, index: int, reason: str) -> Sequence[dict[str, Any]]:
        """See `Format`."""
        return [self._choice(index, "", reason, None)]

    def _choice(
        self, index: int, text: str, reason: str | None, logprobs: Sequence[TokenLogprob] | None
    ) -> dict[str, Any]:
        listed = None if logprobs is None else self._logprobs(index, logprobs)
        return {"index": index, "text": text, "logprobs": listed, "finish_reason": reason}

    def _logprobs(self, index: int, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        texts = [self._text_of(each.token) for each in logprobs]
        offsets = []
        for text in texts:
            offsets.append(self._offsets.get(index, 0))
            self._offsets[index] = offsets[-1] + len(text)
        return {
            "tokens": texts,
            "token_logprobs": [each.logprob for each in logprobs],
            "top_logprobs": [{self._text_of(token): value for token, value in each.alternatives} for each in logprobs],
            "text_offset": offsets,
        }


def usage_of(counts: Sequence[Usage], prompts: int) -> dict[str, Any]:
    """Return the token counts of several texts; each prompt counts once, even with several texts."""
    choices_per_prompt = len(counts) // prompts
    prompt = sum(count.prompt_tokens for count in counts[::choices_per_prompt])
    generated = sum(count.generated_tokens for count in counts)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": sum(count.cached_tokens for count in counts[::choices_per_prompt])},
    }


@dataclass(frozen=True)
class _Kind:
    """One of the two routes."""

    route: str
    read: Callable[[Mapping[str, Any], Limits], CompletionRequest]
    format: Callable[[TokenText, CompletionRequest], Format]
    whole: str
    part: str
    prefix: str


_KINDS = {
    "/v1/completions": _Kind(
        "completions", completion_request, TextFormat, "text_completion", "text_completion", "cmpl"
    ),
    "/v1/chat/completions": _Kind(
        "chat", chat_request, ChatFormat, "chat.completion", "chat.completion.chunk", "chatcmpl"
    ),
}


class Completions:
    """`POST /v1/completions` and `POST /v1/chat/completions`."""

    def __init__(self, repository: Repository, metrics: Metrics) -> None:
        self._repository, self._metrics = repository, metrics

    async def answer(self, call: Call) -> Reply | StreamReply | None:
        """See `Routes`."""
        kind = _KINDS.get(call.path)
        if kind is None:
            return None
        check_method(call, "POST")
        call.route = kind.route
        body = mapping(await call.json(), "the request")
        model_name = body.get("model")
        base = self._repository.adapters.get(model_name) if isinstance(model_name, str) else None
        name = named_model(self._repository, body if base is None else {**body, "model": base}, call)
        request = kind.read(body, call.limits)
        if base is not None:
            request = replace(request, options=replace(request.options, adapter=model_name))
        with contextlib.ExitStack() as stack:
            service = stack.enter_context(self._repository.lease(name))
            if not isinstance(service, TextService):
                raise InputError(f"{name!r} is not a language model", "use /v1/embeddings, or /v2/models/NAME/infer")
            if request.tools is not None:
                request = await _with_calls(service, request, call)
            texts = await _Texts.submit(service, request, call)
            stack.callback(self._count, name, texts)
            stack.callback(texts.cancel)
            form = kind.format(lambda token: service.model.decode([token]), request)
            if request.stream:
                envelope = Envelope(kind.part, str(model_name), kind.prefix)
                events = _events(texts, form, envelope, request, call)
                return StreamReply(_Owned(events, stack.pop_all()))
            return json_reply(await _whole(texts, form, Envelope(kind.whole, str(model_name), kind.prefix)))

    def _count(self, name: str, texts: _Texts) -> None:
        for each in texts.handles:
            usage = each.usage
            self._metrics.tokens.labels(name, "prompt").inc(usage.prompt_tokens)
            self._metrics.tokens.labels(name, "cached").inc(usage.cached_tokens)
            self._metrics.tokens.labels(name, "generated").inc(usage.generated_tokens)


@dataclass(eq=False)
class _Texts:
    """The sequences of a request."""

    handles: list[SequenceHandle]
    prompts: int

    @classmethod
    async def submit(cls, service: TextService, request: CompletionRequest, call: Call) -> _Texts:
        """Submit all of them, or none."""
        texts = cls([], len(request.prompts))
        sandbox, grammar = call.required_sandbox, request.options.grammar
        options = replace(request.options, max_new_tokens=_room(service, request), grammar=None)
        sequences = len(request.prompts) * request.choices
        try:
            for prompt in await service.read(request.prompts, (request.images, request.audio), sequences, sandbox):
                call.hold(sum(each.nbytes for each in (prompt.inputs or {}).values()))
                for choice in range(request.choices):
                    seed = None if options.seed is None else options.seed + choice
                    matcher = await service.matcher(grammar, sandbox, call.limits)
                    texts.handles.append(await service.submit(prompt, replace(options, seed=seed), matcher))
        except BaseException:
            texts.cancel()
            raise
        return texts

    def cancel(self) -> None:
        """Cancel unfinished sequences."""
        for each in self.handles:
            each.cancel()


async def _with_calls(service: TextService, request: CompletionRequest, call: Call) -> CompletionRequest:
    """Add the syntax of calls, and constrain the text to them if they are required. Raises InputError if the model's
    chat template takes no tools."""
    [prompt] = request.prompts
    assert isinstance(prompt, Mapping)
    syntax = await service.call_syntax(prompt["names"], call.required_sandbox)
    if not request.required:
        return replace(request, syntax=syntax)
    grammar = syntax.grammar(request.required, several=request.several_calls)
    call.limits.check("grammar_bytes", utf8_size(grammar.text))
    return replace(request, syntax=syntax, options=replace(request.options, grammar=grammar))


def _room(service: TextService, request: CompletionRequest) -> int:
    """Return the maximum number of tokens of a text; a generation also ends at the end of the context."""
    return service.context if request.max_tokens is None else request.max_tokens


async def _whole(texts: _Texts, form: Format, envelope: Envelope) -> dict[str, Any]:
    choices = []
    for index, handle in enumerate(texts.handles):
        result = await handle.finished()
        logprobs = result.logprobs or None
        choices.append(form.choice(index, result.text, result.finish_reason, logprobs))
    return envelope.around(choices, usage_of([each.usage for each in texts.handles], texts.prompts))


async def _events(
    texts: _Texts, form: Format, envelope: Envelope, request: CompletionRequest, call: Call
) -> AsyncIterator[bytes]:
    """Yield server-sent events; an error is sent as the last event."""
    try:
        for index in range(len(texts.handles)):
            first = form.begin(index)
            if first is not None:
                yield _event(envelope.around([first]))
        async for index, piece in _merged(texts.handles):
            if piece is None:
                result = await texts.handles[index].finished()
                for last in form.end(index, result.finish_reason):
                    yield _event(envelope.around([last]))
            elif piece.text or piece.logprob is not None:
                part = form.piece(index, piece.text, piece.logprob)
                if part is not None:
                    yield _event(envelope.around([part]))
        if request.usage:
            yield _event(envelope.around([], usage_of([each.usage for each in texts.handles], texts.prompts)))
        yield b"data: [DONE]\n\n"
    except Exception as error:  # the status has already been sent
        yield b"data: " + failure(error, call.path).body + b"\n\n"


async def _merged(handles: list[SequenceHandle]) -> AsyncIterator[tuple[int, Piece | None]]:
    """Yield parts of several texts as they are generated, each with the text's index; None ends a text."""
    queue: asyncio.Queue[tuple[int, Piece | BaseException | None]] = asyncio.Queue()

    async def read(index: int, handle: SequenceHandle) -> None:
        try:
            async for piece in handle:
                queue.put_nowait((index, piece))
            queue.put_nowait((index, None))
        except Exception as error:  # raised by the reader of the pieces
            queue.put_nowait((index, error))

    tasks = [asyncio.ensure_future(read(index, handle)) for index, handle in enumerate(handles)]
    try:
        running = len(handles)
        while running:
            index, piece = await queue.get()
            if isinstance(piece, BaseException):
                raise piece
            running -= piece is None
            yield index, piece
    finally:
        for task in tasks:
            task.cancel()


def _event(content: object) -> bytes:
    data: bytes = orjson.dumps(content)
    return b"data: " + data + b"\n\n"


class _Owned(AsyncIterator[bytes]):
    """Parts of texts with resources to release once they are no longer read, even if reading never began."""

    def __init__(self, pieces: AsyncIterator[bytes], held: contextlib.ExitStack) -> None:
        self._pieces, self._held = pieces, held

    async def __anext__(self) -> bytes:
        return await self._pieces.__anext__()

    async def aclose(self) -> None:
        """Release the resources."""
        with self._held:
            await self._pieces.aclose()  # type: ignore[attr-defined]
