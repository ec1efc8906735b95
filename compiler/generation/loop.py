"""The loop of one sequence: a prompt, then a run for each token."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence

from compiler.errors import InputError
from compiler.generation.output import Output, Piece, Timing
from compiler.generation.result import Generation
from compiler.generation.slots import common_length
from compiler.generation.steps import Chunk, Logits, Steps


class SequenceState:
    """The first slot of some steps, and the tokens that it has read."""

    def __init__(self, steps: Steps, context: int) -> None:
        self._steps, self.context = steps, context
        self.tokens: list[int] = []

    @property
    def room(self) -> int:
        """How many tokens it can read in all."""
        return self.context if self._steps.room is None else min(self.context, self._steps.room)

    def keep_common(self, tokens: Sequence[int]) -> int:
        """Forget what differs from `tokens`; returns how many stay, at most all but the last of them."""
        common = common_length(self.tokens, tokens)
        if not self._steps.rewinds and common < len(self.tokens):
            common = 0
        del self.tokens[common:]
        return common

    def read(self, tokens: Sequence[int], *, total: int, is_prompt: bool) -> Logits:
        """Read tokens; the logits of the next one, float32 (vocabulary,)."""
        chunk = Chunk(0, tokens, len(self.tokens), total, is_prompt, 1)
        logits: Logits = self._steps.run([chunk])[0][0]
        self.tokens.extend(tokens)
        return logits


class Run(Iterator[Piece]):
    """One generation, one token per step; `result` once it has ended."""

    def __init__(self, state: SequenceState, prompt: list[int], output: Output, cancel: threading.Event | None) -> None:
        check_fits(prompt, state.room)
        self._state, self._prompt, self._output, self._cancel = state, prompt, output, cancel
        self._reused = self._decoded = 0
        self._prompt_seconds = self._decode_seconds = 0.0
        self._result: Generation | None = None
        self._steps = self._generate()

    def __next__(self) -> Piece:
        return next(self._steps)

    @property
    def result(self) -> Generation:
        """What was generated, once the iteration has ended."""
        assert self._result is not None
        return self._result

    def _generate(self) -> Iterator[Piece]:
        output = self._output
        while output.reason is None:
            if self._cancel is not None and self._cancel.is_set():
                output.reason = "cancelled"
                break
            piece = self._next_piece()
            if piece is not None:
                yield piece
        rest = output.end()
        self._result = output.result(self._reused, Timing(self._prompt_seconds, self._decode_seconds, self._decoded))
        if rest is not None:
            yield rest

    def _next_piece(self) -> Piece | None:
        begin = time.perf_counter()
        tokens, prompt, state = self._output.tokens, self._prompt, self._state
        is_first = not tokens
        if is_first:
            self._reused = state.keep_common(prompt)
            logits = state.read(prompt[self._reused :], total=len(prompt), is_prompt=True)
        else:
            logits = state.read(tokens[-1:], total=len(state.tokens) + 1, is_prompt=False)
        piece = self._output.take(logits)
        seconds = time.perf_counter() - begin
        if is_first:
            self._prompt_seconds = seconds
        else:
            self._decode_seconds += seconds
            self._decoded += 1
        return piece


def check_fits(prompt: Sequence[int], room: int) -> None:
    """Raises InputError where a prompt is longer than the context."""
    if len(prompt) > room:
        raise InputError(f"the prompt has {len(prompt)} tokens, and the context {room}", "give a shorter prompt")
