"""Calls of tools in the syntax of a model's chat template: a grammar of texts that consist of calls, and their reader.

The syntax is what the template adds for an assistant's message with one and with two calls of a made-up function.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from compiler.errors import InputError
from compiler.generation.grammar import WHITESPACE, Grammar
from compiler.generation.prompts import PromptReader

Parts = tuple[str | int | None, ...]
Tools = Mapping[str, Mapping[str, Any]]
"""JSON schemas of the arguments of functions, by name."""
_NAME, _ARGUMENTS, _IDS = "made_up_function", {"made_up_key": "made up value"}, ("madeupid1", "madeupid2")
_TOOL = {"name": _NAME, "description": "made up", "parameters": {"type": "object", "properties": {}}}
_JSON_STYLE = "json"
# Arguments between tags: a name and a value each, strings as they are. The keys are xgrammar's names of these styles.
_TAGGED = {
    "qwen_xml": re.compile(r"\s*<parameter=([^>]+)>\n?(.*?)\n?</parameter>", re.DOTALL),
    "minimax_xml": re.compile(r'\s*<parameter name="([^"]+)">(.*?)</parameter>', re.DOTALL),
    "glm_xml": re.compile(r"\s*<arg_key>([^<]+)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL),
}
_PYTHON_WORDS = {"True": True, "False": False, "None": None}  # as some templates write them
# Arguments as Python writes them (LFM2, OLMo 3): name="value", count=3
_PYTHON_STYLE = "python"
_MADE_UP_KEYWORD = re.compile(r"""made_up_key=(["'])made up value\1""")
_PYTHON_TOKEN = re.compile(
    r"""(?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|(?P<word>[\w.+-]+)(?P<equals>\s*=)?|(?P<last>,\s*(?=[])}]))"""
    r"""|(?P<open>[(\[{])|(?P<close>[])}])|(?P<quote>["'])|.""",
    re.DOTALL,
)
_STRING_PART = re.compile(r"""\\x([0-9a-fA-F]{2})|\\(.)|\"""", re.DOTALL)
_AS_JSON = {"True": "true", "False": "false", "None": "null", "(": "[", ")": "]"}
_CLOSING = {"(": ")", "[": "]", "{": "}"}
_MAX_DEPTH = 100  # of brackets in arguments
_MAX_OPENINGS = 64
"""Places of a text at which a call may begin that are tried: each may read the text to its end."""
_HALVES = re.compile("[\ud800-\udfff]")
_THOUGHT_END = "</think>"
_THOUGHT = re.compile(r"<think>\s*(</think>\s*)?$")


@dataclass(frozen=True)
class CallSyntax:
    """The text of a message that calls tools: `before`, calls separated by `middle`, and `end`. A call is a name,
    `between`, and arguments as JSON, between tags or as in Python (`style`).

    Parts consist of texts, special tokens, and None for an identifier. `middle`: None if a message has one call at
    most.
    """

    before: Parts
    between: Parts
    middle: Parts | None
    end: Parts
    style: str = _JSON_STYLE

    def grammar(self, functions: Sequence[Mapping[str, Any]], *, several: bool) -> Grammar:
        """Return the grammar of texts with a call of one of the functions, or with several calls."""
        calls = {"type": "or", "elements": [self._call(each) for each in functions]}
        elements = [*_formats(self.before), calls]
        if several and self.middle is not None:
            elements.append({"type": "star", "content": _sequence([*_formats(self.middle), calls])})
        return Grammar.structural_tag(_sequence([*elements, *_formats(self.end)]))

    def _call(self, function: Mapping[str, Any]) -> dict[str, Any]:
        schema = function.get("parameters") or {"type": "object", "additionalProperties": False}
        name = _quoted(function["name"])
        if self.style == _JSON_STYLE:
            arguments = _json_format(schema)
        elif self.style == _PYTHON_STYLE:
            return _sequence([*_formats((name, *self.between)), *_keyword_formats(schema)])
        elif schema.get("properties"):
            arguments = {"type": "json_schema", "json_schema": schema, "style": self.style}
        else:  # no tags, and one line less
            return _sequence(_formats((name, *_stripped(self.between))))
        return _sequence([*_formats((name, *self.between)), arguments])

    def openings(self, names: Collection[str]) -> list[str]:
        """Return the visible texts of which one begins a call: the first word of `before`, or a name if it has none
        but a bracket."""
        words = _visible(self.before).split()
        bracket = "[" if words[:1] == ["["] else ""
        opened = "{" if self.style == _JSON_STYLE else ""
        named = [f"{bracket}{_quoted(each)}{_visible(self.between).strip()}{opened}" for each in names]
        return words[:1] if words and not bracket else named

    def anywhere(self) -> CallSyntax:
        """Return the syntax of calls behind other text, without the tag that closes the reasoning."""
        first, *others = self.before or ("",)
        behind = first.rpartition(_THOUGHT_END)[2] if isinstance(first, str) else first
        return replace(self, before=(behind, *others))

    def find(self, text: str, functions: Tools) -> list[tuple[str, str]]:
        """Return the first calls in a text, like `read`."""
        openings = self.openings(functions)
        starts = sorted(match.start() for each in openings for match in re.finditer(re.escape(each), text))
        read = (self.read(text, functions, start) for start in starts[:_MAX_OPENINGS])
        return next(filter(None, read), [])

    def read(self, text: str, functions: Tools, at: int = 0) -> list[tuple[str, str]]:
        """Return names and arguments, as JSON, of the complete calls from a position in a text without special tokens
        on."""
        named = {_quoted(each): each for each in functions}
        chosen = "|".join(sorted(map(re.escape, named), key=len, reverse=True))
        calls: list[tuple[str, str]] = []
        part: Parts | None = self.before
        while part is not None:
            match = re.compile(f"{_pattern(part)}({chosen}){_pattern(self.between)}").match(text, at)
            if match is None:
                break
            name = named[match[1]]
            arguments = self._arguments(text, match.end(), functions[name])
            if arguments is None:
                break
            written, at = arguments
            calls.append((name, written))
            part = self.middle
        return calls

    def _arguments(self, text: str, at: int, schema: Mapping[str, Any]) -> tuple[str, int] | None:
        """Return the arguments from a position on, as JSON, and their end; None if they are incomplete."""
        if self.style == _JSON_STYLE:
            try:
                end = json.JSONDecoder().raw_decode(text, at)[1]
            except (ValueError, RecursionError):
                return None
            return text[at:end], end
        if self.style == _PYTHON_STYLE:
            return _python_arguments(text, at)
        properties, found = schema.get("properties"), {}
        known = properties if isinstance(properties, Mapping) else {}
        while match := _TAGGED[self.style].match(text, at):
            name = match[1].strip()
            found[name] = _tagged_value(match[2], known.get(name))
            at = match.end()
        ends = [_pattern(each) for each in (self.end, self.middle) if each is not None]
        complete = any(re.compile(each).match(text, at) for each in ends)
        return (as_json(found), at) if complete else None


def as_json(value: Any) -> str:
    """Return a value as JSON, with escapes only if a string has halves of surrogate pairs, which are not UTF-8."""
    text = json.dumps(value, ensure_ascii=False)
    return text if text.isascii() or not _HALVES.search(text) else json.dumps(value)


def _python_arguments(text: str, at: int) -> tuple[str, int] | None:
    """Return keyword arguments from a position on, as JSON, and the position of the bracket behind them; None if they
    are no literals."""
    pieces, closing = list[str](), list[str]()
    for match in _PYTHON_TOKEN.finditer(text, at):
        token, kind = match[0], match.lastgroup
        if token == ")" and not closing:
            break
        if kind == "quote" or (kind == "close" and (not closing or token != closing.pop())):
            return None
        if kind == "open":
            closing.append(_CLOSING[token])
            if len(closing) > _MAX_DEPTH:
                return None
        if kind == "string":
            pieces.append(f'"{_STRING_PART.sub(_json_part, token[1:-1])}"')
        elif kind == "equals" and not closing:
            pieces.append(f"{json.dumps(match['word'])}:")
        elif kind != "last":
            pieces.append(_AS_JSON.get(token, token))
    else:
        return None
    try:
        found = json.loads(f"{{{''.join(pieces)}}}", strict=False)
    except (ValueError, RecursionError):
        return None
    return as_json(found), match.start()


def _json_part(match: re.Match[str]) -> str:
    """Return a quote or an escape sequence of a string of Python as in JSON."""
    code, escaped = match.groups()
    if code:
        return f"\\u00{code}"
    if escaped is None:
        return '\\"'
    return escaped if escaped == "'" else f"\\{escaped}" if escaped in '"\\/bfnrtu' else f"\\\\{escaped}"


def _json_format(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": schema, "max_whitespace_cnt": WHITESPACE}


def _keyword_formats(schema: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the formats of keyword arguments: first those that are required."""
    given, required = schema.get("properties"), schema.get("required") or ()
    properties = given if isinstance(given, Mapping) else {}
    items = {name: _sequence([_text(f"{name}="), _keyword_value(each)]) for name, each in properties.items()}
    needed = [items[name] for name in items if name in required]
    others = [_optional(_sequence([_text(", "), items[name]])) for name in items if name not in required]
    if needed:
        return [needed[0], *(_sequence([_text(", "), each]) for each in needed[1:]), *others]
    first = [_sequence([each, *others[at + 1 :]]) for at, each in enumerate(items.values())]
    return [_optional({"type": "or", "elements": first})] if first else []


def _keyword_value(schema: Any) -> dict[str, Any]:
    kind = schema.get("type") if isinstance(schema, Mapping) else None
    words = {"boolean": ("True", "False"), "null": ("None",)}.get(kind) if isinstance(kind, str) else None
    return {"type": "or", "elements": list(map(_text, words))} if words else _json_format(schema)


def _tagged_value(text: str, schema: Any) -> Any:
    """Return the value of an argument that is a string as it is, or anything else as JSON."""
    kind = schema.get("type") if isinstance(schema, Mapping) else None
    if kind == "string":
        return text
    try:
        return json.loads(text, parse_constant=lambda name: name)
    except (ValueError, RecursionError):
        return _PYTHON_WORDS.get(text, text)


_JSON = CallSyntax(('[{"name": "',), ('", "arguments": ',), ('}, {"name": "',), ("}]",))
PYTHON_LIST = CallSyntax(("[",), ("(",), ("), ",), (")]",), _PYTHON_STYLE)
"""Calls as LFM2 and Llama 4 write them, whatever their templates do: [weather(city="Ulm"), time()]."""


def call_syntax(reader: PromptReader, names: Mapping[str, Any]) -> CallSyntax:
    """Return the syntax of calls in the model's chat template; a list in JSON if it does not write a name and then
    arguments as JSON or between tags.

    Args:
        names: variables of the template.

    Raises InputError if the template takes no tools.
    """
    tokenizer = reader.required_tokenizer()
    special = tokenizer.special_tokens()
    stops = [tokenizer.decode([each], skip_special=False) for each in reader.description.stop_tokens]
    head = _rendered(reader, names, 0)
    texts = []
    for calls in (1, 2):
        try:
            texts.append(_message(head, _rendered(reader, names, calls), stops))
        except InputError:  # some templates refuse several calls
            texts.append("")
    single, double = (_split(text, calls, special) for calls, text in enumerate(texts, 1))
    if single is None:
        return replace(_JSON, before=(_closing(head), *_JSON.before))
    (before, between, end), style = single
    middle = None if double is None else double[0][2]
    if double != ([before, between, middle, between, end], style):
        middle = None
    return CallSyntax(before, between, middle, end, style)


def _rendered(reader: PromptReader, names: Mapping[str, Any], calls: int) -> str:
    """Render messages with a number of calls; without calls, with the beginning of the assistant's message."""
    function = {"name": _NAME, "arguments": _ARGUMENTS}
    called = [{"id": _IDS[at], "type": "function", "function": function} for at in range(calls)]
    answer = {"role": "assistant", "content": "", "tool_calls": called}
    return reader.rendered(
        {
            "messages": [{"role": "user", "content": "made up"}, *([answer] if calls else [])],
            "tools": [{"type": "function", "function": _TOOL}],
            "names": {**names, "add_generation_prompt": not calls},
        }
    )


def _message(head: str, text: str, stops: Sequence[str]) -> str:
    """Return the assistant's message behind its beginning and up to a stop token; "" if it begins in another way."""
    if text.startswith(head):
        message = text[len(head) :]
    else:  # templates that begin with a thought leave it out of earlier messages
        begun = _THOUGHT.sub("", head)
        if begun == head or not text.startswith(begun):
            return ""
        message = _closing(head) + text[len(begun) :]
    ends = [message.find(stop) for stop in stops if stop and stop in message]
    return message[: min(ends)] if ends else message.rstrip()


def _closing(head: str) -> str:
    """Return the tag that closes the reasoning that the beginning of a message opens; "" if it opens none."""
    thought = _THOUGHT.search(head)
    return f"\n{_THOUGHT_END}\n\n" if thought and not thought[1] else ""


def _split(text: str, calls: int, special: Mapping[str, int]) -> tuple[list[Parts], str] | None:
    """Return the parts around names and arguments in a message, and the style of the arguments; None if it has other
    calls."""
    if text.count(_NAME) != calls:
        return None
    parts, styles, at = [], set(), 0
    for _ in range(calls):
        name = text.index(_NAME, at)
        found = _made_up_arguments(text, name + len(_NAME))
        if found is None:
            return None
        begin, end, style = found
        if style != _JSON_STYLE and any(each in text[begin:end] for each in special):
            return None  # an answer's text lacks special tokens
        parts += [text[at:name], text[name + len(_NAME) : begin]]
        styles.add(style)
        at = end
    if len(styles) != 1:
        return None
    separators = "|".join(map(re.escape, sorted([*special, *_IDS], key=len, reverse=True)))
    pieces = [re.split(f"({separators})", each) for each in (*parts, text[at:])]
    found_parts = [tuple(None if each in _IDS else special.get(each, each) for each in part if each) for part in pieces]
    return found_parts, styles.pop()


def _made_up_arguments(text: str, at: int) -> tuple[int, int, str] | None:
    """Return where the made-up arguments behind a position begin and end, and their style."""
    begin = text.find("{", at)
    try:
        arguments, end = json.JSONDecoder().raw_decode(text, begin) if begin >= 0 else (None, 0)
    except (ValueError, RecursionError):
        arguments, end = None, 0
    if arguments == _ARGUMENTS:
        return begin, end, _JSON_STYLE
    match = _MADE_UP_KEYWORD.search(text, at)
    if match is not None:
        return *match.span(), _PYTHON_STYLE
    for style, pattern in _TAGGED.items():
        match = pattern.search(text, at)
        if match is not None and {match[1].strip(): match[2]} == _ARGUMENTS:
            return text.index("<", match.start()), match.end(), style
    return None


def _formats(parts: Parts) -> list[dict[str, Any]]:
    return [
        _text(part) if isinstance(part, str)
        else {"type": "token", "token": part} if part is not None
        else {"type": "regex", "pattern": "[a-zA-Z0-9]{9}"}
        for part in parts
        if part != ""
    ]  # fmt: skip


def _stripped(parts: Parts) -> Parts:
    """Return parts without white space at their end."""
    return (*parts[:-1], parts[-1].rstrip()) if parts and isinstance(parts[-1], str) else parts


def _text(text: str) -> dict[str, Any]:
    return {"type": "const_string", "value": text}


def _optional(content: dict[str, Any]) -> dict[str, Any]:
    return {"type": "optional", "content": content}


def _sequence(elements: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "sequence", "elements": elements}


def _pattern(parts: Parts) -> str:
    """Return a pattern of the visible text; tokenizers may drop white space beside special tokens."""
    texts = [each for each in parts if not isinstance(each, int)]
    words = [r"\w{9}" if text is None else r"\s*".join(map(re.escape, re.split(r"\s+", text))) for text in texts]
    return rf"\s*{''.join(words)}\s*"


def _visible(parts: Parts) -> str:
    """Return the text of parts up to an identifier, without special tokens."""
    known = itertools.takewhile(lambda each: each is not None, parts)
    return "".join(each for each in known if isinstance(each, str))


def _quoted(name: str) -> str:
    """Return a name as within a JSON string."""
    return json.dumps(name, ensure_ascii=False)[1:-1]
