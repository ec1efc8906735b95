"""Runs a step of a scheduler, or of a single generation: processes tokens of one or more sequences.

Each sequence has a slot, which holds the keys and values (or other states) of its processed tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from compiler.errors import OptionError
from compiler.runtime import Module
from compiler.runtime.session import Session
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
        position: how many tokens of the slot come before; what it holds behind them is forgotten.
        total: length of the whole prompt, or of what was read with this chunk, whichever is more.
        is_prompt: whether they are of a prompt; else they were generated.
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
        joins: whether sequences of one step share a run of the module, which reads the weights once.
        verifies: whether logits of several tokens of a chunk are returned, and are those of single tokens bit by bit.
        rewinds: whether a slot can go back to an earlier position, and a part of it be copied.
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


class ChunkInputs(Protocol):
    """Inputs of the module beside the tokens."""

    def of(self, chunk: Chunk) -> Mapping[str, np.ndarray]:
        """Inputs of a chunk, by name."""


def can_rewind(module: Module) -> bool:
    """True if all states have rows; others, of recurrent mixers, are overwritten by each run."""
    return all(state.axis is not None for state in module.manifest.states)


class SessionSteps:
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


class BatchedSteps:
    """One session with a slot for each sequence, and one run a step, of a module that was compiled for several."""

    joins = True

    def __init__(self, module: Module, slots: int, capacity: int) -> None:
        self.slots = slots
        self.room: int | None = capacity
        self.verifies = self.rewinds = can_rewind(module)
        rows = capacity if has_open_capacity(module.manifest) else None
        self._session = module.session(capacity=rows, sizes={"slots": slots})

    def run(self, chunks: Sequence[Chunk]) -> list[Logits]:
        """See `Steps.run`."""
        tokens: list[int] = []
        positions: list[int] = []
        lengths: list[int] = []
        wanted: list[int] = []
        sequences: list[tuple[int, ...]] = []
        for chunk in chunks:
            first, count = len(tokens), len(chunk.tokens)
            sequences.append((chunk.slot, chunk.position, first, count, int(chunk.is_prompt)))
            tokens += chunk.tokens
            positions += range(chunk.position, chunk.position + count)
            lengths += [max(chunk.total, chunk.position + count)] * count
            wanted += range(len(tokens) - chunk.logits, len(tokens))
        inputs = {
            TOKENS: np.array([tokens], np.int64),
            POSITIONS: np.array([positions, lengths], np.int64),
            SEQUENCES: np.array(sequences, np.int64),
            WANTED: np.array(wanted or [0], np.int64),
        }
        logits: Logits = np.from_dlpack(self._session.run(inputs, outputs="dlpack")[LOGITS])[0]
        ends = np.cumsum([chunk.logits for chunk in chunks])
        return [logits[end - chunk.logits : end] for end, chunk in zip(ends, chunks, strict=True)]

    def copy(self, source: int, target: int, rows: int) -> None:
        """See `Steps.copy`."""
        self._session.copy_entry(source, target, rows)

    def attach(self, slot: int, inputs: ChunkInputs | None) -> None:
        """See `Steps.attach`: modules for several sequences have no encoder."""
        assert inputs is None
