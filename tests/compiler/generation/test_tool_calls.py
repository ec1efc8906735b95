"""The syntax of calls follows from the chat template: what the template writes is what the grammar accepts."""

from __future__ import annotations

import json
from typing import Any

import pytest

from compiler.artifact.language_model import LanguageModelDescription
from compiler.errors import InputError
from compiler.generation.grammar import Grammars
from compiler.generation.prompts import PromptReader
from compiler.generation.tokenizer import Tokenizer
from compiler.generation.tool_calls import PYTHON_LIST, CallSyntax, call_syntax
from tests.compiler.generation.models import byte_tokenizer

pytest.importorskip("xgrammar")
SPECIAL = ["<|end|>", "[CALLS]", "<s>"]
_TURNS = "<s>{{ tools | tojson }}{% for m in messages %}{{ m.role }}:"
_AFTER = "<|end|>\n{% endfor %}{% if add_generation_prompt %}assistant:"
_EACH, _NEXT = "{% for c in m.tool_calls or [] %}", "{% endfor %}"
_JSON = '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}'
_TAGS = "{{ m.content }}" + _EACH + "\n\n<tool_call>\n" + _JSON + "}\n</tool_call>" + _NEXT
_ITEM = _JSON + ', "id": "{{ c.id }}"}{{ ", " if not loop.last }}'
_LIST = "{% if m.tool_calls %}[CALLS] [" + _EACH + _ITEM + _NEXT + "]{% endif %}"
_MARKED = _EACH + "[CALLS]{{ c.function.name }}[ARGS]{{ c.function.arguments | tojson }}" + _NEXT
_SINGLE = "{% if m.tool_calls and m.tool_calls | length != 1 %}{{ raise_exception('one call') }}{% endif %}" + _MARKED
_XML = (
    _EACH + "<{{ c.function.name }}>{% for k, v in c.function.arguments | items %}{{ k }}:{{ v }}{% endfor %}" + _NEXT
)
_VALUE = "{{ v if v is string else v | tojson }}"
_PARAMETERS = "{% for k, v in c.function.arguments | items %}"
_FUNCTION = (
    "\n<tool_call>\n<function={{ c.function.name }}>\n" + _PARAMETERS + "<parameter={{ k }}>\n" + _VALUE
    + "\n</parameter>\n{% endfor %}</function>\n</tool_call>"
)  # fmt: skip
_INVOKE = (
    '<invoke name="{{ c.function.name }}">\n' + _PARAMETERS + '<parameter name="{{ k }}">' + _VALUE
    + "</parameter>\n{% endfor %}</invoke>\n"
)  # fmt: skip
_KEYS = (
    "\n<tool_call>{{ c.function.name }}\n" + _PARAMETERS + "<arg_key>{{ k }}</arg_key>\n<arg_value>" + _VALUE
    + "</arg_value>\n{% endfor %}</tool_call>"
)  # fmt: skip
_KEYWORDS = (
    "{% if m.tool_calls %}OPEN" + _EACH + "{{ c.function.name }}({% for k, v in c.function.arguments | items %}"
    "{{ k }}={{ v | tojson }}{{ ', ' if not loop.last }}{% endfor %}){{ SEPARATOR if not loop.last }}" + _NEXT
    + "CLOSE{% endif %}"
)  # fmt: skip
_CALLS = _KEYWORDS.replace("OPEN", "[CALLS][").replace("SEPARATOR", "', '").replace("CLOSE", "]")
_LINES = _KEYWORDS.replace("OPEN", "<calls>\n").replace("SEPARATOR", "'\n'").replace("CLOSE", "{{ '\\n' }}</calls>")
TEMPLATES = {
    "a list in Python": _TURNS + _CALLS + _AFTER + "{% endif %}",
    "lines in Python": _TURNS + _LINES + _AFTER + "{% endif %}",
    "parameters": _TURNS + _EACH + _FUNCTION + _NEXT + _AFTER + "{% endif %}",
    "invocations": _TURNS
    + "{% if m.tool_calls %}<calls>\n"
    + _EACH
    + _INVOKE
    + _NEXT
    + "</calls>{% endif %}"
    + _AFTER
    + "{% endif %}",
    "keys and values": _TURNS + _EACH + _KEYS + _NEXT + _AFTER + "{% endif %}",
    "tags": _TURNS + _TAGS + _AFTER + "{% endif %}",
    "a list with identifiers": _TURNS + _LIST + _AFTER + "{% endif %}",
    "marks": _TURNS + _MARKED + _AFTER + "{% endif %}",
    "one call": _TURNS + _SINGLE + _AFTER + "{% endif %}",
    "a thought": _TURNS + _TAGS + _AFTER + "<think>\n{% endif %}",
    "no thought": _TURNS + _TAGS + _AFTER + "<think>\n\n</think>\n{% endif %}",
}
_WEATHER = {
    "name": "weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city", "days"],
        "additionalProperties": False,
    },
}
_TIME = {"name": "time"}
_BOTH: dict[str, Any] = {"weather": _WEATHER["parameters"], "time": {}}
_TOOLS = [{"type": "function", "function": each} for each in (_WEATHER, _TIME)]
_USER = {"role": "user", "content": "hi"}
_CITY = {"city": 'Ulm "{', "days": 3}


