"""One step of a few samples, for one block of hidden units: sums in registers, then the new state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from schedules.ir.tir import Buffer, Expr, tirx
from schedules.recurrence.cells import Stage
from schedules.recurrence.description import Operands, Recurrence

from tvm.script.ir_builder import tirx as T  # isort: skip
from schedules.recurrence.cells import Update

if TYPE_CHECKING:
    from schedules.recurrence.quantized_state import QuantizedState


@dataclass(frozen=True)
class Rows:
    """The first sample and how many rows are summed; with `limit`, the number of samples, those from it on are none."""

    first: Expr
    count: int
    limit: Expr | None = None


@dataclass(frozen=True)
class Place:
    """Position in the loops: number of the stage, step, direction, block of units."""

    stage: int
    step: Expr
    direction: Expr
    block: Expr


@dataclass(frozen=True)
class State:
    """Buffers (directions, rows, units) by name, of "h" two, which change places; and Y."""

    buffers: dict[str, Buffer]
    output: Expr

    def load(self, name: str, step: Expr, at: tuple[Expr, ...]) -> Expr:
        """An element before the step."""
        return self.buffers[name][(step % 2, *at) if name == "h" else at]

    def store(self, name: str, step: Expr, at: tuple[Expr, ...], value: Expr) -> None:
        """An element after the step."""
        T.buffer_store(self.buffers[name], value, [1 - step % 2, *at] if name == "h" else list(at))


@dataclass(frozen=True)
class Team:
    """Emits the code for some rows at a place."""

    recurrence: Recurrence
    operands: Operands
    state: State
    stage: Stage
    place: Place
    rows: Rows

    def emit(self, quantized: QuantizedState | None) -> None:
        """Sums, products, the new state and, in the last stage, the output."""
        size = self.rows.count * self.stage.slots * self.recurrence.lanes
        sums = T.alloc_buffer([size], self.recurrence.dtype, scope="local")
        self._start(sums)
        if self.recurrence.projects_input:
            self._accumulate(sums, f"w{self.place.stage}", self._input, self.stage.gates.index)
        if quantized is not None:
            quantized.accumulate(self, sums)
        else:
            self._accumulate(sums, f"r{self.place.stage}", self._source, self.stage.recurrent_slot)
        for row in range(self.rows.count):
            for update in self.stage.updates:
                with self.lanes() as lane:
                    self._update(update, sums, row, lane)
            if self.place.stage == len(self.recurrence.stages[0]) - 1:
                self._write(row)

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
        return self.operands[name][self.place.direction, self.place.block, row, lane]

    def _sample(self, row: int) -> Expr:
        sample = self.rows.first + row
        return sample if self.rows.limit is None else tirx.min(sample, self.rows.limit - 1)

    def _length(self, row: int) -> Expr:
        steps = self.operands["x"].shape[0]
        if not self.recurrence.has_lengths:
            return steps
        length = self.operands["lengths"][self._sample(row)].astype("int64")
        return tirx.max(tirx.min(length, steps), tirx.IntImm("int64", 0))

    def _goes_on(self, row: int) -> Expr:
        return self.place.step < self._length(row)

    def _time(self, row: int) -> Expr:
        """The element of the sequence that a row reads and writes; behind the end of its own, where zeros go."""
        backward, step = self.recurrence.backward, self.place.step
        back = self._length(row) - 1 - step
        if self.recurrence.has_lengths:
            back = tirx.Select(self._goes_on(row), back, step)
        if not any(backward):
            return step
        return back if all(backward) else tirx.Select(self.place.direction == 1, back, step)

    def _start(self, sums: Expr) -> None:
        """Projections of the input, or biases."""
        for row in range(self.rows.count):
            time, sample = self._time(row), self._sample(row)
            for slot in range(self.stage.slots):
                with self.lanes() as lane:
                    if slot >= len(self.stage.gates):
                        value = self.vector("recurrent_bias", slot - len(self.stage.gates), lane)
                    elif self.recurrence.projects_input:
                        value = self.vector("bias", self.stage.gates[slot], lane)
                    else:
                        at = (time, sample, self.place.direction, self.place.block, self.stage.gates[slot], lane)
                        value = self.operands["x"][at]
                    T.buffer_store(sums, value, [self.slot(row, slot, lane)])

    def _input(self, row: int, k: Expr) -> Expr:
        return self.operands["x"][self._time(row), self._sample(row), k]

    def _source(self, row: int, k: Expr) -> Expr:
        return self.state.load(self.stage.source, self.place.step, (self.place.direction, self.rows.first + row, k))

    def _accumulate(
        self, sums: Expr, weights: str, element: Callable[[int, Expr], Expr], slot_of: Callable[[int], int]
    ) -> None:
        """Elements times their rows of packed weights, added to the sum of each gate."""
        matrix, dtype = self.operands[weights], self.recurrence.dtype
        with T.serial(0, matrix.shape[2]) as k:
            for number, gate in enumerate(self.stage.gates):
                for row in range(self.rows.count):
                    with self.lanes() as lane:
                        at = self.slot(row, slot_of(gate), lane)
                        weight = matrix[self.place.direction, self.place.block, k, number, lane]
                        weight = weight if str(weight.ty.dtype) == dtype else weight.astype(dtype)
                        T.buffer_store(sums, sums[at] + element(row, k) * weight, [at])

    def _update(self, update: Update, sums: Expr, row: int, lane: Expr) -> None:
        own = self.recurrence
        at = (self.place.direction, self.rows.first + row, self.place.block * own.lanes + lane)
        values = [sums[self.slot(row, slot, lane)] for slot in range(self.stage.slots)]
        state = {name: self.state.load(name, self.place.step, at) for name in self.state.buffers}
        peepholes = [self.vector("peepholes", number, lane) for number in range(own.cell.peepholes)]
        for name, value in update(values, state, peepholes).items():
            kept = "h" if name == "next_h" else name
            if own.has_lengths and kept in own.cell.states:
                value = tirx.Select(self._goes_on(row), value, state[kept])
            self.state.store(kept, self.place.step, at, value)

    def _write(self, row: int) -> None:
        """The new state of the block to Y: zeros behind the end of a sequence."""
        own, step = self.recurrence, self.place.step
        time, sample = self._time(row), self.rows.first + row

        def store(lane: Expr) -> None:
            unit = self.place.block * own.lanes + lane
            value = self.state.buffers["h"][1 - step % 2, self.place.direction, sample, unit]
            if own.has_lengths:
                value = tirx.Select(self._goes_on(row), value, tirx.const(0, own.dtype))
            T.buffer_store(self.state.output, value, [time, self.place.direction, sample, unit])

        def lanes() -> None:
            if own.hidden % own.lanes == 0:
                with self.lanes() as lane:
                    store(lane)
                return
            with T.serial(0, tirx.min(own.lanes, own.hidden - self.place.block * own.lanes)) as lane:
                store(lane)

        if self.rows.limit is None:
            lanes()
            return
        with T.If(sample < self.rows.limit), T.Then():
            lanes()
