"""Speculative decoding: the same tokens in fewer runs."""

from __future__ import annotations

from typing import Any

import pytest

from compiler.errors import OptionError
from compiler.generation import LanguageModel, Scheduler
from compiler.generation.speculation import PromptLookup

REPEATS = [*range(70, 78)] * 4


def _runs(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of tokens of each run."""
    runs: list[int] = []
    run = model.module._executor.step

    def counted(inputs: Any, *args: Any, **options: Any) -> Any:
        runs.append(inputs["tokens"].shape[1])
        return run(inputs, *args, **options)

    monkeypatch.setattr(model.module._executor, "step", counted)
    return runs


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7, "seed": 3}, {"repetition_penalty": 1.3, "logprobs": 2}])
@pytest.mark.parametrize("guesses", [1, 5, 12])
def test_guesses_change_nothing(joined: LanguageModel, settings: dict[str, Any], guesses: int) -> None:
    for prompt in (REPEATS, [3], list(b"ab" * 40)):
        wanted = joined.generate(prompt, max_new_tokens=40, **settings)
        found = joined.generate(prompt, max_new_tokens=40, speculative=guesses, **settings)
        assert (found.tokens, found.text, found.logprobs) == (wanted.tokens, wanted.text, wanted.logprobs)
        assert found.finish_reason == wanted.finish_reason


def test_right_guesses_save_runs(joined: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = _runs(joined, monkeypatch)
    wanted = joined.generate("Hello", max_new_tokens=60)
    alone = len(runs)
    assert joined.generate("Hello", max_new_tokens=60, speculative=8).tokens == wanted.tokens
    assert len(runs) - alone < alone / 2


def test_a_draft_model_guesses(joined: LanguageModel, separate: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model used as its own draft model always guesses correctly."""
    model = LanguageModel(joined.module, draft=separate)
    runs = _runs(joined, monkeypatch)
    wanted = joined.generate("abc", max_new_tokens=30)
    alone = len(runs)
    assert model.generate("abc", max_new_tokens=30, speculative=6).tokens == wanted.tokens
    assert len(runs) - alone < alone / 3


@pytest.mark.parametrize("has_draft", [False, True])
def test_sequences_guess_beside_each_other(joined: LanguageModel, separate: LanguageModel, has_draft: bool) -> None:
    model = LanguageModel(joined.module, draft=separate if has_draft else None)
    prompts = [REPEATS, "Hello", [*REPEATS[:20], 5], "xy"]
    with Scheduler(model, max_sequences=3) as scheduler:
        handles = [scheduler.submit(each, max_new_tokens=30, speculative=6) for each in prompts]
        results = [handle.result() for handle in handles]
    for prompt, result in zip(prompts, results, strict=True):
        assert result.tokens == joined.generate(prompt, max_new_tokens=30).tokens


def test_what_cannot_guess_is_refused(separate: LanguageModel) -> None:
    with pytest.raises(OptionError, match="compile it with sequences=True"):
        separate.generate("abc", speculative=4)
    with pytest.raises(OptionError):
        separate.generate("abc", speculative=-1)


def test_lookup_repeats_what_followed() -> None:
    lookup = PromptLookup()
    assert lookup.draft([1, 2, 3, 4, 5, 2, 3], 3) == [4, 5, 2]
    assert lookup.draft([1, 2, 3, 4, 5, 2, 3, 9], 3) == []
    assert lookup.draft([1, 2, 3, 4, 5, 2, 3, 9, 7, 8, 7, 8], 5) == [7, 8, 7, 8, 7]
