"""Products with block-quantized weights by an instruction on bfloat16 whose sums stay in tiles (AMX).

A task fills a panel with its weights, their scales applied, as pairs of bfloat16, and multiplies up to 256 rows by it;
the rounded data become bfloat16 once, before. Sums of bytes would have to leave the tiles after each group, to be
scaled: 32 rows of 32 columns are 64 stores of sums and 64 of totals for each 32 steps, in which the unit could do twice
the products. Few rows do not pay for filling a panel and are left to vectors.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from schedules.codegen.nest import (
    Extent,
    allocate,
    broadcast,
    expression,
    lanes_of,
    load,
    parallel_grid,
    repeat,
    repeat_symbolic,
    sequence,
    store,
)
from schedules.codegen.parallel import pays_off
from schedules.codegen.tile_sums import with_room
from schedules.instructions.products.operation import DOT_BF16
from schedules.instructions.products.product import Product
from schedules.instructions.products.table import tile_product
from schedules.instructions.rounding import narrowed
from schedules.ir.expression import index
from schedules.ir.stages import shape_of
from schedules.ir.tir import VECTORIZED, Expr, Stmt, tirx
from schedules.machine import Machine
from schedules.matmul.blocks.layout import PANEL, QUAD
from schedules.matmul.blocks.rounding import HEADER, SCALE
from schedules.matmul.blocks.writer import BlockWriter, Parts, Place
from schedules.matmul.writer import Batch, Block, PanelLoad
from schedules.stages.fused_kernel import FusedKernel

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Index

FEW_ROWS = 24
"""As many rows take no longer in vectors. By cycles for 32 steps of a panel: 11 a row and 16 to unpack there; 5 a row
at the rate of the unit in products, and 160 to fill the panel."""
_PAIR = 2
_WEIGHT = 2  # of making an element bfloat16, beside a multiply-add in vectors


def block_tiles(parts: Parts, machine: Machine) -> Product | None:
    """The instruction for a product, where the machine has one: of rounded data, which leave no more digits."""
    return tile_product(machine, DOT_BF16) if parts.rounded else None


class BlockTilesWriter(BlockWriter):
    """Writes a product by tiles."""

    most_rows: ClassVar[int] = 256
    block_rows: ClassVar[int] = 64

    def __init__(self, parts: Parts, fused: FusedKernel, machine: Machine, product: Product) -> None:
        super().__init__(parts, fused, machine, rows=self.block_rows, vectors=PANEL // machine.lanes("float32"))
        self.tiles, self.pack = product, True
        self.steps = parts.layout.padded_depth(int(self.form.depth.extent))
        lead = [expression(size) for size in shape_of(parts.data.source)[:-2]]
        plain = tirx.decl_buffer([*lead, index(self.steps)], "uint16", "numbers", layout=None)
        self.numbers = with_room(plain)
        self.form = replace(self.form, a=load(self.numbers, *self.form.a.indices[:-2], 0))

    def statement(self) -> Stmt:
        return sequence(tirx.AllocBuffer(self.numbers), self._rounded(), super().statement())

    def _rounded(self) -> Stmt:
        """The data as bfloat16, unit by unit."""
        data, unit = self.parts.data.source, self.layout.unit
        *lead, units, _ = shape_of(data)
        lanes = min(self.lanes, unit)
        words = lanes // QUAD
        amount: Index = self.steps * _WEIGHT
        for size in lead:
            amount = amount * size

        def of_unit(at: list[Expr], place: Index) -> Stmt:
            scale = broadcast(tirx.reinterpret("float32", load(data, *at, place, SCALE)), lanes)
            stores = []
            for first in range(0, unit, lanes):
                stored = load(data, *at, place, lanes_of(HEADER + first // QUAD, words))
                bytes_ = tirx.reinterpret(f"int8x{lanes}", stored)
                value = narrowed(tirx.Cast(f"float32x{lanes}", bytes_) * scale)
                stores.append(store(self.numbers, value, *at, lanes_of(place * unit + first, lanes)))
            return sequence(stores)

        def row(at: list[Expr]) -> Stmt:
            return repeat("unit", units, lambda place: of_unit(at, place))

        extents = [Extent(f"row{at}", size) for at, size in enumerate(lead)]
        return parallel_grid(extents, row, self.machine, parallel=pays_off(amount, self.machine))

    def _tile(
        self,
        batch: Batch,
        row: Expr,
        rows: Index,
        column: Expr,
        width: int,
        load: PanelLoad,
        block: Block | None = None,
    ) -> Stmt:
        return self._tile_in_memory(batch, row, rows, column, width, load)

    def _packed_panel(self, batch: Batch, column: Expr, width: int, block: Block | None) -> tuple[list[Stmt], Expr]:
        return self._filled_panel(self._panel(batch, index(0), column))

    def _filled_panel(self, panel: Expr) -> tuple[list[Stmt], Expr]:
        """Statements that fill a panel with pairs of bfloat16, and the panel (steps / 2, columns)."""
        words, allocation = allocate("panel", (self.steps // _PAIR, PANEL), "int32")
        layout, unit = self.layout, self.layout.unit
        quads = max(unit, QUAD * max(8 // bits for bits in layout.planes)) // QUAD  # of whole words of all planes

        def run(at: Expr) -> Stmt:
            """As many units as whole words hold."""
            first = at * quads
            stores = []
            for quad in range(quads):
                group = tirx.FloorDiv((first + quad) * QUAD, index(layout.group))
                for pair in range(QUAD // _PAIR):

                    def element(lane: Expr, quad: int = quad, pair: int = pair, group: Expr = group) -> Stmt:
                        place = Place({}, index(0), panel, index(0))
                        low, high = (
                            tirx.Cast("int32", narrowed(self._number(place, lane, first, (quad, byte), group)))
                            for byte in (_PAIR * pair, _PAIR * pair + 1)
                        )
                        word = low | high << tirx.const(16, "int32")
                        return store(words, word, (first + quad) * _PAIR + pair, lane)

                    stores += [
                        repeat("lane", self.lanes, lambda lane, at=at, e=element: e(at + lane), VECTORIZED)  # type: ignore[misc]
                        for at in range(0, PANEL, self.lanes)
                    ]
            return sequence(stores)

        return [allocation, repeat_symbolic("run", self.steps // (quads * QUAD), run)], words

    def _number(self, place: Place, lane: Expr, first: Expr, at: tuple[int, int], group: Expr) -> Expr:
        """The weight of a byte of a quad that is counted from quad `first`, which begins words."""
        layout = self.layout
        value = tirx.Cast("float32", self._bits(place, lane, first, *at) - tirx.const(layout.zero, "int32"))
        if layout.zeros:
            zeros = tirx.BufferLoad(self.parts.arrays["zeros"], [place.panel, group, lane])
            value = value - tirx.Cast("float32", zeros)
        value = value * self._of_group("scale", place, lane, group)
        return value + self._of_group("minimum", place, lane, group) if layout.minimum else value
