"""Products and convolutions of float32, which stay float32: no tensor cores.

A tile of a product without tensor cores: each thread sums a small rectangle of it in registers.

Neighbouring threads have neighbouring columns, so that what they read of shared memory and write to the result lies
side by side; a thread's rows are neighbours, read as vectors that all threads of a line share.
"""

from __future__ import annotations

from typing import ClassVar

from schedules.codegen.nest import lanes_of, load, repeat, sequence, static_grid, store, when
from schedules.gpu.machine import GpuMachine
from schedules.gpu.product_rule import TiledProductRule
from schedules.gpu.tile_code import BlockTile, Part, TileWriter
from schedules.ir.expression import expression
from schedules.ir.tir import Expr, Stmt, tirx
from schedules.machine import dtype_bits
from schedules.rule import GpuPriority

_PADDING = 4
_UNROLLED = tirx.ForKind.UNROLLED


class PlainTile(BlockTile):
    """A tile that threads sum in their registers."""

    @property
    def own(self) -> tuple[int, int]:
        """A thread's rows and columns."""
        return 8 if self.rows >= 128 else 4, 8 if self.columns >= 128 else 4

    @property
    def lines(self) -> tuple[int, int]:
        """Threads down and across."""
        return self.rows // self.own[0], self.columns // self.own[1]

    @property
    def threads(self) -> int:
        return self.lines[0] * self.lines[1]

    def shared_bytes(self, bits: int) -> int:
        return (self.rows + self.columns + 2 * _PADDING) * self.depth * bits // 8


class _PlainWriter(TileWriter):
    tile: PlainTile

    @property
    def total(self) -> str:
        """The element type of sums."""
        return self.form.reduction.dtype

    def slab_shape(self, rows: int) -> list[int]:
        return [self.depth, rows + _PADDING]

    def prepare(self) -> None:
        across = expression(self.tile.lines[1])
        rows, columns = self.tile.own
        self.line = self.bound("line", tirx.floordiv(self.thread, across))
        self.place = self.bound("place", tirx.floormod(self.thread, across))
        self.sums = self.allocated("sums", [rows * columns], self.total, "local")
        self.factors = (
            self.allocated("a_own", [rows], self.dtype, "local"),
            self.allocated("b_own", [columns], self.dtype, "local"),
        )
        zero = tirx.const(0, self.total)
        self.statements.append(repeat("empty", rows * columns, lambda each: store(self.sums, zero, each), _UNROLLED))

    def kept(self, part: Part, turn: int, row: Expr, depth: Expr) -> Stmt:
        values = [load(part.registers, turn * part.width + each) for each in range(part.width)]
        return sequence([store(part.slabs, value, depth + each, row) for each, value in enumerate(values)])

    def multiplied(self) -> list[Stmt]:
        rows, columns = self.tile.own
        vector = min(rows, 128 // dtype_bits(self.dtype))
        a, b = self.factors

        def step(at: Expr) -> Stmt:
            statements = []
            for first in range(0, rows, vector):
                value = load(self.a.slabs, at, lanes_of(self.line * rows + first, vector))
                statements.append(store(a, value, lanes_of(first, vector)))
            for each in range(columns):
                value = load(self.b.slabs, at, self.place + each * self.tile.lines[1])
                statements.append(store(b, value, each))
            for i, j in static_grid(rows, columns):
                factors = [value.astype(self.total) for value in (load(a, i), load(b, j))]
                index = i * columns + j
                statements.append(store(self.sums, load(self.sums, index) + factors[0] * factors[1], index))
            return sequence(statements)

        return [repeat("depth", self.depth, step, _UNROLLED)]

    def finished(self) -> list[Stmt]:
        rows, columns = self.tile.own

        def element(i: Expr, j: Expr) -> Stmt:
            row = self.a.start + self.line * rows + i
            column = self.b.start + self.place + j * self.tile.lines[1]
            value = load(self.sums, i * columns + j)
            return when(self.is_inside(row, column), self.stored(value, row, column))

        return [
            repeat("i", rows, lambda i: repeat("j", columns, lambda j: element(i, j), _UNROLLED), _UNROLLED),
        ]


class GpuProducts(TiledProductRule):
    """A product of float32 in tiles of shared memory and registers."""

    name: ClassVar[str] = "gpu-products"
    version: ClassVar[int] = 3
    priority: ClassVar[int] = GpuPriority.PRODUCT
    knobs: ClassVar[dict[str, tuple[int, ...]]] = {
        "rows": (16, 32, 64, 128),
        "columns": (32, 64, 128),
        "depth": (8, 16),
    }
    tiles: ClassVar[type[BlockTile]] = PlainTile
    writer: ClassVar[type[TileWriter]] = _PlainWriter
    full_warps: ClassVar[int] = 8
    launch_cost: ClassVar[int] = 330_000
    load_cost: ClassVar[int] = 8

    def multiplies(self, dtype: str, machine: GpuMachine) -> bool:
        return dtype == "float32"
