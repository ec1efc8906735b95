"""Decoding loop of one sequence: the prompt, then one run per token."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence

from compiler.errors import InputError
from compiler.generation.options import Generation
from compiler.generation.output import Output, Piece, Timing
from compiler.generation.speculation import Speculation
from compiler.generation.steps import Chunk, Logits, Steps, common_length


class SequenceState:
    """State of a single sequence: the first slot of some steps, and its tokens."""

    def __init__(self, steps: Steps, context: int) -> None:
        self._steps, self.context = steps, context
        self.tokens: list[int] = []
        self._adapter: str | None = None

    def choose(self, adapter: str | None) -> None:
        """Select an adapter for the following tokens; None for the base. Tokens of another adapter are discarded."""
        self._steps.choose(0, adapter)
        if adapter != self._adapter:
            self.tokens.clear()
        self._adapter = adapter

    @property
    def room(self) -> int:
        """Total number of tokens that it can read."""
        return self.context if self._steps.room is None else min(self.context, self._steps.room)

    def keep_common(self, tokens: Sequence[int]) -> int:
        """Discard tokens after the common prefix with `tokens`; return its length, at most all but the last of them."""
        common = common_length(self.tokens, tokens)
        length = self._steps.back_to(0, common)
        if length < common:
            self._steps.mark(0, common)
        common = length
        del self.tokens[common:]
        return common

    def read_prompt(self, tokens: Sequence[int]) -> Logits:
        """Read the uncached rest of a prompt; return the logits of the next token, float32 (1, vocabulary)."""
        chunk = Chunk(0, tokens[len(self.tokens) :], len(self.tokens), len(tokens), is_prompt=True, logits=1)
        return self._read(chunk)

    def read(self, tokens: Sequence[int]) -> Logits:
        """Read generated tokens; return the logits after each, float32 (tokens, vocabulary)."""
        position = len(self.tokens)
        return self._read(Chunk(0, tokens, position, position + len(tokens), is_prompt=False, logits=len(tokens)))

    def forget(self, count: int) -> None:
        """Rewind by `count` tokens."""
        del self.tokens[len(self.tokens) - count :]

    def _read(self, chunk: Chunk) -> Logits:
        (logits,) = self._steps.run([chunk])
        self.tokens.extend(chunk.tokens)
        return logits


class Run(Iterator[Piece]):
    """One generation, token by token; `result` is available at the end."""

    def __init__(
        self,
        state: SequenceState,
        prompt: list[int],
        output: Output,
        cancel: threading.Event | None,
        speculation: Speculation | None = None,
    ) -> None:
        check_fits(prompt, state.room)
        self._state, self._prompt, self._output, self._cancel = state, prompt, output, cancel
        self._speculation = speculation
        self._reused = self._decoded = 0
        self._prompt_seconds = self._decode_seconds = 0.0
        self._result: Generation | None = None
        self._steps = self._generate()

    def __next__(self) -> Piece:
        return next(self._steps)

    @property
    def result(self) -> Generation:
        """Generated text, once the iteration has ended."""
        assert self._result is not None
        return self._result

    def _generate(self) -> Iterator[Piece]:
        output = self._output
        while output.reason is None:
            if self._cancel is not None and self._cancel.is_set():
                output.reason = "cancelled"
                break
            yield from self._next_pieces()
        rest = output.end()
        self._result = output.result(self._reused, Timing(self._prompt_seconds, self._decode_seconds, self._decoded))
        if rest is not None:
            yield rest

    def _next_pieces(self) -> list[Piece]:
        begin = time.perf_counter()
        if self._output.tokens:
            pieces = self._decoded_pieces()
            self._decode_seconds += time.perf_counter() - begin
            self._decoded += max(1, len(pieces))
            return pieces
        self._reused = self._state.keep_common(self._prompt)
        piece = self._output.take(self._state.read_prompt(self._prompt)[0])
        self._prompt_seconds = time.perf_counter() - begin
        return [] if piece is None else [piece]

    def _decoded_pieces(self) -> list[Piece]:
        """Yield pieces from a run of the last token and the guesses after it."""
        output, speculation = self._output, self._speculation
        guesses: list[int] = []
        if speculation is not None:
            guesses = speculation.draft([*self._prompt, *output.tokens], output.left - 1)
        start = len(output.tokens)
        pieces = output.take_checked(self._state.read([output.tokens[-1], *guesses]), guesses)
        if speculation is not None and guesses:
            right = right_guesses(guesses, output.tokens[start:])
            self._state.forget(len(guesses) - right)
            speculation.checked(len(guesses), right)
        return pieces


def right_guesses(guesses: Sequence[int], tokens: Sequence[int]) -> int:
    """Return the number of leading guesses that equal the chosen tokens."""
    pairs = enumerate(zip(guesses, tokens, strict=False))
    return next((i for i, (guess, token) in pairs if guess != token), min(len(guesses), len(tokens)))


def check_fits(prompt: Sequence[int], room: int) -> None:
    """Raise InputError if a prompt is longer than the context."""
    if len(prompt) > room:
        raise InputError(
            f"the prompt has {len(prompt)} tokens, which exceeds the context of {room}", "give a shorter prompt"
        )
