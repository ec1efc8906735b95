"""Options of OpenAI's completion requests."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from compiler.errors import InputError
from compiler.generation.grammar import Grammar
from compiler.generation.options import GenerationOptions
from compiler.generation.prompts import Prompt
from compiler.generation.tool_calls import CallSyntax, Tools
from compiler.serving.app.http import flag, mapping, orjson
from compiler.serving.app.openai_models import unknown_fields
from compiler.serving.app.tool_calls import (
    argument_schemas,
    json_size,
    message_calls,
    requested_tools,
    required_functions,
)
from compiler.serving.limits import Limits, utf8_size
from compiler.support.shown import shown

_MAX_CHOICES = 16
_MAX_LOGPROBS = 20
_MAX_BIASES = 1024
_COMPLETION_TOKENS = 16  # OpenAI's default for completions
_PENALTIES = frozenset({"repetition_penalty", "frequency_penalty", "presence_penalty", "logit_bias"})
_SAMPLING = _PENALTIES | {"temperature", "top_p", "top_k", "min_p", "seed", "stop"}
_COMMON = _SAMPLING | {"model", "n", "stream", "stream_options", "max_tokens", "logprobs", "response_format"}
_TOOLS = frozenset({"tools", "tool_choice", "parallel_tool_calls", "chat_template_kwargs"})
CHAT_FIELDS = _COMMON | _TOOLS | {"messages", "max_completion_tokens", "top_logprobs"}
COMPLETION_FIELDS = _COMMON | {"prompt"}
# These do not affect the text.
IGNORED = frozenset({"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"})
# Their defaults.
NEUTRAL: Mapping[str, Sequence[Any]] = {
    "echo": (False,),
    "suffix": ("",),
    "best_of": (1,),
    "tools": ([],),
    "tool_choice": ("none",),
    "parallel_tool_calls": (True, False),
}


@dataclass(frozen=True)
class CompletionRequest:
    """A completion request.

    Attributes:
        prompts: each gives `choices` texts.
        max_tokens: None for as many as the context holds.
        usage: the stream ends with token counts.
        images, audio: media of a chat.
        tools: schemas of the arguments of functions that the model may call, by name; None for no tools.
        several_calls: the model may make several calls at once.
        required: functions of which the text must call one; none if it may be anything else.
        syntax: the syntax of calls in the model's chat template.
    """

    prompts: tuple[Prompt, ...]
    options: GenerationOptions
    max_tokens: int | None
    choices: int
    stream: bool
    usage: bool
    images: tuple[bytes, ...] = ()
    audio: bytes | None = None
    tools: Tools | None = None
    several_calls: bool = True
    required: tuple[dict[str, Any], ...] = ()
    syntax: CallSyntax | None = None


@dataclass(frozen=True)
class _Attachments:
    """Media files in the messages of a chat."""

    images: list[bytes] = field(default_factory=list)
    sounds: list[bytes] = field(default_factory=list)


def chat_request(body: Mapping[str, object], limits: Limits) -> CompletionRequest:
    """Parse a chat request. Raises InputError, and OptionError for options out of range."""
    _check_fields(body, CHAT_FIELDS)
    requested = body.get("logprobs")
    if requested not in (None, True, False):
        raise InputError(f"'logprobs' must be true or false, not {shown(requested)}")
    logprobs = _whole(body, "top_logprobs", 0, 0, _MAX_LOGPROBS) if requested else None
    max_tokens = body.get("max_completion_tokens", body.get("max_tokens"))
    files = _Attachments()
    messages, tools = _messages(body.get("messages"), files, limits), requested_tools(body, limits)
    names = mapping(body.get("chat_template_kwargs") or {}, "'chat_template_kwargs'")
    limits.check("text_bytes", json_size(names, "'chat_template_kwargs'"))
    prompt: Prompt = messages
    if tools is not None or names:
        prompt = {"messages": messages, "tools": tools, "names": names}
    required = required_functions(body, tools or ())
    for schema in required:
        check_schema(schema, limits)
    request = _request(body, (prompt,), logprobs, _limit(max_tokens), limits)
    return replace(
        request,
        images=tuple(files.images),
        audio=files.sounds[0] if files.sounds else None,
        tools=None if tools is None else argument_schemas(tools),
        several_calls=body.get("parallel_tool_calls") is not False,
        required=required,
    )


def completion_request(body: Mapping[str, object], limits: Limits) -> CompletionRequest:
    """Parse a completion request. Raises InputError, and OptionError for options out of range."""
    _check_fields(body, COMPLETION_FIELDS)
    logprobs = None if body.get("logprobs") is None else _whole(body, "logprobs", 0, 0, _MAX_LOGPROBS)
    max_tokens = _limit(body.get("max_tokens"))
    max_tokens = _COMPLETION_TOKENS if max_tokens is None else max_tokens
    return _request(body, _prompts(body.get("prompt"), limits), logprobs, max_tokens, limits)


def _check_fields(body: Mapping[str, object], known: frozenset[str]) -> None:
    for name, neutral in NEUTRAL.items():
        if name not in known and body.get(name) is not None and body[name] not in neutral:
            raise InputError(f"{name!r} is not supported")
    unknown_fields(body, known, IGNORED | set(NEUTRAL))


def _request(
    body: Mapping[str, Any], prompts: tuple[Prompt, ...], logprobs: int | None, max_tokens: int | None, limits: Limits
) -> CompletionRequest:
    settings = {name: body[name] for name in _SAMPLING if body.get(name) is not None}
    settings.setdefault("temperature", 1.0)
    if "logit_bias" in settings:
        settings["logit_bias"] = _biases(settings["logit_bias"])
    if "stop" in settings:
        settings["stop"] = _stops(settings["stop"], limits)
    settings.update(response_format(body.get("response_format"), limits))
    stream_options = mapping(body.get("stream_options") or {}, "'stream_options'")
    return CompletionRequest(
        prompts,
        GenerationOptions(logprobs=logprobs, **settings),
        max_tokens,
        _whole(body, "n", 1, 1, _MAX_CHOICES),
        flag(body, "stream"),
        flag(stream_options, "include_usage"),
    )


def _biases(given: object) -> dict[int, Any]:
    biases = mapping(given, "'logit_bias'")
    known = all(name.isascii() and name.isdigit() and len(name) <= _DIGITS for name in biases)
    if len(biases) > _MAX_BIASES or not known:
        raise InputError(f"'logit_bias' must be an object of at most {_MAX_BIASES} tokens", 'as {"50256": -100}')
    return {int(name): bias for name, bias in biases.items()}


def _stops(value: object, limits: Limits) -> tuple[str, ...]:
    stops = value if isinstance(value, list) else [value]
    limits.check("stops", len(stops))
    if not all(isinstance(each, str) and each for each in stops):
        raise InputError(f"'stop' must be texts that are not empty, not {shown(value)}")
    limits.check("stop_bytes", sum(map(utf8_size, stops)))
    return tuple(stops)


def response_format(given: object, limits: Limits) -> dict[str, Any]:
    """Return generation settings for a response format. Raises InputError."""
    if given is None:
        return {}
    content = mapping(given, "'response_format'")
    kind = content.get("type")
    if kind == "text":
        return {}
    if kind == "json_object":
        return {"grammar": Grammar.json_schema({"type": "object"})}
    if kind == "json_schema":
        schema = mapping(mapping(content.get("json_schema"), "'json_schema'").get("schema"), "'schema'")
        check_schema(schema, limits)
        text: str = orjson.dumps(schema).decode()
        limits.check("grammar_bytes", utf8_size(text))
        return {"grammar": Grammar.json_schema(text)}
    raise InputError(f"the response_format {shown(kind)} is not supported", "use text, json_object or json_schema")


def _messages(value: object, files: _Attachments, limits: Limits) -> list[dict[str, Any]]:
    """Return messages for a chat template; images and sounds are appended to `files`."""
    if not isinstance(value, list) or not value:
        raise InputError("'messages' must be a list of messages")
    limits.check("messages", len(value))
    messages = []
    parts = size = 0
    for each in value:
        message = mapping(each, "a message")
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str):
            raise InputError(f"a message's role must be a string, not {shown(role)}")
        parts += len(content) if isinstance(content, list) else 1
        limits.check("parts", parts)
        parsed: dict[str, Any] = {"role": "system" if role == "developer" else role}
        size += utf8_size(role)
        if message.get("tool_calls"):
            parsed["tool_calls"] = message_calls(message["tool_calls"])
            size += json_size(parsed["tool_calls"], "'tool_calls'")
        if content is not None or "tool_calls" not in parsed:
            parsed["content"] = _content(content, files, limits)
            size += sum(map(utf8_size, _texts_of(parsed["content"])))
        for name in ("name", "tool_call_id"):
            if isinstance(message.get(name), str):
                parsed[name] = message[name]
                size += utf8_size(message[name])
        limits.check("text_bytes", size)
        messages.append(parsed)
    return messages


def _texts_of(content: str | list[dict[str, str]]) -> list[str]:
    return [content] if isinstance(content, str) else [each.get("text", "") for each in content]


def _content(value: object, files: _Attachments, limits: Limits) -> str | list[dict[str, str]]:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise InputError(f"a message's content must be a text, not {shown(value)}")
    parts = [mapping(each, "a part of a message") for each in value]
    converted = [_part(each, files, limits) for each in parts]
    if all(each["type"] == "text" for each in converted):
        return "".join(each["text"] for each in converted)
    return converted


def _part(part: Mapping[str, Any], files: _Attachments, limits: Limits) -> dict[str, str]:
    """Parse a part of a message: a text, or an image or a sound contained in the request."""
    if part.get("type") == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if part.get("type") == "input_audio":
        return _sound(mapping(part.get("input_audio"), "'input_audio'"), files)
    if part.get("type") != "image_url":
        raise InputError(
            f"a message's part of type {shown(part.get('type'))} is not supported",
            "use text, image_url or input_audio",
        )
    address = mapping(part.get("image_url"), "'image_url'").get("url")
    start, found, content = address.partition(";base64,") if isinstance(address, str) else ("", "", "")
    if not found or not start.startswith("data:image/"):
        raise InputError(
            "an image's 'url' must be a data: URL", "use data:image/png;base64,...; remote images are not fetched"
        )
    limits.check("images", len(files.images) + 1)
    files.images.append(_decoded(content, "an image's 'url'"))
    return {"type": "image"}


def _sound(given: Mapping[str, Any], files: _Attachments) -> dict[str, str]:
    content = given.get("data")
    if given.get("format") != "wav" or not isinstance(content, str):
        raise InputError("'input_audio' must have 'data', in base64, and the 'format' wav", "convert it to WAV")
    if files.sounds:
        raise InputError("a chat has two sounds, and models read one", "join them, or start a new chat")
    files.sounds.append(_decoded(content, "the 'data' of 'input_audio'"))
    return {"type": "audio"}


def _decoded(content: str, what: str) -> bytes:
    try:
        return base64.b64decode(content, validate=True)
    except ValueError as error:
        raise InputError(f"{what} is not valid base64: {error}") from error


def _prompts(value: object, limits: Limits) -> tuple[Prompt, ...]:
    if isinstance(value, str):
        limits.check("text_bytes", utf8_size(value))
        return (value,)
    if not isinstance(value, list) or not value:
        raise InputError("'prompt' must be a text, a list of texts, tokens, or a list of lists of tokens")
    if all(type(each) is int for each in value):
        return (value,)
    limits.check("prompts", len(value))
    limits.check("text_bytes", sum(utf8_size(each) for each in value if isinstance(each, str)))
    for prompt in value:
        tokens = isinstance(prompt, list) and all(type(token) is int for token in prompt)
        if not isinstance(prompt, str) and not tokens:
            raise InputError(f"a prompt must be a text or a list of tokens, not {shown(prompt)}")
    return tuple(value)


def _limit(value: object) -> int | None:
    if value is not None and (type(value) is not int or value < 0):
        raise InputError(f"the number of tokens must be a whole number, not {shown(value)}")
    return value


def _whole(body: Mapping[str, object], name: str, default: int, least: int, most: int) -> int:
    value = default if body.get(name) is None else body[name]
    if type(value) is not int or not least <= value <= most:
        raise InputError(f"{name!r} must be a whole number from {least} to {most}, not {shown(value)}")
    return value


_COUNTS = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties")
_ATOM = re.compile(r"[^\\\[\](){}]+|\\.|\[(?:\\.|[^\]\\])*\]|\{(?P<least>\d*)(?P<comma>,?)(?P<most>\d*)\}|.", re.DOTALL)
_DIGITS = 10  # digits of a repetition count that are read: the limit has fewer


def check_schema(schema: Mapping[str, Any], limits: Limits) -> None:
    """Raise LimitError if a schema is nested too deeply, or repeats an element too often."""
    waiting: list[tuple[Any, int, int]] = [(schema, 1, 1)]
    while waiting:
        value, depth, repeated = waiting.pop()
        limits.check("grammar_nesting", depth)
        if isinstance(value, Mapping):
            counts = [value[name] for name in _COUNTS if isinstance(value.get(name), int | float)]
            repeated = _checked(repeated * max([1, *counts]), limits)
            texts = [value.get("pattern"), *(value["patternProperties"] if _has_patterns(value) else ())]
            for text in texts:
                if isinstance(text, str):
                    _checked(repeated * _pattern_repetitions(text, depth, limits), limits)
        children = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
        waiting += [(each, depth + 1, repeated) for each in children if isinstance(each, Mapping | list)]


def _has_patterns(value: Mapping[str, Any]) -> bool:
    return isinstance(value.get("patternProperties"), Mapping)


def _checked(repeated: float, limits: Limits) -> int:
    whole = int(min(repeated, 1 << 62))
    limits.check("grammar_repetitions", whole)
    return whole


def _pattern_repetitions(pattern: str, depth: int, limits: Limits) -> int:
    """Return the largest number of repetitions of an element in a regular expression.

    An element without an upper bound counts with its lower bound, since it becomes a loop. Raises LimitError if groups
    are nested too deeply; `depth`: nesting of the surrounding schema.
    """
    groups = [1]  # repetitions in each open group
    last = 1
    for match in _ATOM.finditer(pattern):
        text = match.group()
        if text == "(":
            groups.append(1)
            limits.check("grammar_nesting", depth + len(groups) - 1)
            last = 1
        elif text == ")" and len(groups) > 1:
            last = groups.pop()
        elif match["least"] or match["most"]:
            last *= max(1, *(int(each[:_DIGITS]) for each in (match["least"], match["most"]) if each))
        else:
            last = 1
        groups[-1] = max(groups[-1], last)
    return max(groups)
