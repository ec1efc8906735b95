"""Limits of requests: each is enforced, named in the error, and set by files and the command line."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from compiler.errors import OptionError
from compiler.serving.app.completion_options import chat_request, completion_request
from compiler.serving.app.http import Call, failure
from compiler.serving.app.tensors import read_inputs, wanted_outputs
from compiler.serving.configuration import server_limits
from compiler.serving.limits import LimitError, Limits

FEW = Limits(prompts=2, text_bytes=8, messages=2, parts=3, images=1, stops=2, stop_bytes=4, tensors=2, grammar_bytes=40)
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def _chat(*contents: Any) -> dict[str, Any]:
    return {"messages": [{"role": "u", "content": each} for each in contents]}


def _schema(schema: dict[str, Any]) -> dict[str, Any]:
    return {"prompt": "a", "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}}


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("prompts", {"prompt": ["a", "b", "c"]}),
        ("text_bytes", {"prompt": "abcdefghi"}),
        ("text_bytes", {"prompt": ["abcde", "\N{EURO SIGN}x"]}),
        ("stops", {"prompt": "a", "stop": ["a", "b", "c"]}),
        ("stop_bytes", {"prompt": "a", "stop": ["abc", "de"]}),
        ("stop_bytes", {"prompt": "a", "stop": "abcde"}),
        ("grammar_bytes", _schema({"enum": ["a" * 40]})),
        ("messages", _chat("a", "b", "c")),
        ("parts", _chat([{"type": "text", "text": "a"}] * 2, [{"type": "text", "text": "a"}] * 2)),
        ("text_bytes", _chat("abcd", "efgh")),
        ("images", _chat([IMAGE, IMAGE])),
    ],
)
def test_a_request_past_a_limit_is_refused_by_name(name: str, body: dict[str, Any]) -> None:
    read = chat_request if "messages" in body else completion_request
    with pytest.raises(LimitError, match=f"the server's limit '{name}'"):
        read(body, FEW)


def test_requests_at_the_limits_are_read() -> None:
    request = completion_request({"prompt": ["abcd", "efgh"], "stop": ["ab", "cd"]}, FEW)
    assert (request.prompts, request.options.stops) == (("abcd", "efgh"), ("ab", "cd"))
    chat_request(_chat([IMAGE, {"type": "text", "text": "abc"}], "def"), FEW)


def test_tensors_are_counted_before_they_are_read() -> None:
    with pytest.raises(LimitError, match="3 tensors, and 2 at most"):
        read_inputs([None] * 3, memoryview(b""), FEW)
    with pytest.raises(LimitError, match="3 tensors"):
        wanted_outputs([None] * 3, FEW)


@pytest.mark.parametrize("body", [b"[" * 9, b"[1,2,3,4,5,6,7,8,9]", b'{"a":{"b":{"c":[1,2,3,4,5,6]}}}'])
def test_values_of_json_are_counted_before_they_are_made(body: bytes) -> None:
    call = Call("POST", "/", {}, body, 0.0, limits=Limits(json_values=8))
    with pytest.raises(LimitError, match="values in its JSON"):
        asyncio.run(call.json())


def test_others_are_answered_between_two_large_bodies() -> None:
    async def scenario() -> list[str]:
        lock, order = asyncio.Lock(), []
        body = b'{"a":"' + b"a" * (1 << 20) + b'"}'

        async def parse(name: str) -> None:
            assert len((await Call("POST", "/", {}, body, 0.0, parsing=lock).json())["a"]) == 1 << 20
            order.append(name)

        async def others() -> None:
            for _ in range(8):
                order.append("other")
                await asyncio.sleep(0)

        await asyncio.gather(others(), *(parse(name) for name in "abc"))
        return order

    order = asyncio.run(scenario())
    places = [order.index(name) for name in "abc"]
    assert places == sorted(places)
    assert "other" in order[places[0] : places[1]]
    assert "other" in order[places[1] : places[2]]


@pytest.mark.parametrize(("name", "status"), [("prompts", 400), ("text_bytes", 413), ("header_bytes", 431)])
def test_the_status_tells_numbers_from_sizes(name: str, status: int) -> None:
    with pytest.raises(LimitError) as caught:
        FEW.check(name, 1 << 40)
    reply = failure(caught.value, "/v2")
    assert (reply.status, f"serve --limit {name}=NUMBER" in reply.body.decode()) == (status, True)


def test_limits_come_from_the_file_and_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "server.yaml"
    file.write_text("models: [{path: a.twm}]\nlimits: {prompts: 3, stops: 4}\n")
    found = server_limits(file, {"stops": "5", "body_seconds": 2.5})
    assert (found.prompts, found.stops, found.body_seconds, found.texts) == (3, 5, 2.5, 2048)
    for given, message in (({"banana": "1"}, "no option 'banana'"), ({"stops": "0"}, "must be above 0")):
        with pytest.raises(OptionError, match=message):
            server_limits(None, given)
