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
from schedules.recurrence.cells import Stage
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
class _Product:
    """`count` elements (of a row of the team) times their rows of packed weights, added to the sum of each gate."""

    weights: str
    count: int
    element: Callable[[int, Expr], Expr]
    slot_of: Callable[[int], int]


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
        for number, stage in enumerate(self.stages):
            with T.serial(0, self.recurrence.blocks) as block:
                size = self.team * stage.slots * self.recurrence.lanes
                sums = T.alloc_buffer([size], self.recurrence.dtype, scope="local")
                self._start_sums(stage, sums, time, block)
                for product in self._products(number, stage, time):
                    self._accumulate(product, stage, sums, block)
                self._update(stage, sums, block)
        self._advance(time)

    def _products(self, number: int, stage: Stage, time: Expr) -> list[_Product]:
        own = self.recurrence
        source, x = self.buffers[stage.source], self.operands["x"]
        products = [_Product(f"r{number}", own.hidden, lambda row, k: source[row, k], stage.recurrent_slot)]
        if own.projects_input:
            first = _Product(f"w{number}", own.inputs, lambda row, k: x[time, self.first + row, k], stage.gates.index)
            products.insert(0, first)
        return products

    def _place(self, stage: Stage, row: int, slot: int, lane: Expr) -> Expr:
        """Index of a sum."""
        return (row * stage.slots + slot) * self.recurrence.lanes + lane

    def _start_sums(self, stage: Stage, sums: Expr, time: Expr, block: Expr) -> None:
        for row in range(self.team):
            for slot in range(stage.slots):
                with self._lanes() as lane:
                    if slot >= len(stage.gates):
                        value = self._vector("recurrent_bias", block, slot - len(stage.gates), lane)
                    elif self.recurrence.projects_input:
                        value = self._vector("bias", block, stage.gates[slot], lane)
                    else:
                        x = self.operands["x"]
                        value = x[time, self.first + row, self.direction, block, stage.gates[slot], lane]
                    T.buffer_store(sums, value, [self._place(stage, row, slot, lane)])

    def _vector(self, name: str, block: Expr, row: int, lane: Expr) -> Expr:
        if name not in self.operands:
            return tirx.const(0, self.recurrence.dtype)
        return self.operands[name][self.direction, block, row, lane]

    def _accumulate(self, product: _Product, stage: Stage, sums: Expr, block: Expr) -> None:
        matrix = self.operands[product.weights]
        with T.serial(0, product.count) as k:
            for number, gate in enumerate(stage.gates):
                for row in range(self.team):
                    with self._lanes() as lane:
                        place = self._place(stage, row, product.slot_of(gate), lane)
                        term = product.element(row, k) * matrix[self.direction, block, k, number, lane]
                        T.buffer_store(sums, sums[place] + term, [place])

    def _update(self, stage: Stage, sums: Expr, block: Expr) -> None:
        for row in range(self.team):
            for update in stage.updates:
                with self._lanes() as lane:
                    unit = block * self.recurrence.lanes + lane
                    values = [sums[self._place(stage, row, slot, lane)] for slot in range(stage.slots)]
                    state = {name: buffer[row, unit] for name, buffer in self.buffers.items()}
                    weights = [self._vector("peepholes", block, p, lane) for p in range(self.recurrence.cell.peepholes)]
                    for name, value in update(values, state, weights).items():
                        T.buffer_store(self.buffers[name], value, [row, unit])

    def _lanes(self) -> Any:
        return T.vectorized(0, self.recurrence.lanes)

    def _advance(self, time: Expr) -> None:
        """The next state becomes the state and goes to the output."""
        for row in range(self.team):
            with T.serial(0, self.recurrence.blocks) as block, self._lanes() as lane:
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
