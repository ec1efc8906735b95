"""Chat templates: Jinja sources that turn messages into a prompt, rendered like in transformers."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, NoReturn

from compiler.errors import InputError
from compiler.support.optional import optional_module
from compiler.support.shown import shown

Messages = Sequence[Mapping[str, Any]]
_REASONING = ("reasoning_content", "thinking", "reasoning")  # keys of a message's reasoning; the first is the usual one
_MAX_RANGE = 1 << 20  # items of all ranges in one rendering
_MAX_REPEATED = 1 << 24  # characters or items of a repeated text or list
_MAX_POWER = 4096  # bits
_MAX_TEXT = 1 << 26  # characters of a prompt
# A conversion in a format with a width or precision of five digits, or one taken from an argument.
_WIDE = re.compile(r"%(\([^)]*\))?[#0\- +]*(\d{5,}|\*|\d*\.(\d{5,}|\*))")
# Errors of a template, besides jinja2's, for unexpected messages or if Python cannot compile it.
_ERRORS = (
    SyntaxError,
    TypeError,
    ValueError,
    LookupError,
    ArithmeticError,
    AttributeError,
    RecursionError,
    MemoryError,
)


class ChatTemplate:
    """The chat template of a model."""

    def __init__(self, source: str, special: Mapping[str, str]) -> None:
        """Create a template.

        Args:
            source: in Jinja.
            special: texts of special tokens by their names in templates, such as "bos_token".
        """
        self._source, self._special = source, dict(special)

    def render(self, messages: Messages, tools: Sequence[Mapping[str, Any]] | None = None, **names: object) -> str:
        """Render the prompt for the assistant's next message.

        Args:
            messages: {"role": ..., "content": ...}; those that call tools may lack content.
            tools: JSON schemas of functions that the model may call.
            names: additional variables for the template, such as enable_thinking=False.

        Raises InputError if an item is not a message, or the template refuses the messages.
        """
        if tools and "tools" not in self._source:
            raise InputError("the model's chat template takes no tools", "describe them in a message")
        variables = {"add_generation_prompt": True, "documents": None, **self._special, **names}
        variables["range"] = _Ranges().range
        variables |= {"messages": [_plain_message(each) for each in messages], "tools": _plain(tools)}
        jinja2 = _jinja2("jinja2")
        try:
            text: str = self._template.render(variables)
        except (jinja2.TemplateError, *_ERRORS) as error:
            raise InputError(f"the chat template refuses the messages: {error}") from error
        if len(text) > _MAX_TEXT:
            raise InputError(f"the chat template writes more than {_MAX_TEXT} characters")
        return text

    @cached_property
    def _template(self) -> Any:
        extensions = ["jinja2.ext.loopcontrols", _generation_tag()]
        environment = _environment()(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
        del environment.globals["lipsum"]
        environment.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
        environment.filters["tojson"] = _to_json
        for name in ("batch", "center", "format", "indent", "slice"):
            environment.filters[name] = _bounded(environment.filters[name])
        return environment.from_string(self._source)


def _jinja2(name: str) -> Any:
    return optional_module(name, "generate", "fills in chat templates")


class _Ranges:
    """`range` within one rendering: nested ranges multiply, so their total is bounded."""

    def __init__(self) -> None:
        self._left = _MAX_RANGE

    def range(self, *bounds: int) -> range:
        values = range(*bounds)
        self._left -= len(values)
        if self._left < 0:
            _refuse(f"its ranges have more than {_MAX_RANGE} items")
        return values


def _environment() -> type:
    """Create a Jinja sandbox in which operators cannot create numbers, texts or lists of unbounded size."""
    base: Any = _jinja2("jinja2.sandbox").ImmutableSandboxedEnvironment

    class Environment(base):
        intercepted_binops = frozenset({"*", "**", "%"})

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            sizes = [len(each) for each in (left, right) if isinstance(each, str | list | tuple)]
            counts = [each for each in (left, right) if isinstance(each, int)]
            if operator == "*" and sizes and counts and sizes[0] * counts[0] > _MAX_REPEATED:
                _refuse(f"a product has more than {_MAX_REPEATED} items")
            if operator == "**" and len(counts) == 2 and left.bit_length() * right > _MAX_POWER:
                _refuse(f"a power has more than {_MAX_POWER} bits")
            if operator == "%" and isinstance(left, str):
                _check_format(left)
            return super().call_binop(context, operator, left, right)

    return Environment


def _check_format(form: str) -> None:
    if _WIDE.search(form):
        _refuse(f"the format {shown(form)} is too wide")


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a Jinja filter so that it refuses large numbers."""

    @functools.wraps(function)
    def checked(value: Any, *arguments: Any, **names: Any) -> Any:
        if function.__name__ == "do_format":
            _check_format(str(value))
        elif any(isinstance(each, int) and each > _MAX_RANGE for each in (*arguments, *names.values())):
            _refuse(f"a filter is given a number above {_MAX_RANGE}")
        return function(value, *arguments, **names)

    return checked


def _generation_tag() -> type:
    """Return an extension that ignores `{% generation %}`, which marks the assistant's text for training."""
    nodes = _jinja2("jinja2.nodes")
    extension: Any = _jinja2("jinja2.ext").Extension

    class Generation(extension):
        tags = frozenset({"generation"})

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    return Generation


def _plain_message(message: object) -> dict[str, Any]:
    """Return a message without None values, with its reasoning under the keys that templates use."""
    if isinstance(message, Mapping) and isinstance(message.get("role"), str) and _says_something(message):
        found = {key: value for key, value in _plain(message).items() if value is not None}
        reasoning = next((found[key] for key in _REASONING if key in found), None)
        return found if reasoning is None else {"thinking": reasoning, **found, _REASONING[0]: reasoning}
    raise InputError(f"{shown(message)} is not a message", 'a message is {"role": "user", "content": "..."}')


def _says_something(message: Mapping[str, Any]) -> bool:
    return message.get("content") is not None or bool(message.get("tool_calls"))


def _plain(value: Any) -> Any:
    """Convert to JSON-like data: templates come with models, and must not reach methods of other objects."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else f"<{type(value).__name__}>"


def _refuse(message: str) -> NoReturn:
    raise _jinja2("jinja2").TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Replace Jinja's own filter, which escapes HTML characters."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
