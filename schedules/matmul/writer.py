"""Code for a matmul: a register tile that accumulates `rows x columns` results along the depth.

Threads share the panels of B, chunks of rows, and, if both are few, parts of the depth (see `product_cut`). If B is not
stored in panels, each task packs its panel first, unless there are too few rows for that to pay off.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from schedules.codegen.nest import (
    ROWS_AHEAD,
    Extent,
    load,
    name_opaque,
    parallel_grid,
    prefetch,
    repeat,
    repeat_symbolic,
    sequence,
    split_repeat,
    store,
)
from schedules.codegen.parallel import MIN_PARALLEL_WORK, pays_off
from schedules.codegen.register_tile import (
    RegisterTile,
    Taps,
    block_sums,
    block_sums_without_room,
    multiply_add,
    pieces,
)
from schedules.instructions.dot_products.amx import ROW_BYTES
from schedules.instructions.dot_products.operation import Instruction
from schedules.ir.expression import buffers_loaded, expression, index, map_loads, uses
from schedules.ir.inline import operations
from schedules.ir.numbers import falling_halves
from schedules.ir.stages import product, shape_of
from schedules.ir.tir import VECTORIZED, Buffer, Expr, Index, PrimFunc, Stmt, tirx, tvm
from schedules.machine import Machine, dtype_bits
from schedules.matmul.form import MatmulForm
from schedules.matmul.tiling import (
    CHUNK_TILES,
    MatmulSizes,
    MatmulSplit,
    row_chunks_at_run_time,
    split_matmul,
    tiles_of_chunk,
)
from schedules.stages.fused_kernel import FusedKernel

# A tile of a matmul: its position, and the part of the reduction that it covers.

Batch = Mapping[Any, Expr]
# B at (depth, column counted from the start of the panel).
PanelLoad = Callable[[Expr, Expr], Expr]
# Maps (sum, a, b) to the sum plus the product.
Combine = Callable[[Expr, Expr, Expr], Expr]


@dataclass(frozen=True, eq=False)
class Block:
    """A part of the reduction: `depth` terms starting at `start`, added to the sums in `waiting` from `row` on, or to
    zero if `first`. The result is stored there, too, or finished if `last`."""

    start: Expr
    depth: Index
    waiting: Expr
    row: Expr
    last: bool
    first: bool = False


@dataclass(frozen=True, eq=False)
class PartialSums:
    """Partial sums of a reduction split into `parts`: (batch, panels, parts, rows) rows of a panel's columns."""

    sums: Expr
    batch: tuple[int, ...]
    panels: int
    parts: int
    rows: int
    depth: int

    @classmethod
    def of(cls, form: MatmulForm, panels: int, parts: int, width: int) -> PartialSums:
        """The partial sums of panels of `width` columns."""
        batch, rows = tuple(axis.extent for axis in form.batch), form.rows.extent
        positions = math.prod(batch) * panels * parts * rows
        sums = tirx.decl_buffer([positions, width], form.reduction.dtype, "partial", layout=None)
        return cls(sums, batch, panels, parts, rows, form.depth.extent)

    @property
    def allocation(self) -> Stmt:
        return tirx.AllocBuffer(self.sums)

    def block(self, batch: Sequence[Expr], panel: Expr, part: Expr, depth: int) -> Block:
        """The part with a given index, of `depth` steps; `row` is the position of its first row."""
        position: Expr = index(0)
        for at, extent in zip((*batch, panel, part), (*self.batch, self.panels, self.parts), strict=True):
            position = position * extent + at
        start = part * depth
        length: Index = depth
        if depth and self.depth % depth:
            length = tirx.Min(index(depth), self.depth - start)
        return Block(start, length, self.sums, position * self.rows, last=False, first=True)


