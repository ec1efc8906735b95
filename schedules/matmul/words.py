"""Matmuls of narrow operands packed into words of neighbors along the depth: pairs of floats, or four bytes.

The data is packed into words once, which costs one pass over it; the weights are packed at compile time.

Matmuls of 8-bit integers by matrix instructions (Arm's `usmmla` and `smmla`): two rows by two columns at once.

The data is copied once, eight bytes of two rows next to each other; the weights are packed the same way at compile
time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, prod
from typing import Any, ClassVar

from schedules.annotations import KIND
from schedules.codegen.nest import (
    ROWS_AHEAD,
    Extent,
    allocate_tile,
    lanes_of,
    parallel_grid,
    prefetch,
    repeat,
    sequence,
    splat,
    split_repeat,
    static_grid,
    store,
)
from schedules.codegen.nest import load as element
from schedules.codegen.parallel import pays_off, work
from schedules.codegen.register_tile import RegisterTile, with_room
from schedules.config import Config, ConfigSpace
from schedules.errors import NotScheduledError
from schedules.instructions.dot_products.operation import (
    DOT_BF16,
    DOT_F16,
    DOT_S8S8,
    DOT_U8S8,
    MATRIX_S8S8,
    MATRIX_U8S8,
    Instruction,
    Operation,
    joined,
    row_of,
)
from schedules.instructions.dot_products.table import matrix_instruction, partial_operation
from schedules.instructions.rounding import rounded_pair, rounded_run
from schedules.ir.expression import expression, index, substitute
from schedules.ir.numbers import SIGN_BITS
from schedules.ir.stages import Kernel, Stage, dtype_of, shape_of
from schedules.ir.tir import Buffer, Expr, Index, PrimFunc, Stmt, Tensor, Var, te, tirx
from schedules.machine import Machine
from schedules.matmul.form import MatmulForm
from schedules.matmul.packed_operand import PanelRule, panel_fields, panel_form
from schedules.matmul.tiling import TILE_ROWS, MatmulWorkload, block_rows
from schedules.matmul.writer import MatmulWriter, Tile
from schedules.rule import Priority
from schedules.stages.code import stage_code
from schedules.stages.fused_kernel import FusedKernel, only_anchors

KINDS = {DOT_BF16: "matmul-bf16", DOT_F16: "matmul-f16", DOT_U8S8: "matmul-int8", DOT_S8S8: "matmul-int8-signed"}
"""Annotations of the kernels, and names of their rules, by the operation that sums the products."""


def matmul_words(data: Tensor, packed: Tensor, columns: int, operation: Operation) -> Tensor:
    """Matmul of data (..., depth) and weights packed by `pack.pack_words` in the operation's groups: (..., columns).

    float32 data is rounded to the operation's type. `operation.shift(dtype)` is added to bytes: the caller subtracts
    that times the sums of the weights' columns.
    """
    steps, width = packed.shape[1], int(packed.shape[2])
    depth, group = data.shape[-1], operation.group
    attrs = {KIND: KINDS[operation]}
    known = int(depth.value) if isinstance(depth, tirx.IntImm) else 0
    last = (int(steps) - 1) * group  # start of the last word
    shift = tirx.const(operation.shift(str(data.dtype)), "int32")
    halves = operation.total == "float32"

    def element(at: tuple[Expr, ...], number: int) -> Expr:
        """An element of a word, 0 past the depth."""
        position = at[-1] * group + number
        value = data(*at[:-1], position)
        value = value if halves else (tirx.Cast("int32", value) + shift) & 0xFF
        zero = tirx.const(0, str(value.ty))
        value = value if last + number < known else tirx.if_then_else(position < depth, value, zero)
        return value + zero if halves else value

    def word(*at: Expr) -> Expr:
        values = [element(at, number) for number in range(group)]
        return rounded_pair(values[0], values[1], operation) if halves else word_of_bytes(values)

    words = te.compute([*data.shape[:-1], steps], word, name="words", attrs=attrs)
    k = te.reduce_axis((tirx.IntImm("int64", 0), steps), name="k")

    def point(*at: Expr) -> Expr:
        a, b = words(*at[:-1], k), packed(tirx.floordiv(at[-1], width), k, tirx.floormod(at[-1], width))
        return te.sum(operation.expression(a, b), axis=k)

    return te.compute([*data.shape[:-1], tirx.IntImm("int64", columns)], point, name="matmul", attrs=attrs)


def word_of_bytes(values: Sequence[Expr]) -> Expr:
    """Pack four int32 below 256 into the bytes of a word, the first lowest."""
    total: Expr = tirx.const(0, "int32")
    for byte, value in enumerate(values):
        total = total | value << 8 * byte
    return total


@dataclass(frozen=True, eq=False)
class Parts:
    """The stages of a matmul of words: packing of the data into words along the depth, and the matmul."""

    words: Stage
    matmul: Stage
    form: MatmulForm


class MatmulBf16(PanelRule[MatmulWorkload, Parts]):
    """Serves bfloat16 `matmul_words` kernels."""

    name: ClassVar[str] = KINDS[DOT_BF16]
    operation: ClassVar[Operation] = DOT_BF16

    def workload(self, parts: Parts, machine: Machine) -> MatmulWorkload | None:
        return MatmulWorkload(**panel_fields(parts.form, self.operation.b, self.operation.total))

    def parts(self, kernel: Kernel) -> Parts | None:
        return parts_of(kernel, self.name)

    def words(self, parts: Parts, machine: Machine) -> Stmt:
        """The statement that packs the data into words."""
        return _words(parts, self.operation, machine)

    def space(self, workload: MatmulWorkload, machine: Machine) -> ConfigSpace:
        in_tiles = self.tiles(workload, machine) is not None
        return ConfigSpace({"rows": TILE_ROWS}) if in_tiles else super().space(workload, machine)

    def default(self, workload: MatmulWorkload, machine: Machine) -> Config:
        in_tiles = self.tiles(workload, machine) is not None
        return Config.of(rows=block_rows(workload.rows)) if in_tiles else super().default(workload, machine)

    def writer(
        self, parts: Parts, fused: FusedKernel, machine: Machine, rows: int, tiles: Instruction | None = None
    ) -> MatmulWriter:
        partial = partial_operation(machine, self.operation) if tiles is None else None
        how: dict[str, Any] = {"rows": rows, "vectors": 1, "pack": False, "tiles": tiles}
        return MatmulWriter(parts.form, fused, machine, combine=self.operation, partial=partial, **how)

    def apply(self, kernel: Kernel, workload: MatmulWorkload, config: Config, machine: Machine) -> PrimFunc:
        parts = self.parts(kernel)
        if parts is None:
            raise NotScheduledError("stages of the matmul are missing")
        fused = FusedKernel(kernel, [parts.words, parts.matmul])
        tiles = self.tiles(workload, machine)
        writer = self.writer(parts, fused, machine, config.integer("rows"), tiles)
        words = parts.form.a.source
        code = sequence(self.words(parts, machine), writer.statement())
        room = words if tiles is None else with_room(words)
        return fused.function(sequence(tirx.AllocBuffer(room), substitute(code, {words: room})), machine)


class MatmulF16(MatmulBf16):
    """Serves float16 `matmul_words` kernels."""

    name: ClassVar[str] = KINDS[DOT_F16]
    operation: ClassVar[Operation] = DOT_F16


class MatmulInt8(MatmulBf16):
    """Serves `matmul_words` kernels of unsigned by signed bytes."""

    name: ClassVar[str] = KINDS[DOT_U8S8]
    operation: ClassVar[Operation] = DOT_U8S8


class MatmulSigned(MatmulBf16):
    """Serves `matmul_words` kernels of signed bytes."""

    name: ClassVar[str] = KINDS[DOT_S8S8]
    operation: ClassVar[Operation] = DOT_S8S8


def _words(parts: Parts, operation: Operation, machine: Machine) -> Stmt:
    """Statement that packs the data into words, vectorized if rows are long enough."""
    stage, group, lanes = parts.words, operation.group, machine.lanes("int32")
    depth = shape_of(stage.loads[0].source)[-1]
    halves = operation.total == "float32"
    whole_words = halves or (isinstance(depth, int) and depth % group == 0)
    if not isinstance(depth, int) or not whole_words or depth < group * lanes:
        return stage_code(stage, machine)
    row = _rounded_row if halves else _copied_row
    step = stage.body.indices[-1]
    axes = [axis for axis in stage.axes if not axis.var.same_as(step)]
    leading = axes if halves else [axis for axis in axes if axis.extent != 1]
    ones = {axis.var: tirx.IntImm("int64", 0) for axis in axes if axis not in leading}
    threads = pays_off(work([axis.extent for axis in stage.axes], stage.body), machine)

    def body(at: list[Expr]) -> Stmt:
        values = {**ones, **{axis.var: value for axis, value in zip(leading, at, strict=True)}}
        return row(parts, operation, values, lanes)

    return parallel_grid([Extent(axis.name, axis.extent) for axis in leading], body, machine, parallel=threads)


def _rounded_row(parts: Parts, operation: Operation, values: dict[Var, Expr], lanes: int) -> Stmt:
    """Round a row to pairs: full vectors, then the remainder pair by pair."""
    stage = parts.words
    data, words, step = stage.loads[0].source, stage.body.buffer, stage.body.indices[-1]
    outer = [substitute(point, values) for point in list(stage.body.indices)[:-1]]
    full_runs = shape_of(data)[-1] // (2 * lanes)

    def vector(run: Expr, lane: Expr) -> Stmt:
        first = run * (2 * lanes) + lane
        halves = [tirx.BufferLoad(data, [*outer, each]) for each in (first, first + lanes)]
        return tirx.BufferStore(words, rounded_run(halves[0], halves[1], operation), [*outer, run * lanes + lane])

    def runs(run: Expr) -> Stmt:
        return repeat("lane", lanes, lambda lane: vector(run, lane), tirx.ForKind.VECTORIZED)

    def single(rest: Expr) -> Stmt:
        return substitute(stage.body, {**values, step: rest + full_runs * lanes})

    left = shape_of(words)[-1] - full_runs * lanes
    return sequence([repeat("run", full_runs, runs), *([repeat("rest", left, single)] if left else [])])


def _copied_row(parts: Parts, operation: Operation, values: dict[Var, Expr], lanes: int) -> Stmt:
    """Copy a row of bytes as words; bytes of the other signedness are shifted."""
    stage, group = parts.words, operation.group
    data, words = stage.loads[0].source, stage.body.buffer
    outer = [substitute(point, values) for point in list(stage.body.indices)[:-1]]
    shifted = operation.shift(dtype_of(data)) != 0

    def copied(first: Index, count: int) -> Stmt:
        bytes_ = tirx.BufferLoad(data, [*outer, lanes_of(first * group, count * group)])
        value = tirx.reinterpret(f"int32x{count}" if count > 1 else "int32", bytes_)
        if shifted:
            value = value ^ splat(SIGN_BITS, "int32", count)
        return tirx.BufferStore(words, value, [*outer, lanes_of(first, count)])

    count = shape_of(data)[-1] // group
    behind = shape_of(words)[-1] - count
    zeros = store(words, splat(0, "int32", behind), *outer, lanes_of(count, behind)) if behind else None
    return sequence(split_repeat("run", count, lanes, copied), zeros)


def parts_of(kernel: Kernel, kind: str) -> Parts | None:
    """The stages of a matmul annotated with `kind`."""
    stages = only_anchors(kernel, kind, 2)
    if stages is None:
        return None
    words, matmul = stages
    stored, summed = words.body, matmul.body
    data = next((load for load in matmul.loads if load.source.same_as(stored.buffer)), None)
    own = (stored.buffer, summed.buffer)
    packed = next((load for load in matmul.loads if not any(load.source.same_as(each) for each in own)), None)
    if packed is None or data is None:
        return None
    depth = next((axis for axis in matmul.axes if axis.reduce), None)
    column = next((axis for axis in matmul.axes if axis.var.same_as(summed.indices[-1])), None)
    if depth is None or column is None:
        return None
    return Parts(words, matmul, panel_form(matmul, depth, data, packed, str(summed.buffer.dtype)))


MATMUL_MATRIX = "matmul-matrix"
MATRICES = (MATRIX_U8S8, MATRIX_S8S8)
DEPTH = MATRIX_U8S8.group
_WORD, _LANES = 4, 4  # bytes of a word, words of a register
_REGISTERS = 4  # for the weights of a step, and for the accumulators of two rows: eight columns


def matmul_matrix(data: Tensor, packed: Tensor, columns: int) -> Tensor:
    """The int32 matmul of 8-bit data (..., depth) and weights packed by `pack.pack_words` in groups of 8: (...,
    columns)."""
    steps, width = packed.shape[1], int(packed.shape[2]) // 2
    leading, depth = list(data.shape[:-1]), data.shape[-1]
    rows = prod(leading, start=tirx.IntImm("int64", 1))
    attrs = {KIND: MATMUL_MATRIX}

    def word(pair: Expr, step: Expr, position: Expr) -> Expr:
        row = tirx.min(2 * pair + position // 2, rows - 1)
        at = DEPTH * step + _WORD * (position % 2)
        values = [tirx.Cast("int32", data(*_positions(row, leading), at + byte)) & 0xFF for byte in range(_WORD)]
        return word_of_bytes([tirx.if_then_else(at + byte < depth, each, 0) for byte, each in enumerate(values)])

    words = te.compute([(rows + 1) // 2, steps, _LANES], word, name="words", attrs=attrs)
    k = te.reduce_axis((tirx.IntImm("int64", 0), 2 * steps), name="k")

    def point(*at: Expr) -> Expr:
        row: Expr = tirx.IntImm("int64", 0)
        for position, size in zip(at[:-1], leading, strict=True):
            row = row * size + position
        a = words(row // 2, k // 2, row % 2 * 2 + k % 2)
        b = packed(at[-1] // width, k // 2, at[-1] % width * 2 + k % 2)
        operation = MATRIX_S8S8 if str(data.dtype) == "int8" else MATRIX_U8S8
        return te.sum(operation.expression(a, b), axis=k)

    return te.compute([*leading, tirx.IntImm("int64", columns)], point, name="matmul", attrs=attrs)


def _positions(row: Expr, leading: list[Expr]) -> list[Expr]:
    """Leading indices of a flattened row number, for a tensor with these leading dimensions."""
    positions: list[Buffer] = []
    for size in reversed(leading[1:]):
        positions.insert(0, tirx.floormod(row, size))
        row = tirx.floordiv(row, size)
    return [row, *positions] if leading else []


class MatmulMatrix(MatmulBf16):
    """Serves `matmul_matrix` kernels; `rows` is the number of rows of a tile, which spans one panel."""

    name: ClassVar[str] = MATMUL_MATRIX
    priority: ClassVar[int] = Priority.PACKED_MATRIX
    operation: ClassVar[Operation] = MATRIX_U8S8

    def workload(self, parts: Parts, machine: Machine) -> MatmulWorkload | None:
        return super().workload(parts, machine) if matrix_instruction(machine, "uint8", "int8") else None

    def space(self, workload: MatmulWorkload, machine: Machine) -> ConfigSpace:
        return ConfigSpace({"rows": _row_choices(machine)})

    def default(self, workload: MatmulWorkload, machine: Machine) -> Config:
        rows = workload.rows or 960

        def cost(tile: int) -> float:
            whole, rest = divmod(rows, tile)
            return whole * _cycles(tile, machine) + (_cycles(rest, machine) if rest else 0)

        return Config.of(rows=min(_row_choices(machine), key=lambda tile: (cost(tile), -tile)))

    def tiles(self, workload: MatmulWorkload, machine: Machine) -> Instruction | None:
        return None

    def words(self, parts: Parts, machine: Machine) -> Stmt:
        return _copy(parts, parts.form.rows.extent, machine)

    def writer(
        self, parts: Parts, fused: FusedKernel, machine: Machine, rows: int, tiles: Instruction | None = None
    ) -> MatmulWriter:
        combine = MATRIX_S8S8 if dtype_of(parts.words.loads[0].source) == "int8" else MATRIX_U8S8
        form = replace(parts.form, width=parts.form.width // 2)
        return _Writer(form, fused, machine, rows=rows, vectors=1, pack=False, combine=combine)


def _row_choices(machine: Machine) -> tuple[int, ...]:
    """Even row counts whose accumulators fit in registers next to a step's weights and two rows."""
    maximum = (machine.vector_registers - _REGISTERS - 1) // _REGISTERS
    return tuple(2 * pairs for pairs in range(1, maximum + 1))


