"""OpenAI's own client against the server."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import compiler
import schedules.ir.load_tvm  # noqa: F401  (loads TVM without torch)
from compiler.errors import InputError
from compiler.generation import LanguageModel, load
from compiler.runtime import Module
from compiler.serving.app.completion_options import chat_request, completion_request
from compiler.serving.configuration import model_options
from compiler.serving.limits import DEFAULT_LIMITS
from tests.compiler.generation.models import write_folder
from tests.compiler.runtime.building import build_artifact
from tests.compiler.serving.server import Running, dense_file, serving

from tvm import relax  # isort: skip

openai = pytest.importorskip("openai")
CHAT = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def language_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("language")
    compiler.compile(write_folder(folder), threads=1).export(folder / "tiny.twm")
    return folder / "tiny.twm"


@pytest.fixture(scope="module")
def language(language_file: Path) -> LanguageModel:
    return load(language_file)


def embedder(**assets: bytes) -> Module:
    """Vectors of tokens: (batch, length) to float32 (batch, length, 4)."""
    table = np.random.default_rng(0).standard_normal((260, 4)).astype(np.float32)
    artifact = build_artifact(
        [("input_ids", ("batch", "length"), "int64"), ("attention_mask", ("batch", "length"), "int64")],
        [("hidden", ("batch", "length", 4), "float32")],
        lambda ids, mask, weights: [
            relax.op.multiply(
                relax.op.reshape(
                    relax.op.take(weights, relax.op.reshape(ids, (-1,)), axis=0), (*ids.ty.shape.values, 4)
                ),
                relax.op.expand_dims(relax.op.astype(mask, "float32"), 2),
            )
        ],
        {"table": table},
        assets={name.replace("_", "."): content for name, content in assets.items()},
    )
    return Module(artifact, threads=1)


@pytest.fixture(scope="module")
def server(language_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("models")
    embedder().export(folder / "embed.twm")
    tokenizer = language_file.parent / "tokenizer.json"
    embedder(tokenizer_json=tokenizer.read_bytes()).export(folder / "carried.twm")
    models = [
        {"path": str(language_file), "generation": {"max_sequences": 2, "max_queue": 4}},
        {"path": str(folder / "embed.twm"), "text": {"tokenizer": str(tokenizer)}},
        {"path": str(folder / "carried.twm")},
        {"path": str(dense_file(folder))},
    ]
    with serving([model_options(each, "a model") for each in models]) as running:
        yield running


@pytest.fixture
def client(server: Running) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_models_are_listed(client: Any) -> None:
    assert {each.id for each in client.models.list()} == {"tiny", "embed", "carried", "dense"}
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_chats(client: Any, language: LanguageModel) -> None:
    answer = client.chat.completions.create(model="tiny", messages=CHAT, max_tokens=8, temperature=0)
    expected = language.generate(CHAT, max_new_tokens=8)
    assert answer.choices[0].message.content == expected.text
    assert answer.choices[0].finish_reason == expected.finish_reason
    assert answer.usage.prompt_tokens == expected.prompt_tokens
    assert answer.usage.completion_tokens == len(expected.tokens)


@pytest.mark.parametrize("choices", [1, 2])
def test_streams(client: Any, language: LanguageModel, choices: int) -> None:
    stream = client.chat.completions.create(
        model="tiny", messages=CHAT, max_tokens=8, temperature=0, stream=True, n=choices,
        stream_options={"include_usage": True},
    )  # fmt: skip
    chunks = list(stream)
    expected = language.generate(CHAT, max_new_tokens=8)
    for index in range(choices):
        own = [each for chunk in chunks for each in chunk.choices if each.index == index]
        assert "".join(each.delta.content or "" for each in own) == expected.text
        assert own[0].delta.role == "assistant"
        assert own[-1].finish_reason == expected.finish_reason
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == choices * len(expected.tokens)
    assert chunks[-1].usage.prompt_tokens == expected.prompt_tokens


def test_log_probabilities(client: Any, language: LanguageModel) -> None:
    expected = language.generate(CHAT, max_new_tokens=4, logprobs=2).logprobs
    answer = client.chat.completions.create(
        model="tiny", messages=CHAT, max_tokens=4, temperature=0, logprobs=True, top_logprobs=2
    )
    given = answer.choices[0].logprobs.content
    assert [each.logprob for each in given] == pytest.approx([each.logprob for each in expected], abs=1e-4)
    assert [len(each.top_logprobs) for each in given] == [2] * len(expected)
    streamed = client.chat.completions.create(
        model="tiny", messages=CHAT, max_tokens=4, temperature=0, logprobs=True, stream=True
    )
    pieces = [
        each for chunk in streamed for choice in chunk.choices if choice.logprobs for each in choice.logprobs.content
    ]
    assert [each.token for each in pieces] == [each.token for each in given]


def test_completions(client: Any, language: LanguageModel) -> None:
    prompts = ["one", "three"]
    answer = client.completions.create(model="tiny", prompt=prompts, max_tokens=6, temperature=0, logprobs=1)
    for choice, prompt in zip(answer.choices, prompts, strict=True):
        expected = language.generate(prompt, max_new_tokens=6)
        assert choice.text == expected.text
        assert len(choice.logprobs.tokens) == len(expected.tokens)
    tokens = language.tokens_of("one")
    streamed = client.completions.create(model="tiny", prompt=tokens, max_tokens=6, temperature=0, stream=True)
    assert "".join(each.choices[0].text for each in streamed) == answer.choices[0].text


def test_seeds_and_stops(client: Any, language: LanguageModel) -> None:
    text = language.generate("abc", max_new_tokens=12).text
    stop = text[2:4]
    answer = client.completions.create(model="tiny", prompt="abc", max_tokens=12, temperature=0, stop=[stop])
    assert answer.choices[0].text == text[: text.index(stop)]
    assert answer.choices[0].finish_reason == "stop"
    drawn = [
        client.completions.create(model="tiny", prompt="abc", max_tokens=8, temperature=1.5, seed=7).choices[0].text
        for _ in range(2)
    ]
    assert drawn[0] == drawn[1]


def test_answers_match_a_schema(client: Any) -> None:
    pytest.importorskip("xgrammar")
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    answer = client.chat.completions.create(model="tiny", messages=CHAT, max_tokens=90, response_format=form)
    assert answer.choices[0].finish_reason == "stop"
    assert type(json.loads(answer.choices[0].message.content)["ok"]) is bool


def test_a_client_that_leaves_ends_its_generation(client: Any, server: Running) -> None:
    scheduler = server.app.repository.service("tiny")._running()  # type: ignore[attr-defined]
    stream = client.completions.create(model="tiny", prompt="abc", max_tokens=90, temperature=0, stream=True)
    next(iter(stream))
    stream.close()
    while scheduler.counts.running:
        time.sleep(0.01)
    again = client.completions.create(model="tiny", prompt="abc", max_tokens=1, temperature=0)
    assert again.usage.completion_tokens == 1


def test_mistakes_are_told(client: Any, server: Running) -> None:
    with pytest.raises(openai.NotFoundError, match="no model 'other'"):
        client.completions.create(model="other", prompt="a")
    with pytest.raises(openai.BadRequestError, match="not a language model"):
        client.completions.create(model="dense", prompt="a")
    with pytest.raises(openai.BadRequestError, match="does not embed"):
        client.embeddings.create(model="dense", input="a")
    with pytest.raises(openai.BadRequestError, match="the context of 96"):
        client.completions.create(model="tiny", prompt=" " * 4000)
    assert "is a language model" in server.infer("tiny", "x", [1.0], (1,)).json["error"]
    answer = server.ask("POST", "/v1/completions", b"{")
    assert (answer.status, answer.json["error"]["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"messages": []}, "'messages' must be a list"),
        ({"messages": [{"role": 1, "content": "a"}]}, "role must be a string"),
        ({"messages": [{"role": "user", "content": [{"type": "file"}]}]}, "'file' is not supported"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "'input_audio' must be an object"),
        ({"messages": CHAT, "logit_bias": {"a": 1}}, "'logit_bias' must be an object"),
        ({"messages": CHAT, "echo": True}, "'echo' is not supported"),
        ({"messages": CHAT, "n": 100}, "'n' must be a whole number from 1"),
        ({"messages": CHAT, "stream": "yes"}, "'stream' must be true or false"),
        ({"messages": CHAT, "max_tokens": -1}, "number of tokens"),
        ({"messages": CHAT, "response_format": {"type": "xml"}}, "response_format 'xml' is not supported"),
        ({"messages": CHAT, "response_format": {"type": "json_schema"}}, "'json_schema' must be an object"),
        ({"messages": CHAT, "banana": 1}, "the field 'banana' is not supported"),
    ],
)
def test_what_a_chat_cannot_ask(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        chat_request({"model": "tiny", **fields}, DEFAULT_LIMITS)


def test_a_chat_brings_one_sound() -> None:
    sound = {"type": "input_audio", "input_audio": {"data": base64.b64encode(b"RIFF").decode(), "format": "wav"}}
    request = chat_request({"model": "tiny", "messages": [{"role": "user", "content": [sound]}]}, DEFAULT_LIMITS)
    assert request.audio == b"RIFF"
    assert request.prompts == ([{"role": "user", "content": [{"type": "audio"}]}],)
    with pytest.raises(InputError, match="two sounds"):
        chat_request({"model": "tiny", "messages": [{"role": "user", "content": [sound, sound]}]}, DEFAULT_LIMITS)


def test_what_says_nothing_is_taken() -> None:
    neutral: dict[str, Any] = {
        "frequency_penalty": 0,
        "presence_penalty": None,
        "tools": [],
        "user": "me",
        "echo": False,
    }
    request = completion_request({"model": "tiny", "prompt": ["a", "b"], "best_of": 1, **neutral}, DEFAULT_LIMITS)
    assert (len(request.prompts), request.max_tokens, request.options.temperature) == (2, 16, 1.0)


def test_embeddings(client: Any, language: LanguageModel) -> None:
    module = embedder()
    texts = ["one", "three", "two"]
    floats = client.embeddings.create(model="embed", input=texts, encoding_format="float")
    packed = client.embeddings.create(model="embed", input=texts)  # base64 on the wire
    for text, each, other in zip(texts, floats.data, packed.data, strict=True):
        ids = np.array([language.tokens_of(text)])
        hidden = module.run({"input_ids": ids, "attention_mask": np.ones_like(ids)})["hidden"][0].astype(np.float64)
        expected = hidden.mean(axis=0) / np.linalg.norm(hidden.mean(axis=0))
        np.testing.assert_allclose(each.embedding, expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(other.embedding, expected, rtol=1e-4, atol=1e-6)
    carried = client.embeddings.create(model="carried", input=texts)  # by the tokenizer in the module
    assert [each.embedding for each in carried.data] == [each.embedding for each in packed.data]
    assert floats.usage.prompt_tokens == sum(len(language.tokens_of(text)) for text in texts)
    tokens = client.embeddings.create(model="embed", input=[language.tokens_of("one")])
    np.testing.assert_allclose(tokens.data[0].embedding, floats.data[0].embedding, rtol=1e-5)
    with pytest.raises(openai.BadRequestError, match="'input' must be"):
        client.embeddings.create(model="embed", input=[])
    with pytest.raises(openai.BadRequestError, match=r"not \[-1\]"):
        client.embeddings.create(model="embed", input=[[-1]])
    with pytest.raises(openai.BadRequestError, match="4 dimensions"):
        client.embeddings.create(model="embed", input="one", dimensions=2)
