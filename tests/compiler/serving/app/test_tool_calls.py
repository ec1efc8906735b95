"""Tools of chats: requests, calls in answers, and both through OpenAI's client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import compiler
import schedules.ir.load_tvm  # noqa: F401  (loads TVM without torch)
from compiler.errors import InputError
from compiler.generation import load
from compiler.generation.tool_calls import CallSyntax
from compiler.serving.app.completion_options import chat_request
from compiler.serving.app.tool_calls import CalledTools
from compiler.serving.configuration import model_options
from compiler.serving.limits import DEFAULT_LIMITS
from tests.compiler.generation.models import write_folder
from tests.compiler.serving.server import serving

openai = pytest.importorskip("openai")
_TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool.function.name }};{% endfor %}{% for m in messages %}"
    "{% for call in m.tool_calls or [] if not marked %}{{ call.function.arguments.city }},{% endfor %}"
    "{{ m.content }}|{% endfor %}"
    "{% if marked %}{% for m in messages %}{% for call in m.tool_calls or [] %}<|user|>{{ call.function.name }}=>"
    "{{ call.function.arguments | tojson }};{% endfor %}{% endfor %}{% endif %}"
    "{% if short %}short{% endif %}"
)
_TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
_CHAT: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]
_CALL = {"name": "weather", "arguments": {"city": "Ulm"}}
_TAGGED = f"<tool_call>\n{json.dumps(_CALL)}\n</tool_call>"
_SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"const": "weather"},
        "arguments": {
            "type": "object",
            "properties": {"city": {"enum": ["Ulm"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "arguments"],
    "additionalProperties": False,
}
_CITY = {"type": "object", "properties": {"city": {"enum": ["Ulm", "Bonn"]}}, "required": ["city"]}
_SEVERAL = [
    {"type": "function", "function": {"name": name, "parameters": {**_CITY, "additionalProperties": False}}}
    for name in ("weather", "time")
]


def _named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


_DEEP = json.loads("[" * 500 + "]" * 500)
_NO_SPACES = dict.fromkeys(map(str, b" \n\r\t"), -100)  # which JSON may have anywhere
_FORM = {"type": "json_schema", "json_schema": {"name": "call", "schema": _SCHEMA}}
_CALLING: dict[str, Any] = {
    "model": "tiny",
    "messages": _CHAT,
    "tools": _TOOLS,
    "response_format": _FORM,
    "max_tokens": 90,
    "temperature": 0,
    "logit_bias": _NO_SPACES,
}


@pytest.mark.parametrize(
    ("text", "said", "count"),
    [
        ("plain < text", "plain < text", 0),
        (f"Let me see.\n{_TAGGED}", "Let me see.\n", 1),
        (f"{_TAGGED}\n{_TAGGED}", "", 2),
        (json.dumps({"name": "weather", "parameters": {"city": "Ulm"}}), "", 1),
        (json.dumps([_CALL, _CALL]), "", 2),
        (json.dumps({"name": "other", "arguments": {}}), json.dumps({"name": "other", "arguments": {}}), 0),
        ("<tool_call>{broken</tool_call>", "<tool_call>{broken</tool_call>", 0),
        ('{"an": "object"} and more', '{"an": "object"} and more', 0),
        ("ends in <tool_", "ends in <tool_", 0),
        ("", "", 0),
        ('[weather(city="Ulm"), weather(city="Ulm")]I am looking.', "", 2),
        ('I look: [weather(city="Ulm")]', "I look: ", 1),
        ("[weather] is [weather(now)]", "[weather] is [weather(now)]", 0),
    ],
)
@pytest.mark.parametrize("step", [1, 3, 1000])
def test_calls_in_pieces_of_a_text(text: str, said: str, count: int, step: int) -> None:
    called = CalledTools({"weather": {}}, several=True)
    found = "".join(called.say(text[start : start + step]) for start in range(0, len(text), step))
    rest, calls = called.ended()
    assert found + rest == said
    assert len(calls) == count
    for each in calls:
        assert (each["type"], each["function"]["name"]) == ("function", "weather")
        assert json.loads(each["function"]["arguments"]) == {"city": "Ulm"}
    assert len({each["id"] for each in calls}) == count


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_calls_in_the_syntax_of_a_template(step: int) -> None:
    """The special token in front of a call is not part of the text, so that a call begins with its name."""
    syntax = CallSyntax((9,), ("=>",), (";", 9), (";",))
    for said, calls in (("Let me see: weather. ", 2), ("", 1), ("the weather=", 0), ("weather=>{broken", 0)):
        text = said + ";".join(['weather=>{"city": "Ulm"}'] * calls)
        called = CalledTools({"weather": {}, "time": {}}, several=True, syntax=syntax)
        found = "".join(called.say(text[start : start + step]) for start in range(0, len(text), step))
        rest, made = called.ended()
        assert found + rest == said
        assert [json.loads(each["function"]["arguments"]) for each in made] == [{"city": "Ulm"}] * calls


def test_half_a_surrogate_pair_can_be_sent() -> None:
    called = CalledTools({"weather": {}}, several=True)
    called.say(r'{"name": "weather", "arguments": {"city": "\ud800"}}')
    [call] = called.ended()[1]
    assert json.loads(call["function"]["arguments"].encode()) == {"city": "\ud800"}


def test_one_call_where_several_are_not_wanted() -> None:
    called = CalledTools({"weather": {}}, several=False)
    called.say(_TAGGED * 2)
    assert len(called.ended()[1]) == 1


def test_a_request_with_calls_and_their_results() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ulm"}'}}
    answer = {"role": "assistant", "content": None, "tool_calls": [call]}
    result = {"role": "tool", "tool_call_id": "1", "content": "sunny"}
    body = {"messages": [*_CHAT, answer, result], "tools": _TOOLS, "chat_template_kwargs": {"short": True}}
    request = chat_request({"model": "tiny", **body}, DEFAULT_LIMITS)
    parsed = {**call, "function": {"name": "weather", "arguments": {"city": "Ulm"}}}
    assert request.prompts == (
        {
            "messages": [*_CHAT, {"role": "assistant", "tool_calls": [parsed]}, result],
            "tools": _TOOLS,
            "names": {"short": True},
        },
    )
    assert request.tools == {"weather": {"type": "object"}}
    assert chat_request({"model": "tiny", **body, "tool_choice": "none"}, DEFAULT_LIMITS).tools is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tools": [{"type": "function"}]}, "a tool's 'function' must be an object"),
        ({"tools": [{"function": {}}]}, "a function's name must be a string"),
        ({"tools": {"a": 1}}, "'tools' must be a list"),
        ({"tools": [{"function": {"name": "a", "parameters": _DEEP}}]}, "'tools' cannot be written as JSON"),
        ({"chat_template_kwargs": {"a": _DEEP}}, "'chat_template_kwargs' cannot be written as JSON"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": _DEEP}}]}]},
            "'tool_calls' cannot",
        ),
        ({"tools": _TOOLS, "tool_choice": "any"}, "the tool_choice 'any' is not supported"),
        ({"tool_choice": "required"}, "the tool_choice 'required' needs 'tools'"),
        ({"tools": _TOOLS, "tool_choice": _named("time")}, "names 'time', which is none of the tools"),
        ({"tools": _TOOLS, "tool_choice": {"type": "function"}}, "the tool_choice .* is not supported"),
        (
            {"tools": [{"function": {"name": "a", "parameters": 1}}], "tool_choice": "required"},
            "the 'parameters' of the function 'a' must be an object",
        ),
        ({"messages": [{"role": "assistant", "tool_calls": "a"}]}, "'tool_calls' must be a list"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": "{"}}]}]},
            "a call's arguments are not JSON",
        ),
    ],
)
def test_what_cannot_be_asked(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        chat_request({"model": "tiny", "messages": _CHAT, **fields}, DEFAULT_LIMITS)


@pytest.fixture(scope="module")
def language_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_folder(tmp_path_factory.mktemp("language"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": _TEMPLATE}))
    compiler.compile(folder, threads=1).export(folder / "tiny.twm")
    return folder / "tiny.twm"


@pytest.fixture(scope="module")
def client(language_file: Path) -> Iterator[Any]:
    with (
        serving([model_options({"path": str(language_file)}, "a model")]) as running,
        openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as made,
    ):
        yield made


def test_a_call_through_the_client(client: Any, language_file: Path) -> None:
    answer = client.chat.completions.create(**_CALLING)
    [choice] = answer.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    assert json.loads(choice.message.tool_calls[0].function.arguments) == {"city": "Ulm"}
    prompt = load(language_file).chat_tokens(_CHAT, _TOOLS)
    assert answer.usage.prompt_tokens == len(prompt) == len("weather;hi|")
    following = [*_CHAT, choice.message, {"role": "tool", "tool_call_id": "1", "content": "sun"}]
    answer = client.chat.completions.create(
        model="tiny", messages=following, tools=_TOOLS, max_tokens=1, extra_body={"chat_template_kwargs": {"short": 1}}
    )
    assert answer.usage.prompt_tokens == len("weather;hi|Ulm,|sun|short")


@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("choice", "names"), [("required", {"weather", "time"}), (_named("time"), {"time"})])
def test_a_required_call(client: Any, choice: Any, names: set[str], stream: bool, marked: bool) -> None:
    for seed in range(3):
        answer = client.chat.completions.create(
            model="tiny", messages=_CHAT, tools=_SEVERAL, tool_choice=choice, parallel_tool_calls=False, stream=stream,
            seed=seed, temperature=2.0, max_tokens=200, extra_body={"chat_template_kwargs": {"marked": marked}},
            logit_bias=_NO_SPACES, response_format=_FORM,
        )  # fmt: skip
        if stream:
            parts = [each for chunk in answer for each in chunk.choices]
            [calls] = [each.delta.tool_calls for each in parts if each.delta.tool_calls]
            assert not any(each.delta.content for each in parts)
            reason = parts[-1].finish_reason
        else:
            message, reason = answer.choices[0].message, answer.choices[0].finish_reason
            calls = message.tool_calls
            assert message.content is None
        [call] = calls
        assert (call.function.name in names, reason) == (True, "tool_calls")
        assert json.loads(call.function.arguments) in ({"city": "Ulm"}, {"city": "Bonn"})


def test_several_required_calls_and_one_that_is_cut_off(client: Any) -> None:
    options: dict[str, Any] = {
        "model": "tiny", "messages": _CHAT, "tools": _SEVERAL, "tool_choice": "required", "logit_bias": _NO_SPACES,
        "extra_body": {"chat_template_kwargs": {"marked": True}},
    }  # fmt: skip
    found = [client.chat.completions.create(**options, max_tokens=80, seed=seed).choices[0] for seed in range(4)]
    assert max(len(each.message.tool_calls) for each in found) > 1
    for each in found:
        assert all(json.loads(call.function.arguments)["city"] for call in each.message.tool_calls)
    [cut] = client.chat.completions.create(**options, max_tokens=4).choices
    assert (cut.finish_reason, cut.message.tool_calls) == ("length", None)


def test_biases_are_of_tokens_that_the_model_has(client: Any) -> None:
    options: dict[str, Any] = {"model": "tiny", "messages": _CHAT, "max_tokens": 3, "temperature": 0}
    answer = client.chat.completions.create(**options, logit_bias={"65": 100})
    assert answer.choices[0].message.content == "AAA"
    with pytest.raises(openai.BadRequestError, match="logit_bias has the token 9999, of a vocabulary of 260"):
        client.chat.completions.create(**options, logit_bias={"9999": 1})
    with pytest.raises(openai.BadRequestError, match="'logit_bias' must be an object"):
        client.chat.completions.create(**options, logit_bias={"9" * 5000: 1})


def test_a_call_in_a_stream(client: Any) -> None:
    stream = client.chat.completions.create(**_CALLING, stream=True)
    choices = [each for chunk in stream for each in chunk.choices]
    [calls] = [each.delta.tool_calls for each in choices if each.delta.tool_calls]
    assert (calls[0].index, calls[0].function.name, calls[0].function.arguments) == (0, "weather", '{"city": "Ulm"}')
    assert choices[-1].finish_reason == "tool_calls"
    assert not any(each.delta.content for each in choices)


def test_text_stays_text(client: Any) -> None:
    options: dict[str, Any] = {"model": "tiny", "messages": _CHAT, "max_tokens": 8, "temperature": 0}
    found = client.chat.completions.create(**options, tools=_TOOLS).choices[0]
    parts = [each for chunk in client.chat.completions.create(**options, tools=_TOOLS, stream=True)
             for each in chunk.choices]  # fmt: skip
    assert "".join(each.delta.content or "" for each in parts) == found.message.content
    assert (found.message.tool_calls, parts[-1].finish_reason) == (None, found.finish_reason)
