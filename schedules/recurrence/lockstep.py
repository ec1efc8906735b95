"""A recurrent layer step by step, all samples together; threads share the directions of a bidirectional one, or the
hidden units of each step.

The state before a step and the one after it lie in two buffers that change places. Samples are taken in teams, which
share each load of a weight.
"""

from __future__ import annotations

from collections.abc import Sequence

from schedules.annotations import RECURRENCE, SERIAL_REASON
from schedules.ir.tir import Expr, Stmt, tirx
from schedules.recurrence.description import Operands, Recurrence
from schedules.recurrence.quantized_state import QuantizedState
from schedules.recurrence.team import Place, Rows, State, Team

from tvm.script.ir_builder import IRBuilder  # isort: skip
from tvm.script.ir_builder import tirx as T  # isort: skip


TEAM = 4  # samples that share each load of a weight: four rows of sums fit the registers of AVX-512
SERIAL, DIRECTIONS, UNITS = "serial", "directions", "units"


def lockstep(recurrence: Recurrence, ins: Sequence[Expr], outs: Sequence[Expr], split: str) -> Stmt:
    """The body of the kernel. `split` says what threads share: nothing, the directions, or the units of a step."""
    with IRBuilder() as builder:
        with T.seq_scope():
            _Lockstep(recurrence, Operands(recurrence.operands, ins), outs, split).emit()
        return builder.get().body  # without the scope, which means nothing to the code generator


class _Lockstep:
    """Emits the code."""

    def __init__(self, recurrence: Recurrence, operands: Operands, outs: Sequence[Expr], split: str) -> None:
        self.recurrence, self.operands, self.outs, self.split = recurrence, operands, outs, split
        self.steps, self.samples = operands["x"].shape[:2]
        self.fixed = int(self.samples.value) if isinstance(self.samples, tirx.IntImm) else None
        self.state = State({}, outs[0])
        self.quantized: QuantizedState | None = None

    def emit(self) -> None:
        self._allocate()
        if self.split == DIRECTIONS:
            with T.parallel(0, self.recurrence.directions) as direction:
                self._run(direction)
        else:
            self._run(None)
        self._finish()

    def _allocate(self) -> None:
        """The state, filled up to whole teams and blocks, at its initial values."""
        own = self.recurrence
        rows: Expr = (self.samples + (TEAM - 1)) // TEAM * TEAM
        if self.fixed is not None:
            rows = self.fixed
        names = {*own.cell.states, *({"z", "reset_h"} if len(own.stages[0]) > 1 else ())}
        for name in sorted(names):
            shape = [own.directions, rows, own.width]
            self.state.buffers[name] = T.alloc_buffer([2, *shape] if name == "h" else shape, own.dtype)
        for name in own.cell.states:
            with T.serial(0, own.directions) as d, T.serial(0, rows) as row, T.serial(0, own.width) as unit:
                place = [d, row, unit]
                value = self._initial(name, d, row, unit)
                T.buffer_store(self.state.buffers[name], value, [0, *place] if name == "h" else place)

    def _initial(self, name: str, direction: Expr, row: Expr, unit: Expr) -> Expr:
        zero = tirx.const(0, self.recurrence.dtype)
        if f"initial_{name}" not in self.operands:
            return zero
        hidden = self.recurrence.hidden
        value = self.operands[f"initial_{name}"][direction, tirx.min(row, self.samples - 1), tirx.min(unit, hidden - 1)]
        return tirx.if_then_else(tirx.And(row < self.samples, unit < hidden), value, zero)

    def _run(self, direction: Expr | None) -> None:
        """All steps, of one direction or of all."""
        own = self.recurrence
        directions = own.directions if direction is None else 1
        if own.quantized:
            self.quantized = QuantizedState(own, self.operands, self.state.buffers["h"], directions)
        blocks = T.parallel if self.split == UNITS else T.serial
        with T.serial(0, self.steps, annotations={SERIAL_REASON: RECURRENCE}) as step:
            if self.quantized is not None:
                self.quantized.emit(step % 2, direction)
            for number in range(len(own.stages[0])):
                with blocks(0, directions * own.blocks) as place:
                    d = place // own.blocks if direction is None else direction
                    block = place % own.blocks if directions > 1 else place
                    self._block(Place(number, step, d, block))

    def _block(self, place: Place) -> None:
        """One stage of one block, of whichever direction; directions with functions of their own need own code."""
        own = self.recurrence
        if len(set(own.activations)) == 1:
            self._teams(place, 0)
            return
        with T.If(place.direction == 0):
            with T.Then():
                self._teams(place, 0)
            with T.Else():
                self._teams(place, 1)

    def _teams(self, place: Place, functions: int) -> None:
        def emit(rows: Rows) -> None:
            stage = self.recurrence.stages[functions][place.stage]
            Team(self.recurrence, self.operands, self.state, stage, place, rows).emit(self.quantized)

        if self.fixed is not None:
            whole, rest = divmod(self.fixed, TEAM)
            if whole:
                with T.serial(0, whole) as team:
                    emit(Rows(team * TEAM, TEAM))
            if rest:
                emit(Rows(tirx.IntImm("int64", whole * TEAM), rest))
            return
        rest = self.samples % TEAM
        with T.serial(0, self.samples // TEAM) as team:
            emit(Rows(team * TEAM, TEAM))
        with T.If(rest == 1), T.Then():
            emit(Rows(self.samples - 1, 1))
        with T.If(rest > 1), T.Then():
            emit(Rows(self.samples - rest, TEAM, self.samples))

    def _finish(self) -> None:
        """The last states."""
        own = self.recurrence
        for out, name in zip(self.outs[1:], own.cell.states, strict=True):
            with T.serial(0, own.directions) as d, T.serial(0, self.samples) as row, T.serial(0, own.hidden) as unit:
                at = [d, row, unit]
                buffer = self.state.buffers[name]
                value = buffer[(self.steps % 2, *at)] if name == "h" else buffer[tuple(at)]
                T.buffer_store(out, value, at)
