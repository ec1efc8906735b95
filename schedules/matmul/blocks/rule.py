"""Matmuls with block-quantized weights: the kernels of `schedules.matmul.blocks.expressions`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from schedules.annotations import SPEC
from schedules.config import Config, ConfigSpace
from schedules.errors import NotScheduledError
from schedules.instructions.products.product import Product
from schedules.ir.expression import uses
from schedules.ir.stages import Axis, Kernel, Stage, shape_of
from schedules.ir.tir import Expr, PrimFunc
from schedules.machine import Machine
from schedules.matmul.blocks.expressions import BLOCK_MATMUL
from schedules.matmul.blocks.layout import PANEL, BlockFormat
from schedules.matmul.blocks.tiles import FEW_ROWS, BlockTilesWriter, block_tiles
from schedules.matmul.blocks.writer import BlockWriter, Parts
from schedules.matmul.packed_operand import MatmulOfParts, by_rows, panel_form
from schedules.matmul.writer import MatmulWriter
from schedules.rule import Workload
from schedules.stages.fused_kernel import FusedKernel, anchor_stages

# Rows of a tile whose weights are unpacked: more make the code longer, not faster.
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
    version: ClassVar[int] = 1

    def match(self, kernel: Kernel, machine: Machine) -> BlockWorkload | None:
        parts = self.parts(kernel)
        if parts is None:
            return None
        rows, columns, depth = parts.form.known_extents
        return BlockWorkload(rows, columns, depth, parts.rounded, parts.layout.text())

    def space(self, workload: BlockWorkload, machine: Machine) -> ConfigSpace:
        choices = range(1, _most_rows(workload, machine) + 1)
        return ConfigSpace({"rows": tuple(choices)})

    def default(self, workload: BlockWorkload, machine: Machine) -> Config:
        most = _most_rows(workload, machine)
        return Config.of(rows=min(most, workload.rows or most))

    def parts(self, kernel: Kernel) -> Parts | None:
        return parts_of(kernel)

    def writer(self, parts: Parts, fused: FusedKernel, machine: Machine, rows: int) -> MatmulWriter:
        return BlockWriter(parts, fused, machine, rows=rows, vectors=vectors_of(machine))

    def tiles_writer(self, parts: Parts, fused: FusedKernel, machine: Machine, product: Product) -> MatmulWriter:
        """Loop writer for more than `FEW_ROWS` rows, using an instruction with tile accumulators."""
        return BlockTilesWriter(parts, fused, machine, product)

    def apply(self, kernel: Kernel, workload: BlockWorkload, config: Config, machine: Machine) -> PrimFunc:
        parts = self.parts(kernel)
        if parts is None:
            raise NotScheduledError("the stage of the product is missing")
        fused = FusedKernel(kernel, [parts.form.stage])
        product = block_tiles(parts.layout, machine) if parts.rounded else None
        few = self.writer(parts, fused, machine, config.integer("rows"))
        if product is None:
            return fused.function(few.statement(), machine)
        many = self.tiles_writer(parts, fused, machine, product)
        return fused.function(by_rows(parts.form, few, many, FEW_ROWS), machine)


def vectors_of(machine: Machine) -> int:
    """Vectors of columns per tile: two, or one if a vector holds a whole panel."""
    return max(1, min(2, PANEL // machine.lanes("float32")))


def _most_rows(workload: BlockWorkload, machine: Machine) -> int:
    """Maximum rows whose accumulators fit the registers, next to a step's weights and the temporaries of unpacking
    them; twice the accumulators if a unit's sums are integers or unscaled."""
    vectors = vectors_of(machine)
    plain = bool(BlockFormat.of_text(workload.layout).numbers)
    most = max(1, (machine.vector_registers - 2 * vectors - 2) // (vectors if plain else 2 * vectors))
    return most if plain else min(_UNPACKED_ROWS, most)


def parts_of(kernel: Kernel, kind: str = BLOCK_MATMUL) -> Parts | None:
    """The operands of a `block_matmul` or `expert_matmul` kernel."""
    stages = anchor_stages(kernel, kind)
    if len(stages) != 1 or not kernel.is_plain or stages[0].store is None:
        return None
    stage = stages[0]
    store = stage.store
    assert store is not None
    column = next((axis for axis in stage.axes if axis.var.same_as(store.indices[-1])), None)
    depth = next((axis for axis in stage.axes if axis.reduce), None)
    if column is None or depth is None:
        return None
    layout = BlockFormat.of_text(str(stage.annotations[SPEC]))
    data, experts, weights = _operands(stage, store.buffer, column)
    if not layout.is_integer:  # whose numbers are told from their bits, each read again
        weights = list({load.source: load for load in weights}.values())
    arrays = _named(weights, layout)
    if data is None or arrays is None or (experts is None) != (kind == BLOCK_MATMUL):
        return None
    form = panel_form(stage, depth, data, weights[0])
    return Parts(form, layout, data, arrays, experts)


def _operands(stage: Stage, result: Expr, column: Axis) -> tuple[Expr | None, Expr | None, list[Expr]]:
    """The load of the data, the load of the experts, and the loads of the weight's arrays in the order of the
    expression.

    Arrays of equal content are one constant, so that a buffer may stand for several of them.
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
    """The weight's arrays by name: bit planes are told apart by their number of words, the rest by position."""
    planes = sorted((each.source for each in weights if str(each.source.dtype) == "int32"), key=_words)
    others = [each.source for each in weights if str(each.source.dtype) != "int32"]
    found = [*planes, *others]
    return dict(zip(layout.arrays, found, strict=True)) if len(found) == len(layout.arrays) else None


def _words(plane: Expr) -> int:
    return -int(shape_of(plane)[1])
