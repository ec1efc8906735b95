"""Matmuls with block-quantized weights: the kernels of `schedules.matmul.blocks.expressions`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from schedules.annotations import SPEC
from schedules.codegen.nest import allocate, name_value, repeat, repeat_symbolic, sequence, store
from schedules.config import Config, ConfigSpace
from schedules.instructions.dot_products.amx import COLUMNS, ROWS
from schedules.instructions.dot_products.operation import Instruction
from schedules.instructions.dot_products.table import vector_instructions
from schedules.ir.expression import expression, index, substitute, uses
from schedules.ir.numbers import WORD_BYTES, ceil_div
from schedules.ir.stages import Axis, Kernel, Stage, shape_of
from schedules.ir.tir import Expr, Stmt, tirx
from schedules.machine import Machine
from schedules.matmul.blocks.expressions import BLOCK_MATMUL, EXPERT_MATMUL, PANEL, BlockFormat
from schedules.matmul.blocks.writer import FEW_ROWS, BlockTilesWriter, BlockWriter, Parts, block_tiles
from schedules.matmul.packed_operand import MatmulOfParts, panel_form
from schedules.matmul.writer import Batch, MatmulWriter, Tile
from schedules.rule import Workload
from schedules.stages.fused_kernel import FusedKernel, only_anchors

# Single-core cycles of matmuls with block-quantized weights, from instruction counts; nothing is measured.

_UNPACKING = 1.5  # to unpack a vector of words of a panel
_SCALING = 3.0  # instructions per vector of a unit's sums: conversion, multiplication, multiply-add
_ROWS_OF_A_PANEL = {"tiles": 256, "vectors": 4}  # rows per unpacking of a panel
_ACROSS_LINES = 1.5  # loads of a row of 32 bytes: every other one spans two cache lines
_TILE_MARGIN = 1.25  # relative to the limit of the ports


def block_cycles(
    rows: int, columns: int, depth: int, layout: BlockFormat, machine: Machine, *, in_tiles: bool
) -> float:
    """Cycles of a matmul of int8-quantized rows."""
    units = ceil_div(columns, PANEL) * ceil_div(depth, layout.unit)
    tiles = rows // ROWS if in_tiles else 0
    remaining = rows - tiles * ROWS
    cycles = tiles * (PANEL // COLUMNS) * _tile_cycles(layout, machine) + remaining * _row_cycles(layout, machine)
    words = layout.unit // WORD_BYTES * ceil_div(PANEL, machine.lanes("int32")) * _UNPACKING
    panels = ceil_div(tiles * ROWS, _ROWS_OF_A_PANEL["tiles"]) + ceil_div(remaining, _ROWS_OF_A_PANEL["vectors"])
    return units * (cycles + panels * words / machine.fma_ports)


def _tile_cycles(layout: BlockFormat, machine: Machine) -> float:
    """Cycles of a tile per unit: the maximum of its loads (data, weights, sums, scales) and the arithmetic that applies
    scales."""
    scaled = _scaling(layout)
    loads = ROWS * _ACROSS_LINES + layout.unit // WORD_BYTES + ROWS * (scaled - 1)
    return _TILE_MARGIN * max(loads / machine.load_ports, ROWS * scaled / machine.fma_ports, float(ROWS))


def _row_cycles(layout: BlockFormat, machine: Machine) -> float:
    """Cycles of a row by a panel in vector registers, per unit."""
    instruction = next(iter(vector_instructions(machine, "uint8", "int8")), None)
    rate = 1.0 if instruction is None else instruction.rate_on(machine)
    vectors = ceil_div(PANEL, machine.lanes("float32"))
    return vectors * (layout.unit / rate + _scaling(layout)) / machine.fma_ports


def _scaling(layout: BlockFormat) -> float:
    return _SCALING + 2 * layout.zeros + layout.minimum


# Rows of a tile whose weights are unpacked: more would make the code longer, not faster.
_UNPACKED_ROWS = 4


@dataclass(frozen=True)
class BlockWorkload(Workload):
    """A matmul; `rows` is 0 if symbolic, `layout` is the text of the weight's `BlockFormat`."""

    rows: int
    columns: int
    depth: int
    rounded: bool
    layout: str


