"""Chat templates are rendered as in transformers."""

from __future__ import annotations

from typing import Any

import pytest

from compiler.errors import InputError
from compiler.generation.chat_templates import ChatTemplate

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
# What real templates do: tools that may be none, JSON in several forms, marks for training, loop control.
SOURCE = """{{ bos_token }}
{%- if tools is not none %}{{ tools | tojson(indent=2, sort_keys=true) }}{% endif %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {%- set seen = 'outside' %}
        {%- generation %}{% set seen = 'inside' %}{{ message.content }}{% endgeneration %}
        {{- (message.tool_calls or none) | tojson }}
        {{- seen }}{{ message.reasoning_content }}{{ message.thinking }}
    {%- elif message.role == 'tool' %}
        {{- message.content is string }}
        {%- break %}
    {%- else %}
        {{- message | tojson(separators=(',', ':')) }}
    {%- endif %}
{%- endfor %}
{%- if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}
{%- if add_generation_prompt %}assistant{{ eos_token }}{% endif %}"""
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "In <b>é</b> & more", "parameters": {}}}]
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}
USER = {"role": "user", "content": "What is <that> & é?"}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "a message": [USER],
    "reasoning": [USER, {"role": "assistant", "content": "This.", "reasoning": "because"}, USER],
    "a tool": [USER, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "{}"}, USER],
    "no content": [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}],
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_as_transformers(name: str) -> None:
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    messages, template = CONVERSATIONS[name], ChatTemplate(SOURCE, SPECIAL)
    plain = [{key: value for key, value in each.items() if value is not None} for each in messages]
    for tools in (None, TOOLS):
        for names in ({}, {"enable_thinking": False}):
            [[wanted], *_] = utils.render_jinja_template(
                [plain], tools=tools, chat_template=SOURCE, add_generation_prompt=True, **SPECIAL, **names
            )
            assert template.render(messages, tools, **names) == wanted


@pytest.mark.parametrize(
    "source", ["{{ raise_exception('no') }}", "{{ messages[0].content + 1 }}", "{{ messages[7].content }}", "{% if %}"]
)
def test_what_a_template_refuses(source: str) -> None:
    with pytest.raises(InputError, match="the chat template refuses the messages"):
        ChatTemplate(source, SPECIAL).render([USER])


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}", "its ranges have more than"),
        ("{{ 'a' * 10000000000 }}", "a product has more than"),
        ("{{ 10000000000 * [1] }}", "a product has more than"),
        ("{{ '%1000000000d' % 1 }}", "is too wide"),
        ("{{ '%-.*f'|format(1000000000, 1) }}", "is too wide"),
        ("{{ [1]|slice(10000000000)|list }}", "a filter is given a number above"),
        ("{{ 'a'.center(100000000) }}", "writes more than"),
        ("{% for a in [1] %}" * 30 + "{% endfor %}" * 30, "too many statically nested blocks"),
        ("{{ 9 ** 99999 }}", "a power has more than"),
        ("{{ lipsum(n=1000000) }}", "'lipsum' is undefined"),
        ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "recursion"),
    ],
)
def test_a_template_cannot_take_any_time_or_memory(source: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        ChatTemplate(source, SPECIAL).render([USER])


def test_numbers_and_small_products_of_a_template() -> None:
    source = "{{ 3 * 4 }} {{ 2.5 * 2 }} {{ '-' * 3 }} {{ 2 ** 10 }} {% for i in range(3) %}{{ i }}{% endfor %}"
    assert ChatTemplate(source, SPECIAL).render([USER]) == "12 5.0 --- 1024 012"
    source = "{{ '**%s** %05d %.2f' % ('a', 12345, 2.5) }} {{ '%s, 123456'|format(7) }} {{ [1, 2]|slice(2)|list }}"
    assert ChatTemplate(source, SPECIAL).render([USER]) == "**a** 12345 2.50 7, 123456 [[1], [2]]"


@pytest.mark.parametrize(
    "message", ["hello", {"role": "user"}, {"content": "x"}, {"role": "assistant", "content": None}]
)
def test_what_is_no_message(message: Any) -> None:
    with pytest.raises(InputError, match="is not a message"):
        ChatTemplate(SOURCE, SPECIAL).render([message])


def test_templates_reach_no_methods_of_other_objects() -> None:
    class Picture:
        def save(self) -> str:
            return "written"

    source = "{{ messages[0].content[0].image.save() }}"
    message = {"role": "user", "content": [{"type": "image", "image": Picture()}]}
    with pytest.raises(InputError):
        ChatTemplate(source, SPECIAL).render([message])
