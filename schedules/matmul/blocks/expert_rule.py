"""Matmuls of rows with block-quantized expert weights: the kernels of `expert_matmul`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from schedules.codegen.nest import allocate, expression, name_value, repeat, repeat_symbolic, sequence, store
from schedules.config import Config, ConfigSpace
from schedules.instructions.products.amx import ROWS
from schedules.instructions.products.product import Product
from schedules.ir.expression import index, substitute
from schedules.ir.stages import Kernel
from schedules.ir.tir import Expr, Stmt, tirx
from schedules.machine import Machine
from schedules.matmul.blocks.expressions import EXPERT_MATMUL
from schedules.matmul.blocks.layout import PANEL
from schedules.matmul.blocks.rule import BlockWorkload, MatmulBlocks, parts_of, vectors_of
from schedules.matmul.blocks.tiles import BlockTilesWriter
from schedules.matmul.blocks.writer import BlockWriter, Parts
from schedules.matmul.tile import Batch, Block, PanelLoad, Tile
from schedules.matmul.writer import MatmulWriter
from schedules.stages.fused_kernel import FusedKernel

# Rows of a tile: with more, tiles that lie in the rows of one expert alone become rare.
_MOST_ROWS = 4


class MatmulExperts(MatmulBlocks):
    """Serves the kernels of `expert_matmul`."""

    name: ClassVar[str] = EXPERT_MATMUL
    version: ClassVar[int] = 1

    def space(self, workload: BlockWorkload, machine: Machine) -> ConfigSpace:
        return ConfigSpace({"rows": tuple(range(1, _MOST_ROWS + 1))})

    def default(self, workload: BlockWorkload, machine: Machine) -> Config:
        return Config.of(rows=min(_MOST_ROWS, super().default(workload, machine).integer("rows")))

    def parts(self, kernel: Kernel) -> Parts | None:
        return parts_of(kernel, EXPERT_MATMUL)

    def writer(self, parts: Any, fused: FusedKernel, machine: Machine, rows: int) -> MatmulWriter:
        return ExpertWriter(parts, fused, machine, rows=rows, vectors=vectors_of(machine))

    def tiles_writer(self, parts: Any, fused: FusedKernel, machine: Machine, product: Product) -> MatmulWriter:
        return ExpertTilesWriter(parts, fused, machine, product)


class _OfExperts(BlockWriter):
    """Looks up the weight of a row's expert."""

    def _expert(self, batch: Batch, row: Expr) -> Expr:
        assert self.parts.experts is not None
        mapping = {**batch, **self.form.rows.values(row)}
        return substitute(self.parts.experts, mapping)

    def _panel(self, batch: Batch, row: Expr, column: Expr) -> Expr:
        panels = -(-int(self.form.columns) // PANEL)
        return self._expert(batch, row) * index(panels) + tirx.FloorDiv(column, index(PANEL))


class ExpertWriter(_OfExperts):
    """Tiles whose rows share an expert are computed together; rows of other tiles one at a time."""

    def _tile(self, at: Tile) -> Stmt:
        together = super()._tile(at)
        if at.rows == 1:
            return together
        one = super()._tile

        def alone(i: Expr) -> Stmt:
            return one(at.part(i, 1))

        first = self._expert(at.batch, at.row)
        same = [tirx.EQ(self._expert(at.batch, at.row + i), first) for i in range(1, int(at.rows))]
        return tirx.IfThenElse(tirx.all(*same), together, repeat("single", at.rows, alone))


class ExpertTilesWriter(_OfExperts, BlockTilesWriter):
    """Writes a matmul with tile instructions: runs of rows with the same expert share a panel of its weights."""

    block_rows: ClassVar[int] = 128

    def __init__(self, parts: Parts, fused: FusedKernel, machine: Machine, product: Product) -> None:
        super().__init__(parts, fused, machine, product)
        self.tile_rows, self.pack = self.block_rows, False

    def _rest_rows(
        self, batch: Batch, column: Expr, width: int, load: PanelLoad, tiles: Expr, rest: Expr, block: Block | None
    ) -> Stmt | None:
        left = self._tile(Tile(batch, expression(tiles * self.tile_rows), rest, column, width, load))
        return tirx.IfThenElse(rest > 0, left, None) if not isinstance(rest, int) else left if rest else None

    def _tile(self, at: Tile) -> Stmt:
        held, allocation = allocate("begin", (1,), "int64", "local")

        def ends(i: Expr) -> Stmt:
            """The run that ends with a given row of the block."""
            rows = expression(at.rows)
            following = self._expert(at.batch, at.row + tirx.Min(i + 1, rows - 1))
            last = tirx.any(tirx.EQ(i + 1, rows), tirx.NE(following, self._expert(at.batch, at.row + i)))
            bindings: list[Stmt] = []
            begin = name_value("first", tirx.BufferLoad(held, [index(0)]), bindings)
            run = self._run(at.part(begin, i + 1 - begin))
            return tirx.IfThenElse(last, sequence(bindings, run, store(held, i + 1, 0)), None)

        return sequence(allocation, store(held, index(0), 0), repeat_symbolic("row", at.rows, ends))

    def _run(self, at: Tile) -> Stmt:
        """Rows of a single expert."""
        unpacked, panel = self._unpacked(self._panel(at.batch, at.row, at.column))
        tiles, own = tirx.FloorDiv(at.rows, index(ROWS)), replace(at, load=lambda k, j: tirx.BufferLoad(panel, [k, j]))

        def tile(first: Expr, count: int) -> Stmt:
            return super(ExpertTilesWriter, self)._tile(own.part(first, count))

        whole = repeat_symbolic("tile", tiles, lambda i: tile(i * ROWS, ROWS))
        parts: list[Stmt] = [tirx.IfThenElse(tiles > 0, sequence(unpacked, whole), None)]
        first = tiles * ROWS
        for count in (_MOST_ROWS, 1):
            of_these = tirx.FloorDiv(at.rows - first, index(count))
            parts.append(repeat_symbolic("few", of_these, lambda i, n=count, start=first: tile(start + i * n, n)))  # type: ignore[misc]
            first = first + of_these * count
        return sequence(parts)
