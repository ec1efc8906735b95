"""Matmuls of 8-bit integers by matrix instructions (Arm's `usmmla` and `smmla`): two rows by two columns at once.

The data is copied once, eight bytes of two rows next to each other; the weights are packed alike when compiling.
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil, prod
from typing import ClassVar

from schedules.annotations import KIND
from schedules.codegen.nest import (
    ROWS_AHEAD,
    Extent,
    allocate_tile,
    expression,
    lanes_of,
    parallel_grid,
    prefetch,
    repeat,
    sequence,
    static_grid,
    store,
)
from schedules.codegen.nest import load as element
from schedules.codegen.parallel import pays_off
from schedules.codegen.register_tile import RegisterTile
from schedules.config import Config, ConfigSpace
from schedules.instructions.products.operation import MATRIX_S8S8, MATRIX_U8S8, Operation, Product, joined, row_of
from schedules.instructions.products.table import matrix_product
from schedules.ir.expression import index
from schedules.ir.stages import dtype_of, shape_of
from schedules.ir.tir import Buffer, Expr, Index, Stmt, Tensor, te, tirx
from schedules.machine import Machine
from schedules.matmul.tiling import MatmulWorkload
from schedules.matmul.words import MatmulBf16, Parts, word_of_bytes
from schedules.matmul.writer import MatmulWriter, Tile
from schedules.rule import Priority
from schedules.stages.code import stage_code
from schedules.stages.fused_kernel import FusedKernel

MATMUL_MATRIX = "matmul-matrix"
MATRICES = (MATRIX_U8S8, MATRIX_S8S8)
DEPTH = MATRIX_U8S8.group
_WORD, _LANES = 4, 4  # bytes of a word, words of a register
_REGISTERS = 4  # for the weights of a step, and for the accumulators of two rows: eight columns


def matmul_matrix(data: Tensor, packed: Tensor, columns: int) -> Tensor:
    """The int32 matmul of 8-bit data (..., depth) and weights packed by `pack.pack_words` in groups of 8: (...,
    columns)."""
    steps, width = packed.shape[1], int(packed.shape[2]) // 2
    lead, depth = list(data.shape[:-1]), data.shape[-1]
    rows = prod(lead, start=tirx.IntImm("int64", 1))
    attrs = {KIND: MATMUL_MATRIX}

    def word(pair: Expr, step: Expr, place: Expr) -> Expr:
        row = tirx.min(2 * pair + place // 2, rows - 1)
        at = DEPTH * step + _WORD * (place % 2)
        values = [tirx.Cast("int32", data(*_places(row, lead), at + byte)) & 0xFF for byte in range(_WORD)]
        return word_of_bytes([tirx.if_then_else(at + byte < depth, each, 0) for byte, each in enumerate(values)])

    words = te.compute([(rows + 1) // 2, steps, _LANES], word, name="words", attrs=attrs)
    k = te.reduce_axis((tirx.IntImm("int64", 0), 2 * steps), name="k")

    def point(*at: Expr) -> Expr:
        row: Expr = tirx.IntImm("int64", 0)
        for place, size in zip(at[:-1], lead, strict=True):
            row = row * size + place
        a = words(row // 2, k // 2, row % 2 * 2 + k % 2)
        b = packed(at[-1] // width, k // 2, at[-1] % width * 2 + k % 2)
        operation = MATRIX_S8S8 if str(data.dtype) == "int8" else MATRIX_U8S8
        return te.sum(operation.expression(a, b), axis=k)

    return te.compute([*lead, tirx.IntImm("int64", columns)], point, name="matmul", attrs=attrs)


def _places(row: Expr, lead: list[Expr]) -> list[Expr]:
    """Leading indices of a flattened row number, for a tensor with these leading dimensions."""
    places: list[Buffer] = []
    for size in reversed(lead[1:]):
        places.insert(0, tirx.floormod(row, size))
        row = tirx.floordiv(row, size)
    return [row, *places] if lead else []


class MatmulMatrix(MatmulBf16):
    """Serves `matmul_matrix` kernels; `rows` is the number of rows of a tile, which spans one panel."""

    name: ClassVar[str] = MATMUL_MATRIX
    priority: ClassVar[int] = Priority.PACKED_MATRIX
    operation: ClassVar[Operation] = MATRIX_U8S8

    def workload(self, parts: Parts, machine: Machine) -> MatmulWorkload | None:
        return super().workload(parts, machine) if matrix_product(machine, "uint8", "int8") else None

    def space(self, workload: MatmulWorkload, machine: Machine) -> ConfigSpace:
        return ConfigSpace({"rows": _row_choices(machine)})

    def default(self, workload: MatmulWorkload, machine: Machine) -> Config:
        rows = workload.rows or 960

        def cost(tile: int) -> float:
            whole, rest = divmod(rows, tile)
            return whole * _cycles(tile, machine) + (_cycles(rest, machine) if rest else 0)

        return Config.of(rows=min(_row_choices(machine), key=lambda tile: (cost(tile), -tile)))

    def tiles(self, workload: MatmulWorkload, machine: Machine) -> Product | None:
        return None

    def words(self, parts: Parts, machine: Machine) -> Stmt:
        return _copy(parts, parts.form.rows.extent, machine)

    def writer(
        self, parts: Parts, fused: FusedKernel, machine: Machine, rows: int, tiles: Product | None = None
    ) -> MatmulWriter:
        combine = MATRIX_S8S8 if dtype_of(parts.words.loads[0].source) == "int8" else MATRIX_U8S8
        form = replace(parts.form, width=parts.form.width // 2)
        return _Writer(form, fused, machine, rows=rows, vectors=1, pack=False, combine=combine)


def _row_choices(machine: Machine) -> tuple[int, ...]:
    """Even row counts whose accumulators fit the registers next to a step's weights and two rows."""
    most = (machine.vector_registers - _REGISTERS - 1) // _REGISTERS
    return tuple(2 * pairs for pairs in range(1, most + 1))


