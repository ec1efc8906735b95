"""A recurrent layer sample by sample: each team of samples runs over all steps.

For each direction, team and step it sums, block by block of hidden units, the block's products with the state: a
broadcast element of the state times a row of packed weights, in vector registers. Weights stream from the cache in the
order in which they lie. The loops are written as they are to run; no schedule rule has anything to add.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from schedules.annotations import RECURRENCE, SERIAL_REASON
from schedules.ir.tir import Buffer, Expr, Index, Stmt, tirx
from schedules.recurrence.cells import Stage, Update
from schedules.recurrence.description import Operands, Recurrence

from tvm.script.ir_builder import IRBuilder  # isort: skip
from tvm.script.ir_builder import tirx as T  # isort: skip


_TOGETHER = 4  # samples that share each load of a weight: four rows of sums fit the registers of AVX-512


def by_samples(recurrence: Recurrence, ins: Sequence[Expr], outs: Sequence[Expr], *, shared: bool | Expr) -> Stmt:
    """The body of the kernel. `shared`: True if threads share the samples, or a condition on sizes."""
    operands = Operands(recurrence.operands, ins)
    steps, samples = operands["x"].shape[:2]
    # Sequences of different lengths cannot run side by side.
    together = 1 if recurrence.has_lengths else _TOGETHER
    with IRBuilder() as builder:
        with T.seq_scope():
            done: Index = 0
            if together > 1 and not _is_below(samples, together):
                teams = samples // together
                with _loop(recurrence, teams, shared) as task:
                    for run in _directions(recurrence, task, teams):
                        _Run(recurrence, operands, outs, steps, run.direction, run.place * together, together).emit()
                done = teams * together
            with _loop(recurrence, samples - done, shared) as task:
                for run in _directions(recurrence, task, samples - done):
                    _Run(recurrence, operands, outs, steps, run.direction, done + run.place, 1).emit()
        return builder.get().body  # without the scope, which means nothing to the code generator


@contextmanager
def _loop(recurrence: Recurrence, count: Expr, shared: bool | Expr) -> Iterator[Expr]:
    """Over `count` places in every direction: directions are as independent as samples."""
    total = count * len(recurrence.stages)
    if isinstance(shared, bool):
        with (T.parallel if shared else T.serial)(0, total) as task:
            yield task
        return
    chunks = tirx.max(tirx.Select(shared, total, tirx.IntImm("int64", 1)), 1)
    with T.parallel(0, chunks) as chunk, T.serial(chunk * total // chunks, (chunk + 1) * total // chunks) as task:
        yield task


@dataclass(frozen=True)
class _Place:
    direction: int
    place: Expr


def _directions(recurrence: Recurrence, task: Expr, count: Expr) -> Iterator[_Place]:
    """Each direction's own code, to be emitted under the condition that the task is one of it."""
    if len(recurrence.stages) == 1:
        yield _Place(0, task)
        return
    with T.If(task < count):
        with T.Then():
            yield _Place(0, task)
        with T.Else():
            yield _Place(1, task - count)


def _limited(length: Expr, steps: Expr) -> Expr:
    """A length as int64, within the sequence."""
    return tirx.max(tirx.min(length.astype("int64"), steps), tirx.IntImm("int64", 0))


def _is_below(size: Expr, limit: int) -> bool:
    return isinstance(size, tirx.IntImm) and int(size.value) < limit


@dataclass(frozen=True)
class GateSums:
    """Emits the sums of a stage's gates for some rows (one for each sample) of a block of hidden units."""

    recurrence: Recurrence
    operands: Operands
    stage: Stage
    direction: Index
    block: Expr
    rows: int

    def lanes(self) -> Any:
        """A vector loop over the units of the block."""
        return T.vectorized(0, self.recurrence.lanes)

    def slot(self, row: int, slot: int, lane: Expr) -> Expr:
        """Index of a sum."""
        return (row * self.stage.slots + slot) * self.recurrence.lanes + lane

    def vector(self, name: str, row: int, lane: Expr) -> Expr:
        """An element of an operand (directions, blocks, rows, lanes); zero where the kernel has none."""
        if name not in self.operands:
            return tirx.const(0, self.recurrence.dtype)
        return self.operands[name][self.direction, self.block, row, lane]

    def start(self, place: Callable[[int], tuple[Expr, Expr]]) -> Buffer:
        """The sums, which start at biases or projections of the input; `place` is the (time, sample) of a row."""
        sums = T.alloc_buffer(
            [self.rows * self.stage.slots * self.recurrence.lanes], self.recurrence.dtype, scope="local"
        )
        for row in range(self.rows):
            time, sample = place(row)
            for slot in range(self.stage.slots):
                with self.lanes() as lane:
                    if slot >= len(self.stage.gates):
                        value = self.vector("recurrent_bias", slot - len(self.stage.gates), lane)
                    elif self.recurrence.projects_input:
                        value = self.vector("bias", self.stage.gates[slot], lane)
                    else:
                        at = (time, sample, self.direction, self.block, self.stage.gates[slot], lane)
                        value = self.operands["x"][at]
                    T.buffer_store(sums, value, [self.slot(row, slot, lane)])
        return sums

    def accumulate(
        self,
        sums: Buffer,
        weights: str,
        count: Index,
        element: Callable[[int, Expr], Expr],
        slot_of: Callable[[int], int],
    ) -> None:
        """`count` elements of each row times their rows of packed weights, added to the sum of each gate."""
        matrix, dtype = self.operands[weights], self.recurrence.dtype
        with T.serial(0, count) as k:
            for number, gate in enumerate(self.stage.gates):
                for row in range(self.rows):
                    with self.lanes() as lane:
                        at = self.slot(row, slot_of(gate), lane)
                        weight = matrix[self.direction, self.block, k, number, lane]
                        weight = weight if str(weight.ty.dtype) == dtype else weight.astype(dtype)
                        T.buffer_store(sums, sums[at] + element(row, k) * weight, [at])

    def updated(self, update: Update, sums: Buffer, state: dict[str, Expr], row: int, lane: Expr) -> dict[str, Expr]:
        """New states of a unit, by name."""
        values = [sums[self.slot(row, slot, lane)] for slot in range(self.stage.slots)]
        peepholes = [self.vector("peepholes", number, lane) for number in range(self.recurrence.cell.peepholes)]
        return update(values, state, peepholes)


