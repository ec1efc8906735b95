"""The running sequences of a scheduler, and one step of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence

from compiler.errors import InternalError, TensorwrightError
from compiler.generation.handle import SequenceHandle, Usage
from compiler.generation.loop import right_guesses
from compiler.generation.output import Output, Piece, Timing
from compiler.generation.speculation import Speculation
from compiler.generation.steps import Chunk, ChunkInputs, Logits, Slots, Steps, common_length

_PROMPT_TOKENS = 128  # of prompts that a step reads while others wait for their next token
_LONE_PROMPT_TOKENS = 512  # where none does
# How long a step waits for what grammars in other processes say of the last tokens, beside other sequences and alone.
_GRAMMAR_SECONDS, _LONE_GRAMMAR_SECONDS = 0.002, 0.05
_GUESSES = 16  # of all sequences of a step; more make it slower than they save


class RunningSequence:
    """A sequence and what has become of it.

    Attributes:
        slot: where its state is; None before its first chunk.
        read: how many tokens its slot holds.
        reused: how many tokens of the prompt were there already.
        held: logits of its next token, until its grammar says which ones it may be.
    """

    def __init__(
        self,
        prompt: list[int],
        output: Output,
        handle: SequenceHandle,
        speculate: Callable[[int], Speculation] | None,
        inputs: ChunkInputs | None = None,
    ) -> None:
        """
        Args:
            speculate: makes what guesses tokens of the sequence in a slot.
            inputs: what it reads beside its tokens.
        """
        self.inputs = inputs
        self.prompt, self.output, self.handle = prompt, output, handle
        self.speculation: Speculation | None = None
        self._speculate = speculate
        self._guesses: list[int] = []
        self.slot: int | None = None
        self.held: Logits | None = None
        self.read = self.reused = 0
        self._begin = self._prompt_seconds = self._decode_seconds = 0.0
        self._decoded = 0

    @property
    def reads_prompt(self) -> bool:
        """True if a part of its prompt is still to be read."""
        return self.read < len(self.prompt)

    @property
    def usage(self) -> Usage:
        """Its tokens so far."""
        return Usage(len(self.prompt), self.reused, len(self.output.tokens))

    def started(self, slot: int, reused: int) -> None:
        """It has a slot, which holds the first tokens of its prompt."""
        self.slot, self.read, self.reused = slot, reused, reused
        self._begin = time.perf_counter()
        if self._speculate is not None:
            self.speculation = self._speculate(slot)

    def prompt_chunk(self, most: int) -> Chunk:
        """The next tokens of its prompt, up to a limit."""
        assert self.slot is not None
        tokens = self.prompt[self.read : self.read + most]
        is_last = self.read + len(tokens) == len(self.prompt)
        return Chunk(self.slot, tokens, self.read, len(self.prompt), is_prompt=True, logits=int(is_last))

    def token_chunk(self, guesses: int) -> Chunk:
        """The last generated token, and guesses of the following ones, up to a limit."""
        assert self.slot is not None
        output = self.output
        self._guesses = []
        if self.speculation is not None:
            self._guesses = self.speculation.draft([*self.prompt, *output.tokens], min(guesses, output.left - 1))
        tokens = [output.tokens[-1], *self._guesses]
        return Chunk(self.slot, tokens, self.read, self.read + len(tokens), is_prompt=False, logits=len(tokens))

    @property
    def can_run(self) -> bool:
        """True if it may read another token, even if its last one turns out to have ended the text."""
        return self.held is None and (self.reads_prompt or self.output.left > 0)

    def take(self, logits: Logits) -> int:
        """Go on by the logits of the next tokens, and hand out what comes of it; how many guesses were wrong."""
        is_first, before = not self.output.tokens, len(self.output.tokens)
        pieces = self.output.take_checked(logits, self._guesses)
        now = time.perf_counter()
        if is_first:
            self._prompt_seconds, self._begin = now - self._begin, now
        else:
            self._decode_seconds = now - self._begin
            self._decoded += max(1, len(pieces))
        wrong = 0
        if self.speculation is not None and self._guesses:
            right = right_guesses(self._guesses, self.output.tokens[before:])
            wrong = len(self._guesses) - right
            self.speculation.checked(len(self._guesses), right)
            self.read -= wrong
        self._hand_out(pieces)
        return wrong

    def cancel(self) -> None:
        """End it where it is."""
        self.output.reason = "cancelled"
        self._hand_out([])

    def finish(self) -> None:
        """Hand out the result of a sequence that has ended between steps."""
        self._hand_out([])

    def _hand_out(self, pieces: list[Piece]) -> None:
        if self.output.reason is None:
            self.handle.put(pieces, self.usage)
            return
        rest = self.output.end()
        self.handle.put([*pieces, *([] if rest is None else [rest])], self.usage)
        timing = Timing(self._prompt_seconds, self._decode_seconds, self._decoded)
        self.handle.finish(self.output.result(self.reused, timing))


def reported(error: BaseException) -> TensorwrightError:
    """The error that is told of a failure."""
    if isinstance(error, TensorwrightError):
        return error
    told = InternalError(f"the generation failed: {type(error).__name__}: {error}")
    told.__cause__ = error
    return told


class Batch:
    """The sequences that run. For one thread, but for reading `running`."""

    def __init__(self, steps: Steps, stable: int | None) -> None:
        """`stable`: as of `Slots`."""
        self._steps, self._slots = steps, Slots(steps, stable)
        self.running: list[RunningSequence] = []

    def add(self, sequence: RunningSequence) -> None:
        """Let a sequence run."""
        if sequence.output.reason is None:
            self.running.append(sequence)
        else:
            sequence.finish()

    def cancel(self, handles: Collection[SequenceHandle]) -> None:
        """End the sequences of these handles."""
        for sequence in [each for each in self.running if each.handle in handles]:
            sequence.cancel()
            self._remove(sequence)

    def step(self) -> None:
        """Read the next token of each sequence, and parts of prompts.

        A sequence whose grammar is another process's runs while that looks for what may follow its last token.
        """
        self._settle()
        parts = self._parts([each for each in self.running if each.can_run])
        if not parts:
            return
        try:
            found = self._steps.run([chunk for _, chunk in parts])
        except Exception as error:  # those who wait for them are told
            for sequence, _ in parts:
                self._fail(sequence, error)
            return
        for (sequence, chunk), logits in zip(parts, found, strict=True):
            self._slots.read(chunk.slot, chunk.tokens)
            sequence.read += len(chunk.tokens)
            if chunk.logits:
                self._advance(sequence, logits, 0.0)

    def _settle(self) -> None:
        """Let sequences go on that can only do so once their grammars have answered; wait a little for these."""
        waiting = [each for each in self.running if not each.can_run]
        if waiting:
            others = len(self.running) > len(waiting)
            until = time.monotonic() + (_GRAMMAR_SECONDS if others else _LONE_GRAMMAR_SECONDS)
            for sequence in waiting:
                self._advance(sequence, sequence.held, max(0.0, until - time.monotonic()))

    def _advance(self, sequence: RunningSequence, logits: Logits | None, seconds: float) -> None:
        """Choose the next token from its logits if the grammar answers within a time limit; keep them if not."""
        try:
            if not sequence.output.settle(seconds):
                if sequence.held is None and logits is not None:
                    sequence.held = logits.copy()  # the next run overwrites them
                return
            sequence.held = None
            if sequence.output.reason is not None:
                sequence.finish()
            elif logits is not None and (wrong := sequence.take(logits)) and sequence.slot is not None:
                self._slots.forget(sequence.slot, wrong)
        except Exception as error:  # the others go on
            self._fail(sequence, error)
            return
        if sequence.output.reason is not None:
            self._remove(sequence)

    def _parts(self, sequences: Sequence[RunningSequence]) -> list[tuple[RunningSequence, Chunk]]:
        """The tokens that each sequence processes in the next step."""
        decoding = [each for each in sequences if not each.reads_prompt]
        guesses = max(1, _GUESSES // max(1, len(decoding)))
        parts: list[tuple[RunningSequence, Chunk]] = []
        for sequence in decoding:
            try:
                parts.append((sequence, sequence.token_chunk(guesses)))
            except Exception as error:  # of the draft model; the others go on
                self._fail(sequence, error)
        left = _PROMPT_TOKENS if parts else _LONE_PROMPT_TOKENS
        begun: list[RunningSequence] = []
        for sequence in [each for each in sequences if each.reads_prompt]:
            if left <= 0:
                break
            if sequence.slot is None:
                if self._is_being_read(sequence, begun):
                    continue
                slot, reused = self._slots.take(sequence.prompt, sequence.output.options.adapter)
                self._steps.attach(slot, sequence.inputs)
                sequence.started(slot, reused)
            chunk = sequence.prompt_chunk(left)
            left -= len(chunk.tokens)
            begun.append(sequence)
            parts.append((sequence, chunk))
        return parts

    def _is_being_read(self, sequence: RunningSequence, others: list[RunningSequence]) -> bool:
        """True if a prompt of this step begins as this one does, so that waiting saves computing that twice."""
        prompt, adapter = sequence.prompt, sequence.output.options.adapter
        others = [each for each in others if each.output.options.adapter == adapter]
        if not self._steps.rewinds or not self._slots.may_share(prompt) or not others:
            return False
        longest = max(common_length(other.prompt, prompt) for other in others)
        return longest > self._slots.common(prompt, adapter)

    def _fail(self, sequence: RunningSequence, error: Exception) -> None:
        sequence.handle.finish(reported(error))
        self.running.remove(sequence)
        if sequence.slot is not None:
            self._slots.drop(sequence.slot)

    def _remove(self, sequence: RunningSequence) -> None:
        self.running.remove(sequence)
        if sequence.slot is not None:
            self._slots.release(sequence.slot)