@dataclass(frozen=True, eq=False)
class Tile:
    """`rows` rows from `row` on by `width` columns from `column` on, in one matmul of a batch.

    `load` reads B in the panel of the columns; `block` is the part of the reduction, None for all of it.
    """

    batch: Batch
    row: Expr
    rows: Index
    column: Expr
    width: int
    load: PanelLoad
    block: Block | None = None

    def part(self, first: Index, rows: Index) -> Tile:
        """A subset of the rows, starting at a given one, with the same part of the reduction."""
        return replace(self, row=self.row + first, rows=rows)

    def at(self, row: Expr, rows: Index) -> Tile:
        """The same columns for the rows of the matmul from a given one on."""
        block = None if self.block is None else replace(self.block, row=self.block.row + row)
        return replace(self, row=row, rows=rows, block=block)


# Code for a tile of a matmul: accumulates in registers along the depth, then runs the epilogue.

# An epilogue more expensive than this is emitted once as a loop instead of once per register.
_UNROLLED_EPILOGUE = 6


class TileWriter:
    """Writes the tiles of a matmul.

    With `tiles`, an instruction with tile accumulators, `rows` is the rows of a block and weights are packed by whole
    tiles. Otherwise `rows` and `vectors` are the tile; `pack` copies panels of B beforehand, and `depth` splits the
    reduction into blocks of that length whose part of B stays in the L2 cache (0: one block). `partial` sums a few
    steps in words of two float16, see `Operation.partial`.
    """

    has_room: ClassVar[bool] = True
    """True if tiles may read beyond the last row of A."""

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
        tiles: Instruction | None = None,
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
        self._sizes: list[Stmt] = []  # bindings of a symbolic number of rows and values derived from it
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
            waiting, position = block.waiting, block.row
            end = tile.stored(lambda i, lane: (waiting, [position + i, lane]))
        depth = form.depth.extent if block is None else block.depth

        def ahead(k: Expr) -> list[Stmt]:
            """Prefetch the next rows: packed panels are contiguous in memory."""
            if not form.width:
                return []
            prefetches = [b(k + ROWS_AHEAD, index(start)) for start in range(0, at.width, self.lanes)]
            return [prefetch(each.source, *each.indices) for each in prefetches if isinstance(each, tvm.ir.TensorLoad)]

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
            return tile.each(lambda i, position, lane: result(tile.sum(i, position), index(i), lane))
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

        def row(i: Expr) -> Stmt:
            return split_repeat("vector", at.width, self.lanes, lambda first, lanes: vector(i, first, lanes))

        return repeat("i", at.rows, row)

    def _tile_in_memory(self, instruction: Instruction, at: Tile) -> Stmt:
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


# Row tiles, remaining rows, and the split into tasks.
_Plan = tuple["Index", "Index", MatmulSplit]
_TYPICAL_DEPTH = 512  # assumed if symbolic
_PACKING_CYCLES = 4  # per vector of a panel


