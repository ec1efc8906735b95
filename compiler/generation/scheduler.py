"""`Scheduler`: many sequences of one language model at once, submitted from any thread."""

from __future__ import annotations

import atexit
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType

from compiler.errors import InternalError, OptionError, QueueFullError, TensorwrightError
from compiler.generation.grammar import Matcher
from compiler.generation.handle import SequenceHandle, Usage
from compiler.generation.language_model import LanguageModel, merged_options
from compiler.generation.loop import check_fits, right_guesses
from compiler.generation.media import Media
from compiler.generation.options import GenerationOptions
from compiler.generation.output import Output, Piece, Timing
from compiler.generation.prompts import Prompt
from compiler.generation.speculation import Speculation
from compiler.generation.steps import Chunk, ChunkInputs, Logits, Slots, Steps, common_length

_OPEN: set[Scheduler] = set()
_CONTEXT = 4096  # tokens of a sequence, unless another number is given


@dataclass(frozen=True)
class Counts:
    """Numbers of sequences that run and that wait for one of them to end."""

    running: int
    waiting: int


class Scheduler:
    """Generates several texts at once with one model.

    A thread of its own reads, step by step, the next token of each sequence that runs, and of those that begin a part
    of their prompts, so that a long one does not stop the others. A sequence that ends makes room for the next that
    waits. The tokens of a sequence are the same whatever runs beside it.
    """

    def __init__(
        self,
        model: LanguageModel,
        max_sequences: int = 8,
        *,
        queue: int = 64,
        context: int | None = None,
        kept: int | None = None,
    ) -> None:
        """Start the thread.

        Args:
            model: used by this scheduler alone.
            max_sequences: the most sequences that run at once.
            queue: the most sequences that wait.
            context: tokens of a sequence, prompt and result; None for the model's context, 4096 at most.
            kept: how many more sequences, which have ended, keep their state for prompts that begin alike; None for as
                many as run. Memory is that of `max_sequences + kept` caches of `context` tokens, as far as these are
                used.

        Raises OptionError where a number is out of range.
        """
        most = model.description.context
        context = min(most, _CONTEXT) if context is None else context
        kept = max_sequences if kept is None else kept
        for name, value, least in (("max_sequences", max_sequences, 1), ("queue", queue, 0), ("kept", kept, 0)):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise OptionError(f"{name} must be a whole number of at least {least}, not {value!r}")
        if not isinstance(context, int) or isinstance(context, bool) or not 1 <= context <= most:
            raise OptionError(f"the context must be 1 to {most} tokens, not {context!r}")
        self.model, self.max_sequences, self.queue, self.context = model, max_sequences, queue, context
        # What a prefix holds depends on the images that are in it, or on the speech behind all of it.
        stable = model.description.stable_context if model.encoder is None else 0
        self._batch = Batch(model.steps(max_sequences + kept, context), stable)
        self._drafts = model.draft_steps(max_sequences + kept, context)
        self._waiting: deque[RunningSequence] = deque()
        self._cancelled: set[SequenceHandle] = set()
        self._wake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="tensorwright-scheduler", daemon=True)
        self._thread.start()
        _OPEN.add(self)

    @property
    def counts(self) -> Counts:
        """Numbers of running and waiting sequences."""
        with self._wake:
            return Counts(len(self._batch.running), len(self._waiting))

    def submit(
        self,
        prompt: Prompt,
        options: GenerationOptions | None = None,
        media: Media | None = None,
        matcher: Matcher | None = None,
        **settings: object,
    ) -> SequenceHandle:
        """Hand in a prompt; returns at once, of a model with an encoder as soon as that has run.

        Args:
            prompt: a text, messages ({"role": ..., "content": ...}) or tokens.
            media: inputs of the model's encoder.
            matcher: matcher of a grammar that was compiled elsewhere.
            options: generation options; None for the defaults (greedy).
            settings: fields of `GenerationOptions` that replace those of `options`.

        Raises:
            InputError: the prompt is empty, does not fit the context, or holds no such tokens.
            OptionError: an option has a value that is not allowed, or the scheduler is closed.
            QueueFullError: as many sequences wait as may.
        """
        merged = merged_options(options, settings)
        tokens, inputs = self.model.prepared(prompt, media)
        check_fits(tokens, self.context)
        others = self.model.encoded(inputs, tokens)
        handle = SequenceHandle(len(tokens), self._cancel)
        speculate = partial(self.model.speculation, merged, self._drafts) if merged.speculative else None
        sequence = RunningSequence(
            tokens, self.model.output(tokens, merged, self.context, matcher), handle, speculate, others
        )
        with self._wake:
            self._check_room(1)
            self._waiting.append(sequence)
            self._wake.notify_all()
        return handle

    def check_room(self, count: int) -> None:
        """Raise QueueFullError if this many sequences would be refused, before their prompts are read."""
        with self._wake:
            self._check_room(count)

    def _check_room(self, count: int) -> None:
        if self._closing:
            raise OptionError("the scheduler is closed", "submit to another one")
        if len(self._waiting) + len(self._batch.running) + count > self.queue + self.max_sequences:
            raise QueueFullError(
                f"{len(self._waiting)} sequences wait already, and no more may than {self.queue}",
                "submit it again later",
            )

    def close(self, *, drain: bool = True) -> None:
        """Take no more sequences, wait for those that run and wait (`drain=False` cancels them), and end the thread."""
        with self._wake:
            self._closing = True
            if not drain:
                while self._waiting:
                    self._waiting.popleft().cancel()
                self._cancelled.update(each.handle for each in list(self._batch.running))
            self._wake.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join()
        _OPEN.discard(self)

    def __enter__(self) -> Scheduler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(drain=kind is None)

    def _cancel(self, handle: SequenceHandle) -> None:
        with self._wake:
            waiting = next((each for each in self._waiting if each.handle is handle), None)
            if waiting is not None:
                self._waiting.remove(waiting)
                waiting.cancel()
            else:
                self._cancelled.add(handle)
                self._wake.notify_all()

    def _work(self) -> None:
        try:
            while self._admit():
                self._batch.step()
        except BaseException as error:  # nobody else sees it: those who wait are told
            self._fail(error)
            if threading.main_thread().is_alive():
                raise
            # The interpreter is ending, and the pools that modules run in have ended already.

    def _admit(self) -> bool:
        """Wait for something to do, end what is cancelled, and let waiting sequences run; False: nothing comes any
        more."""
        with self._wake:
            while not self._waiting and not self._batch.running:
                if self._closing:
                    return False
                self._wake.wait()
            cancelled, self._cancelled = self._cancelled, set()
            self._batch.cancel(cancelled)
            while self._waiting and len(self._batch.running) < self.max_sequences:
                self._batch.add(self._waiting.popleft())
        return True

    def _fail(self, error: BaseException) -> None:
        with self._wake:
            self._closing = True
            sequences = [*self._waiting, *self._batch.running]
            self._waiting.clear()
        for sequence in sequences:
            sequence.handle.finish(reported(error))