class _Run:
    """Emits the code for one direction and a team of samples, from `first` on, that share each load of a weight."""

    def __init__(
        self,
        recurrence: Recurrence,
        operands: Operands,
        outs: Sequence[Expr],
        steps: Expr,
        direction: int,
        first: Expr,
        team: int,
    ) -> None:
        self.recurrence, self.operands, self.outs = recurrence, operands, outs
        self.steps, self.direction, self.first, self.team = steps, direction, first, team
        self.stages = recurrence.stages[direction]
        self.width = recurrence.blocks * recurrence.lanes
        self.buffers: dict[str, Buffer] = {}

    def emit(self) -> None:
        names = {"next_h", *self.recurrence.cell.states}
        if len(self.stages) > 1:
            names |= {"z", "reset_h"}
        for name in sorted(names):
            self.buffers[name] = T.alloc_buffer([self.team, self.width], self.recurrence.dtype)
        for name in self.recurrence.cell.states:
            self._load_state(name)
        length: Expr = self.steps
        if self.recurrence.has_lengths:
            length = _limited(self.operands["lengths"][self.first], self.steps)
        with T.serial(0, length, annotations={SERIAL_REASON: RECURRENCE}) as step:
            time = length - 1 - step if self.recurrence.backward[self.direction] else step
            self._step(time)
        self._finish(length)

    def _load_state(self, name: str) -> None:
        zero, hidden = tirx.const(0, self.recurrence.dtype), self.recurrence.hidden
        with T.serial(0, self.team) as row, T.serial(0, self.width) as unit:
            value: Expr = zero
            if f"initial_{name}" in self.operands:
                initial = self.operands[f"initial_{name}"][self.direction, self.first + row, tirx.min(unit, hidden - 1)]
                value = tirx.if_then_else(unit < hidden, initial, zero)
            T.buffer_store(self.buffers[name], value, [row, unit])

    def _step(self, time: Expr) -> None:
        own, x = self.recurrence, self.operands["x"]
        for number, stage in enumerate(self.stages):
            source = self.buffers[stage.source]
            with T.serial(0, own.blocks) as block:
                gates = GateSums(own, self.operands, stage, self.direction, block, self.team)
                sums = gates.start(lambda row: (time, self.first + row))
                if own.projects_input:
                    gates.accumulate(
                        sums, f"w{number}", own.inputs, lambda row, k: x[time, self.first + row, k], stage.gates.index
                    )
                gates.accumulate(
                    sums,
                    f"r{number}",
                    own.hidden,
                    lambda row, k, source=source: source[row, k],  # type: ignore[misc]
                    stage.recurrent_slot,
                )
                self._update(gates, sums)
        self._advance(time)

    def _update(self, gates: GateSums, sums: Buffer) -> None:
        for row in range(self.team):
            for update in gates.stage.updates:
                with gates.lanes() as lane:
                    unit = gates.block * self.recurrence.lanes + lane
                    state = {name: buffer[row, unit] for name, buffer in self.buffers.items()}
                    for name, value in gates.updated(update, sums, state, row, lane).items():
                        T.buffer_store(self.buffers[name], value, [row, unit])

    def _advance(self, time: Expr) -> None:
        """The next state becomes the state and goes to the output."""
        for row in range(self.team):
            with T.serial(0, self.recurrence.blocks) as block, T.vectorized(0, self.recurrence.lanes) as lane:
                unit = block * self.recurrence.lanes + lane
                T.buffer_store(self.buffers["h"], self.buffers["next_h"][row, unit], [row, unit])
            with T.serial(0, self.recurrence.hidden) as unit:
                index = [time, self.direction, self.first + row, unit]
                T.buffer_store(self.outs[0], self.buffers["next_h"][row, unit], index)

    def _finish(self, length: Expr) -> None:
        """Zeros after the end of a sequence, and the last states."""
        if self.recurrence.has_lengths:
            with T.serial(0, self.steps - length) as rest, T.serial(0, self.recurrence.hidden) as unit:
                zero = tirx.const(0, self.recurrence.dtype)
                T.buffer_store(self.outs[0], zero, [length + rest, self.direction, self.first, unit])
        for out, name in zip(self.outs[1:], self.recurrence.cell.states, strict=True):
            with T.serial(0, self.team) as row, T.serial(0, self.recurrence.hidden) as unit:
                T.buffer_store(out, self.buffers[name][row, unit], [self.direction, self.first + row, unit])
