"""Matmuls and convolutions of narrow operands on tensor cores.

Each warp computes 16 by 16 fragments of a tile of the matmul.

Shared memory holds slabs of 16 along the depth: rows of a slab are padded so that eight of them, which are read at
once, fall into different banks, slabs are 32 bytes apart for threads that write to several, and each 16 by 16 part is
aligned to 32 bytes. At the end sums pass through shared memory, since only there their layout over threads is known.
"""

from __future__ import annotations

from typing import ClassVar

from schedules.codegen.nest import lanes_of, load, repeat, sequence, static_grid, store, when
from schedules.gpu.machine import MIN_CAPABILITY, GpuMachine
from schedules.gpu.matmul_form import WIDER, DepthSplit, GpuMatmulForm
from schedules.gpu.matmul_rule import TiledMatmulRule
from schedules.gpu.tile_code import SHARED, BlockTile, Part, TileWriter, wait
from schedules.ir.expression import expression, index
from schedules.ir.tir import Buffer, Expr, Stmt, tirx
from schedules.machine import dtype_bits
from schedules.rule import GpuPriority

SIDE = 16  # side of the 16 x 16 tiles of the operations
_PITCH = {8: 16, 16: 24}  # pitch of a slab's rows in elements, by bits of an element
_STAGE_PADDING = 4
_WARP = 32


