"""`Scheduler`: many sequences of one language model at once, submitted from any thread."""

from __future__ import annotations

import atexit
import threading
from collections import deque
from dataclasses import dataclass
from functools import partial
from types import TracebackType

from compiler.errors import OptionError, QueueFullError
from compiler.generation.grammar import Matcher
from compiler.generation.handle import SequenceHandle
from compiler.generation.language_model import LanguageModel, merged_options
from compiler.generation.loop import check_fits
from compiler.generation.media import Media
from compiler.generation.options import GenerationOptions
from compiler.generation.prompts import Prompt
from compiler.generation.running import Batch, RunningSequence, reported

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
            model: which is not to be used by another scheduler.
            max_sequences: how many run at once.
            queue: how many more may wait.
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
            media: what the encoder of the model reads.
            matcher: matcher of a grammar that was compiled elsewhere.
            options: how to generate; None for the defaults, greedy.
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
