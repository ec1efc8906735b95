"""The loop: a prompt in one run, then a run for each token."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compiler.errors import InputError
from compiler.generation.options import GenerationOptions
from compiler.generation.result import FinishReason, Generation, TokenLogprob
from compiler.generation.sampling import Sampler
from compiler.generation.text import StopTexts, TextStream
from compiler.runtime.session import Session

TOKENS, LOGITS = "tokens", "logits"
Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class Piece:
    """A token, and the text that is certain with it (perhaps none, perhaps of earlier tokens); None at the end."""

    token: int | None
    text: str


class SequenceState:
    """A session and the tokens that it has read."""

    def __init__(self, session: Session, context: int) -> None:
        self._session, self.context = session, context
        self.tokens: list[int] = []

    @property
    def room(self) -> int:
        """How many tokens it can read in all."""
        capacity = self._session.capacity
        return self.context if capacity is None else min(self.context, capacity)

    def keep_common(self, tokens: Sequence[int]) -> int:
        """Forget what differs from `tokens`; returns how many stay, at most all but the last of them."""
        most = min(len(self.tokens), len(tokens) - 1)
        common = next((i for i in range(most) if self.tokens[i] != tokens[i]), most)
        self._session.rewind(len(self.tokens) - common)
        del self.tokens[common:]
        return common

    def read(self, tokens: Sequence[int]) -> np.ndarray[Any, Any]:
        """Read tokens; the logits of the next one, float32 (vocabulary,)."""
        found = self._session.run({TOKENS: np.asarray([tokens], np.int64)}, outputs="dlpack")[LOGITS]
        self.tokens.extend(tokens)
        logits: np.ndarray[Any, Any] = np.from_dlpack(found)[0, -1]
        return logits


class Run(Iterator[Piece]):
    """One generation, a token a step; `result` once it has ended."""

    def __init__(
        self,
        state: SequenceState,
        prompt: list[int],
        options: GenerationOptions,
        stop_tokens: Sequence[int],
        decode: Decode,
        cancel: threading.Event | None,
    ) -> None:
        if len(prompt) > state.room:
            raise InputError(
                f"the prompt has {len(prompt)} tokens, and the context {state.room}", "give a shorter prompt"
            )
        self._state, self._prompt, self._options = state, prompt, options
        self._ends = frozenset(stop_tokens)
        self._cancel = cancel
        self._sampler = Sampler(options, prompt)
        self._text, self._stop = TextStream(decode, prompt), StopTexts(options.stops)
        self._pieces: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._tokens: list[int] = []
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
        reason: FinishReason | None = None
        while reason is None:
            if self._cancel is not None and self._cancel.is_set():
                reason = "cancelled"
            elif self._is_full():
                reason = "length"
            else:
                token = self._next_token()
                if token in self._ends:
                    reason = "stop"
                else:
                    yield self._piece(token)
                    reason = "stop" if self._stop.found else None
        rest = "" if self._stop.found else self._stop.add(self._text.end()) + self._stop.end()
        self._pieces.append(rest)
        self._result = self._finished(reason)
        if rest:
            yield Piece(None, rest)

    def _is_full(self) -> bool:
        used = len(self._prompt) + len(self._tokens)
        return len(self._tokens) >= self._options.max_new_tokens or used > self._state.room

    def _next_token(self) -> int:
        begin = time.perf_counter()
        if self._tokens:
            logits = self._state.read(self._tokens[-1:])
        else:
            self._reused = self._state.keep_common(self._prompt)
            logits = self._state.read(self._prompt[self._reused :])
        token = self._sampler.choose(logits)
        if self._options.logprobs is not None and token not in self._ends:
            self._logprobs.append(self._sampler.logprob(logits, token))
        seconds = time.perf_counter() - begin
        if self._tokens:
            self._decode_seconds += seconds
            self._decoded += 1
        else:
            self._prompt_seconds = seconds
        return token

    def _piece(self, token: int) -> Piece:
        self._tokens.append(token)
        text = self._stop.add(self._text.add(token))
        self._pieces.append(text)
        return Piece(token, text)

    def _finished(self, reason: FinishReason) -> Generation:
        return Generation(
            text="".join(self._pieces),
            tokens=tuple(self._tokens),
            finish_reason=reason,
            prompt_tokens=len(self._prompt),
            reused_tokens=self._reused,
            prompt_seconds=self._prompt_seconds,
            decode_seconds=self._decode_seconds,
            decoded=self._decoded,
            seed=self._sampler.seed,
            logprobs=tuple(self._logprobs),
        )
