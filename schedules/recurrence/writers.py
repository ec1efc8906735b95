"""A recurrent layer sample by sample: each team of samples runs over all steps.

For each direction, team and step it sums, block by block of hidden units, the block's products with the state: a
broadcast element of the state times a row of packed weights, in vector registers. Weights stream from the cache in
storage order. The loops are emitted in final form; no schedule rule changes them.

A recurrent layer step by step, all samples together; threads share the directions of a bidirectional one, or the
hidden units of each step.

The states before and after a step are in two buffers that are swapped. Samples are processed in teams, which share
each load of a weight.

The state of a recurrent layer in 8 bits, quantized in each step, and integer matmuls with it.

Scale and zero point of a step are those of DynamicQuantizeLinear over the state of all samples of a direction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from schedules.annotations import RECURRENCE, SERIAL_REASON
from schedules.instructions.dot_products.operation import DOT_U8S8
from schedules.ir.numbers import WORD_BYTES
from schedules.ir.tir import Buffer, Expr, Index, Stmt, tirx
from schedules.recurrence.description import Operands, Recurrence, Stage, Update

from tvm.script.ir_builder import IRBuilder  # isort: skip
from tvm.script.ir_builder import tirx as T  # isort: skip

TEAM = 4  # samples that share each load of a weight: four rows of sums fit in AVX-512 registers


def by_samples(recurrence: Recurrence, ins: Sequence[Expr], outs: Sequence[Expr], *, shared: bool | Expr) -> Stmt:
    """The body of the kernel. `shared`: True if threads share the samples, or a condition on sizes."""
    operands = dict(zip(recurrence.operands, ins, strict=True))
    steps, samples = operands["x"].shape[:2]
    # Sequences of different lengths cannot run together.
    together = 1 if recurrence.has_lengths else TEAM
    with IRBuilder() as builder:
        with T.seq_scope():
            done: Index = 0
            if together > 1 and not (isinstance(samples, tirx.IntImm) and int(samples.value) < together):
                teams = samples // together
                with _loop(recurrence, teams, shared) as task:
                    for direction, position in _directions(recurrence, task, teams):
                        _Run(recurrence, operands, outs, steps, direction, position * together, together).emit()
                done = teams * together
            with _loop(recurrence, samples - done, shared) as task:
                for direction, position in _directions(recurrence, task, samples - done):
                    _Run(recurrence, operands, outs, steps, direction, done + position, 1).emit()
        return builder.get().body  # without the scope, which the code generator ignores


@contextmanager
def _loop(recurrence: Recurrence, count: Expr, shared: bool | Expr) -> Iterator[Expr]:
    """Loop over `count` positions in every direction: directions are as independent as samples."""
    total = count * len(recurrence.stages)
    if isinstance(shared, bool):
        with (T.parallel if shared else T.serial)(0, total) as task:
            yield task
        return
    chunks = tirx.max(tirx.Select(shared, total, tirx.IntImm("int64", 1)), 1)
    with T.parallel(0, chunks) as chunk, T.serial(chunk * total // chunks, (chunk + 1) * total // chunks) as task:
        yield task


def _directions(recurrence: Recurrence, task: Expr, count: Expr) -> Iterator[tuple[int, Expr]]:
    """Each direction and the position in it; emits their code under the condition that the task belongs to it."""
    if len(recurrence.stages) == 1:
        yield 0, task
        return
    with T.If(task < count):
        with T.Then():
            yield 0, task
        with T.Else():
            yield 1, task - count


def _limited(length: Expr, steps: Expr) -> Expr:
    """A length as int64, clamped to the sequence."""
    return tirx.max(tirx.min(length.astype("int64"), steps), tirx.IntImm("int64", 0))


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
        """An element of an operand (directions, blocks, rows, lanes); zero if the kernel has none."""
        if name not in self.operands:
            return tirx.const(0, self.recurrence.dtype)
        return self.operands[name][self.direction, self.block, row, lane]

    def start(self, position: Callable[[int], tuple[Expr, Expr]]) -> Buffer:
        """The initial sums: biases or projections of the input; `position` is the (time, sample) of a row."""
        sums = T.alloc_buffer(
            [self.rows * self.stage.slots * self.recurrence.lanes], self.recurrence.dtype, scope="local"
        )
        for row in range(self.rows):
            time, sample = position(row)
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
        """Add `count` elements of each row times their rows of packed weights to the sum of each gate."""
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
    """Emits the code for one direction and a team of samples, starting at `first`, that share each load of a weight."""

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
        layer, x = self.recurrence, self.operands["x"]
        for number, stage in enumerate(self.stages):
            source = self.buffers[stage.source]
            with T.serial(0, layer.blocks) as block:
                gates = GateSums(layer, self.operands, stage, self.direction, block, self.team)
                sums = gates.start(lambda row: (time, self.first + row))
                if layer.projects_input:
                    gates.accumulate(
                        sums, f"w{number}", layer.inputs, lambda row, k: x[time, self.first + row, k], stage.gates.index
                    )
                gates.accumulate(
                    sums,
                    f"r{number}",
                    layer.hidden,
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
        """Store the next state as the state and in the output."""
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


@dataclass(frozen=True)
class State:
    """Buffers (directions, rows, units) by name, two of "h", which are swapped; and Y."""

    buffers: dict[str, Buffer]
    output: Expr

    def load(self, name: str, step: Expr, at: tuple[Expr, ...]) -> Expr:
        """An element before the step."""
        return self.buffers[name][(step % 2, *at) if name == "h" else at]

    def store(self, name: str, step: Expr, at: tuple[Expr, ...], value: Expr) -> None:
        """An element after the step."""
        T.buffer_store(self.buffers[name], value, [1 - step % 2, *at] if name == "h" else list(at))


@dataclass(frozen=True)
class StepEmitter(GateSums):
    """Emits one step of a few samples, starting at `first`, for one block of hidden units: sums in registers, then the
    new state. With `limit`, only samples below that number exist; `number` is that of the stage."""

    state: State
    number: int
    step: Expr
    first: Expr
    limit: Expr | None = None

    def emit(self, quantized: QuantizedState | None) -> None:
        """Sums, products, the new state and, in the last stage, the output."""
        sums = self.start(lambda row: (self._time(row), self._sample(row)))
        if self.recurrence.projects_input:
            self._multiply(sums, f"w{self.number}", self._input, self.stage.gates.index)
        if quantized is not None:
            quantized.accumulate(self, sums)
        else:
            self._multiply(sums, f"r{self.number}", self._source, self.stage.recurrent_slot)
        for row in range(self.rows):
            for update in self.stage.updates:
                with self.lanes() as lane:
                    self._update(update, sums, row, lane)
            if self.number == len(self.recurrence.stages[0]) - 1:
                self._write(row)

    def _multiply(
        self, sums: Buffer, weights: str, element: Callable[[int, Expr], Expr], slot_of: Callable[[int], int]
    ) -> None:
        self.accumulate(sums, weights, self.operands[weights].shape[2], element, slot_of)

    def _sample(self, row: int) -> Expr:
        sample = self.first + row
        return sample if self.limit is None else tirx.min(sample, self.limit - 1)

    def _length(self, row: int) -> Expr:
        steps = self.operands["x"].shape[0]
        if not self.recurrence.has_lengths:
            return steps
        return _limited(self.operands["lengths"][self._sample(row)], steps)

    def _goes_on(self, row: int) -> Expr:
        return self.step < self._length(row)

    def _time(self, row: int) -> Expr:
        """The element of the sequence that a row reads and writes; past its own end, the one where zeros are stored."""
        backward, step = self.recurrence.backward, self.step
        back = self._length(row) - 1 - step
        if self.recurrence.has_lengths:
            back = tirx.Select(self._goes_on(row), back, step)
        if not any(backward):
            return step
        return back if all(backward) else tirx.Select(self.direction == 1, back, step)

    def _input(self, row: int, k: Expr) -> Expr:
        return self.operands["x"][self._time(row), self._sample(row), k]

    def _source(self, row: int, k: Expr) -> Expr:
        return self.state.load(self.stage.source, self.step, (self.direction, self.first + row, k))

    def _update(self, update: Update, sums: Expr, row: int, lane: Expr) -> None:
        layer = self.recurrence
        at = (self.direction, self.first + row, self.block * layer.lanes + lane)
        state = {name: self.state.load(name, self.step, at) for name in self.state.buffers}
        for name, value in self.updated(update, sums, state, row, lane).items():
            state_name = "h" if name == "next_h" else name
            if layer.has_lengths and state_name in layer.cell.states:
                value = tirx.Select(self._goes_on(row), value, state[state_name])
            self.state.store(state_name, self.step, at, value)

    def _write(self, row: int) -> None:
        """Store the new state of the block in Y: zeros past the end of a sequence."""
        layer, step = self.recurrence, self.step
        time, sample = self._time(row), self.first + row

        def store(lane: Expr) -> None:
            unit = self.block * layer.lanes + lane
            value = self.state.buffers["h"][1 - step % 2, self.direction, sample, unit]
            if layer.has_lengths:
                value = tirx.Select(self._goes_on(row), value, tirx.const(0, layer.dtype))
            T.buffer_store(self.state.output, value, [time, self.direction, sample, unit])

        def lanes() -> None:
            if layer.hidden % layer.lanes == 0:
                with self.lanes() as lane:
                    store(lane)
                return
            with T.serial(0, tirx.min(layer.lanes, layer.hidden - self.block * layer.lanes)) as lane:
                store(lane)

        if self.limit is None:
            lanes()
            return
        with T.If(sample < self.limit), T.Then():
            lanes()


class QuantizedState:
    """The buffers of one thread: the bytes of the state, and (scale, zero point, sum of a row) of each direction.

    Operands: "r0" holds words of four signed bytes along the depth (directions, blocks, depth / 4, gates, lanes);
    "scales" (float32) and "sums" (int32, over the depth) are (directions, blocks, gates, lanes), and so are "zeros"
    (int32), the weights' zero points if they are not 0.
    """

    def __init__(self, recurrence: Recurrence, operands: Operands, state: Expr, directions: int) -> None:
        self._recurrence, self._operands, self._state = recurrence, operands, state
        self._directions = directions
        self._samples = operands["x"].shape[1]
        rows = state.shape[2]
        self._bytes = T.alloc_buffer([directions, rows, recurrence.width], "uint8")
        self._row_sums = T.alloc_buffer([directions, rows], "int32")
        self._scales = T.alloc_buffer([directions], "float32")
        self._zeros = T.alloc_buffer([directions], "int32")

    def emit(self, now: Expr, direction: Any) -> None:
        """Quantize the state before a step, of one direction or of all."""
        with T.serial(0, self._directions) as slot:
            source = slot if direction is None else direction
            self._find_range(now, source, slot)
            with T.serial(0, self._samples) as row:
                self._quantize(now, (source, row), (slot, row))
                if "zeros" in self._operands:
                    self._sum_row((slot, row))

    def _lanes(self) -> Any:
        return T.vectorized(0, self._recurrence.lanes)

    def _find_range(self, now: Expr, source: Buffer, slot: Expr) -> None:
        """Scale and zero point for the range from the minimum to the maximum, zero included."""
        lanes, blocks = self._recurrence.lanes, self._recurrence.blocks
        low, high = (T.alloc_buffer([lanes], "float32", scope="local") for _ in range(2))
        zero = tirx.const(0, "float32")
        for limit in (low, high):
            with self._lanes() as lane:
                T.buffer_store(limit, zero, [lane])
        with T.serial(0, self._samples) as row, T.serial(0, blocks) as block:
            for limit, choose in ((low, tirx.min), (high, tirx.max)):
                with self._lanes() as lane:
                    value = self._state[now, source, row, block * lanes + lane]
                    T.buffer_store(limit, choose(limit[lane], value), [lane])
        minimum, largest = low[0], high[0]
        for lane in range(1, lanes):
            minimum, largest = tirx.min(minimum, low[lane]), tirx.max(largest, high[lane])
        span = T.alloc_buffer([2], "float32", scope="local")
        T.buffer_store(span, minimum, [0])
        T.buffer_store(span, largest - span[0], [1])
        # A state of zeros has no range; any scale is right.
        scale = tirx.Select(span[1] == zero, tirx.const(1, "float32"), span[1] / tirx.const(255, "float32"))
        T.buffer_store(self._scales, scale, [slot])
        start = zero - span[0] / self._scales[slot]
        limited = tirx.max(tirx.min(start, tirx.const(255, "float32")), zero)
        T.buffer_store(self._zeros, tirx.Cast("int32", tirx.nearbyint(limited)), [slot])

    def _quantize(self, now: Expr, source: tuple[Expr, Expr], target: tuple[Expr, Expr]) -> None:
        lanes = self._recurrence.lanes
        limits = (tirx.const(0, "int32"), tirx.const(255, "int32"))
        with T.serial(0, self._recurrence.blocks) as block, self._lanes() as lane:
            unit = block * lanes + lane
            scaled = self._state[(now, *source, unit)] / self._scales[target[0]]
            rounded = tirx.Cast("int32", tirx.nearbyint(scaled)) + self._zeros[target[0]]
            value = tirx.max(tirx.min(rounded, limits[1]), limits[0])
            T.buffer_store(self._bytes, tirx.Cast("uint8", value), [*target, unit])

    def _sum_row(self, own: tuple[Expr, Expr]) -> None:
        T.buffer_store(self._row_sums, tirx.const(0, "int32"), list(own))
        with T.serial(0, self._recurrence.hidden) as k:
            value = self._row_sums[own] + tirx.Cast("int32", self._bytes[(*own, k)])
            T.buffer_store(self._row_sums, value, list(own))

    def accumulate(self, team: StepEmitter, sums: Expr) -> None:
        """Add the products of the team's rows and the weights of its block."""
        gates, lanes = len(team.stage.gates), self._recurrence.lanes
        slot: Expr = team.direction if self._directions > 1 else 0
        words = self._operands["r0"]
        totals = T.alloc_buffer([team.rows * gates * lanes], "int32", scope="local")
        with T.serial(0, team.rows * gates) as row, self._lanes() as lane:
            T.buffer_store(totals, tirx.const(0, "int32"), [row * lanes + lane])
        with T.serial(0, words.shape[2]) as k:
            for gate in range(gates):
                for row in range(team.rows):
                    bytes_ = self._bytes[slot, team.first + row, tirx.Ramp(k * WORD_BYTES, 1, WORD_BYTES)]
                    word = tirx.reinterpret("int32", bytes_)
                    with self._lanes() as lane:
                        at = team.slot(row, gate, lane)
                        weight = words[team.direction, team.block, k, gate, lane]
                        T.buffer_store(totals, DOT_U8S8(totals[at], word, weight), [at])
        for row in range(team.rows):
            for gate in range(gates):
                with self._lanes() as lane:
                    at = team.slot(row, gate, lane)
                    total = self._centered(totals[at], team, (slot, row, gate), lane)
                    scale = self._scales[slot] * team.vector("scales", gate, lane)
                    T.buffer_store(sums, sums[at] + tirx.Cast("float32", total) * scale, [at])

    def _centered(self, total: Expr, team: StepEmitter, at: tuple[Expr, int, int], lane: Expr) -> Expr:
        """The sum of products after subtracting both zero points."""
        slot, row, gate = at
        total = total - self._zeros[slot] * team.vector("sums", gate, lane)
        if "zeros" not in self._operands:
            return total
        rest = self._row_sums[slot, team.first + row] - self._zeros[slot] * self._recurrence.hidden
        return total - team.vector("zeros", gate, lane) * rest


