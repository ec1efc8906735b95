"""Products of rows with the block-quantized weights of experts: the kernels of `expert_matmul`."""

from __future__ import annotations

from typing import Any, ClassVar

from schedules.codegen.nest import repeat
from schedules.config import Config, ConfigSpace
from schedules.ir.expression import index, substitute
from schedules.ir.stages import Kernel
from schedules.ir.tir import Expr, Stmt, tirx
from schedules.machine import Machine
from schedules.matmul.blocks.expressions import EXPERT_MATMUL
from schedules.matmul.blocks.layout import PANEL
from schedules.matmul.blocks.rule import BlockWorkload, MatmulBlocks, parts_of, vectors_of
from schedules.matmul.blocks.writer import BlockWriter, Parts
from schedules.matmul.writer import Batch, Block, MatmulWriter, PanelLoad
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


class ExpertWriter(BlockWriter):
    """Tiles whose rows have one expert multiply together; rows of other tiles one at a time."""

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
        together = super()._tile(batch, row, rows, column, width, load, block)
        if rows == 1:
            return together
        one = super()._tile

        def alone(i: Expr) -> Stmt:
            return one(batch, row + i, 1, column, width, load, block)

        first = self._expert(batch, row)
        same = [tirx.EQ(self._expert(batch, row + i), first) for i in range(1, rows)]
        return tirx.IfThenElse(tirx.all(*same), together, repeat("single", rows, alone))

    def _expert(self, batch: Batch, row: Expr) -> Expr:
        assert self.parts.experts is not None
        mapping = {**batch, **self.form.rows.values(row)}
        return substitute(self.parts.experts, mapping)

    def _panel(self, batch: Batch, row: Expr, column: Expr) -> Expr:
        panels = -(-int(self.form.columns) // PANEL)
        return self._expert(batch, row) * index(panels) + tirx.FloorDiv(column, index(PANEL))