def _cycles(rows: int, machine: Machine) -> float:
    """Cycles per step of a tile: the maximum of multiplications, loads and accumulator latency."""
    pairs = ceil(rows / 2)
    loads = (pairs + _REGISTERS) / machine.load_ports
    return max(pairs * _REGISTERS / machine.fma_ports, loads, float(machine.fma_latency))


class _Writer(MatmulWriter):
    """Tiles with 2 x 2 accumulators until the end. They start at even rows."""

    cuts_depth: ClassVar[bool] = False

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
                    self.combine(element(sums, pair, place), a[pair], element(packed, panel, k, place)),
                    pair,
                    place,
                )
                for pair, place in points
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
    assert stage.store is not None
    words, data = stage.store.buffer, stage.loads[0].source
    *lead, depth = shape_of(data)
    if not isinstance(depth, int) or depth % DEPTH:
        return stage_code(stage, machine)
    steps = 2 if depth % (2 * DEPTH) == 0 else 1
    pairs = (rows + 1) // 2 if isinstance(rows, int) else tirx.FloorDiv(rows + 1, index(2))

    def run(pair: Expr, k: Expr) -> Stmt:
        numbers = (2 * pair, tirx.min(2 * pair + 1, expression(rows) - 1))
        places = ([*_places(number, [expression(size) for size in lead])] for number in numbers)
        bytes_ = lanes_of(k * (DEPTH * steps), DEPTH * steps)
        low, high = (tirx.reinterpret(f"int32x{2 * steps}", element(data, *place, bytes_)) for place in places)
        if steps == 1:
            return store(words, joined(low, high), pair, k, lanes_of(0, _LANES))
        return sequence(
            [store(words, row_of(low, high, half), pair, 2 * k + half, lanes_of(0, _LANES)) for half in range(2)]
        )

    def pair_of_rows(values: list[Expr]) -> Stmt:
        return repeat("k", depth // (DEPTH * steps), lambda k: run(values[0], k))

    return parallel_grid([Extent("pair", pairs)], pair_of_rows, machine, parallel=pays_off(rows * depth, machine))
