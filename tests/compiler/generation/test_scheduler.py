"""Several sequences at once: the same tokens as alone, cancellation, queues, sharing, and refused requests."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import compiler
from compiler.errors import InputError, InternalError, OptionError, QueueFullError
from compiler.frontends.llm import LanguageModelOptions, import_language_model
from compiler.generation import LanguageModel, Scheduler
from compiler.generation.sampling import Sampler
from compiler.generation.steps import Chunk, Logits

CONTEXT = 96
PROMPTS = ["Hello", "a", "The quick brown fox jumps over the lazy dog", "né 漢字"]


@pytest.fixture(params=["separate", "joined"])
def model(request: pytest.FixtureRequest) -> LanguageModel:
    found: LanguageModel = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def scheduler(model: LanguageModel) -> Iterator[Scheduler]:
    with Scheduler(model, max_sequences=2, queue=2) as scheduler:
        yield scheduler


def test_tokens_are_those_of_single_generations(model: LanguageModel, scheduler: Scheduler) -> None:
    handles = [scheduler.submit(prompt, max_new_tokens=12) for prompt in PROMPTS]
    for prompt, handle in zip(PROMPTS, handles, strict=True):
        alone = model.generate(prompt, max_new_tokens=12)
        assert "".join(piece.text for piece in handle) == alone.text
        assert handle.result().tokens == alone.tokens
        assert (handle.usage.prompt_tokens, handle.usage.generated_tokens) == (alone.prompt_tokens, len(alone.tokens))


def test_pieces_reach_an_event_loop(model: LanguageModel, scheduler: Scheduler) -> None:
    async def text_of(prompt: str) -> str:
        handle = scheduler.submit(prompt, max_new_tokens=8, logprobs=1)
        pieces = [piece async for piece in handle]
        assert all(piece.logprob is not None for piece in pieces if piece.token is not None)
        assert (await handle.finished()).text == "".join(piece.text for piece in pieces)
        return (await handle.finished()).text

    async def both() -> list[str]:
        return await asyncio.gather(*(text_of(prompt) for prompt in PROMPTS[:2]))

    assert asyncio.run(both()) == [model.generate(prompt, max_new_tokens=8).text for prompt in PROMPTS[:2]]


def test_a_full_queue_is_one_error_and_cancelling_makes_room(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, gate = scheduler._batch._steps, threading.Event()
    run = steps.run

    def waiting(chunks: Sequence[Chunk]) -> list[Logits]:
        gate.wait()
        return run(chunks)

    monkeypatch.setattr(steps, "run", waiting)
    handles = [scheduler.submit("abc", max_new_tokens=80) for _ in range(4)]
    with pytest.raises(QueueFullError, match="no more may"):
        scheduler.submit("abc")
    handles[-1].cancel()
    assert handles[-1].result(timeout=0).finish_reason == "cancelled"
    handles[-1] = scheduler.submit("abc", max_new_tokens=2)
    for handle in handles[:-1]:
        handle.cancel()
    gate.set()
    assert [handle.result().finish_reason for handle in handles] == ["cancelled"] * 3 + ["length"]


def test_a_shared_beginning_is_computed_once(model: LanguageModel, scheduler: Scheduler) -> None:
    beginning = [*range(40, 80)]
    alone = model.generate([*beginning, 5, 6], max_new_tokens=5)
    first = scheduler.submit([*beginning, 7], max_new_tokens=5)
    second = scheduler.submit([*beginning, 5, 6], max_new_tokens=5)
    assert second.result().tokens == alone.tokens
    assert first.usage.cached_tokens == 0
    assert second.usage.cached_tokens == 40
    again = scheduler.submit([*beginning, 5, 6], max_new_tokens=5)
    assert again.result().tokens == alone.tokens
    assert again.usage.cached_tokens == 41


def test_ends_that_need_no_token(scheduler: Scheduler) -> None:
    none = scheduler.submit("abc", max_new_tokens=0)
    assert (none.result().text, none.result().finish_reason) == ("", "length")
    assert none.usage.prompt_tokens == 3
    with pytest.raises(InputError, match="the prompt is empty"):
        scheduler.submit("")
    with pytest.raises(InputError, match="the prompt has 97 tokens, which exceeds the context of 96"):
        scheduler.submit([65] * 97)
    with pytest.raises(OptionError):
        scheduler.submit("abc", top_p=2.0)
    with pytest.raises(InputError, match="cannot be of type NoneType"):
        scheduler.submit(None)  # type: ignore[arg-type]


def test_stop_texts_and_characters_that_span_tokens(model: LanguageModel, scheduler: Scheduler) -> None:
    """Tokens are single bytes: of a character, and of a stop text."""
    drawn: dict[str, Any] = {"max_new_tokens": 40, "temperature": 2.0, "seed": 1}
    whole = model.generate("abc", **drawn)
    stop = whole.text[5:8]
    handles = [scheduler.submit("abc", **drawn), scheduler.submit("abc", stop=stop, **drawn)]
    assert "".join(piece.text for piece in handles[0]) == whole.text
    assert "".join(piece.text for piece in handles[1]) == whole.text[: whole.text.index(stop)]
    assert handles[1].result().finish_reason == "stop"


def test_a_defect_in_one_sequence_ends_that_one_alone(
    model: LanguageModel, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose = Sampler.choose

    def defective(self: Sampler, logits: Logits, allowed: Any = None) -> int:
        if self.seed is not None:
            raise IndexError("no such token")
        return choose(self, logits, allowed)

    monkeypatch.setattr(Sampler, "choose", defective)
    handles = [scheduler.submit("Hello", max_new_tokens=12, temperature=temperature) for temperature in (0.0, 1.0, 0.0)]
    with pytest.raises(InternalError, match="IndexError: no such token"):
        handles[1].result()
    assert [handles[place].result().tokens for place in (0, 2)] == [
        model.generate("Hello", max_new_tokens=12).tokens
    ] * 2


def test_a_closed_scheduler_ends_what_it_has(model: LanguageModel) -> None:
    scheduler = Scheduler(model, max_sequences=1)
    drained = [scheduler.submit("abc", max_new_tokens=4) for _ in range(3)]
    scheduler.close()
    assert [handle.result(timeout=0).finish_reason for handle in drained] == ["length"] * 3
    with pytest.raises(OptionError, match="closed"):
        scheduler.submit("abc")
    other = Scheduler(model, max_sequences=1)
    dropped = [other.submit("abc", max_new_tokens=90) for _ in range(3)]
    other.close(drain=False)
    assert dropped[-1].result(timeout=0).finish_reason == "cancelled"


@pytest.fixture(scope="module")
def rounded(folder: Path) -> LanguageModel:
    """The model with weights and a cache of 8 bits."""
    options = LanguageModelOptions("int8", cache="int8", sequences=True)
    return LanguageModel(compiler.compile(import_language_model(folder, options), threads=1))


@pytest.mark.parametrize("name", ["joined", "rounded"])
def test_logits_do_not_depend_on_what_shares_a_run(name: str, request: pytest.FixtureRequest) -> None:
    """Logits are equal bit for bit: beside other sequences, with several tokens per run, and for a prompt in parts."""
    steps = request.getfixturevalue(name).steps(4, CONTEXT)
    prompt, tokens = list(range(60)), [5, 9, 200]

    def parts(slot: int, ends: list[int]) -> list[Chunk]:
        return [
            Chunk(slot, prompt[first:end], first, len(prompt), is_prompt=True, logits=int(end == len(prompt)))
            for first, end in pairwise([0, *ends, len(prompt)])
        ]

    whole = steps.run(parts(0, []))[0].copy()
    alone = []
    for place, token in enumerate(tokens, len(prompt)):
        chunk = Chunk(0, [token], place, place + 1, is_prompt=False, logits=1)
        alone.append(steps.run([chunk])[0].copy())
    first, last = parts(1, [23])
    steps.run([first, *parts(2, [])])
    beside = steps.run([Chunk(2, tokens, 60, 63, is_prompt=False, logits=3), last])
    np.testing.assert_array_equal(beside[0], np.concatenate(alone))
    np.testing.assert_array_equal(beside[1], whole)