def _reader(template: str) -> PromptReader:
    description = LanguageModelDescription(
        architecture="llama",
        context=4096,
        vocabulary=256 + len(SPECIAL),
        stop_tokens=(256,),
        end=SPECIAL[0],
        chat_template=template,
    )
    content = json.dumps(byte_tokenizer(SPECIAL)).encode()
    return PromptReader(description, Tokenizer(content, description))


def _written(reader: PromptReader, *calls: tuple[str, Any]) -> list[int]:
    """The tokens that the template writes for an answer with calls, behind the prompt."""
    tokenizer = reader.required_tokenizer()
    listed = [
        {"id": f"abcdefgh{at}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for at, (name, arguments) in enumerate(calls)
    ]
    answer = {"role": "assistant", "content": "", "tool_calls": listed}
    text = tokenizer.chat([_USER, answer], _TOOLS, add_generation_prompt=False)
    head = tokenizer.chat([_USER], _TOOLS)
    if not text.startswith(head):
        opened = "<think>\n" if head.endswith("<think>\n") else "<think>\n\n</think>\n"
        head = head.removesuffix(opened)
        text = head + ("\n</think>\n\n" if opened == "<think>\n" else "") + text[len(head) :]
    tokens = tokenizer.encode(text[len(head) :], special=False)
    return tokens[: tokens.index(256)]


def _follows(
    reader: PromptReader, syntax: CallSyntax, tokens: list[int], *functions: Any, several: bool = True
) -> bool:
    """True if the grammar allows the tokens and then the end."""
    description = reader.description
    grammars = Grammars(reader.required_tokenizer(), description.vocabulary, description.stop_tokens)
    matcher = grammars.matcher(syntax.grammar(functions, several=several))
    for token in [*tokens, 256]:
        allowed = matcher.allowed
        if allowed is not None and not allowed[token]:
            return False
        if token != 256:
            matcher.accept(token)
    return True


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_grammar_accepts_what_the_template_writes(name: str) -> None:
    reader = _reader(TEMPLATES[name])
    syntax = call_syntax(reader, {})
    one = _written(reader, ("weather", _CITY))
    text = reader.required_tokenizer().decode(one)
    assert _follows(reader, syntax, one, _WEATHER, _TIME)
    assert _follows(reader, syntax, one, _WEATHER)
    assert not _follows(reader, syntax, one, _TIME)
    assert not _follows(reader, syntax, one[:-1], _WEATHER, _TIME) or name in ("marks", "one call")
    assert not _follows(reader, syntax, _written(reader, ("weather", {"city": "Ulm", "days": "three"})), _WEATHER)
    assert [(found, json.loads(given)) for found, given in syntax.read(text, _BOTH)] == [("weather", _CITY)]
    assert not syntax.read(text, {"time": {}})
    assert not syntax.read("some text", _BOTH)
    behind = syntax.anywhere()
    call = text.rpartition("</think>")[2]
    for before in ("", "Let me see: the weather.\n"):
        assert [json.loads(given) for _, given in behind.find(before + call, _BOTH)] == [_CITY]
        assert any(each in call for each in syntax.openings(["weather"])) or "</think>" in text
    assert not behind.find("the weather is a tool_call", _BOTH)
    if name == "one call":
        assert syntax.middle is None
        return
    two = _written(reader, ("weather", _CITY), ("time", {}))
    assert _follows(reader, syntax, two, _WEATHER, _TIME)
    assert not _follows(reader, syntax, two, _WEATHER, _TIME, several=False)
    text = reader.required_tokenizer().decode(two)
    assert [found for found, _ in syntax.read(text, _BOTH)] == list(_BOTH)
    assert [found for found, _ in syntax.read(text[: text.rindex("time") + 4], _BOTH)] == ["weather"]


@pytest.mark.parametrize("template", [_TURNS + _XML + _AFTER + "<think>{% endif %}", "{{ tools }}"])
def test_other_templates_get_a_list_in_json(template: str) -> None:
    reader = _reader(template)
    syntax = call_syntax(reader, {})
    text = json.dumps([{"name": "weather", "arguments": _CITY}, {"name": "time", "arguments": {}}])
    text = "\n</think>\n\n" + text if "<think>" in template else text
    assert _follows(reader, syntax, reader.required_tokenizer().encode(text), _WEATHER, _TIME)
    assert [found for found, _ in syntax.read(text, _BOTH)] == list(_BOTH)


def test_templates_without_tools() -> None:
    with pytest.raises(InputError, match="takes no tools"):
        call_syntax(_reader("{{ messages }}"), {})


def test_values_between_tags() -> None:
    """Strings are as they are, others JSON; names of Python are read, and calls whose end is missing are not."""
    syntax = call_syntax(_reader(TEMPLATES["parameters"]), {})
    schema: dict[str, Any] = {"properties": {"code": {"type": "string"}, "flag": {"type": "boolean"}}}

    def read(**values: str) -> Any:
        given = "".join(f"<parameter={name}>\n{value}\n</parameter>\n" for name, value in values.items())
        text = f"<tool_call>\n<function=f>\n{given}</function>\n</tool_call>"
        assert not any(syntax.read(text[:length], {"f": schema}) for length in range(len(text.rstrip()) - 1))
        return [json.loads(arguments) for _, arguments in syntax.read(text, {"f": schema})]

    assert read(code="007", flag="True", other="[1, 2]") == [{"code": "007", "flag": True, "other": [1, 2]}]
    assert read(code="a\n\n  <b>\n", other="NaN, none") == [{"code": "a\n\n  <b>\n", "other": "NaN, none"}]
    assert read() == [{}]
    schema = {"properties": ["of a request"]}
    assert read(code="7") == [{"code": 7}]


def test_arguments_in_python() -> None:
    """Literals of Python become JSON; anything else is no call."""

    def read(text: str) -> Any:
        found = PYTHON_LIST.read(f"[f({text})]", {"f": {}})
        assert not any(PYTHON_LIST.read(f"[f({text[:length]}", {"f": {}}) for length in range(len(text)))
        return json.loads(found[0][1]) if found else None

    assert read("") == {}
    assert read("a=1, b = -2.5e3,c=True, d=None, e=[1, (2,), {'x': False}],") == {
        "a": 1, "b": -2500.0, "c": True, "d": None, "e": [1, [2], {"x": False}],
    }  # fmt: skip
    assert read("a=true, b=null, city-name='Ulm'") == {"a": True, "b": None, "city-name": "Ulm"}
    written = r"""a="x)], b=\"1\"", b='it\'s "here"\n', c='\d \x41 \u00e9 \ud83d\ude00 \\'"""
    assert read(written) == {"a": 'x)], b="1"', "b": 'it\'s "here"\n', "c": "\\d A é 😀 \\"}
    assert read("a='two\nlines = ('") == {"a": "two\nlines = ("}
    for wrong in ("1", "a=b", "a=g(1)", "a='x' 'y'", "a=1 b=2", "**a", "a={1}", "a=1_0", "=1", "a=[1", "a=1]"):
        assert read(wrong) is None, wrong
    assert not PYTHON_LIST.find("[f(" * 100_000, {"f": {}})
    assert not PYTHON_LIST.read("[f(a=" + "[" * 100_000 + "]" * 100_000 + ")]", {"f": {}})


def test_halves_of_surrogate_pairs_stay_escapes() -> None:
    [(_, arguments)] = PYTHON_LIST.read(r"[f(a='\ud800', b='é')]", {"f": {}})
    assert json.loads(arguments.encode()) == {"a": "\ud800", "b": "é"}


def test_keywords_that_may_be_left_out() -> None:
    reader = _reader(TEMPLATES["lines in Python"])
    syntax = call_syntax(reader, {})
    kinds = {"city": {"type": "string"}, "days": {"type": "integer"}, "metric": {"type": "boolean"}, "at": {}}

    def follows(text: str, *required: str) -> bool:
        function = {"name": "f", "parameters": {"type": "object", "properties": kinds, "required": list(required)}}
        return _follows(reader, syntax, reader.required_tokenizer().encode(f"<calls>\nf({text})\n</calls>"), function)

    for text in ("", 'city="Ulm"', "days=3, metric=True", 'city="Ulm", metric=False', "at=null"):
        assert follows(text)
        assert follows(text, "city") == ("city" in text)
    assert follows('days=3, city="Ulm"', "days")
    for text in ("days=true", "metric=true", 'days=3, city="Ulm"', "days=3,", "other=1"):
        assert not follows(text), text