SERIAL, DIRECTIONS, UNITS = "serial", "directions", "units"


def lockstep(recurrence: Recurrence, ins: Sequence[Expr], outs: Sequence[Expr], split: str) -> Stmt:
    """The body of the kernel. `split` is what threads share: nothing, the directions, or the units of a step."""
    with IRBuilder() as builder:
        with T.seq_scope():
            _Lockstep(recurrence, dict(zip(recurrence.operands, ins, strict=True)), outs, split).emit()
        return builder.get().body  # without the scope, which the code generator ignores


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
        """Allocate the state, padded to whole teams and blocks, with its initial values."""
        layer = self.recurrence
        rows: Expr = (self.samples + (TEAM - 1)) // TEAM * TEAM
        if self.fixed is not None:
            rows = self.fixed
        names = {*layer.cell.states, *({"z", "reset_h"} if len(layer.stages[0]) > 1 else ())}
        for name in sorted(names):
            shape = [layer.directions, rows, layer.width]
            self.state.buffers[name] = T.alloc_buffer([2, *shape] if name == "h" else shape, layer.dtype)
        for name in layer.cell.states:
            with T.serial(0, layer.directions) as d, T.serial(0, rows) as row, T.serial(0, layer.width) as unit:
                position = [d, row, unit]
                value = self._initial(name, d, row, unit)
                T.buffer_store(self.state.buffers[name], value, [0, *position] if name == "h" else position)

    def _initial(self, name: str, direction: Expr, row: Expr, unit: Expr) -> Expr:
        zero = tirx.const(0, self.recurrence.dtype)
        if f"initial_{name}" not in self.operands:
            return zero
        hidden = self.recurrence.hidden
        value = self.operands[f"initial_{name}"][direction, tirx.min(row, self.samples - 1), tirx.min(unit, hidden - 1)]
        return tirx.if_then_else(tirx.And(row < self.samples, unit < hidden), value, zero)

    def _run(self, direction: Expr | None) -> None:
        """All steps, of one direction or of all."""
        layer = self.recurrence
        directions = layer.directions if direction is None else 1
        if layer.quantized:
            self.quantized = QuantizedState(layer, self.operands, self.state.buffers["h"], directions)
        blocks = T.parallel if self.split == UNITS else T.serial
        with T.serial(0, self.steps, annotations={SERIAL_REASON: RECURRENCE}) as step:
            if self.quantized is not None:
                self.quantized.emit(step % 2, direction)
            for number in range(len(layer.stages[0])):
                with blocks(0, directions * layer.blocks) as position:
                    d = position // layer.blocks if direction is None else direction
                    block = position % layer.blocks if directions > 1 else position
                    self._block(number, step, d, block)

    def _block(self, number: int, step: Expr, direction: Expr, block: Expr) -> None:
        """A stage of one block, for any direction; directions with different functions need separate code."""
        stages = [of_direction[number] for of_direction in self.recurrence.stages]
        if len(set(self.recurrence.activations)) == 1:
            self._teams(stages[0], number, step, direction, block)
            return
        with T.If(direction == 0):
            with T.Then():
                self._teams(stages[0], number, step, direction, block)
            with T.Else():
                self._teams(stages[1], number, step, direction, block)

    def _teams(self, stage: Stage, number: int, step: Expr, direction: Expr, block: Expr) -> None:
        def emit(first: Expr, count: int, limit: Expr | None = None) -> None:
            at = (direction, block, count, self.state, number, step, first, limit)
            StepEmitter(self.recurrence, self.operands, stage, *at).emit(self.quantized)

        if self.fixed is not None:
            full_teams, rest = divmod(self.fixed, TEAM)
            if full_teams:
                with T.serial(0, full_teams) as team:
                    emit(team * TEAM, TEAM)
            if rest:
                emit(tirx.IntImm("int64", full_teams * TEAM), rest)
            return
        rest = self.samples % TEAM
        with T.serial(0, self.samples // TEAM) as team:
            emit(team * TEAM, TEAM)
        with T.If(rest == 1), T.Then():
            emit(self.samples - 1, 1)
        with T.If(rest > 1), T.Then():
            emit(self.samples - rest, TEAM, self.samples)

    def _finish(self) -> None:
        """The last states."""
        layer = self.recurrence
        for out, name in zip(self.outs[1:], layer.cell.states, strict=True):
            with (
                T.serial(0, layer.directions) as d,
                T.serial(0, self.samples) as row,
                T.serial(0, layer.hidden) as unit,
            ):
                at = [d, row, unit]
                buffer = self.state.buffers[name]
                value = buffer[(self.steps % 2, *at)] if name == "h" else buffer[tuple(at)]
                T.buffer_store(out, value, at)
