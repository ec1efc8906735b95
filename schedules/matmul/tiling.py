"""Size of the register tile of a matmul: the rows by vectors that fit the machine with the least waste."""

from __future__ import annotations

import math
from dataclasses import dataclass

from schedules.config import Config
from schedules.estimate import Estimate, tail
from schedules.ir.numbers import ceil_div
from schedules.machine import Machine, dtype_bits
from schedules.rule import Workload

_PAGE = 4096


@dataclass(frozen=True)
class MatmulWorkload(Workload):
    """A matmul. Extents are 0 if symbolic.

    `layout` is how B is stored: "panels" (packed), "rows" (contiguous along the columns), "columns" (contiguous along
    the sum, or neither). `width` is the columns of a panel of packed B. `a_stride` is the elements from one
    row of A to the next.
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
    """True if the accumulators, a row of B and an element of A fit the registers (one more would spill inside the
    loop)."""
    return rows * vectors + vectors + 1 <= machine.vector_registers


def _spills_lanes(rows: int, vectors: int, machine: Machine) -> bool:
    """True if the accumulators, a row of B and a vector of each row of A exceed the registers."""
    return rows > 1 and rows * vectors + vectors + rows >= machine.vector_registers


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


def most_rows(work: MatmulWorkload, machine: Machine) -> int:
    """Maximum rows of A that can be read in parallel without evicting each other from the L1 cache.

    Rows a multiple of the size of a way apart share a set; a set holds a line of each way, some of which B needs.
    """
    ways = _ways(machine)
    way = max(64, machine.l1_bytes // ways)
    stride = work.a_stride * dtype_bits(work.dtype) // 8
    sets = way // max(64, math.gcd(stride, way)) if stride else way // 64
    return max(1, (ways - 2) * sets)


def _ways(machine: Machine) -> int:
    """Associativity of the L1 cache: 8 on nearly every core; 12 for 48 KiB, since a way is a page."""
    return 12 if machine.l1_bytes == 12 * _PAGE else 8


def best_tile(work: MatmulWorkload, machine: Machine) -> tuple[int, int]:
    """The tile of lowest cost, with ties broken by loads per accumulator. Symbolic extents are assumed to be large."""
    lanes = machine.lanes(work.dtype)
    rows, columns = work.rows or 960, work.columns or 960
    limit = min(rows, most_rows(work, machine))
    fixed = work.width // lanes if work.layout == "panels" and work.width % lanes == 0 else None
    by_lane = machine.lane_products and work.dtype == work.b_dtype == "float32" and work.depth > 0
    choices = [
        (row, vector)
        for row, vector in tile_choices(machine, fixed)
        if row <= limit and (vector - 1) * lanes < columns and not (by_lane and _spills_lanes(row, vector, machine))
    ]
    if not choices:
        return 1, fixed or 1

    def cost(tile: tuple[int, int]) -> tuple[float, float]:
        loads = (tile[0] + tile[1]) / (tile[0] * tile[1])
        return round(tile_cost(rows, columns, tile, machine, lanes), 3), loads

    return min(choices, key=cost)


TILE_ROWS = (16, 32, 64, 128)
"""Rows of a block whose sums are made in tiles. Sums of 64 take half of the first cache; a call costs some 50 ns."""


def block_rows(rows: int) -> int:
    """Rows of a block, given the number of rows, which is 0 if symbolic."""
    return next((each for each in TILE_ROWS[:-1] if 0 < rows <= each), 64)


def panel_width(columns: int, machine: Machine, dtype: str = "float32") -> int:
    """Columns of a panel, for a constant B packed at compile time.

    Two vectors: a tile of two reaches the peak from 6 rows on, wastes little at the edge, and leaves registers for up
    to 14 rows (AVX-512), so it serves every number of rows.
    """
    lanes = machine.lanes(dtype)
    return 2 * lanes if columns > lanes else lanes


# Estimated costs of configs of the matmul rule.


def matmul_estimate(work: MatmulWorkload, config: Config, machine: Machine) -> Estimate:
    """Estimated cost of a matmul."""
    lanes = machine.lanes(work.dtype)
    rows = config.integer("rows")
    vectors = work.width // lanes if work.layout == "panels" and work.width >= lanes else config.integer("vectors")
    batch, m, n, k = (max(each, 1) for each in (work.batch, work.rows, work.columns, work.depth))
    cycles = batch * k * tile_cost(m, n, (rows, vectors), machine, lanes)
    panels = ceil_div(n, vectors * lanes)
    depth = int(config.get("depth", 0)) or k
    panel_bytes = depth * vectors * lanes * 4
    moved = float(batch * (k * n * 4 + m * k * 4 * (1 if m * k * 4 < machine.l2_bytes / 2 else panels)))
    if config.get("pack"):
        cycles += batch * k * panels * vectors * 4
    if depth < k:
        cycles += batch * m * panels * vectors * 2 * (k / depth)
    tiles = ceil_div(m, rows)
    wanted = max(1, ceil_div(4 * machine.cores, panels * batch))
    chunks = min(wanted, tiles)
    return Estimate(cycles, moved, batch * panels * chunks, panel_bytes, rows * vectors, rows * vectors, tail(m, rows))
