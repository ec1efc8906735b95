"""Runs a step of a scheduler, or of a single generation: processes tokens of one or more sequences.

Each sequence has a slot, which holds the keys and values (or other states) of its processed tokens.

States that each run overwrites (those of recurrent mixers) have checkpoints, so that slots can go back. A slot keeps
copies of such states at a few positions: where prompts that begin alike have parted before, and before guesses are
checked. What lies between a checkpoint and the position that is wanted is read again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Protocol

import numpy as np

from compiler.artifact.language_model import ADAPTER
from compiler.errors import OptionError
from compiler.runtime import Module
from compiler.runtime.session import Session, Snapshot
from compiler.runtime.state_sizes import has_open_capacity

TOKENS, LOGITS = "tokens", "logits"
POSITIONS, SEQUENCES, WANTED = "positions", "sequences", "wanted"
Logits = np.ndarray


@dataclass(frozen=True)
class Chunk:
    """Tokens that a sequence reads in a step.

    Attributes:
        slot: slot of the sequence.
        tokens: at least one.
        position: number of tokens before these in the slot; later ones are discarded.
        total: length of the whole prompt, or of all tokens read up to the end of this chunk, whichever is more.
        is_prompt: true for tokens of a prompt, false for generated ones.
        logits: of how many of the last tokens logits are wanted, 0 for none.
    """

    slot: int
    tokens: Sequence[int]
    position: int
    total: int
    is_prompt: bool
    logits: int


class Steps(Protocol):
    """Reads tokens of sequences. For one thread at a time.

    Attributes:
        slots: number of sequences that it holds.
        room: number of tokens that a slot can hold; None: no limit but the model's.
        joins: true if the sequences of a step share a run of the module, which reads the weights once.
        verifies: true if the logits of several tokens of a chunk are returned, bitwise equal to those of single tokens.
        rewinds: true if a slot can go back to any earlier position, and parts of it can be copied.
    """

    slots: int
    room: int | None
    joins: bool
    verifies: bool
    rewinds: bool

    def run(self, chunks: Sequence[Chunk]) -> list[Logits]:
        """One step; the logits of each chunk, float32 (how many are wanted, vocabulary), valid until the next one.

        Raises InputError where a slot has no room for its chunk.
        """

    def copy(self, source: int, target: int, rows: int) -> None:
        """A slot becomes what another one was after its first `rows` tokens."""

    def attach(self, slot: int, inputs: ChunkInputs | None) -> None:
        """Attach inputs that a slot reads beside its tokens from now on."""

    def choose(self, slot: int, adapter: str | None) -> None:
        """Name the adapter with which a slot reads its tokens from now on; None for the base. Raises OptionError."""

    def back_to(self, slot: int, rows: int) -> int:
        """The last position, of at most `rows`, to which a slot that has read these can go back."""

    def mark(self, slot: int, position: int) -> None:
        """A slot should be able to go back to a position that it is about to reach."""


class ChunkInputs(Protocol):
    """Inputs of the module beside the tokens."""

    def end(self, end: int) -> int:
        """The first position from `end` on at which a chunk of the prompt may end."""

    def of(self, chunk: Chunk) -> Mapping[str, np.ndarray]:
        """Inputs of a chunk, by name."""


def can_rewind(module: Module) -> bool:
    """True if all states have rows; others, of recurrent mixers, are overwritten by each run."""
    return all(state.axis is not None for state in module.manifest.states)


class _Rows:
    """Slots that can go back to every position, as all their states have rows."""

    def back_to(self, slot: int, rows: int) -> int:
        """See `Steps.back_to`."""
        return rows

    def mark(self, slot: int, position: int) -> None:
        """See `Steps.mark`: there is nothing to do."""


class SessionSteps(_Rows):
    """A session of the module for each slot, run one after the other: for every language model."""

    joins = verifies = False

    def __init__(self, module: Module, slots: int, capacity: int) -> None:
        self._others: dict[int, ChunkInputs | None] = {}
        # Modules without rows, or with a fixed number of them, are not told how many there are.
        self._capacity = capacity if has_open_capacity(module.manifest) else None
        self._module, self.slots = module, slots
        self._sessions: dict[int, Session] = {}
        self.rewinds = can_rewind(module)
        self.room = self._session(0).capacity

    def run(self, chunks: Sequence[Chunk]) -> list[Logits]:
        """See `Steps.run`."""
        return [self._read(chunk) for chunk in chunks]

    def copy(self, source: int, target: int, rows: int) -> None:
        """See `Steps.copy`."""
        session = self._session(source).fork()
        if self.rewinds and session.length != rows:
            session.rewind(session.length - rows)
        self._sessions[target] = session

    def attach(self, slot: int, inputs: ChunkInputs | None) -> None:
        """See `Steps.attach`."""
        self._others[slot] = inputs

    def choose(self, slot: int, adapter: str | None) -> None:
        """See `Steps.choose`."""
        self._session(slot).adapter = adapter

    def snapshot(self, slot: int) -> Snapshot:
        """Copies of what is overwritten."""
        return self._session(slot).snapshot()

    def restore(self, slot: int, snapshot: Snapshot) -> None:
        """See `snapshot`."""
        self._session(slot).restore(snapshot)

    def _read(self, chunk: Chunk) -> Logits:
        if chunk.logits > 1:
            raise OptionError("the module returns the logits of the last token alone")
        session = self._session(chunk.slot)
        if chunk.position == 0:
            session.reset()
        elif self.rewinds and session.length != chunk.position:
            session.rewind(session.length - chunk.position)
        tokens = np.asarray([chunk.tokens], np.int64)
        others = self._others.get(chunk.slot)
        inputs = {TOKENS: tokens} if others is None else {TOKENS: tokens, **others.of(chunk)}
        found = session.run(inputs, outputs="dlpack")[LOGITS]
        logits: Logits = np.from_dlpack(found)[0, -1:]
        return logits[: chunk.logits]

    def _session(self, slot: int) -> Session:
        session = self._sessions.get(slot)
        if session is None:
            session = self._sessions[slot] = self._module.session(capacity=self._capacity)
        return session


class BatchedSteps(_Rows):
    """One session with a slot for each sequence, and one run a step, of a module that was compiled for several."""

    joins = True

    def __init__(self, module: Module, slots: int, capacity: int) -> None:
        self.slots = slots
        self.room: int | None = capacity
        self.verifies, self.rewinds = True, can_rewind(module)
        rows = capacity if has_open_capacity(module.manifest) else None
        self._session = module.session(capacity=rows, sizes={"slots": slots})
        self._module, self._chosen = module, [0] * slots

    def run(self, chunks: Sequence[Chunk]) -> list[Logits]:
        """See `Steps.run`."""
        tokens: list[int] = []
        positions: list[int] = []
        lengths: list[int] = []
        logit_rows: list[int] = []
        sequences: list[tuple[int, ...]] = []
        for chunk in chunks:
            first, count = len(tokens), len(chunk.tokens)
            sequences.append((chunk.slot, chunk.position, first, count, int(chunk.is_prompt)))
            tokens += chunk.tokens
            positions += range(chunk.position, chunk.position + count)
            lengths += [max(chunk.total, chunk.position + count)] * count
            logit_rows += range(len(tokens) - chunk.logits, len(tokens))
        inputs = {
            TOKENS: np.array([tokens], np.int64),
            POSITIONS: np.array([positions, lengths], np.int64),
            SEQUENCES: np.array(sequences, np.int64),
            WANTED: np.array(logit_rows or [0], np.int64),
        }
        if self._module.adapters:
            sizes = [len(chunk.tokens) for chunk in chunks]
            inputs[ADAPTER] = np.repeat(np.array([self._chosen[chunk.slot] for chunk in chunks], np.int64), sizes)
        logits: Logits = np.from_dlpack(self._session.run(inputs, outputs="dlpack")[LOGITS])[0]
        ends = np.cumsum([chunk.logits for chunk in chunks])
        return [logits[end - chunk.logits : end] for end, chunk in zip(ends, chunks, strict=True)]

    def copy(self, source: int, target: int, rows: int) -> None:
        """See `Steps.copy`."""
        self._session.copy_entry(source, target, rows)

    def snapshot(self, slot: int) -> Snapshot:
        """Copies of what is overwritten."""
        return self._session.snapshot(slot)

    def restore(self, slot: int, snapshot: Snapshot) -> None:
        """See `snapshot`."""
        self._session.restore(snapshot, slot)

    def attach(self, slot: int, inputs: ChunkInputs | None) -> None:
        """See `Steps.attach`: modules for several sequences have no encoder."""
        assert inputs is None

    def choose(self, slot: int, adapter: str | None) -> None:
        """See `Steps.choose`."""
        self._chosen[slot] = self._module.adapter_number(adapter)


_MIN_COPIED = 16  # tokens: fewer are computed as fast as they are copied


class Slots:
    """The slots of some steps, with the tokens that each has read. Slots that are free keep theirs for prompts that
    begin alike and have the same adapter, until they are needed: the one that was used least recently goes first."""

    def __init__(self, steps: Steps, stable: int | None = None) -> None:
        """`stable`: the length beyond which sequences share nothing, as what they hold depends on their length."""
        self._steps, self._stable = steps, stable
        self._held: list[list[int]] = [[] for _ in range(steps.slots)]
        self._shares = [True] * steps.slots
        self._adapters: list[str | None] = [None] * steps.slots
        self._free = set(range(steps.slots))
        self._clock = count(1)
        self._used = [0] * steps.slots

    def common(self, prompt: Sequence[int], adapter: str | None = None) -> int:
        """Number of tokens of a prompt that need not be computed."""
        return self._best(prompt, adapter)[1]

    def take(self, prompt: Sequence[int], adapter: str | None = None) -> tuple[int, int]:
        """A slot for a prompt, and how many of its tokens that holds. There has to be a free one."""
        source, rows = self._best(prompt, adapter)
        if source in self._free and rows == len(self._held[source]):
            target = source  # nothing is lost
        else:
            target = min(self._free, key=lambda slot: (slot == source and rows > 0, self._used[slot]))
            if target != source and rows < _MIN_COPIED:
                rows = 0
            elif target != source:
                self._steps.copy(source, target, rows)
        branch = self._shared(prompt, adapter)
        if branch > rows:  # the next prompt that begins alike needs no more than its rest
            self._steps.mark(target, branch)
        self._free.remove(target)
        self._held[target] = list(prompt[:rows])
        self._shares[target] = self.may_share(prompt)
        self._adapters[target] = adapter
        self._steps.choose(target, adapter)
        return target, rows

    def read(self, slot: int, tokens: Sequence[int]) -> None:
        """A slot has read tokens."""
        self._held[slot].extend(tokens)

    def forget(self, slot: int, count: int) -> None:
        """Rewind a slot by a number of tokens."""
        held = self._held[slot]
        del held[len(held) - count :]

    def release(self, slot: int) -> None:
        """A sequence has ended: its slot is free."""
        self._free.add(slot)
        self._used[slot] = next(self._clock)

    def drop(self, slot: int) -> None:
        """A sequence has failed: what its slot holds is not known."""
        self._held[slot] = []
        self.release(slot)

    def may_share(self, prompt: Sequence[int]) -> bool:
        """True if other sequences can begin with what a slot holds of a prompt."""
        return self._stable is None or len(prompt) <= self._stable

    def _sharing(self, adapter: str | None) -> Iterator[tuple[int, list[int]]]:
        """Slots whose beginnings sequences with an adapter can share, and the tokens that they hold."""
        for slot, held in enumerate(self._held):
            if self._shares[slot] and self._adapters[slot] == adapter:
                yield slot, held

    def _shared(self, prompt: Sequence[int], adapter: str | None) -> int:
        """Length of the longest beginning of a prompt that any slot has read; 0 if it is too short to be copied."""
        if not self.may_share(prompt):
            return 0
        longest = max((self._common(held, prompt) for _, held in self._sharing(adapter)), default=0)
        return longest if longest >= _MIN_COPIED else 0

    def _common(self, held: Sequence[int], prompt: Sequence[int]) -> int:
        return common_length(held if self._stable is None else held[: self._stable], prompt)

    def _best(self, prompt: Sequence[int], adapter: str | None) -> tuple[int, int]:
        """The slot that holds the longest beginning of a prompt, and its length."""
        best, most = min(self._free), 0
        if not self.may_share(prompt):
            return best, most
        for slot, held in self._sharing(adapter):
            rows = self._steps.back_to(slot, self._common(held, prompt))
            if rows > most or (rows == most and rows and slot in self._free):
                best, most = slot, rows
        return best, most


def common_length(held: Sequence[int], tokens: Sequence[int]) -> int:
    """Length of the prefix that a prompt shares with the held tokens, at most all but its last, whose logits are
    needed."""
    low, high = 0, min(len(held), len(tokens) - 1)
    if held[:high] == tokens[:high]:
        return high
    while high - low > 1:  # the first `low` are equal, the first `high` are not
        middle = (low + high) // 2
        low, high = (middle, high) if held[low:middle] == tokens[low:middle] else (low, middle)
    return low


_MAX_CHECKPOINTS = 4  # checkpoints of a slot; each has the size of all overwritten states of a sequence


@dataclass
class _Slot:
    """Tokens that a slot has read, and its checkpoints.

    Attributes:
        length: number of tokens that it has read.
        points: checkpoints by position, the one used last at the end.
        mark: position of the next checkpoint; None for none.
        guess: position, checkpoint and tokens of the guesses that were read last; None if they are none.
    """

    length: int = 0
    points: dict[int, Snapshot] = field(default_factory=dict)
    mark: int | None = None
    guess: tuple[int, Snapshot, Sequence[int]] | None = None


class CheckpointedSteps:
    """`Steps` of a module whose states are overwritten, with checkpoints."""

    rewinds = False

    def __init__(self, steps: SessionSteps | BatchedSteps) -> None:
        self._steps = steps
        self.slots, self.room, self.joins, self.verifies = steps.slots, steps.room, steps.joins, steps.verifies
        self._kept = [_Slot() for _ in range(steps.slots)]

    def run(self, chunks: Sequence[Chunk]) -> list[Logits]:
        """See `Steps.run`."""
        results = self._steps.run([self._prepared(chunk) for chunk in chunks])
        for chunk in chunks:
            kept = self._kept[chunk.slot]
            kept.length = chunk.position + len(chunk.tokens)
            if kept.mark == kept.length:
                self._keep(chunk.slot)
        return results

    def copy(self, source: int, target: int, rows: int) -> None:
        """See `Steps.copy`; `rows` is what `back_to` returned."""
        slot_state = self._kept[source]
        self._steps.copy(source, target, rows)
        if rows != slot_state.length:
            self._steps.restore(target, slot_state.points[rows])
        points = {position: point for position, point in slot_state.points.items() if position <= rows}
        self._kept[target] = _Slot(rows, points)

    def attach(self, slot: int, inputs: ChunkInputs | None) -> None:
        """See `Steps.attach`."""
        self._steps.attach(slot, inputs)

    def choose(self, slot: int, adapter: str | None) -> None:
        """See `Steps.choose`."""
        self._steps.choose(slot, adapter)

    def back_to(self, slot: int, rows: int) -> int:
        """See `Steps.back_to`."""
        slot_state = self._kept[slot]
        if rows == slot_state.length:
            return rows
        return max((position for position in slot_state.points if position <= rows), default=0)

    def mark(self, slot: int, position: int) -> None:
        """See `Steps.mark`."""
        self._kept[slot].mark = position

    def _prepared(self, chunk: Chunk) -> Chunk:
        """Bring a slot to the position of a chunk; the part of the chunk that is left behind a marked position."""
        slot_state, slot = self._kept[chunk.slot], chunk.slot
        if chunk.position != slot_state.length:
            self._go_back(slot, chunk.position)
        slot_state.guess = None
        if slot_state.mark is not None and chunk.position < slot_state.mark < chunk.position + len(chunk.tokens):
            count = slot_state.mark - chunk.position
            first = Chunk(slot, chunk.tokens[:count], chunk.position, chunk.total, chunk.is_prompt, 0)
            self._steps.run([first])
            self._keep(slot)
            return Chunk(slot, chunk.tokens[count:], chunk.position + count, chunk.total, chunk.is_prompt, chunk.logits)
        if not chunk.is_prompt and len(chunk.tokens) > 1:
            slot_state.guess = chunk.position, self._steps.snapshot(slot), chunk.tokens
        return chunk

    def _go_back(self, slot: int, position: int) -> None:
        """The caller forgets what a slot holds from a position on."""
        slot_state = self._kept[slot]
        if position == 0:  # a run from there begins with the initial states
            slot_state.points = {}
        elif slot_state.guess is not None and slot_state.guess[0] <= position:
            start, snapshot, tokens = slot_state.guess
            self._steps.restore(slot, snapshot)
            if position > start:
                again = Chunk(slot, tokens[: position - start], start, position, is_prompt=False, logits=0)
                self._steps.run([again])
        else:
            self._steps.restore(slot, slot_state.points[position])
            slot_state.points[position] = slot_state.points.pop(position)
        slot_state.points = {each: point for each, point in slot_state.points.items() if each <= position}
        slot_state.length = position

    def _keep(self, slot: int) -> None:
        """Take the checkpoint that is marked."""
        slot_state = self._kept[slot]
        assert slot_state.mark is not None
        slot_state.points[slot_state.mark] = self._steps.snapshot(slot)
        slot_state.mark = None
        if len(slot_state.points) > _MAX_CHECKPOINTS:
            del slot_state.points[next(iter(slot_state.points))]
