"""Code for a tile of a matmul: accumulates in registers along the depth, then runs the epilogue."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from schedules.codegen.nest import ROWS_AHEAD, load, name_opaque, prefetch, repeat, sequence
from schedules.codegen.register_tile import RegisterTile, multiply_add
from schedules.codegen.tile_sums import Taps, block_sums, block_sums_without_room
from schedules.instructions.products.amx import ROW_BYTES
from schedules.instructions.products.product import Product
from schedules.ir.expression import index
from schedules.ir.inline import operations
from schedules.ir.stages import shape_of
from schedules.ir.tir import VECTORIZED, Buffer, Expr, Index, Stmt, tirx, tvm
from schedules.machine import Machine, dtype_bits
from schedules.matmul.form import MatmulForm
from schedules.matmul.tile import Combine, Tile
from schedules.stages.fused_kernel import FusedKernel

# An epilogue more expensive than this is written once as a loop instead of once per register.
_UNROLLED_EPILOGUE = 6


class TileWriter:
    """Writes the tiles of a matmul.

    With `tiles`, an instruction that sums in tiles, `rows` are those of a block and weights are packed by whole tiles.
    Else `rows` and `vectors` are the tile; `pack` says that panels of B are copied before, `depth` cuts the sum into
    blocks of that length whose part of B stays in the second cache (0: one block). `partial` sums a few steps in words
    of two float16, as `Operation.partial`.
    """

    has_room: ClassVar[bool] = True
    """Whether tiles may read beyond the last row of A."""

    def __init__(
        self,
        form: MatmulForm,
        fused: FusedKernel,
        machine: Machine,
        *,
        rows: int,
        vectors: int,
        pack: bool,
        depth: int = 0,
        combine: Combine | None = None,
        partial: Combine | None = None,
        tiles: Product | None = None,
    ) -> None:
        self.form = form
        self.fused = fused
        self.machine = machine
        self.lanes = machine.lanes(form.reduction.dtype)
        self.tile_rows = rows
        self.tiles = tiles
        self.panel = form.width or vectors * self.lanes
        self.pack = pack and not form.width
        self.dtype = form.reduction.dtype
        # Rows of A are read as vectors, whose lanes multiply vectors of B.
        packed = self.pack or bool(form.width)
        self.by_lane = machine.lane_products and packed and combine is None and form.has_rows_of_floats
        self.combine = combine if combine is not None else multiply_add
        self.partial = partial
        total = form.depth.extent
        self.block = depth if isinstance(total, int) and 0 < depth < total else 0
        self._sizes: list[Stmt] = []  # what names the number of rows, where it is symbolic, and what follows from it
        self._rows_count = self._named("rows", form.rows.extent)

    def _named(self, name: str, size: Expr) -> Expr:
        """Bind a size to a variable: every index uses it, and it may be a product of several computed sizes."""
        return size if isinstance(size, tirx.Var) else name_opaque(name, size, self._sizes)

    def _tile(self, at: Tile) -> Stmt:
        form, block, column = self.form, at.block, at.column
        if self.tiles is not None:
            return self._tile_in_memory(self.tiles, at)
        assert isinstance(at.rows, int)
        tile = RegisterTile(at.rows, at.width, self.lanes, self.dtype, self.combine, self.partial)
        first = index(0) if block is None else block.start

        def begin(i: int, lane: Expr) -> Expr:
            if block is None:
                return form.start_at(at.batch, at.row + i, column + lane)
            if block.first:
                return tirx.const(0, self.dtype)
            return tirx.BufferLoad(block.waiting, [block.row + i, lane])

        def a(i: int, k: Expr) -> Expr:
            return form.a_at(at.batch, at.row + i, k if block is None else first + k)

        def b(k: Expr, lane: Expr) -> Expr:
            return at.load(k if block is None else first + k, lane)

        if block is None or block.last:
            end = self._finish(tile, at)
        else:
            waiting, place = block.waiting, block.row
            end = tile.stored(lambda i, lane: (waiting, [place + i, lane]))
        depth = form.depth.extent if block is None else block.depth

        def ahead(k: Expr) -> list[Stmt]:
            """Prefetch the next rows: packed panels are contiguous in memory."""
            if not form.width:
                return []
            asked = [b(k + ROWS_AHEAD, index(start)) for start in range(0, at.width, self.lanes)]
            return [prefetch(each.source, *each.indices) for each in asked if isinstance(each, tvm.ir.TensorLoad)]

        def a_lanes(i: int, k: Expr) -> Expr:
            return form.a_lanes(at.batch, at.row + i, k if block is None else first + k, self.lanes)

        return sequence(tile.code(depth, a, b, begin, end, ahead, a_lanes if self.by_lane else None))

    def _finish(self, tile: RegisterTile, at: Tile) -> list[Stmt]:
        """The epilogue on the tile. An expensive one runs as loops over a copy, so that the sums stay in registers."""

        def result(value: Expr, i: Index, lane: Expr) -> Stmt:
            return self.fused.finish(value, self.form.c_indices(at.batch, at.row + i, at.column + lane))

        probe = result(tile.sum(0, index(0)), index(0), index(0))
        cheap, expensive = operations(probe)
        if not expensive and cheap <= _UNROLLED_EPILOGUE:
            return tile.each(lambda i, place, lane: result(tile.sum(i, place), index(i), lane))
        return self._finish_copy(tile, at)

    def _finish_copy(self, tile: RegisterTile, at: Tile) -> list[Stmt]:
        """The epilogue on a copy of the tile."""
        assert isinstance(at.rows, int)
        copy = tirx.decl_buffer([at.rows, at.width], self.dtype, "tile", layout=None)
        copies = tile.stored(lambda i, lane: (copy, [index(i), lane]))
        return [tirx.AllocBuffer(copy), *copies, self._finish_rows(copy, at)]

    def _finish_rows(self, sums: Buffer, at: Tile) -> Stmt:
        """The epilogue on sums in memory."""

        def vector(i: Expr, first: Index, lanes: int) -> Stmt:
            def element(lane: Expr) -> Stmt:
                return self.fused.finish(
                    load(sums, i, first + lane), self.form.c_indices(at.batch, at.row + i, at.column + first + lane)
                )

            return repeat("lane", lanes, element, VECTORIZED)

        return repeat("i", at.rows, lambda i: self._row_of(i, at.width, vector))

    def _tile_in_memory(self, instruction: Product, at: Tile) -> Stmt:
        """A block of rows computed by an instruction with tile accumulators; the sums are stored to memory."""
        sums = tirx.decl_buffer([self.tile_rows, self.panel], self.dtype, "tile", layout=None)
        data = self.form.a.source
        depth = shape_of(data)[-1] * dtype_bits(str(data.dtype)) // 8
        weights = at.load(index(0), index(0))
        taps = Taps.run(depth // ROW_BYTES)

        def first(i: Expr) -> Expr:
            return self.form.a_element(at.batch, at.row + i)

        summed = block_sums if self.has_room else block_sums_without_room
        blocks = summed(instruction, first, depth, taps, weights, sums, at.rows)
        return sequence(tirx.AllocBuffer(sums), blocks, self._finish_rows(sums, at))

    def _row_of(self, i: Expr, width: int, vector: Callable[[Expr, Index, int], Stmt]) -> Stmt:
        whole, rest = divmod(width, self.lanes)
        parts = []
        if whole:
            parts.append(repeat("vector", whole, lambda u: vector(i, u * self.lanes, self.lanes)))
        if rest:
            parts.append(vector(i, whole * self.lanes, rest))
        return sequence(parts)
