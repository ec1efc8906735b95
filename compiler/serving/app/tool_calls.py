"""Tools of chats: their definitions in a request, and the calls in a model's answer."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from compiler.errors import InputError
from compiler.generation.output import StopTexts
from compiler.generation.tool_calls import PYTHON_LIST, CallSyntax, Tools, as_json
from compiler.serving.app.http import mapping, orjson
from compiler.serving.limits import Limits
from compiler.support.shown import shown

_BEGIN, _END = "<tool_call>", "</tool_call>"


def requested_tools(body: Mapping[str, object], limits: Limits) -> list[dict[str, Any]] | None:
    """Return the JSON schemas of the functions that a model may call; None if there are none. Raises InputError."""
    tools, choice = body.get("tools"), body.get("tool_choice")
    if not tools or choice == "none":
        return None
    if not isinstance(tools, list):
        raise InputError(f"'tools' must be a list, not {shown(tools)}")
    for each in tools:
        function = mapping(mapping(each, "a tool").get("function"), "a tool's 'function'")
        if not isinstance(function.get("name"), str):
            raise InputError(f"a function's name must be a string, not {shown(function.get('name'))}")
    limits.check("text_bytes", json_size(tools, "'tools'"))
    return tools


def argument_schemas(tools: Sequence[Mapping[str, Any]]) -> Tools:
    """Return the schemas of the arguments of functions, by name; empty where a definition has none."""
    functions = [each["function"] for each in tools]
    schemas = {each["name"]: each.get("parameters") for each in functions}
    return {name: schema if isinstance(schema, Mapping) else {} for name, schema in schemas.items()}


def required_functions(body: Mapping[str, object], tools: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], ...]:
    """Return the functions of which one must be called; none if the model may answer otherwise. Raises InputError."""
    choice = body.get("tool_choice")
    if choice in (None, "none", "auto"):
        return ()
    functions = tuple(each["function"] for each in tools)
    if not functions:
        raise InputError(f"the tool_choice {shown(choice)} needs 'tools'")
    if choice != "required":
        named = choice.get("function") if isinstance(choice, Mapping) and choice.get("type") == "function" else None
        if not isinstance(named, Mapping):
            hint = 'use none, auto, required, or {"type": "function", "function": {"name": "..."}}'
            raise InputError(f"the tool_choice {shown(choice)} is not supported", hint)
        functions = tuple(each for each in functions if each["name"] == named.get("name"))
        if not functions:
            raise InputError(f"the tool_choice names {shown(named.get('name'))}, which is none of the tools")
    for function in functions:
        mapping(function.get("parameters") or {}, f"the 'parameters' of the function {function['name']!r}")
    return functions


def json_size(value: object, what: str) -> int:
    """Return the size of a value as JSON in bytes. Raises InputError if it is nested too deeply."""
    try:
        return len(orjson.dumps(value))
    except TypeError as error:
        raise InputError(f"{what} cannot be written as JSON: {error}") from error


def message_calls(given: object) -> list[dict[str, Any]]:
    """Convert a message's calls for a chat template, which expects arguments as an object. Raises InputError."""
    if not isinstance(given, list):
        raise InputError(f"'tool_calls' must be a list, not {shown(given)}")
    calls = []
    for each in given:
        call = mapping(each, "a call of a tool")
        function = mapping(call.get("function"), "a call's 'function'")
        arguments = function.get("arguments")
        try:
            parsed = orjson.loads(arguments) if isinstance(arguments, str) else arguments
        except ValueError as error:
            raise InputError(f"a call's arguments are not JSON: {error}") from error
        calls.append({**call, "function": {**function, "arguments": parsed}})
    return calls


class CalledTools:
    """Parser of calls in a generated text: JSON between tags (Qwen, Hermes, Granite, SmolLM), a text that is all JSON
    (Llama 3, Mistral), calls in the syntax of the chat template, or a list of calls in Python (LFM2, Llama 4). Anything
    else is text.

    Text that may be part of a call is held back until it turns out not to be, or the text ends.
    """

    def __init__(self, tools: Tools, *, several: bool, syntax: CallSyntax | None = None) -> None:
        """`several`: accept more than the first call."""
        self._tools, self._several = tools, several
        self._syntaxes = [*([] if syntax is None else [syntax.anywhere()]), PYTHON_LIST]
        self._pieces, self._said = list[str](), 0
        self._is_json: bool | None = None  # None: only white space so far
        names = sorted(self._tools)
        self._tag = StopTexts([_BEGIN, *(text for each in self._syntaxes for text in each.openings(names))])

    def say(self, text: str) -> str:
        """Append text; return the part that does not belong to a call."""
        self._pieces.append(text)
        if self._is_json is None:
            text = "".join(self._pieces)
            first = text.lstrip()[:1]
            self._is_json = first in "{[" if first else None
        said = self._tag.add(text) if self._is_json is False else ""
        self._said += len(said)
        return said

    def ended(self) -> tuple[str, list[dict[str, Any]]]:
        """Return the held-back text that is not a call, and the calls."""
        text = "".join(self._pieces)
        calls = self._calls(text)
        if not calls:
            found = (each.find(text, self._tools) for each in self._syntaxes)
            calls = [_as_call(*call) for call in next(filter(None, found), [])]
        rest = "" if calls else text[self._said :]
        return rest, calls if self._several else calls[:1]

    def _calls(self, text: str) -> list[dict[str, Any]]:
        parts = [text]
        if _BEGIN in text:
            parts = [each.split(_END)[0] for each in text.split(_BEGIN)[1:]]
        try:
            values = [json.loads(each) for each in parts]
        except (ValueError, RecursionError):
            return []
        flat = [each for value in values for each in (value if isinstance(value, list) else [value])]
        calls = [self._call(each) for each in flat]
        return [] if None in calls else [each for each in calls if each is not None]

    def _call(self, value: object) -> dict[str, Any] | None:
        if not isinstance(value, dict) or not isinstance(value.get("name"), str) or value["name"] not in self._tools:
            return None
        return _as_call(value["name"], as_json(value.get("arguments", value.get("parameters", {}))))


class RequiredCalls:
    """Parser of a text that consists of calls, held back until its end."""

    def __init__(self, tools: Tools, syntax: CallSyntax) -> None:
        self._tools, self._syntax, self._pieces = tools, syntax, list[str]()

    def say(self, text: str) -> str:
        """See `CalledTools`."""
        self._pieces.append(text)
        return ""

    def ended(self) -> tuple[str, list[dict[str, Any]]]:
        """See `CalledTools`; a text that ends within its first call stays text."""
        text = "".join(self._pieces)
        calls = [_as_call(*each) for each in self._syntax.read(text, self._tools)]
        return "" if calls else text, calls


def _as_call(name: str, arguments: str) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}