class MatmulWriter(TileWriter):
    """Writes one matmul.

    Tasks are ordered by panels, or with `rows_first` by chunks of rows: then a thread computes the same rows as in the
    kernels before and after that split by rows, and finds them in its cache.
    """

    rows_first: ClassVar[bool] = False
    splits_depth: ClassVar[bool] = True
    """True if `_tile` supports summing only a part of the depth."""

    # The loops outside the panels.

    def function(self) -> PrimFunc:
        """The kernel's PrimFunc."""
        return self.fused.function(self.statement(), self.machine)

    def statement(self) -> Stmt:
        """The matmul without the function around it."""
        columns = self.form.columns
        whole = isinstance(columns, int)
        product = self._tasks(*divmod(columns, self.panel)) if whole else self._symbolic_columns(columns)
        return sequence(*self._sizes, product)

    def _tasks(self, full_panels: int, rest: int) -> Stmt:
        panels = full_panels + bool(rest)
        panel = self.panel

        def body(at: Expr, columns: Callable[[Expr, int], Stmt]) -> Stmt:
            full = columns(at * panel, panel) if full_panels else None
            short = columns(index(full_panels * panel), rest) if rest else None
            if full is None or short is None:
                return full if short is None else short
            return tirx.IfThenElse(at < full_panels, full, short)

        return self._parallel(panels, body)

    def _symbolic_columns(self, columns: Expr) -> Stmt:
        """Loops over full panels, then vectors, then single columns."""
        parts = []
        done: Expr = index(0)
        for width in sorted({self.panel, self.lanes, 1}, reverse=True):
            count = tirx.FloorDiv(columns - done, index(width))
            first = done

            def body(at: Expr, columns: Callable[[Expr, int], Stmt], width: int = width, first: Expr = first) -> Stmt:
                return columns(first + at * width, width)

            parts.append(self._parallel(count, body))
            done = done + count * width
        return sequence(parts)

    def _parallel(self, panels: Index, body: Callable[[Expr, Callable[[Expr, int], Stmt]], Stmt]) -> Stmt:
        """Loops over batch, panels, row chunks and depth parts; `body` writes a panel, given a function of its first
        column and width."""
        tiles, rest = self._row_tiles()
        split = self._split(tiles, panels)
        parts = -(-self.form.depth.extent // split.depth) if split.depth else 1
        partial = PartialSums.of(self.form, panels, parts, self.panel) if parts > 1 else None
        inner = [Extent("panel", panels), Extent("chunk", split.chunks)]

        def task(batch: Batch, leading: list[Expr], second: Expr, third: Expr, part: Expr) -> Stmt:
            panel, chunk = (third, second) if self.rows_first else (second, third)
            block = None if partial is None else partial.block(leading, panel, part, split.depth)

            def columns(column: Expr, width: int) -> Stmt:
                return self._rows(batch, column, width, chunk, (tiles, rest, split), block)

            return body(panel, columns)

        loops = [*(inner[::-1] if self.rows_first else inner), Extent("part", parts)]
        tasks = self._over_batch(loops, task, self._threads())
        return tasks if partial is None else sequence(partial.allocation, tasks, self._joined(partial, body))

    def _over_batch(self, loops: list[Extent], task: Callable[..., Stmt], threads: bool | Expr) -> Stmt:
        """Loops over the batch and others: `task(batch, its indices, indices of the other loops)`."""
        axes = self.form.batch
        extents = [*(Extent(axis.name, axis.extent) for axis in axes), *loops]

        def point(values: list[Expr]) -> Stmt:
            values = list(values)
            every = [index(0) if each.extent == 1 else values.pop(0) for each in extents]
            leading = every[: len(axes)]
            batch = {axis.var: value for axis, value in zip(axes, leading, strict=True)}
            return task(batch, leading, *every[len(axes) :])

        kept = [each for each in extents if each.extent != 1]
        return parallel_grid(kept, point, self.machine, parallel=threads)

    def _joined(self, partial: PartialSums, body: Callable[[Expr, Callable[[Expr, int], Stmt]], Stmt]) -> Stmt:
        """Add the partial sums of all parts in order, and run the epilogue."""

        def row_of_panel(batch: Batch, leading: list[Expr], panel: Expr, row: Expr) -> Stmt:
            def columns(column: Expr, width: int) -> Stmt:
                tile = RegisterTile(1, width, self.lanes, self.dtype)

                def add(part: Expr) -> Stmt:
                    sums = partial.block(leading, panel, part, 0)
                    return sequence(
                        tile.stores(
                            lambda i, position, lane: tile.sum(i, position) + load(sums.waiting, sums.row + row, lane)
                        )
                    )

                begin = tile.stores(lambda i, position, lane: self.form.start_at(batch, row, column + lane))
                end = self._finish(tile, Tile(batch, row, 1, column, width, lambda depth, lane: lane))
                return sequence(*tile.allocations, *begin, repeat_symbolic("part", partial.parts, add), *end)

            return body(panel, columns)

        batches = product(axis.extent for axis in self.form.batch) or 1
        threads = pays_off(partial.parts * partial.panels * partial.rows * self.panel * batches, self.machine)
        return self._over_batch([Extent("panel", partial.panels), Extent("row", partial.rows)], row_of_panel, threads)

    def _threads(self) -> bool | Expr:
        if self._weight_bytes() >= self.machine.l2_bytes // 2:  # a single row waits for these
            return self.machine.cores > 1
        return pays_off(self._multiplications(), self.machine, MIN_PARALLEL_WORK * self.lanes // 4)

    def _weight_bytes(self) -> int:
        """Bytes of packed weights; 0 if B is not packed or its size is symbolic."""
        columns, depth = self.form.columns, self.form.depth.extent
        known = self.form.width and isinstance(columns, int) and isinstance(depth, int)
        return columns * depth * dtype_bits(str(self.form.b.source.dtype)) // 8 if known else 0

    def _multiplications(self) -> Expr:
        extents = [*(axis.extent for axis in self.form.batch), self._rows_count, self.form.columns]
        amount = math.prod((*extents, self.form.depth.extent))
        return amount if self.tiles is None else amount // int(self.tiles.rate_on(self.machine))

    def _row_tiles(self) -> tuple[Index, Index]:
        """(full row tiles, remaining rows)."""
        rows = self._rows_count
        if isinstance(rows, int):
            return divmod(rows, self.tile_rows)
        tiles = self._named("row_tiles", tirx.FloorDiv(rows, index(self.tile_rows)))
        return tiles, self._named("rest", rows - tiles * self.tile_rows)

    def _split(self, tiles: Expr, panels: Index) -> MatmulSplit:
        """Split the rows and the depth into tasks."""
        form = self.form
        batch = [axis.extent for axis in form.batch]
        sizes = (*batch, panels, self._rows_count, form.columns)
        if not all(isinstance(each, int) for each in sizes):
            return self._named_split(row_chunks_at_run_time(tiles, [panels, *batch], self.machine.cores))
        depth = form.depth.extent if isinstance(form.depth.extent, int) else _TYPICAL_DEPTH
        vectors = -(-self.panel // self.lanes)
        operands = [
            max(dtype_bits(str(load.source.dtype)) // 8 for load in buffers_loaded(each)) for each in (form.a, form.b)
        ]
        moved = [uses(form.b_value, axis.var) for axis in form.batch]
        plain = self.tiles is None and self.partial is None and not self.block
        return split_matmul(
            MatmulSizes(
                batch=math.prod(batch),
                rows=self._rows_count,
                columns=form.columns,
                depth=depth,
                tile=(self.tile_rows, vectors),
                panel=self.panel,
                lanes=self.lanes,
                operand_bytes=(operands[0], operands[1]),
                repeated=float(self.pack * math.prod(batch) * depth * panels * vectors * _PACKING_CYCLES),
                shared_weights=not any(moved),
                splits_depth=self.splits_depth and plain and isinstance(form.depth.extent, int),
            ),
            self.machine,
            rows_first=self.rows_first,
        )

    def _named_split(self, found: tuple[Index, Index]) -> MatmulSplit:
        return MatmulSplit(self._named("chunks", found[0]), self._named("chunk_tiles", found[1]))

    # One task: a panel of B and a chunk of rows.

    def _rows(self, batch: Batch, column: Expr, width: int, chunk: Expr, plan: _Plan, block: Block | None) -> Stmt:
        tiles, rest, found = plan
        chunks, per_chunk = found.chunks, found.per_chunk
        statements, scratch = self._packed_panel(batch, column, width, block) if self.pack else ([], None)
        load = self._panel_load(batch, column, scratch, index(0) if block is None else block.start)
        panel = Tile(batch, index(0), 0, column, width, load, block)
        first = chunk * per_chunk
        parts = list(statements)
        if not isinstance(tiles, int) or tiles:
            count = tiles_of_chunk(per_chunk, tiles, first, chunks)
            if self.block:
                parts += self._blocked_tiles(panel, first, count, per_chunk)
            else:

                def tile(i: Expr) -> Stmt:
                    return self._tile(panel.at((first + i) * self.tile_rows, self.tile_rows))

                parts.append(repeat("tile", count, tile))
        rest_code = self._rest_rows(panel, tiles, rest)
        if rest_code is not None:
            last = isinstance(chunks, int) and chunks == 1
            parts.append(rest_code if last else tirx.IfThenElse(tirx.EQ(chunk, chunks - index(1)), rest_code, None))
        return sequence(parts)

    def _blocked_tiles(self, panel: Tile, first: Expr, count: Index, per_chunk: Index) -> list[Stmt]:
        """The row tiles of a task in blocks of the depth; partial sums stay in memory between blocks."""
        maximum, width = per_chunk if isinstance(per_chunk, int) else CHUNK_TILES, panel.width
        waiting = tirx.decl_buffer([maximum * self.tile_rows, width], self.dtype, "waiting", layout=None)

        def over_rows(start: Expr, depth: int, last: bool) -> Stmt:
            def tile(i: Expr) -> Stmt:
                part = Block(start, depth, waiting, expression(i * self.tile_rows), last)
                return self._tile(replace(panel.at((first + i) * self.tile_rows, self.tile_rows), block=part))

            return repeat("tile", count, tile)

        def clear(i: Expr) -> Stmt:
            value = self.form.start_at(panel.batch, first * self.tile_rows + i, panel.column)
            stores = [
                repeat("lane", lanes, lambda lane, at=at: store(waiting, value, i, at + lane), VECTORIZED)  # type: ignore[misc]
                for at, lanes in pieces(width, self.lanes)
            ]
            return sequence(stores)

        total = self.form.depth.extent
        full_blocks = (total - 1) // self.block  # the last block, full or not, runs the epilogue
        return [
            tirx.AllocBuffer(waiting),
            repeat("row", count * self.tile_rows, clear),
            repeat("block", full_blocks, lambda b: over_rows(expression(b * self.block), self.block, last=False)),
            over_rows(index(full_blocks * self.block), total - full_blocks * self.block, last=True),
        ]

    def _rest_rows(self, panel: Tile, tiles: Expr, rest: Expr) -> Stmt | None:
        if isinstance(rest, int):
            return self._tile(panel.at(index(tiles * self.tile_rows), rest)) if rest else None
        if self.tiles is not None:
            return tirx.IfThenElse(rest > 0, self._tile(panel.at(tiles * self.tile_rows, rest)), None)
        parts = []
        done = tiles * self.tile_rows
        for size in falling_halves(self.tile_rows):
            count = tirx.FloorDiv(rest, index(size))
            start = done

            def tile(i: Expr, size: int = size, start: Expr = start) -> Stmt:
                return self._tile(panel.at(start + i * size, size))

            parts.append(repeat("tile", count, tile))
            done = done + count * size
            rest = rest - count * size
        return sequence(parts) if parts else None

    def _panel_load(self, batch: Batch, column: Expr, scratch: Expr | None, start: Expr) -> PanelLoad:
        """The load of B from a panel; `scratch` holds the panel from depth `start` on."""
        form = self.form
        if scratch is not None:
            return lambda depth, lane: tirx.BufferLoad(scratch, [depth - start, lane])
        if not form.width:
            return lambda depth, lane: form.b_at(batch, depth, column + lane)
        panel = tirx.FloorDiv(column, index(form.width))

        def packed(depth: Expr, lane: Expr) -> Expr:
            value = form.b_at(batch, depth, column)
            return map_loads(value, lambda node: tirx.BufferLoad(node.source, [*node.indices[:-3], panel, depth, lane]))

        return packed

    def _packed_panel(self, batch: Batch, column: Expr, width: int, block: Block | None) -> tuple[list[Stmt], Expr]:
        """Statements that copy a panel of B, or the part that a task reduces, and the copy (depth, width), cast to the
        accumulator's dtype."""
        form = self.form
        depth = form.depth.extent if block is None else block.depth
        start = index(0) if block is None else block.start
        scratch = tirx.decl_buffer([depth, width], self.dtype, "panel", layout=None)

        def row(k: Expr) -> Stmt:
            def piece(at: int, lanes: int) -> Stmt:
                return repeat(
                    "lane",
                    lanes,
                    lambda lane: store(scratch, form.b_at(batch, start + k, column + (at + lane)), k, at + lane),
                    VECTORIZED,
                )

            return sequence([piece(at, lanes) for at, lanes in pieces(width, self.lanes)])

        return [tirx.AllocBuffer(scratch), repeat("k", depth, row)], scratch
