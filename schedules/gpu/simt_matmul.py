"""Matmuls and convolutions of float32, which stay float32: no tensor cores.

A tile of a matmul without tensor cores: each thread sums a small rectangle of it in registers.

Neighboring threads compute neighboring columns, so that their shared memory reads and their stores are coalesced; a
thread's rows are neighbors, read as vectors that all threads of a line share.

Matrix-vector products (the classifier of one sample, the gates of squeeze-and-excitation, one head's weights) use each
element of the matrix once, so shared memory does not help: adjacent threads read adjacent elements of the matrix,
several threads share a sum, and their partial results are joined pair by pair.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from schedules.codegen.nest import (
    allocate,
    both,
    lanes_of,
    load,
    name_value,
    repeat,
    sequence,
    static_grid,
    store,
    when,
)
from schedules.config import Config, ConfigSpace
from schedules.gpu.launch import launch
from schedules.gpu.machine import GpuMachine
from schedules.gpu.matmul_form import GpuMatmulForm, Launches, Operand
from schedules.gpu.matmul_rule import UNKNOWN, GpuMatmulRule, ProductWorkload, TiledMatmulRule, matmul_workload
from schedules.gpu.tile_code import BlockTile, Part, TileWriter, wait, within
from schedules.ir.expression import expression
from schedules.ir.numbers import ceil_div
from schedules.ir.tir import Expr, Stmt, tirx
from schedules.machine import Machine, dtype_bits
from schedules.rule import GpuPriority

_PADDING = 4
_UNROLLED = tirx.ForKind.UNROLLED


class PlainTile(BlockTile):
    """A tile that threads accumulate in registers."""

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
        self.position = self.bound("place", tirx.floormod(self.thread, across))
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
                value = load(self.b.slabs, at, self.position + each * self.tile.lines[1])
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
            column = self.b.start + self.position + j * self.tile.lines[1]
            value = load(self.sums, i * columns + j)
            return when(self.is_inside(row, column), self.stored(value, row, column))

        return [repeat("i", rows, lambda i: repeat("j", columns, lambda j: element(i, j), _UNROLLED), _UNROLLED)]


class GpuProducts(TiledMatmulRule):
    """A float32 matmul in tiles of shared memory and registers."""

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


_WARP = 32
_MAX_THREADS = 1024
_RESIDENT_THREADS = 2048  # per multiprocessor
_JOIN_COST = 2.0  # cost of halving the number of partial sums, in steps of the depth
_POWERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True)
class VectorWorkload(ProductWorkload):
    """`along_depth` says that neighbors along the depth are adjacent in the matrix's memory."""

    along_depth: bool


class GpuVectorProducts(GpuMatmulRule[VectorWorkload]):
    """A block computes `results` elements, each by `shares` threads."""

    name: ClassVar[str] = "gpu-vector-products"
    priority: ClassVar[int] = GpuPriority.LONG_SUMS

    def serves(self, form: GpuMatmulForm, workload: VectorWorkload, machine: GpuMachine) -> bool:
        return 1 in (workload.rows, workload.columns) and workload.depth != 1

    def workload(self, form: GpuMatmulForm) -> VectorWorkload:
        sizes = matmul_workload(form)
        return VectorWorkload(
            sizes.samples, sizes.rows, sizes.columns, sizes.depth, sizes.dtype, _matrix(form).along_depth
        )

    def space(self, workload: VectorWorkload, machine: Machine) -> ConfigSpace:
        assert isinstance(machine, GpuMachine)
        maximum = min(_MAX_THREADS, machine.threads_per_block)

        def fits(config: Config) -> bool:
            return _WARP <= config.integer("results") * config.integer("shares") <= maximum

        return ConfigSpace({"results": _POWERS, "shares": _POWERS}, (fits,))

    def default(self, workload: VectorWorkload, machine: Machine) -> Config:
        assert isinstance(machine, GpuMachine)
        count = machine.multiprocessors
        return min(self.space(workload, machine), key=lambda each: _cost(each, workload, count))

    def launches(self, form: GpuMatmulForm, config: Config) -> Launches:
        return [_vector_product(form, config.integer("results"), config.integer("shares"))], []


def _matrix(form: GpuMatmulForm) -> Operand:
    """The operand that is not a vector."""
    return form.b if form.a.rows.extent == 1 else form.a


def _cost(config: Config, workload: VectorWorkload, multiprocessors: int) -> tuple[float, int]:
    """Time in steps of the depth with as many concurrent threads as the device holds; ties go to the smaller block."""
    results, shares = config.integer("results"), config.integer("shares")
    rows = (workload.columns if workload.rows == 1 else workload.rows) or UNKNOWN
    depth, samples = workload.depth or UNKNOWN, workload.samples or 1
    # An uncoalesced load of a warp takes one transaction per piece.
    side_by_side = min(shares, depth) if workload.along_depth else min(results, rows)
    parts = _WARP / min(_WARP, side_by_side)
    waves = math.ceil(samples * ceil_div(rows, results) * results * shares / (multiprocessors * _RESIDENT_THREADS))
    return waves * (ceil_div(depth, shares) * parts + _JOIN_COST * math.log2(shares)), results * shares


def _vector_product(form: GpuMatmulForm, results: int, shares: int) -> Stmt:
    """The launch of one block for each `results` elements."""
    matrix = _matrix(form)
    dtype = form.reduction.dtype
    block, thread = (tirx.Var(name, "int64") for name in ("block", "thread"))
    statements: list[Stmt] = []

    tiles = ceil_div(matrix.rows.extent, results)
    batch = form.batch.values(name_value("sample", tirx.floordiv(block, expression(tiles)), statements))
    first = tirx.floormod(block, expression(tiles)) * expression(results)
    inner = expression(shares if matrix.along_depth else results)
    major, minor = tirx.floordiv(thread, inner), tirx.floormod(thread, inner)
    position, share = (major, minor) if matrix.along_depth else (minor, major)
    row, share = name_value("row", first + position, statements), name_value("share", share, statements)
    rows = (expression(0), row) if matrix is form.b else (row, expression(0))
    inside = within(row, matrix.rows.extent, results)
    thread_total, own_allocation = allocate("own", [1], dtype, "local")
    sums, sums_allocation = allocate("sums", [results * shares], dtype, "shared")

    def turn(step: Expr) -> Stmt:
        depth = expression(step) * shares + share
        at = form.depth.values(depth)
        factors = (form.a.at(batch, rows[0], at), form.b.at(batch, rows[1], at))
        added = load(thread_total, 0) + factors[0].astype(dtype) * factors[1].astype(dtype)
        return when(both(inside, within(depth, form.depth.extent, shares)), store(thread_total, added, 0))

    neighbour = 1 if matrix.along_depth else results
    joins = []
    step = shares // 2
    while step:
        both_sums = load(sums, thread) + load(sums, thread + step * neighbour)
        joins += [when(share < expression(step), store(sums, both_sums, thread)), wait()]
        step //= 2
    finished = form.finish(load(sums, thread), batch, *rows)
    body = sequence(
        statements,
        own_allocation,
        sums_allocation,
        store(thread_total, tirx.const(0, dtype), 0),
        repeat("turn", ceil_div(form.depth.extent, shares), turn),
        store(sums, load(thread_total, 0), thread),
        wait(),
        joins,
        when(both(share < expression(1), inside), finished),
    )
    blocks = expression(tiles * form.batch.extent)
    if not isinstance(blocks, tirx.IntImm):
        blocks = tirx.max(blocks, expression(1))  # an empty launch is an error; this one stores nothing
    return launch(block, blocks, thread, results * shares, body)