class MatmulBlocks(MatmulOfParts[BlockWorkload, Parts]):
    """Serves the kernels of `block_matmul`."""

    name: ClassVar[str] = BLOCK_MATMUL
    few_rows: ClassVar[int] = FEW_ROWS
    tiles_writer: ClassVar[Callable[..., MatmulWriter]] = BlockTilesWriter

    def workload(self, parts: Parts, machine: Machine) -> BlockWorkload:
        return BlockWorkload(*parts.form.known_extents, parts.rounded, parts.layout.text())

    def space(self, workload: BlockWorkload, machine: Machine) -> ConfigSpace:
        choices = range(1, _max_rows(workload, machine) + 1)
        return ConfigSpace({"rows": tuple(choices)})

    def default(self, workload: BlockWorkload, machine: Machine) -> Config:
        maximum = _max_rows(workload, machine)
        return Config.of(rows=min(maximum, workload.rows or maximum))

    def parts(self, kernel: Kernel) -> Parts | None:
        return parts_of(kernel)

    def writer(self, parts: Parts, fused: FusedKernel, machine: Machine, rows: int) -> MatmulWriter:
        return BlockWriter(parts, fused, machine, rows=rows, vectors=vectors_of(machine))

    def many(self, parts: Parts, fused: FusedKernel, workload: BlockWorkload, machine: Machine) -> MatmulWriter | None:
        instruction = block_tiles(parts.layout, machine) if parts.rounded else None
        return None if instruction is None else self.tiles_writer(parts, fused, machine, instruction)


