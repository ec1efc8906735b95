"""Several sequences of models with recurrent mixers, or with layers that read others' keys, give what each gives
alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import compiler
from compiler.errors import OptionError
from compiler.frontends.llm import LanguageModelOptions, import_language_model
from compiler.generation import LanguageModel, Scheduler
from compiler.generation.loop import SequenceState
from compiler.generation.steps import BatchedSteps, Chunk, Slots
from tests.compiler.frontends.llm.families import greedy, save_model

pytest.importorskip("transformers")
_SIZES = (5, 1, 11)
_STEPS = 4


@pytest.mark.parametrize("name", ["mamba", "lfm2", "qwen3_next", "gemma4_text"])
def test_sequences_equal_those_alone(name: str, tmp_path: Path) -> None:
    """Prompts in parts beside generated tokens, in any order; the second round begins in used slots."""
    reference = save_model(name, tmp_path)
    model = import_language_model(tmp_path, LanguageModelOptions(sequences=True))
    steps = BatchedSteps(compiler.compile(model, threads=1), 3, 64)
    assert steps.rewinds == (name == "gemma4_text")
    for seed in range(2):
        prompts = [np.random.default_rng([seed, size]).integers(1, 160, size).tolist() for size in _SIZES]
        texts = [
            _Text(slot, prompt, *greedy(reference, np.array(prompt), _STEPS)) for slot, prompt in enumerate(prompts)
        ]
        run = [texts[0].read_prompt(5), texts[2].read_prompt(6)]
        for at in range(1 + _STEPS):
            for chunk, logits in zip(run, steps.run(run), strict=True):
                texts[chunk.slot].check(chunk, logits)
            if at == 0:
                run = [texts[1].read_prompt(1), texts[2].read_prompt(11), texts[0].read_token()]
            else:
                run = [texts[slot].read_token() for slot in (2, 0, 1) if texts[slot].chosen < _STEPS]


class _Text:
    """A sequence, what transformers computes for it, and how far it was read."""

    def __init__(self, slot: int, prompt: list[int], rows: np.ndarray, tokens: list[int]) -> None:
        self.slot, self._prompt, self._rows, self._tokens = slot, prompt, rows, tokens
        self._read = self.chosen = 0

    def read_prompt(self, end: int) -> Chunk:
        """The prompt from where it was read up to `end`."""
        begin, self._read, total = self._read, end, len(self._prompt)
        return Chunk(self.slot, self._prompt[begin:end], begin, total, is_prompt=True, logits=int(end == total))

    def read_token(self) -> Chunk:
        """The token that transformers chose."""
        self._read += 1
        return Chunk(self.slot, [self._tokens[self.chosen - 1]], self._read - 1, self._read, is_prompt=False, logits=1)

    def check(self, chunk: Chunk, logits: np.ndarray) -> None:
        """Compare the logits with the next expected ones."""
        if chunk.logits:
            row = self._rows[self.chosen]
            np.testing.assert_allclose(logits[0], row, rtol=0, atol=1e-5 * abs(row).max())
            self.chosen += 1


@pytest.mark.parametrize("sequences", [False, True])
def test_slots_go_back_to_where_prompts_parted(tmp_path: Path, *, sequences: bool) -> None:
    """The second prompt that diverges at the same position is read from there; speculation changes no token."""
    save_model("qwen3_next", tmp_path)
    options = LanguageModelOptions(sequences=sequences)
    model = LanguageModel(compiler.compile(import_language_model(tmp_path, options), threads=1))
    random = np.random.default_rng(0)
    shared, *ends = (random.integers(1, 160, size).tolist() for size in (20, 7, 9, 5))
    state, reused = SequenceState(model.steps(1, 64), 64), []
    for end in ends:
        reused.append(state.keep_common([*shared, *end]))
        found = state.read_prompt([*shared, *end]).copy()
        alone = SequenceState(model.steps(1, 64), 64).read_prompt([*shared, *end])
        np.testing.assert_allclose(found, alone, rtol=0, atol=1e-5 * abs(alone).max())
    assert reused == [0, 0, 20]
    slots = Slots(steps := model.steps(2, 64))
    taken = []
    for end in ends:
        slot, rows = slots.take([*shared, *end])
        taken.append(rows)
        steps.run([Chunk(slot, [*shared, *end][rows:], rows, 20 + len(end), is_prompt=True, logits=1)])
        slots.read(slot, [*shared, *end][rows:])
        slots.release(slot)
    assert taken == [0, 0, 20]
    if sequences:
        prompt = [5, 6, 7, 8] * 4
        wanted = model.generate(prompt, max_new_tokens=20).tokens
        assert model.generate(prompt, speculative=4, max_new_tokens=20).tokens == wanted
        with Scheduler(model, max_sequences=2, context=64) as scheduler:
            handles = [scheduler.submit(prompt, speculative=4, max_new_tokens=20) for _ in range(2)]
            assert [handle.result().tokens for handle in handles] == [wanted, wanted]


def test_the_last_runs_of_overwritten_states_are_undone(tmp_path: Path) -> None:
    reference = save_model("qwen3_next", tmp_path)
    module = compiler.compile(import_language_model(tmp_path), threads=1)
    prompt = np.random.default_rng(5).integers(1, reference.config.vocab_size, 9)
    session = module.session(capacity=40, snapshots=2)
    wanted = [session.run([part[None]])["logits"] for part in (prompt[:4], prompt[4:5], prompt[5:])]
    with pytest.raises(OptionError, match=r"rewinding \[4, 5\] rows"):
        session.rewind(9)
    other = session.fork()
    session.rewind(5)
    assert session.length == 4
    for part, logits in zip((prompt[4:5], prompt[5:]), wanted[1:], strict=True):
        np.testing.assert_array_equal(session.run([part[None]])["logits"], logits)
    other.rewind(4)
    np.testing.assert_array_equal(other.run([prompt[None, 5:]])["logits"], wanted[2])
    with pytest.raises(OptionError, match=r"session\(snapshots="):
        module.session(capacity=40).rewind(0)