def _cycles(rows: int, machine: Machine) -> float:
    """Cycles per step of a tile: the maximum of multiplications, loads and accumulator latency."""
    pairs = ceil(rows / 2)
    loads = (pairs + _REGISTERS) / machine.load_ports
    return max(pairs * _REGISTERS / machine.fma_ports, loads, float(machine.fma_latency))


class _Writer(MatmulWriter):
    """Tiles with 2 x 2 accumulators until the end. They start at even rows."""

    splits_depth: ClassVar[bool] = False

    def _tile(self, at: Tile) -> Stmt:
        rows, row, column, width = int(at.rows), at.row, at.column, at.width
        form, words, packed = self.form, self.form.a.source, self.form.b.source
        pairs, registers = ceil(rows / 2), 2 * ceil(width / _LANES)
        sums, room = allocate_tile("pairs", (pairs, registers * _LANES), self.dtype)
        points = [(pair, lanes_of(_LANES * each, _LANES)) for pair, each in static_grid(pairs, registers)]
        first = tirx.FloorDiv(row, index(2))
        panel = tirx.FloorDiv(column, index(form.width))
        zero = tirx.Broadcast(tirx.const(0, self.dtype), _LANES)

        def step(k: Expr) -> Stmt:
            ahead = [prefetch(packed, panel, k + ROWS_AHEAD // 2, 0)]
            a = [element(words, first + pair, k, lanes_of(0, _LANES)) for pair in range(pairs)]
            adds = [
                store(
                    sums,
                    self.combine(element(sums, pair, position), a[pair], element(packed, panel, k, position)),
                    pair,
                    position,
                )
                for pair, position in points
            ]
            return sequence([*ahead, *adds])

        tile = RegisterTile(rows, self.panel, _LANES, self.dtype)
        split = []
        for i, quad in static_grid(rows, registers // 2):
            left, right = (element(sums, i // 2, lanes_of(_LANES * (2 * quad + half), _LANES)) for half in range(2))
            split.append(tile.put(i, lanes_of(_LANES * quad, _LANES), row_of(left, right, i % 2)))
        end = self._finish(tile.narrowed(width), at)
        clear = [store(sums, zero, *point) for point in points]
        depth = shape_of(packed)[1]
        return sequence([*room, *clear, repeat("k", depth, step), *tile.allocations, *split, *end])


def _copy(parts: Parts, rows: Index, machine: Machine) -> Stmt:
    """Interleave eight bytes of two rows, sixteen bytes at a time if row lengths are multiples of that."""
    stage = parts.words
    words, data = stage.body.buffer, stage.loads[0].source
    *leading, depth = shape_of(data)
    if not isinstance(depth, int) or depth % DEPTH:
        return stage_code(stage, machine)
    steps = 2 if depth % (2 * DEPTH) == 0 else 1
    pairs = (rows + 1) // 2 if isinstance(rows, int) else tirx.FloorDiv(rows + 1, index(2))

    def run(pair: Expr, k: Expr) -> Stmt:
        numbers = (2 * pair, tirx.min(2 * pair + 1, expression(rows) - 1))
        positions = ([*_positions(number, [expression(size) for size in leading])] for number in numbers)
        bytes_ = lanes_of(k * (DEPTH * steps), DEPTH * steps)
        low, high = (tirx.reinterpret(f"int32x{2 * steps}", element(data, *position, bytes_)) for position in positions)
        if steps == 1:
            return store(words, joined(low, high), pair, k, lanes_of(0, _LANES))
        return sequence(
            [store(words, row_of(low, high, half), pair, 2 * k + half, lanes_of(0, _LANES)) for half in range(2)]
        )

    def pair_of_rows(values: list[Expr]) -> Stmt:
        return repeat("k", depth // (DEPTH * steps), lambda k: run(values[0], k))

    return parallel_grid([Extent("pair", pairs)], pair_of_rows, machine, parallel=pays_off(rows * depth, machine))