def vectors_of(machine: Machine) -> int:
    """Vectors of columns per tile: two, or one if a vector holds a whole panel."""
    return max(1, min(2, PANEL // machine.lanes("float32")))


def _max_rows(workload: BlockWorkload, machine: Machine) -> int:
    """Maximum rows whose accumulators fit in registers, next to a step's weights and the temporaries of unpacking them;
    twice the accumulators if a unit's sums are integers or unscaled."""
    vectors = vectors_of(machine)
    plain = bool(BlockFormat.of_text(workload.layout).numbers)
    maximum = max(1, (machine.vector_registers - 2 * vectors - 2) // (vectors if plain else 2 * vectors))
    return maximum if plain else min(_UNPACKED_ROWS, maximum)


def parts_of(kernel: Kernel, kind: str = BLOCK_MATMUL) -> Parts | None:
    """The operands of a `block_matmul` or `expert_matmul` kernel."""
    stages = only_anchors(kernel, kind)
    if stages is None:
        return None
    stage = stages[0]
    store = stage.body
    column = next((axis for axis in stage.axes if axis.var.same_as(store.indices[-1])), None)
    depth = next((axis for axis in stage.axes if axis.reduce), None)
    if column is None or depth is None:
        return None
    layout = BlockFormat.of_text(str(stage.annotations[SPEC]))
    data, experts, weights = _operands(stage, store.buffer, column)
    if not layout.is_integer:  # numbers are decoded from their bits, which are read again for each
        weights = list({load.source: load for load in weights}.values())
    arrays = _named(weights, layout)
    if data is None or arrays is None or (experts is None) != (kind == BLOCK_MATMUL):
        return None
    form = panel_form(stage, depth, data, weights[0])
    return Parts(form, layout, data, arrays, experts)


def _operands(stage: Stage, result: Expr, column: Axis) -> tuple[Expr | None, Expr | None, list[Expr]]:
    """The load of the data, the load of the experts, and the loads of the weight's arrays in the order of the
    expression.

    Arrays of equal content are one constant, so one buffer may be several of them.
    """
    data, experts, weights = None, None, list[Any]()
    for load in stage.loads:
        if load.source.same_as(result):
            continue
        if str(load.source.dtype) == "int64":
            experts = load
        elif not any(uses(each, column.var) for each in load.indices):
            data = load if data is None else data
        else:
            weights.append(load)
    return data, experts, weights


def _named(weights: list[Expr], layout: BlockFormat) -> dict[str, Expr] | None:
    """The weight's arrays by name: bit planes are identified by their number of words, the rest by position."""
    planes = sorted((each.source for each in weights if str(each.source.dtype) == "int32"), key=_words)
    others = [each.source for each in weights if str(each.source.dtype) != "int32"]
    found = [*planes, *others]
    return dict(zip(layout.arrays, found, strict=True)) if len(found) == len(layout.arrays) else None


def _words(plane: Expr) -> int:
    return -int(shape_of(plane)[1])


# Matmuls of rows with block-quantized expert weights: the kernels of `expert_matmul`.

# Rows of a tile: with more, few tiles would have rows of a single expert.
_MAX_ROWS = 4


class MatmulExperts(MatmulBlocks):
    """Serves the kernels of `expert_matmul`."""

    name: ClassVar[str] = EXPERT_MATMUL

    def space(self, workload: BlockWorkload, machine: Machine) -> ConfigSpace:
        return ConfigSpace({"rows": tuple(range(1, _MAX_ROWS + 1))})

    def default(self, workload: BlockWorkload, machine: Machine) -> Config:
        return Config.of(rows=min(_MAX_ROWS, super().default(workload, machine).integer("rows")))

    def parts(self, kernel: Kernel) -> Parts | None:
        return parts_of(kernel, EXPERT_MATMUL)

    def writer(self, parts: Any, fused: FusedKernel, machine: Machine, rows: int) -> MatmulWriter:
        return ExpertWriter(parts, fused, machine, rows=rows, vectors=vectors_of(machine))

    def tiles_writer(self, parts: Any, fused: FusedKernel, machine: Machine, instruction: Instruction) -> MatmulWriter:
        return ExpertTilesWriter(parts, fused, machine, instruction)


class _OfExperts(BlockWriter):
    """Looks up the weight of a row's expert."""

    def _expert(self, batch: Batch, row: Expr) -> Expr:
        assert self.parts.experts is not None
        # A single row has no loop, so its variable is not among those of the rows.
        mapping = {**self.form.stage.single, **batch, **self.form.rows.values(row)}
        return substitute(self.parts.experts, mapping)

    def _panel(self, batch: Batch, row: Expr, column: Expr) -> Expr:
        panels = -(-int(self.form.columns) // PANEL)
        return self._expert(batch, row) * index(panels) + tirx.FloorDiv(column, index(PANEL))


class ExpertWriter(_OfExperts):
    """Computes tiles whose rows share an expert together; rows of other tiles one at a time."""

    def _tile(self, at: Tile) -> Stmt:
        together = super()._tile(at)
        if at.rows == 1:
            return together
        single_row = super()._tile

        def alone(i: Expr) -> Stmt:
            return single_row(at.part(i, 1))

        first = self._expert(at.batch, at.row)
        same = [tirx.EQ(self._expert(at.batch, at.row + i), first) for i in range(1, int(at.rows))]
        return tirx.IfThenElse(tirx.all(*same), together, repeat("single", at.rows, alone))


class ExpertTilesWriter(_OfExperts, BlockTilesWriter):
    """Writes a matmul with tile instructions: runs of rows with the same expert share a panel of its weights."""

    block_rows: ClassVar[int] = 128

    def __init__(self, parts: Parts, fused: FusedKernel, machine: Machine, instruction: Instruction) -> None:
        super().__init__(parts, fused, machine, instruction)
        self.tile_rows, self.pack = self.block_rows, False

    def _rest_rows(self, panel: Tile, tiles: Expr, rest: Expr) -> Stmt | None:
        left = self._tile(panel.at(expression(tiles * self.tile_rows), rest))
        return tirx.IfThenElse(rest > 0, left, None) if not isinstance(rest, int) else left if rest else None

    def _tile(self, at: Tile) -> Stmt:
        run_start, allocation = allocate("begin", (1,), "int64", "local")

        def ends(i: Expr) -> Stmt:
            """The run that ends at a given row of the block."""
            rows = expression(at.rows)
            following = self._expert(at.batch, at.row + tirx.Min(i + 1, rows - 1))
            last = tirx.any(tirx.EQ(i + 1, rows), tirx.NE(following, self._expert(at.batch, at.row + i)))
            bindings: list[Stmt] = []
            begin = name_value("first", tirx.BufferLoad(run_start, [index(0)]), bindings)
            run = self._run(at.part(begin, i + 1 - begin))
            return tirx.IfThenElse(last, sequence(bindings, run, store(run_start, i + 1, 0)), None)

        return sequence(allocation, store(run_start, index(0), 0), repeat_symbolic("row", at.rows, ends))

    def _run(self, at: Tile) -> Stmt:
        """Rows of a single expert."""
        unpacked, panel = self._unpacked(self._panel(at.batch, at.row, at.column))
        tiles, panel_tile = (
            tirx.FloorDiv(at.rows, index(ROWS)),
            replace(at, load=lambda k, j: tirx.BufferLoad(panel, [k, j])),
        )

        def tile(first: Expr, count: int) -> Stmt:
            return super(ExpertTilesWriter, self)._tile(panel_tile.part(first, count))

        whole = repeat_symbolic("tile", tiles, lambda i: tile(i * ROWS, ROWS))
        parts: list[Stmt] = [tirx.IfThenElse(tiles > 0, sequence(unpacked, whole), None)]
        first = tiles * ROWS
        for count in (_MAX_ROWS, 1):
            of_these = tirx.FloorDiv(at.rows - first, index(count))
            parts.append(repeat_symbolic("few", of_these, lambda i, n=count, start=first: tile(start + i * n, n)))  # type: ignore[misc]
            first = first + of_these * count
        return sequence(parts)
