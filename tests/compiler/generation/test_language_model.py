"""A model folder becomes a module that generates: greedy text, streams, stops, seeds, chats, and refused calls."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import compiler
from compiler.errors import ArtifactError, InputError, OptionError
from compiler.generation import GenerationOptions, LanguageModel, load
from targets.conformance.models import small_net

CONTEXT = 96


@pytest.fixture(scope="module")
def module_path(separate: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.twm"
    separate.module.export(path)
    return path


@pytest.fixture(scope="module")
def model(module_path: Path) -> LanguageModel:
    return load(module_path)


def _greedy(model: LanguageModel, prompt: list[int], count: int) -> list[int]:
    """Generate greedily, computing each token from the whole text."""
    tokens: list[int] = []
    while len(tokens) < count:
        session = model.module.session(capacity=CONTEXT)
        logits = session.run([np.array([prompt + tokens])])["logits"][0, -1]
        if int(logits.argmax()) in model.description.stop_tokens:
            break
        tokens.append(int(logits.argmax()))
    return tokens


def test_greedy_tokens_are_those_of_runs_without_a_cache(model: LanguageModel) -> None:
    prompt = list(b"Hello")
    result = model.generate("Hello", max_new_tokens=10)
    assert list(result.tokens) == _greedy(model, prompt, 10)
    assert result.prompt_tokens == 5
    assert result.text == bytes(result.tokens).decode(errors="replace")


def test_a_model_without_an_encoder_takes_no_inputs(model: LanguageModel) -> None:
    with pytest.raises(InputError, match="no encoder"):
        model.generate("Hello", inputs={"pixel_values": np.zeros(1)})


@pytest.fixture
def usual_handler() -> Iterator[None]:
    """Set Python's default handler of SIGINT, as processes of parallel tests ignore the signal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class _Interrupting:
    """Python drops the exceptions of a destructor."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


def test_an_interrupt_in_a_destructor_ends_the_generation(model: LanguageModel, usual_handler: None) -> None:
    for generate in (model.generate, model.conversation().say):
        with pytest.raises(KeyboardInterrupt):
            generate("Hi", max_new_tokens=40, stream=lambda text: [_Interrupting()].clear())


def test_pieces_make_up_the_text(model: LanguageModel) -> None:
    pieces: list[str] = []
    result = model.generate("Hi", max_new_tokens=40, temperature=1.5, seed=3, stream=pieces.append)
    assert "".join(pieces) == result.text
    streamed = model.stream("Hi", max_new_tokens=40, temperature=1.5, seed=3)
    assert "".join(piece.text for piece in streamed) == result.text


def test_a_seed_repeats_a_text(model: LanguageModel) -> None:
    options = GenerationOptions(max_new_tokens=12, temperature=2.0)
    first = model.generate("abc", options)
    again = model.generate("abc", options, seed=first.seed)
    assert again.tokens == first.tokens
    assert len({model.generate("abc", options, seed=seed).tokens for seed in range(4)}) > 1


def test_a_stop_text_ends_the_text_before_it(model: LanguageModel) -> None:
    whole = model.generate("abc", max_new_tokens=20, temperature=2.0, seed=1).text
    stop = whole[7:9]
    result = model.generate("abc", max_new_tokens=20, temperature=2.0, seed=1, stop=stop)
    assert result.text == whole[: whole.index(stop)]
    assert result.finish_reason == "stop"


def test_the_context_ends_a_text(model: LanguageModel) -> None:
    prompt = [65] * (CONTEXT - 4)
    result = model.generate(prompt, max_new_tokens=50)
    assert (result.finish_reason, len(result.tokens)) == ("length", 5)
    with pytest.raises(InputError, match="the prompt has 97 tokens, which exceeds the context of 96"):
        model.generate([65] * 97)


def test_a_cancelled_generation_returns_what_there_is(model: LanguageModel) -> None:
    cancel = threading.Event()
    result = model.generate("abc", max_new_tokens=50, cancel=cancel, stream=lambda _: cancel.set())
    assert result.finish_reason == "cancelled"
    assert 1 <= len(result.tokens) < 50


def test_log_probabilities_are_those_of_the_logits(model: LanguageModel) -> None:
    result = model.generate("abc", max_new_tokens=2, logprobs=3)
    logits = model.module.session(capacity=CONTEXT).run([np.array([list(b"abc")])])["logits"][0, 0].astype(np.float64)
    wanted = logits - np.log(np.exp(logits).sum())
    first = result.logprobs[0]
    assert first.logprob == pytest.approx(wanted.max())
    assert [token for token, _ in first.alternatives] == np.argsort(-wanted)[:3].tolist()


def test_a_conversation_reads_each_token_once(model: LanguageModel) -> None:
    conversation = model.conversation()
    conversation.say("ab", max_new_tokens=3)
    second = conversation.say("cd", max_new_tokens=3)
    assert second.reused_tokens > 0
    fresh = model.generate(conversation.messages[:-1], max_new_tokens=3)
    assert fresh.tokens == second.tokens


def test_a_failed_turn_leaves_the_conversation_as_it_was(model: LanguageModel) -> None:
    conversation = model.conversation(context=64)
    conversation.say("ab", max_new_tokens=2)
    before = list(conversation.messages)
    with pytest.raises(InputError, match="the context of 64"):
        conversation.say("x" * 100)
    assert conversation.messages == before
    assert conversation.say("cd", max_new_tokens=2).reused_tokens > 0


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("\ud800", "not valid Unicode"),
        ([], "the prompt is empty"),
        ([5000], "5000 is not a token"),
        ([{"role": "tool", "content": "x"}], "no tools"),
        ([{"role": "user"}], "is not a message"),
    ],
)
def test_prompts_that_are_none(model: LanguageModel, prompt: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        model.generate(prompt)


@pytest.mark.parametrize(
    "settings", [{"temperature": -1}, {"top_p": 0}, {"stop": ""}, {"max_new_tokens": 1.5}, {"warmth": 2}]
)
def test_options_that_are_not_allowed(model: LanguageModel, settings: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        model.generate("abc", **settings)


def test_another_module_is_no_language_model() -> None:
    with pytest.raises(ArtifactError, match="is not a language model"):
        LanguageModel(compiler.compile(small_net(1), threads=1))
