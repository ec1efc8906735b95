"""Checkpoints of states that each run overwrites (those of recurrent mixers), so that slots can go back.

A slot keeps copies of such states at a few positions: where prompts that begin alike have parted before, and before
guesses are checked. What lies between a checkpoint and the position that is wanted is read again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from compiler.generation.steps import Chunk, ChunkInputs, Logits
from compiler.runtime.session import Snapshot

_MOST = 4  # checkpoints of a slot; each has the size of all overwritten states of a sequence


class _Steps(Protocol):
    """Steps of a module whose states are overwritten."""

    slots: int
    room: int | None
    joins: bool
    verifies: bool

    def run(self, chunks: Sequence[Chunk]) -> list[Logits]: ...

    def copy(self, source: int, target: int, rows: int) -> None: ...

    def attach(self, slot: int, inputs: ChunkInputs | None) -> None: ...

    def choose(self, slot: int, adapter: str | None) -> None: ...

    def snapshot(self, slot: int) -> Snapshot:
        """Copies of what is overwritten."""

    def restore(self, slot: int, snapshot: Snapshot) -> None:
        """A slot, of this or another sequence, becomes what it was at a snapshot."""


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
    """Steps (`compiler.generation.steps.Steps`) of a module whose states are overwritten, with checkpoints."""

    rewinds = False

    def __init__(self, steps: _Steps) -> None:
        self._steps = steps
        self.slots, self.room, self.joins, self.verifies = steps.slots, steps.room, steps.joins, steps.verifies
        self._kept = [_Slot() for _ in range(steps.slots)]

    def run(self, chunks: Sequence[Chunk]) -> list[Logits]:
        """See `Steps.run`."""
        found = self._steps.run([self._prepared(chunk) for chunk in chunks])
        for chunk in chunks:
            kept = self._kept[chunk.slot]
            kept.length = chunk.position + len(chunk.tokens)
            if kept.mark == kept.length:
                self._keep(chunk.slot)
        return found

    def copy(self, source: int, target: int, rows: int) -> None:
        """See `Steps.copy`; `rows` is what `back_to` returned."""
        kept = self._kept[source]
        self._steps.copy(source, target, rows)
        if rows != kept.length:
            self._steps.restore(target, kept.points[rows])
        points = {position: point for position, point in kept.points.items() if position <= rows}
        self._kept[target] = _Slot(rows, points)

    def attach(self, slot: int, inputs: ChunkInputs | None) -> None:
        """See `Steps.attach`."""
        self._steps.attach(slot, inputs)

    def choose(self, slot: int, adapter: str | None) -> None:
        """See `Steps.choose`."""
        self._steps.choose(slot, adapter)

    def back_to(self, slot: int, rows: int) -> int:
        """See `Steps.back_to`."""
        kept = self._kept[slot]
        if rows == kept.length:
            return rows
        return max((position for position in kept.points if position <= rows), default=0)

    def mark(self, slot: int, position: int) -> None:
        """See `Steps.mark`."""
        self._kept[slot].mark = position

    def _prepared(self, chunk: Chunk) -> Chunk:
        """Bring a slot to the position of a chunk; the part of the chunk that is left behind a marked position."""
        kept, slot = self._kept[chunk.slot], chunk.slot
        if chunk.position != kept.length:
            self._go_back(slot, chunk.position)
        kept.guess = None
        if kept.mark is not None and chunk.position < kept.mark < chunk.position + len(chunk.tokens):
            count = kept.mark - chunk.position
            first = Chunk(slot, chunk.tokens[:count], chunk.position, chunk.total, chunk.is_prompt, 0)
            self._steps.run([first])
            self._keep(slot)
            return Chunk(slot, chunk.tokens[count:], chunk.position + count, chunk.total, chunk.is_prompt, chunk.logits)
        if not chunk.is_prompt and len(chunk.tokens) > 1:
            kept.guess = chunk.position, self._steps.snapshot(slot), chunk.tokens
        return chunk

    def _go_back(self, slot: int, position: int) -> None:
        """The caller forgets what a slot holds from a position on."""
        kept = self._kept[slot]
        if position == 0:  # a run from there begins with the initial states
            kept.points = {}
        elif kept.guess is not None and kept.guess[0] <= position:
            start, snapshot, tokens = kept.guess
            self._steps.restore(slot, snapshot)
            if position > start:
                again = Chunk(slot, tokens[: position - start], start, position, is_prompt=False, logits=0)
                self._steps.run([again])
        else:
            self._steps.restore(slot, kept.points[position])
            kept.points[position] = kept.points.pop(position)
        kept.points = {each: point for each, point in kept.points.items() if each <= position}
        kept.length = position

    def _keep(self, slot: int) -> None:
        """Take the checkpoint that is marked."""
        kept = self._kept[slot]
        assert kept.mark is not None
        kept.points[kept.mark] = self._steps.snapshot(slot)
        kept.mark = None
        if len(kept.points) > _MOST:
            del kept.points[next(iter(kept.points))]
