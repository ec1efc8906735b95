"""Code for a matrix product: a register tile that holds `rows x columns` sums while it walks along the depth.

Threads share the panels of B (and chunks of rows when panels are few). Where B is not stored in panels, each task packs
its panel first, unless there are too few rows to pay for that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from schedules.codegen.nest import (
    ROWS_AHEAD,
    Extent,
    expression,
    load,
    name_opaque,
    parallel_grid,
    prefetch,
    repeat,
    sequence,
    store,
)
from schedules.codegen.parallel import MIN_PARALLEL_WORK, pays_off
from schedules.codegen.register_tile import RegisterTile, pieces
from schedules.ir.expression import index, map_loads
from schedules.ir.inline import operations
from schedules.ir.tir import VECTORIZED, Expr, Stmt, tirx, tvm
from schedules.machine import Machine, dtype_bits
from schedules.matmul.form import MatmulForm
from schedules.matmul.row_chunks import falling_halves, row_chunks, tiles_of_chunk
from schedules.stages.fused_kernel import FusedKernel

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Index, PrimFunc

Batch = Mapping[Any, Expr]
# Row tiles, rows that are left, chunks, and row tiles of a chunk.
_Plan = tuple["Index", "Index", "Index", "Index"]
# B at (depth, column counted from the start of the panel).
PanelLoad = Callable[[Expr, Expr], Expr]

# An epilogue more expensive than this is written once as a loop instead of once per register.
_UNROLLED_EPILOGUE = 6


@dataclass(frozen=True, eq=False)
class Block:
    """A part of the sum: `depth` terms from `start` on, added to what `waiting` holds from `row` on."""

    start: Expr
    depth: int
    waiting: Expr
    row: Expr
    last: bool


class MatmulWriter:
    """Writes one product.

    `rows` and `vectors` are the tile, `pack` says whether panels of B are copied first, `depth` cuts the sum into
    blocks of that length whose part of B stays in the second cache (0: one block).

    Tasks are ordered by panels, or by chunks of rows where `rows_first`: then a thread computes the same rows as in
    kernels before and behind that share rows out, which are in its cache.
    """

    rows_first: ClassVar[bool] = False

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
        combine: Callable[[Expr, Expr, Expr], Expr] | None = None,
    ) -> None:
        self.form = form
        self.fused = fused
        self.machine = machine
        self.lanes = machine.lanes(form.reduction.dtype)
        self.tile_rows = rows
        self.panel = form.width or vectors * self.lanes
        self.pack = pack and not form.width
        self.dtype = form.reduction.dtype
        # Rows of A are read as vectors, whose lanes multiply vectors of B.
        packed = self.pack or bool(form.width)
        self.by_lane = machine.lane_products and packed and combine is None and form.has_rows_of_floats
        self.combine = combine if combine is not None else lambda total, a, b: total + a * b
        total = form.depth.extent
        self.block = depth if isinstance(total, int) and 0 < depth < total else 0
        self._sizes: list[Stmt] = []  # what names the number of rows, where it is symbolic, and what follows from it
        self._rows_count = self._named("rows", form.rows.extent)

    def _named(self, name: str, size: Expr) -> Expr:
        """A size as one variable: every index holds it, and it may be the product of several computed sizes."""
        return size if isinstance(size, tirx.Var) else name_opaque(name, size, self._sizes)

    # The loops outside the panels.

    def function(self) -> PrimFunc:
        """The kernel's PrimFunc."""
        return self.fused.function(self.statement(), self.machine)

    def statement(self) -> Stmt:
        """The product alone."""
        columns = self.form.columns
        whole = isinstance(columns, int)
        product = self._tasks(*divmod(columns, self.panel)) if whole else self._symbolic_columns(columns)
        return sequence(*self._sizes, product)

    def _tasks(self, whole: int, rest: int) -> Stmt:
        panels = whole + bool(rest)
        panel = self.panel

        def body(batch: Batch, at: Expr, rows: Callable[..., Stmt]) -> Stmt:
            full = rows(batch, at * panel, panel) if whole else None
            short = rows(batch, index(whole * panel), rest) if rest else None
            if full is None or short is None:
                return full if short is None else short
            return tirx.IfThenElse(at < whole, full, short)

        return self._parallel(panels, body)

    def _symbolic_columns(self, columns: Expr) -> Stmt:
        """Whole panels, then vectors, then single columns."""
        parts = []
        done: Expr = index(0)
        for width in sorted({self.panel, self.lanes, 1}, reverse=True):
            count = tirx.FloorDiv(columns - done, index(width))
            first = done

            def body(
                batch: Batch, at: Expr, rows: Callable[..., Stmt], width: int = width, first: Expr = first
            ) -> Stmt:
                return rows(batch, first + at * width, width)

            parts.append(self._parallel(count, body))
            done = done + count * width
        return sequence(parts)

    def _parallel(self, panels: Index, body: Callable[[Batch, Expr, Callable[..., Stmt]], Stmt]) -> Stmt:
        """Loops over batch, panels and chunks of rows; `body` writes a task with the function it is given."""
        batch_axes = self.form.batch
        tiles, rest = self._row_tiles()
        chunks, per_chunk = self._row_chunks(tiles, panels)
        extents = [Extent(axis.name, axis.extent) for axis in batch_axes]
        inner = [Extent("panel", panels), Extent("chunk", chunks)]
        extents += inner[::-1] if self.rows_first else inner
        kept = [each for each in extents if each.extent != 1]

        def task(values: list[Expr]) -> Stmt:
            found = iter(values)
            at = [index(0) if each.extent == 1 else next(found) for each in extents]
            batch = {axis.var: value for axis, value in zip(batch_axes, at, strict=False)}
            panel, chunk = (at[-1], at[-2]) if self.rows_first else (at[-2], at[-1])

            def rows(batch: Batch, column: Expr, width: int) -> Stmt:
                return self._rows(batch, column, width, chunk, (tiles, rest, chunks, per_chunk))

            return body(batch, panel, rows)

        return parallel_grid(kept, task, self.machine, parallel=self._threads())

    def _threads(self) -> bool | Expr:
        if self._weight_bytes() >= self.machine.l2_bytes // 2:  # which a row alone waits for
            return self.machine.cores > 1
        return pays_off(self._multiplications(), self.machine, MIN_PARALLEL_WORK * self.lanes // 4)

    def _weight_bytes(self) -> int:
        """Bytes of packed weights; 0 where B is not packed, or its size is symbolic."""
        columns, depth = self.form.columns, self.form.depth.extent
        known = self.form.width and isinstance(columns, int) and isinstance(depth, int)
        return columns * depth * dtype_bits(str(self.form.b.source.dtype)) // 8 if known else 0

    def _multiplications(self) -> Expr:
        amount: Index = 1
        extents = [*(axis.extent for axis in self.form.batch), self._rows_count, self.form.columns]
        for extent in (*extents, self.form.depth.extent):
            amount = amount * extent
        return amount

    def _row_tiles(self) -> tuple[Index, Index]:
        """(whole row tiles, rows left over)."""
        rows = self._rows_count
        if isinstance(rows, int):
            return divmod(rows, self.tile_rows)
        tiles = self._named("row_tiles", tirx.FloorDiv(rows, index(self.tile_rows)))
        return tiles, self._named("rest", rows - tiles * self.tile_rows)

    def _row_chunks(self, tiles: Expr, panels: Index) -> tuple[Index, Index]:
        """(chunks of rows, row tiles of a chunk): as few as give every core enough tasks."""
        batch = [axis.extent for axis in self.form.batch]
        return row_chunks(tiles, [panels, *batch], self.machine.cores)

    # One task: a panel of B and a chunk of rows.

    def _rows(
        self, batch: Batch, column: Expr, width: int, chunk: Expr, plan: tuple[Index, Index, Index, Index]
    ) -> Stmt:
        tiles, rest, chunks, per_chunk = plan
        statements, scratch = self._packed_panel(batch, column, width) if self.pack else ([], None)
        load = self._panel_load(batch, column, scratch)
        first = chunk * per_chunk
        parts = list(statements)
        if not isinstance(tiles, int) or tiles:
            count = tiles_of_chunk(per_chunk, tiles, first, chunks)
            if self.block:
                parts += self._blocked_tiles(batch, column, width, load, first, count, per_chunk)
            else:

                def tile(i: Expr) -> Stmt:
                    return self._tile(batch, (first + i) * self.tile_rows, self.tile_rows, column, width, load)

                parts.append(repeat("tile", count, tile))
        left = self._rest_rows(batch, column, width, load, tiles, rest)
        if left is not None:
            last = isinstance(chunks, int) and chunks == 1
            parts.append(left if last else tirx.IfThenElse(tirx.EQ(chunk, chunks - index(1)), left, None))
        return sequence(parts)

    def _blocked_tiles(
        self, batch: Batch, column: Expr, width: int, load: PanelLoad, first: Expr, count: Index, per_chunk: int
    ) -> list[Stmt]:
        """The row tiles of a task in blocks of depth; the sums wait in memory between blocks."""
        waiting = tirx.decl_buffer([per_chunk * self.tile_rows, width], self.dtype, "waiting", layout=None)

        def over_rows(start: Expr, depth: int, last: bool) -> Stmt:
            def tile(i: Expr) -> Stmt:
                part = Block(start, depth, waiting, expression(i * self.tile_rows), last)
                return self._tile(batch, (first + i) * self.tile_rows, self.tile_rows, column, width, load, part)

            return repeat("tile", count, tile)

        def clear(i: Expr) -> Stmt:
            value = self.form.start_at(batch, first * self.tile_rows + i, column)
            stores = [
                repeat("lane", lanes, lambda lane, at=at: store(waiting, value, i, at + lane), VECTORIZED)  # type: ignore[misc]
                for at, lanes in pieces(width, self.lanes)
            ]
            return sequence(stores)

        total = self.form.depth.extent
        whole = (total - 1) // self.block  # the last block, whole or not, finishes
        return [
            tirx.AllocBuffer(waiting),
            repeat("row", count * self.tile_rows, clear),
            repeat("block", whole, lambda b: over_rows(expression(b * self.block), self.block, last=False)),
            over_rows(index(whole * self.block), total - whole * self.block, last=True),
        ]

    def _rest_rows(
        self, batch: Batch, column: Expr, width: int, load: PanelLoad, tiles: Expr, rest: Expr
    ) -> Stmt | None:
        if isinstance(rest, int):
            return self._tile(batch, index(tiles * self.tile_rows), rest, column, width, load) if rest else None
        parts = []
        done = tiles * self.tile_rows
        for size in falling_halves(self.tile_rows):
            count = tirx.FloorDiv(rest, index(size))
            start = done

            def tile(i: Expr, size: int = size, start: Expr = start) -> Stmt:
                return self._tile(batch, start + i * size, size, column, width, load)

            parts.append(repeat("tile", count, tile))
            done = done + count * size
            rest = rest - count * size
        return sequence(parts) if parts else None

    def _panel_load(self, batch: Batch, column: Expr, scratch: Expr | None) -> PanelLoad:
        form = self.form
        if scratch is not None:
            return lambda depth, lane: tirx.BufferLoad(scratch, [depth, lane])
        if not form.width:
            return lambda depth, lane: form.b_at(batch, depth, column + lane)
        panel = tirx.FloorDiv(column, index(form.width))

        def packed(depth: Expr, lane: Expr) -> Expr:
            value = form.b_at(batch, depth, column)
            return map_loads(value, lambda node: tirx.BufferLoad(node.source, [*node.indices[:-3], panel, depth, lane]))

        return packed

    def _packed_panel(self, batch: Batch, column: Expr, width: int) -> tuple[list[Stmt], Expr]:
        """Statements that copy a panel of B, and the copy (depth, width), converted to the sum's type."""
        form = self.form
        depth = form.depth.extent
        scratch = tirx.decl_buffer([depth, width], self.dtype, "panel", layout=None)

        def row(k: Expr) -> Stmt:
            def piece(at: int, lanes: int) -> Stmt:
                return repeat(
                    "lane",
                    lanes,
                    lambda lane: store(scratch, form.b_at(batch, k, column + (at + lane)), k, at + lane),
                    VECTORIZED,
                )

            return sequence([piece(at, lanes) for at, lanes in pieces(width, self.lanes)])

        return [tirx.AllocBuffer(scratch), repeat("k", depth, row)], scratch

    # The register tile.

    def _tile(
        self,
        batch: Batch,
        row: Expr,
        rows: int,
        column: Expr,
        width: int,
        load: PanelLoad,
        block: Block | None = None,
    ) -> Stmt:
        form = self.form
        tile = RegisterTile(rows, width, self.lanes, self.dtype, self.combine)
        first = index(0) if block is None else block.start

        def begin(i: int, lane: Expr) -> Expr:
            if block is None:
                return form.start_at(batch, row + i, column + lane)
            return tirx.BufferLoad(block.waiting, [block.row + i, lane])

        def a(i: int, k: Expr) -> Expr:
            return form.a_at(batch, row + i, k if block is None else first + k)

        def b(k: Expr, lane: Expr) -> Expr:
            return load(k if block is None else first + k, lane)

        if block is None or block.last:
            end = self._finish(tile, batch, row, rows, column, width)
        else:
            waiting, place = block.waiting, block.row
            end = tile.stored(lambda i, lane: (waiting, [place + i, lane]))
        depth = form.depth.extent if block is None else block.depth

        def ahead(k: Expr) -> list[Stmt]:
            """Packed panels follow each other in memory: what comes next is asked for."""
            if not form.width:
                return []
            asked = [b(k + ROWS_AHEAD, index(at)) for at in range(0, width, self.lanes)]
            return [prefetch(each.source, *each.indices) for each in asked if isinstance(each, tvm.ir.TensorLoad)]

        def a_lanes(i: int, k: Expr) -> Expr:
            return form.a_lanes(batch, row + i, k if block is None else first + k, self.lanes)

        return sequence(tile.code(depth, a, b, begin, end, ahead, a_lanes if self.by_lane else None))

    def _finish(self, tile: RegisterTile, batch: Batch, row: Expr, rows: int, column: Expr, width: int) -> list[Stmt]:
        """The epilogue on the tile. An expensive one runs as loops over a copy, so that the sums stay in registers."""

        def result(value: Expr, i: Index, lane: Expr) -> Stmt:
            return self.fused.finish(value, self.form.c_indices(batch, row + i, column + lane))

        probe = result(tile.sum(0, index(0)), index(0), index(0))
        cheap, expensive = operations(probe)
        if not expensive and cheap <= _UNROLLED_EPILOGUE:
            return tile.each(lambda i, place, lane: result(tile.sum(i, place), index(i), lane))
        copy = tirx.decl_buffer([rows, width], self.dtype, "tile", layout=None)

        def vector(i: Expr, at: Expr, lanes: int) -> Stmt:
            return repeat("lane", lanes, lambda lane: result(load(copy, i, at + lane), i, at + lane), VECTORIZED)

        copies = tile.stored(lambda i, lane: (copy, [index(i), lane]))
        return [tirx.AllocBuffer(copy), *copies, repeat("i", rows, lambda i: self._row_of(i, width, vector))]

    def _row_of(self, i: Expr, width: int, vector: Callable[[Expr, Index, int], Stmt]) -> Stmt:
        whole, rest = divmod(width, self.lanes)
        parts = []
        if whole:
            parts.append(repeat("vector", whole, lambda u: vector(i, u * self.lanes, self.lanes)))
        if rest:
            parts.append(vector(i, whole * self.lanes, rest))
        return sequence(parts)
