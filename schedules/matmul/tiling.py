"""Tiles and tasks of a matmul: the rows by vectors of a register tile that fit the machine with the least waste."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from schedules.ir.expression import expression, index
from schedules.ir.numbers import ceil_div
from schedules.ir.tir import Expr, Index, tirx
from schedules.machine import Machine, dtype_bits
from schedules.rule import Workload
from schedules.task_split import SplitAxis, Work, parts_at_run_time, split_tasks

# Parallel tasks of a matmul: matrices, panels of columns, chunks of row tiles, and parts of the depth.

CHUNK_TILES = 8  # most row tiles per task if the number of rows is symbolic
_MIN_DEPTH = 64  # fewest steps of a part of the depth: fewer would cost less than clearing and storing the sums
_MAX_JOINED = 1 << 16  # most results of a matmul whose depth is split
_WORTH_JOINING = 0.93  # relative to the time without
_MORE_EVENLY = 0.97  # relative to the time with the largest register tile
_JOIN_CYCLES = 9.0  # to clear, write, read and add a vector of sums of a part (measured, Zen 4)


@dataclass(frozen=True)
class MatmulSizes:
    """Sizes and costs that determine how a matmul is split into tasks.

    Attributes:
        batch: number of matmuls.
        tile: rows and vectors of the register tile.
        panel: columns of a panel.
        lanes: lanes of an accumulator vector.
        operand_bytes: element size of A and of B.
        repeated: cycles per task that do not depend on its rows: packing a panel.
        shared_weights: all matmuls of the batch share one B.
        splits_depth: the writer can split the reduction over tasks.
    """

    batch: int
    rows: int
    columns: int
    depth: int
    tile: tuple[int, int]
    panel: int
    lanes: int
    operand_bytes: tuple[int, int]
    repeated: float
    shared_weights: bool
    splits_depth: bool


@dataclass(frozen=True)
class MatmulSplit:
    """Number of row chunks, row tiles per chunk (the last chunk may have fewer, and includes the rows that do not fill
    a tile), and the depth of each part; 0 for the whole depth."""

    chunks: Index
    per_chunk: Index
    depth: int = 0


def rows_for_cores(work: MatmulWorkload, tile: tuple[int, int], machine: Machine) -> int:
    """Rows of the register tile of a matmul with packed weights: fewer than in `tile` if that is as fast on one core
    and balances the work better over all cores."""
    lanes = machine.lanes(work.dtype)

    def on_one_core(rows: int) -> float:
        return tile_cost(work.rows, work.columns, (rows, tile[1]), machine, lanes)

    def on_all(rows: int) -> float:
        sizes = dtype_bits(work.dtype) // 8, dtype_bits(work.b_dtype) // 8
        shape = work.batch, work.rows, work.columns, work.depth
        matmul = MatmulSizes(
            *shape, (rows, tile[1]), work.width, lanes, sizes, 0.0, shared_weights=True, splits_depth=False
        )
        return split_tasks(
            _axes(matmul, rows_first=False), _works(matmul, math.prod(shape[:3]), machine), machine
        ).cycles

    choices = [rows for rows in range(tile[0], tile[0] // 2, -1) if on_one_core(rows) <= on_one_core(tile[0])]
    best = min(choices, key=on_all)
    return best if on_all(best) < _MORE_EVENLY * on_all(tile[0]) else tile[0]


def _axes(matmul: MatmulSizes, *, rows_first: bool) -> list[SplitAxis]:
    rows = SplitAxis("rows", max(1, ceil_div(matmul.rows, matmul.tile[0])))
    panels = SplitAxis("panels", ceil_div(matmul.columns, matmul.panel), max_steps=1)
    return [SplitAxis("batch", matmul.batch, max_steps=1), *((rows, panels) if rows_first else (panels, rows))]


def split_matmul(matmul: MatmulSizes, machine: Machine, *, rows_first: bool) -> MatmulSplit:
    """Split a matmul of static sizes into tasks."""
    steps = ceil_div(matmul.depth, _MIN_DEPTH)
    results = matmul.batch * matmul.rows * matmul.columns
    may_split_depth = matmul.splits_depth and steps > 1 and results <= _MAX_JOINED
    axes, works = _axes(matmul, rows_first=rows_first), _works(matmul, results, machine)
    split, depth = split_tasks(axes, works, machine), 0
    if may_split_depth and machine.cores > 1:
        deep = split_tasks([*axes, SplitAxis("depth", steps)], works, machine)
        if deep.parallel and deep.weighted < _WORTH_JOINING * split.weighted:
            split, depth = deep, deep.sizes["depth"] * _MIN_DEPTH
    return MatmulSplit(split.parts["rows"], split.sizes["rows"], depth if depth < matmul.depth else 0)


def _works(matmul: MatmulSizes, results: int, machine: Machine) -> list[Work]:
    every = dict.fromkeys(("batch", "rows", "panels", "depth"), 0.0)
    a_bytes, b_bytes = matmul.operand_bytes
    weights = {"panels": 0.0, "depth": 0.0} | ({} if matmul.shared_weights else {"batch": 0.0})
    count = 1 if matmul.shared_weights else matmul.batch
    of_step = tile_cost(max(1, matmul.rows), matmul.columns, matmul.tile, machine, matmul.lanes)
    vectors = results / matmul.lanes
    return [
        Work(every, cycles=matmul.batch * matmul.depth * of_step),
        Work(weights, cycles=matmul.repeated, bytes=float(count * matmul.columns * matmul.depth * b_bytes)),
        Work(
            dict.fromkeys(("batch", "rows", "depth"), 0.0),
            bytes=float(matmul.batch * matmul.rows * matmul.depth * a_bytes),
        ),
        Work(dict.fromkeys(("batch", "rows", "panels"), 0.0), cycles=_JOIN_CYCLES * vectors),
    ]


def row_chunks_at_run_time(
    tiles: Index, others: Sequence[Index], cores: int, *, maximum: int = CHUNK_TILES
) -> tuple[Index, Index]:
    """(chunks, row tiles per chunk) for a number of row tiles known only at run time.

    Args:
        tiles: number of full row tiles.
        others: extents of the task grid other than chunks; unknown ones count as 1.
        cores: number of cores of the machine.
        most: maximum tiles per chunk.
    """
    tasks = math.prod(extent if isinstance(extent, int) else 1 for extent in others)
    if isinstance(tiles, int):
        known = int(parts_at_run_time(max(tiles, 1), maximum, tasks, cores))
        return known, ceil_div(max(tiles, 1), known)
    steps = tirx.Max(tiles, index(1))
    chunks = parts_at_run_time(steps, maximum, tasks, cores)
    return chunks, tirx.FloorDiv(steps + (chunks - index(1)), chunks)


def tiles_of_chunk(per_chunk: Index, tiles: Expr, first: Expr, chunks: Expr) -> Expr:
    """Number of row tiles in a chunk: the last chunk may have fewer."""
    if isinstance(chunks, int) and chunks == 1:
        return tiles
    if all(isinstance(each, int) for each in (tiles, per_chunk, chunks)) and tiles == per_chunk * chunks:
        return per_chunk
    return tirx.Min(expression(per_chunk), (index(tiles) if isinstance(tiles, int) else tiles) - first)


_PAGE = 4096


@dataclass(frozen=True)
class MatmulWorkload(Workload):
    """A matmul. Extents are 0 if symbolic.

    `layout` is how B is stored: "panels" (packed), "rows" (contiguous along the columns), "columns" (contiguous along
    the depth, or neither). `width` is the number of columns of a panel of packed B. `a_stride` is the number of
    elements from one row of A to the next.
    """

    batch: int
    rows: int
    columns: int
    depth: int
    layout: str
    width: int
    dtype: str
    b_dtype: str
    epilogue: int
    a_stride: int = 0


def fits(rows: int, vectors: int, machine: Machine) -> bool:
    """True if the accumulators, a row of B and an element of A fit in registers (one more would spill inside the
    loop)."""
    return rows * vectors + vectors + 1 <= machine.vector_registers


def tile_choices(machine: Machine, vectors: int | None = None) -> list[tuple[int, int]]:
    """(rows, vectors) of all register tiles that fit."""
    widths = [vectors] if vectors else [1, 2, 3, 4]
    return [(rows, width) for width in widths for rows in range(1, 33) if rows == 1 or fits(rows, width, machine)]


def cycles_per_step(rows: int, vectors: int, machine: Machine) -> float:
    """Cycles of one reduction step: the maximum of multiply-adds, loads and addition latency."""
    multiply_adds = rows * vectors / machine.fma_ports
    loads = (rows + vectors) / machine.load_ports
    return max(multiply_adds, loads, float(machine.fma_latency))


def _split(extent: int, tile: int) -> list[tuple[int, int]]:
    """(size, count) of the tiles along an extent."""
    whole, rest = divmod(extent, tile)
    return [(size, count) for size, count in ((tile, whole), (rest, 1)) if size and count]


def tile_cost(rows: int, columns: int, tile: tuple[int, int], machine: Machine, lanes: int) -> float:
    """Cycles of one reduction step over a whole rows x columns result."""
    vectors = -(-columns // lanes)
    return sum(
        row_count * column_count * cycles_per_step(row, column, machine)
        for row, row_count in _split(rows, tile[0])
        for column, column_count in _split(vectors, tile[1])
    )


def max_rows(work: MatmulWorkload, machine: Machine) -> int:
    """Maximum rows of A that can be read in parallel without evicting each other from the L1 cache.

    Rows whose distance is a multiple of the size of a way share a set; a set holds a line of each way, some for B.
    """
    ways = 12 if machine.l1_bytes == 12 * _PAGE else 8  # nearly every core; with 48 KiB a way is a page
    way = max(64, machine.l1_bytes // ways)
    stride = work.a_stride * dtype_bits(work.dtype) // 8
    sets = way // max(64, math.gcd(stride, way)) if stride else way // 64
    return max(1, (ways - 2) * sets)


def best_tile(work: MatmulWorkload, machine: Machine) -> tuple[int, int]:
    """The tile of lowest cost, with ties broken by loads per accumulator. Symbolic extents are assumed to be large."""
    lanes = machine.lanes(work.dtype)
    rows, columns = work.rows or 960, work.columns or 960
    limit = min(rows, max_rows(work, machine))
    fixed = work.width // lanes if work.layout == "panels" and work.width % lanes == 0 else None
    by_lane = machine.lane_products and work.dtype == work.b_dtype == "float32" and work.depth > 0

    def spills(row: int, vector: int) -> bool:
        """True if the accumulators, a row of B and a vector of each row of A exceed the registers."""
        return row > 1 and row * vector + vector + row >= machine.vector_registers

    choices = [
        (row, vector)
        for row, vector in tile_choices(machine, fixed)
        if row <= limit and (vector - 1) * lanes < columns and not (by_lane and spills(row, vector))
    ]
    if not choices:
        return 1, fixed or 1

    def cost(tile: tuple[int, int]) -> tuple[float, float]:
        loads = (tile[0] + tile[1]) / (tile[0] * tile[1])
        return round(tile_cost(rows, columns, tile, machine, lanes), 3), loads

    return min(choices, key=cost)


TILE_ROWS = (16, 32, 64, 128)
"""Rows of a block with tile accumulators. 64 rows of sums use half of the L1 cache; a call costs some 50 ns."""


def block_rows(rows: int) -> int:
    """Rows of a block, given the number of rows (0 if symbolic)."""
    return next((each for each in TILE_ROWS[:-1] if 0 < rows <= each), 64)


def panel_width(columns: int, machine: Machine) -> int:
    """Columns of a panel, for a constant B packed at compile time.

    Two vectors: a tile of two reaches the peak from 6 rows on, wastes little at the edge, and leaves registers for up
    to 14 rows (AVX-512), so it serves every number of rows.
    """
    lanes = machine.lanes("float32")
    return 2 * lanes if columns > lanes else lanes