@atexit.register
def _close_all() -> None:
    """A thread in the middle of a step must not outlive the interpreter."""
    for scheduler in list(_OPEN):
        scheduler.close(drain=False)


_PROMPT_TOKENS = 128  # of prompts that a step reads while others wait for their next token
_LONE_PROMPT_TOKENS = 512  # where none does
# How long a step waits for what grammars in other processes say of the last tokens, beside other sequences and alone.
_GRAMMAR_SECONDS, _LONE_GRAMMAR_SECONDS = 0.002, 0.05
_GUESSES = 16  # of all sequences of a step; more make it slower than they save


class RunningSequence:
    """A sequence and its state.

    Attributes:
        slot: where its state is; None before its first chunk.
        read: number of tokens in its slot.
        reused: number of prompt tokens that were in the slot already.
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
            inputs: its inputs besides tokens.
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
        """Note that it has a slot, which holds the first tokens of its prompt."""
        self.slot, self.read, self.reused = slot, reused, reused
        self._begin = time.perf_counter()
        if self._speculate is not None:
            self.speculation = self._speculate(slot)

    def prompt_chunk(self, most: int) -> Chunk:
        """The next tokens of its prompt, up to a limit."""
        assert self.slot is not None
        end = self.read + most
        tokens = self.prompt[self.read : end if self.inputs is None else self.inputs.end(end)]
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
        """Choose the next tokens from their logits and emit them; the number of rejected guesses."""
        is_first, start = not self.output.tokens, len(self.output.tokens)
        pieces = self.output.take_checked(logits, self._guesses)
        now = time.perf_counter()
        if is_first:
            self._prompt_seconds, self._begin = now - self._begin, now
        else:
            self._decode_seconds = now - self._begin
            self._decoded += max(1, len(pieces))
        wrong = 0
        if self.speculation is not None and self._guesses:
            right = right_guesses(self._guesses, self.output.tokens[start:])
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
            results = self._steps.run([chunk for _, chunk in parts])
        except Exception as error:  # those who wait for them are told
            for sequence, _ in parts:
                self._fail(sequence, error)
            return
        for (sequence, chunk), logits in zip(parts, results, strict=True):
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
        budget = _PROMPT_TOKENS if parts else _LONE_PROMPT_TOKENS
        begun: list[RunningSequence] = []
        for sequence in [each for each in sequences if each.reads_prompt]:
            if budget <= 0:
                break
            if sequence.slot is None:
                if self._is_being_read(sequence, begun):
                    continue
                slot, reused = self._slots.take(sequence.prompt, sequence.output.options.adapter)
                self._steps.attach(slot, sequence.inputs)
                sequence.started(slot, reused)
            chunk = sequence.prompt_chunk(budget)
            budget -= len(chunk.tokens)
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