class Tile(BlockTile):
    """A tile of tensor core fragments, 16 by 16."""

    @property
    def fragments(self) -> tuple[int, int]:
        """Fragments of a warp, down and across."""
        down = 4 if self.rows >= 128 else min(2, self.rows // SIDE)
        return down, min(2, self.columns // SIDE)

    @property
    def warps(self) -> tuple[int, int]:
        """Numbers of warps down and across."""
        down, across = self.fragments
        return self.rows // SIDE // down, self.columns // SIDE // across

    @property
    def threads(self) -> int:
        return _WARP * self.warps[0] * self.warps[1]

    def shared_bytes(self, bits: int) -> int:
        own = (self.rows + self.columns) * _PITCH[bits] + 2 * _skew(bits)
        slabs = own * (self.depth // SIDE) * bits // 8
        across = SIDE * self.fragments[1] + _STAGE_PADDING
        return slabs + self.threads // _WARP * SIDE * across * 4


class _TensorWriter(TileWriter):
    tile: Tile

    def __init__(self, form: GpuMatmulForm, tile: BlockTile, split: DepthSplit | None) -> None:
        super().__init__(form, tile, split)
        self.total = WIDER.get(self.dtype, self.dtype)
        self.pitch = _PITCH[dtype_bits(self.dtype)]

    def slab_shape(self, rows: int) -> list[int]:
        return [self.depth // SIDE, self._slab(rows)]

    def _slab(self, rows: int) -> int:
        """Elements from a slab to the next: the same row is in other banks there."""
        return rows * self.pitch + _skew(dtype_bits(self.dtype))

    def prepare(self) -> None:
        down, across = self.tile.fragments
        self.warp = self.bound("warp", tirx.floordiv(self.thread, expression(_WARP)))
        self.lane = self.bound("lane", tirx.floormod(self.thread, expression(_WARP)))
        square = SIDE * SIDE
        self.sums = self.allocated("sums", [down * across * square], self.total, "wmma.accumulator")
        self.parts_of_warp = (
            self.allocated("a_square", [down * square], self.dtype, "wmma.matrix_a"),
            self.allocated("b_square", [across * square], self.dtype, "wmma.matrix_b"),
        )
        staged = [self.threads // _WARP, SIDE, SIDE * across + _STAGE_PADDING]
        self.stage = self.allocated("stage", staged, self.total, SHARED)
        zero = tirx.const(0, self.total)
        # Touch it now; otherwise TVM aliases it with a buffer of another dtype and fails.
        self.statements.append(store(self.stage, zero, self.warp, tirx.floormod(self.lane, expression(SIDE)), 0))
        for each in range(down * across):
            call = tirx.tvm_fill_fragment(self.sums.data, SIDE, SIDE, SIDE, index(each, "int32"), zero)
            self.statements.append(tirx.Evaluate(call))

    def kept(self, part: Part, turn: int, row: Expr, depth: Expr) -> Stmt:
        value = load(part.registers, lanes_of(turn * part.width, part.width))
        side = expression(SIDE)
        position = lanes_of(row * self.pitch + tirx.floormod(depth, side), part.width)
        return store(part.slabs, value, tirx.floordiv(depth, side), position)

    def multiplied(self) -> list[Stmt]:
        down, across = self.tile.fragments
        calls = []
        for slab in range(self.depth // SIDE):
            for part, count, fragments, at, layout in (
                (self.a, down, self.parts_of_warp[0], self._own[0], "row_major"),
                (self.b, across, self.parts_of_warp[1], self._own[1], "col_major"),
            ):
                for number in range(count):
                    offset = slab * self._slab(part.rows) + (at * count + number) * SIDE * self.pitch
                    pointer = _pointer(part.slabs, "r", offset, SIDE * self.pitch)
                    position = (fragments.data, SIDE, SIDE, SIDE, index(number, "int32"))
                    calls.append(tirx.tvm_load_matrix_sync(*position, pointer, self.pitch, layout))
            for i, j in static_grid(down, across):
                total = (self.sums.data, index(i * across + j, "int32"))
                factors = (self.parts_of_warp[0].data, index(i, "int32"), self.parts_of_warp[1].data, index(j, "int32"))
                calls.append(tirx.tvm_mma_sync(*total, *factors, *total))
        return [tirx.Evaluate(each) for each in calls]

    @property
    def _own(self) -> tuple[Expr, Expr]:
        """Row and column of this warp in the grid of warps."""
        across = expression(self.tile.warps[1])
        return tirx.floordiv(self.warp, across), tirx.floormod(self.warp, across)

    def finished(self) -> list[Stmt]:
        return [self._finished(row) for row in range(self.tile.fragments[0])]

    def _finished(self, square_row: int) -> Stmt:
        """The sums of one row of a warp's 16 x 16 tiles, through shared memory to the result."""
        down, across = self.tile.fragments
        pitch = SIDE * across + _STAGE_PADDING
        statements = [wait()]
        for square in range(across):
            offset = self.warp * SIDE * pitch + square * SIDE
            pointer = _pointer(self.stage, "w", offset, SIDE * pitch)
            position = (self.sums.data, SIDE, SIDE, SIDE, index(square_row * across + square, "int32"))
            statements.append(tirx.Evaluate(tirx.tvm_store_matrix_sync(*position, pointer, pitch, "row_major")))
        first_row = self.a.start + (self._own[0] * down + square_row) * SIDE
        first_column = self.b.start + self._own[1] * across * SIDE
        width = expression(SIDE * across)

        def element(turn: Expr | int) -> Stmt:
            position = expression(turn) * _WARP + self.lane
            row, column = tirx.floordiv(position, width), tirx.floormod(position, width)
            value = load(self.stage, self.warp, row, column)
            if self.form.reduction.dtype != self.total:
                value = tirx.Cast(self.form.reduction.dtype, value)
            at = (first_row + row, first_column + column)
            return when(self.is_inside(*at), self.stored(value, *at))

        return sequence(statements, wait(), repeat("turn", SIDE * SIDE * across // _WARP, element))


def _skew(bits: int) -> int:
    """Elements of 32 bytes."""
    return 32 * 8 // bits


def _pointer(buffer: Buffer, mode: str, offset: Expr, extent: int) -> Expr:
    """An address in shared memory that is read ("r") or written ("w")."""
    return buffer.access_ptr(mode, ptr_type=str(buffer.dtype), offset=offset, extent=extent)


class GpuTensorCores(TiledMatmulRule):
    """Any matmul whose operand types tensor cores support; sizes are padded with zeros."""

    name: ClassVar[str] = "gpu-tensor-cores"
    version: ClassVar[int] = 3
    priority: ClassVar[int] = GpuPriority.TENSOR_CORES
    knobs: ClassVar[dict[str, tuple[int, ...]]] = {
        "rows": (16, 32, 64, 128),
        "columns": (16, 32, 64, 128),
        "depth": (16, 32, 64),
    }
    tiles: ClassVar[type[BlockTile]] = Tile
    writer: ClassVar[type[TileWriter]] = _TensorWriter
    full_warps: ClassVar[int] = 4
    launch_cost: ClassVar[int] = 1_300_000
    load_cost: ClassVar[int] = 32

    def multiplies(self, dtype: str, machine: GpuMachine) -> bool:
        return dtype in MIN_CAPABILITY and machine.compute_capability >= MIN_CAPABILITY[dtype]
