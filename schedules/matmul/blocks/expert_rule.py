"""Products of rows with the block-quantized weights of experts: the kernels of `expert_matmul`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from schedules.codegen.nest import allocate, expression, load, name_value, repeat, repeat_symbolic, sequence, store
from schedules.config import Config, ConfigSpace
from schedules.ir.expression import index, substitute
from schedules.ir.stages import Kernel
from schedules.ir.tir import Expr, Stmt, tirx
from schedules.machine import Machine
from schedules.matmul.blocks.expressions import EXPERT_MATMUL
from schedules.matmul.blocks.layout import PANEL
from schedules.matmul.blocks.rule import BlockWorkload, MatmulBlocks, parts_of, vectors_of
from schedules.matmul.blocks.tiles import FEW_ROWS, BlockTilesWriter
from schedules.matmul.blocks.writer import BlockWriter, Parts
from schedules.matmul.writer import Batch, Block, MatmulWriter, PanelLoad
from schedules.stages.fused_kernel import FusedKernel

if TYPE_CHECKING:
    from schedules.instructions.products.product import Product
    from schedules.ir.tvm_types import Index

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
    """Finds the weight of the expert of a row."""

    def _expert(self, batch: Batch, row: Expr) -> Expr:
        assert self.parts.experts is not None
        mapping = {**batch, **self.form.rows.values(row)}
        return substitute(self.parts.experts, mapping)

    def _panel(self, batch: Batch, row: Expr, column: Expr) -> Expr:
        panels = -(-int(self.form.columns) // PANEL)
        return self._expert(batch, row) * index(panels) + tirx.FloorDiv(column, index(PANEL))


class ExpertWriter(_OfExperts):
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
        together = self.together(batch, row, rows, column, width, load, block)
        if rows == 1:
            return together

        def alone(i: Expr) -> Stmt:
            return self.together(batch, row + i, 1, column, width, load, block)

        first = self._expert(batch, row)
        same = [tirx.EQ(self._expert(batch, row + i), first) for i in range(1, rows)]
        return tirx.IfThenElse(tirx.all(*same), together, repeat("single", rows, alone))

    def together(
        self,
        batch: Batch,
        row: Expr,
        rows: int,
        column: Expr,
        width: int,
        load: PanelLoad,
        block: Block | None = None,
    ) -> Stmt:
        """A tile whose rows have one expert."""
        return super()._tile(batch, row, rows, column, width, load, block)


class ExpertTilesWriter(_OfExperts, BlockTilesWriter):
    """Writes a product by tiles: runs of rows that have one expert share a panel of its weights. Runs of few rows
    multiply in vectors."""

    block_rows: ClassVar[int] = 128

    def __init__(self, parts: Parts, fused: FusedKernel, machine: Machine, product: Product) -> None:
        super().__init__(parts, fused, machine, product)
        self.pack = False
        self._few = ExpertWriter(parts, fused, machine, rows=_MOST_ROWS, vectors=vectors_of(machine))

    def _tile(
        self,
        batch: Batch,
        row: Expr,
        rows: Index,
        column: Expr,
        width: int,
        load_panel: PanelLoad,
        block: Block | None = None,
    ) -> Stmt:
        held, allocation = allocate("begin", (1,), "int64", "local")

        def ends(i: Expr) -> Stmt:
            """The run that ends with a row of the block."""
            following = self._expert(batch, row + tirx.Min(i + 1, expression(rows) - 1))
            last = tirx.any(tirx.EQ(i + 1, expression(rows)), tirx.NE(following, self._expert(batch, row + i)))
            bindings: list[Stmt] = []
            begin = name_value("first", load(held, 0), bindings)
            run = self._run(batch, row + begin, i + 1 - begin, column, width, load_panel)
            return tirx.IfThenElse(last, sequence(bindings, run, store(held, i + 1, 0)), None)

        return sequence(allocation, store(held, index(0), 0), repeat_symbolic("row", rows, ends))

    def _run(self, batch: Batch, row: Expr, rows: Expr, column: Expr, width: int, load_panel: PanelLoad) -> Stmt:
        """Rows of one expert."""

        def tile(first: Expr, count: int) -> Stmt:
            return self._few.together(batch, row + first, count, column, width, load_panel)

        whole = tirx.FloorDiv(rows, index(_MOST_ROWS))
        in_vectors = sequence(
            repeat("tile", whole, lambda i: tile(i * _MOST_ROWS, _MOST_ROWS)),
            repeat("single", rows - whole * _MOST_ROWS, lambda i: tile(whole * _MOST_ROWS + i, 1)),
        )
        filled, words = self._filled_panel(self._panel(batch, row, column))
        sums, allocation = allocate("tile", (self.tile_rows, PANEL), self.dtype)
        summed = self._block_sums(batch, row, rows, load(words, 0, 0), sums)
        in_tiles = sequence(filled, allocation, summed, self._finish_rows(sums, batch, row, rows, column, width))
        return tirx.IfThenElse(rows <= FEW_ROWS, in_vectors, in_tiles)
