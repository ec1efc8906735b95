"""Matmuls with block-quantized weights by an int8 instruction with tile accumulators (AMX).

A task unpacks a panel of its weights to bytes once and multiplies up to 256 rows by it. A tile takes 16 rows of the
rounded data by 16 columns, one unit of neighbours at a time; its sums go to memory, from where they are scaled and
added to totals in registers. So integers are summed as in vectors, and numbers are the same. Rows that fill no tile are
multiplied in vectors.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from schedules.codegen.nest import allocate, expression, load, repeat, repeat_symbolic, sequence, store
from schedules.codegen.register_tile import RegisterTile
from schedules.instructions.products.amx import COLUMNS, ROWS, unit_symbol
from schedules.instructions.products.operation import DOT_S8S8, DOT_S8U8
from schedules.instructions.products.product import Product
from schedules.instructions.products.table import tile_product
from schedules.ir.expression import index
from schedules.ir.stages import shape_of
from schedules.ir.tir import VECTORIZED, Expr, Index, Stmt, tirx
from schedules.machine import Machine
from schedules.matmul.blocks.layout import PANEL, QUAD, BlockFormat
from schedules.matmul.blocks.rounding import HEADER
from schedules.matmul.blocks.writer import BlockWriter, Parts, Place
from schedules.matmul.tile import Batch, Block, Tile
from schedules.stages.fused_kernel import FusedKernel

FEW_ROWS = ROWS - 1
"""As many rows fill no tile."""
_VECTOR_ROWS = 4  # rows of a tile in vectors
_WORD = 4  # bytes
_LEAST_UNIT = 16  # bytes of a row of a tile: with fewer the unit does too little of what it could
_SIGN_BITS = 0x80808080


def block_tiles(layout: BlockFormat, machine: Machine) -> Product | None:
    """The machine's tile instruction for quantized data, or None: unsigned bytes if the integers have no common zero
    point, signed bytes if the integers minus their zero point fit."""
    if layout.numbers or layout.unit < _LEAST_UNIT:
        return None
    if not layout.zero:
        return tile_product(machine, DOT_S8U8)
    fits = layout.zero <= 128 and (1 << layout.bits) - 1 - layout.zero <= 127
    return tile_product(machine, DOT_S8S8) if fits else None


class BlockTilesWriter(BlockWriter):
    """Writes a matmul with tile instructions."""

    most_rows: ClassVar[int] = 256

    def __init__(self, parts: Parts, fused: FusedKernel, machine: Machine, product: Product) -> None:
        super().__init__(parts, fused, machine, rows=ROWS, vectors=PANEL // machine.lanes("float32"))
        self.product, self.pack = product, True

    def _packed_panel(self, batch: Batch, column: Expr, width: int, block: Block | None) -> tuple[list[Stmt], Expr]:
        return self._unpacked(self._panel(batch, index(0), column))

    def _unpacked(self, panel: Expr) -> tuple[list[Stmt], Expr]:
        """Statements that unpack a panel into words of four bytes, and the unpacked panel (depth / 4, columns)."""
        words = self.layout.padded_depth(int(self.form.depth.extent)) // QUAD
        bytes_, allocation = allocate("panel", (words, PANEL), "int32")
        run = max(8 // bits for bits in self.layout.planes)  # quads of a word of every plane

        def quads(at: Expr) -> Stmt:
            def element(quad: int, lane: Expr) -> Stmt:
                place = Place({}, index(0), panel, index(0))
                bits = self._bits(place, lane, at * run, quad, None)
                return store(bytes_, signed(bits, self.layout), at * run + quad, lane)

            stores = [
                repeat("lane", self.lanes, lambda lane, at=first, quad=quad: element(quad, at + lane), VECTORIZED)  # type: ignore[misc]
                for quad in range(run)
                for first in range(0, PANEL, self.lanes)
            ]
            return sequence(stores)

        return [allocation, repeat_symbolic("quads", words // run, quads)], bytes_

    def _tile(self, at: Tile) -> Stmt:
        if at.rows == ROWS:
            return sequence([self._in_tile(at, first) for first in range(0, at.width, COLUMNS)])
        whole, rest = divmod(int(at.rows), _VECTOR_ROWS)

        def vectors(first: Index, count: int) -> Stmt:
            return super(BlockTilesWriter, self)._tile(at.part(first, count))

        tiles = repeat("tile", whole, lambda i: vectors(i * _VECTOR_ROWS, _VECTOR_ROWS)) if whole else None
        return sequence(tiles, vectors(whole * _VECTOR_ROWS, rest) if rest else None)

    def _in_tile(self, at: Tile, first: int) -> Stmt:
        """A tile's rows by at most `COLUMNS` columns, starting at the panel's column `first`."""
        width, panel = min(COLUMNS, at.width - first), at.load(index(0), index(0)).source
        data, unit = self.parts.data.source, self.layout.unit
        *_, units, words = shape_of(data)
        totals = RegisterTile(ROWS, width, self.lanes, "float32")
        sums, allocation = allocate("sums", (ROWS, COLUMNS), "int32")
        place = Place(at.batch, at.row, self._panel(at.batch, at.row, at.column), index(first))

        def step(number: Expr) -> Stmt:
            operands = (
                (self._data(place, 0, number, HEADER), units * words * _WORD),
                (load(panel, number * (unit // QUAD), first), PANEL * _WORD),
            )
            arguments = [each for start, pitch in operands for each in (tirx.address_of(start), expression(pitch))]
            arguments.append(tirx.address_of(load(sums, 0, 0)))
            call = tirx.Evaluate(tirx.call_extern("int32", unit_symbol(self.product, unit), *arguments))
            group = number if unit == self.layout.group else tirx.FloorDiv(number, index(self.layout.group // unit))
            return sequence(call, self._integer_end(totals, lambda i, lane: load(sums, i, lane), place, number, group))

        zero = tirx.const(0.0, "float32")
        return sequence(
            totals.allocations,
            allocation,
            totals.stores(lambda i, place, lane: zero),
            repeat_symbolic("unit", units, step),
            self._finish(totals, replace(at, column=at.column + first, width=width)),
        )


def signed(words: Expr, layout: BlockFormat) -> Expr:
    """Words of unsigned bytes minus the format's zero point, if that is not 0 and the difference fits signed bytes.

    128 more than that is never negative, so that bytes do not borrow from each other.
    """
    if not layout.zero:
        return words
    unsigned = tirx.reinterpret("uint32", words)
    if layout.zero < 128:
        unsigned = unsigned + tirx.const((128 - layout.zero) * 0x01010101, "uint32")
    return tirx.reinterpret("int32", unsigned ^ tirx.const(_SIGN_BITS, "uint32"))
