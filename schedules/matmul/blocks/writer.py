"""Code for a matmul with a block-quantized weight: a register tile that unpacks the weight along the depth.

One row of data is bound by memory: words are prefetched, and each is read once. With more rows, the unpacked bytes
serve all rows of the tile. For integers, each unit is summed by byte dot products and scaled once.

Matmuls with block-quantized weights by an int8 instruction with tile accumulators (AMX).

A task unpacks a panel of its weights to bytes once and multiplies up to 256 rows by it. A tile multiplies 16 rows of
the rounded data by 16 columns, one unit of neighbors at a time; its sums are stored to memory, where they are read to
be scaled and added to totals in registers. So integers are summed as in vectors, and the results are the same. Rows
that do not fill a tile are multiplied in vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

from schedules.codegen.nest import (
    allocate,
    load,
    prefetch,
    repeat,
    repeat_symbolic,
    sequence,
    split_repeat,
    split_steps,
    store,
)
from schedules.codegen.parallel import MIN_PARALLEL_BYTES, MIN_PARALLEL_WORK, pays_off
from schedules.codegen.register_tile import RegisterTile
from schedules.instructions.dot_products.amx import COLUMNS, ROWS, unit_symbol
from schedules.instructions.dot_products.operation import DOT_BF16, DOT_F16, DOT_S8S8, DOT_S8U8, DOT_U8S8, Instruction
from schedules.instructions.dot_products.table import sums_signed, tile_instruction
from schedules.instructions.unpack_bits import looked_up
from schedules.ir.expression import expression, index, number, substitute
from schedules.ir.numbers import SIGN_BITS, WORD_BYTES
from schedules.ir.stages import shape_of
from schedules.ir.tir import VECTORIZED, Expr, Index, Stmt, tirx
from schedules.machine import Machine
from schedules.matmul.blocks.expressions import PANEL, STEP, BlockFormat, number_of
from schedules.matmul.blocks.rounding import HEADER, SCALE, SCALED_SUM, SUM
from schedules.matmul.form import MatmulForm
from schedules.matmul.packed_operand import WriterOfParts
from schedules.matmul.tiling import MatmulSplit, row_chunks_at_run_time
from schedules.matmul.writer import Batch, Block, Tile
from schedules.stages.fused_kernel import FusedKernel

# Prefetch distance of words, in rows of a panel (128 bytes), and the most rows of a tile that prefetches.
_WORDS_AHEAD = 32
_FEW_ROWS = 4
_LEVEL = 1  # on Zen 4, words that wait in the second cache are read more slowly than without being asked for


@dataclass(frozen=True, eq=False)
class Parts:
    """The stage of a matmul and its operands.

    `data` is a load, `arrays` are the weight's buffers by name; `experts` is a load of each row's expert, None if all
    rows have the same weight.
    """

    form: MatmulForm
    layout: BlockFormat
    data: Expr
    arrays: dict[str, Expr]
    experts: Expr | None = None

    @property
    def rounded(self) -> bool:
        """True if the data were quantized by `block_round`."""
        return str(self.data.source.dtype) == "int32"


@dataclass(frozen=True)
class Position:
    """Position of a tile: its first row, its panel, and its first column within the panel."""

    batch: Batch
    row: Expr
    panel: Expr
    lane: Expr


class BlockWriter(WriterOfParts[Parts]):
    """Writes a matmul: the common loops, with its own tile."""

    rows_first: ClassVar[bool] = True
    max_rows: ClassVar[int] = 64
    """Rows per task."""

    def __init__(self, parts: Parts, fused: FusedKernel, machine: Machine, *, rows: int, vectors: int) -> None:
        super().__init__(parts, fused, machine, rows=rows)
        self.panel = vectors * self.lanes
        self.layout = parts.layout
        self.signed = sums_signed(machine)

    def _threads(self) -> bool | Expr:
        weight = int(self.form.columns) * int(self.form.depth.extent)
        if weight >= MIN_PARALLEL_WORK * self.lanes // 4 or weight * self.layout.bits // 8 >= MIN_PARALLEL_BYTES:
            return pays_off(weight, self.machine, 0)
        return super()._threads()

    def _split(self, tiles: Index, panels: Index) -> MatmulSplit:
        """Split the work; limits the rows per chunk so that half of the L2 cache remains for weights."""
        element = 2 if self.parts.rounded else 4
        row_bytes = element * int(self.form.depth.extent)
        fitting = self.machine.l2_bytes // 2 // (row_bytes * self.tile_rows)
        maximum = max(1, min(self.max_rows // self.tile_rows, fitting))
        chunks = row_chunks_at_run_time(tiles, [panels], self.machine.cores, maximum=maximum)
        return self._named_split(chunks)

    def _tile(self, at: Tile) -> Stmt:
        """`rows x width` results: one step after another, with sums scaled and accumulated in registers."""
        totals = RegisterTile(int(at.rows), at.width, self.lanes, "float32")
        panel = self._panel(at.batch, at.row, at.column)
        position = Position(at.batch, at.row, panel, tirx.FloorMod(at.column, index(PANEL)))
        if self.layout.numbers:
            steps = self._plain_words(totals, position)
        else:
            depth = int(self.form.depth.extent)
            depth = self.layout.padded_depth(depth) if self.parts.rounded else depth
            steps = split_steps("step", depth, STEP, lambda k, size: self._step(totals, position, k, size))
        return sequence([*totals.cleared(), *steps, *self._finish(totals, at)])

    # Operands.

    def _panel(self, batch: Batch, row: Expr, column: Expr) -> Expr:
        """The panel multiplied by the rows of a tile."""
        return tirx.FloorDiv(column, index(PANEL))

    def _data(self, position: Position, row: int, *last: Expr | int) -> Expr:
        """A data element in a row of the tile."""
        data = self.parts.data
        mapping = {**position.batch, **self.form.rows.values(position.row + row)}
        leading = [substitute(each, mapping) for each in self.form.a.indices[: -len(last)]]
        return tirx.BufferLoad(
            data.source, [*leading, *(index(each) if isinstance(each, int) else each for each in last)]
        )

    def _bits(self, position: Position, lane: Expr, first: Expr, quad: int, byte: int | None) -> Expr:
        """The integers of a quad as four bytes, or one of them; `first` is the index of a quad at a word boundary."""
        value, start = None, 0
        for at, bits in enumerate(self.layout.planes):
            per_byte = 8 // bits
            word_at = tirx.FloorDiv(first, index(per_byte)) + quad // per_byte
            word = tirx.BufferLoad(self.parts.arrays[f"plane{at}"], [position.panel, word_at, position.lane + lane])
            shift = bits * (quad % per_byte) + (0 if byte is None else 8 * byte)
            mask = (1 << bits) - 1
            part = word >> tirx.const(shift, "int32") if shift else word
            if byte is not None or bits < 8:
                part = part & tirx.const(mask if byte is not None else mask * 0x01010101, "int32")
            part = part << tirx.const(start, "int32") if start else part
            value = part if value is None else value | part
            start += bits
        assert value is not None
        return value

    def _of_group(self, name: str, position: Position, lane: Expr, group: Expr) -> Expr:
        """A scale or minimum as float32."""
        arrays, at = self.parts.arrays, position.lane + lane
        if not self.layout.super_groups:
            return number(tirx.BufferLoad(arrays[name], [position.panel, group, at]), "float32")
        above = tirx.FloorDiv(group, index(self.layout.super_groups))
        high = number(tirx.BufferLoad(arrays[name], [position.panel, above, at]), "float32")
        return high * tirx.Cast("float32", tirx.BufferLoad(arrays[f"{name}_integers"], [position.panel, group, at]))

    def _ahead(self, totals: RegisterTile, position: Position, step: Expr) -> list[Stmt]:
        """Prefetch the words that a tile of few rows reads next."""
        if totals.rows > _FEW_ROWS:
            return []
        prefetches = []
        for at, bits in enumerate(self.layout.planes):
            words = STEP // WORD_BYTES * bits // 8
            for word in range(words):
                for lane in range(0, totals.width, 16):
                    row = step * words + (word + _WORDS_AHEAD)
                    words_at = (position.panel, row, position.lane + lane)
                    prefetches.append(prefetch(self.parts.arrays[f"plane{at}"], *words_at, level=_LEVEL))
        return prefetches

    # Steps.

    def _units(self, step: Expr, depth: int) -> list[tuple[int, Expr, Expr, int]]:
        """(first quad in the step, unit, group, depth) of the units of a step."""
        unit, group = self.layout.unit, self.layout.group
        units = []
        for at in range(-(-depth // unit)):
            number_ = step * (STEP // unit) + at
            of_group = number_ if unit == group else tirx.FloorDiv(number_, index(group // unit))
            units.append((at * unit // WORD_BYTES, number_, of_group, min(unit, depth - at * unit)))
        return units

    def _step(self, totals: RegisterTile, position: Position, step: Expr, depth: int) -> Stmt:
        code = self._ahead(totals, position, step)
        for quad, unit, group, size in self._units(step, depth):
            at = (step * (STEP // WORD_BYTES), quad)
            if self.parts.rounded:
                code += self._integer_unit(totals, position, at, unit, group)
            else:
                code += self._float_unit(totals, position, at, group, size)
        return sequence(code)

    def _integer_unit(
        self, totals: RegisterTile, position: Position, quad: tuple[Expr, int], unit: Expr, group: Expr
    ) -> list[Stmt]:
        """Dot products of a unit whose bits start at a quad boundary, scaled and accumulated."""
        sums = RegisterTile(totals.rows, totals.width, self.lanes, "int32")
        code = [*sums.allocations, *self._integer_start(sums, position, unit)]
        for word in range(self.layout.unit // WORD_BYTES):

            def add(i: int, at: Expr, lane: Expr, word: int = word) -> Expr:
                data = self._data(position, i, unit, HEADER + word)
                return self._dot(sums.sum(i, at), self._bits(position, lane, quad[0], quad[1] + word, None), data)

            code += sums.stores(add)
        return [*code, *self._integer_end(totals, sums.sum, position, unit, group)]

    @property
    def _flips(self) -> bool:
        """True if the integers are multiplied as signed bytes, offset by -128."""
        return self.signed and self.layout.bits == 8

    def _dot(self, total: Expr, weights: Expr, data: Expr) -> Expr:
        if not self.signed:
            return DOT_U8S8(total, weights, data)
        flipped = weights ^ tirx.const(SIGN_BITS, "int32") if self._flips else weights
        return DOT_S8S8(total, data, flipped)

    def _integer_start(self, sums: RegisterTile, position: Position, unit: Expr) -> list[Stmt]:
        """Initialize a unit's sums with the correction for a constant zero point."""
        zero = self.layout.zero - (128 if self._flips else 0)

        def start(i: int, at: Expr, lane: Expr) -> Expr:
            return self._data(position, i, unit, SUM) * tirx.const(-zero, "int32") if zero else tirx.const(0, "int32")

        return sums.stores(start)

    def _integer_end(
        self, totals: RegisterTile, sum_at: Callable[[int, Expr], Expr], position: Position, unit: Expr, group: Expr
    ) -> list[Stmt]:
        """Scale a unit's sums, by row and column, and accumulate them."""
        layout = self.layout

        def scaled(i: int, at: Expr, lane: Expr) -> Expr:
            scale = tirx.reinterpret("float32", self._data(position, i, unit, SCALE))
            scaled_sum = tirx.reinterpret("float32", self._data(position, i, unit, SCALED_SUM))
            weight = self._of_group("scale", position, lane, group)
            result = totals.sum(i, at) + tirx.Cast("float32", sum_at(i, at)) * (weight * scale)
            if layout.zeros:
                zeros = tirx.BufferLoad(self.parts.arrays["zeros"], [position.panel, group, position.lane + lane])
                result = result - (tirx.Cast("float32", zeros) * weight) * scaled_sum
            if layout.minimum:
                result = result + self._of_group("minimum", position, lane, group) * scaled_sum
            return result

        return totals.stores(scaled)

    def _float_unit(
        self, totals: RegisterTile, position: Position, quad: tuple[Expr, int], group: Expr, size: int
    ) -> list[Stmt]:
        """Like `_integer_unit`, over `size` elements."""
        sums = RegisterTile(totals.rows, totals.width, self.lanes, "float32")
        first, code = (quad[0] + quad[1]) * WORD_BYTES, sums.cleared()
        run = WORD_BYTES * max(8 // bits for bits in self.layout.planes)  # elements per word of every plane
        if quad[1] * WORD_BYTES % run:  # the unit begins inside a word
            code += self._float_run(sums, position, quad, first, size)
        else:

            def words(at: Expr, count: int) -> Stmt:
                start = first + at * run
                quads = tirx.FloorDiv(start, index(WORD_BYTES))
                return sequence(self._float_run(sums, position, (quads, 0), start, count))

            code += split_steps("word", size, run, words)
        return [*code, *self._float_end(totals, sums, position, group, (first, size))]

    def _float_run(
        self, sums: RegisterTile, position: Position, quad: tuple[Expr, int], first: Expr, count: int
    ) -> list[Stmt]:
        """`count` multiply-adds starting at index `first` of the depth, whose bits start at a quad boundary."""
        code = []
        for k in range(count):

            def add(i: int, at: Expr, lane: Expr, k: int = k) -> Expr:
                value = self._bits(position, lane, quad[0], quad[1] + k // WORD_BYTES, k % WORD_BYTES)
                weight = self._number(value)
                return sums.sum(i, at) + self._data(position, i, first + k) * weight

            code += sums.stores(add)
        return code

    def _number(self, value: Expr) -> Expr:
        """The float32 value of an integer of the weight, without its zero point."""
        if self.layout.is_integer:
            return tirx.Cast("float32", value)
        found = looked_up(value, self.layout.table) if self.layout.table else None
        return number_of(value, self.layout) if found is None else found

    def _float_end(
        self, totals: RegisterTile, sums: RegisterTile, position: Position, group: Expr, run: tuple[Expr, int]
    ) -> list[Stmt]:
        """Subtract zero points from a unit's sums, scale and accumulate them."""
        layout, (first, size) = self.layout, run
        data = RegisterTile(sums.rows, 1, 1, "float32")
        code: list[Stmt] = []
        if layout.zero or layout.zeros or layout.minimum:

            def add(k: Expr) -> Stmt:
                return sequence(data.stores(lambda i, at, lane: data.sum(i, at) + self._data(position, i, first + k)))

            code += [*data.cleared(), repeat_symbolic("k", size, add)]

        def scaled(i: int, at: Expr, lane: Expr) -> Expr:
            value, weight = sums.sum(i, at), self._of_group("scale", position, lane, group)
            if layout.zero:
                value = value - tirx.const(float(layout.zero), "float32") * data.sum(i, index(0))
            if layout.zeros:
                zeros = tirx.BufferLoad(self.parts.arrays["zeros"], [position.panel, group, position.lane + lane])
                value = value - tirx.Cast("float32", zeros) * data.sum(i, index(0))
            result = totals.sum(i, at) + weight * value
            return (
                result + self._of_group("minimum", position, lane, group) * data.sum(i, index(0))
                if layout.minimum
                else result
            )

        return [*code, *totals.stores(scaled)]

    def _plain_words(self, totals: RegisterTile, position: Position) -> list[Stmt]:
        """Multiply-adds with unquantized numbers, word by word."""
        layout, words = self.layout, self.parts.arrays["numbers"]
        positions, depth = 32 // layout.bits, int(self.form.depth.extent)

        def step(word: Expr, count: int) -> Stmt:
            ahead = word + 2 * _WORDS_AHEAD
            code = [
                prefetch(words, position.panel, ahead, position.lane + lane, level=_LEVEL)
                for lane in range(0, totals.width, 16)
                if totals.rows <= _FEW_ROWS
            ]
            for each in range(count):

                def add(i: int, at: Expr, lane: Expr, each: int = each) -> Expr:
                    stored = tirx.BufferLoad(words, [position.panel, word, position.lane + lane])
                    weight = _plain_number(stored, layout, each)
                    return totals.sum(i, at) + self._data(position, i, word * positions + each) * weight

                code += totals.stores(add)
            return sequence(code)

        return split_steps("word", depth, positions, step)


def _plain_number(word: Expr, layout: BlockFormat, position: int) -> Expr:
    """The float32 value of an unquantized number in a word."""
    if layout.bits == 32:
        return tirx.reinterpret("float32", word)
    return (DOT_BF16 if layout.numbers == "bfloat16" else DOT_F16).half(word, position)


FEW_ROWS = ROWS - 1
"""The largest number of rows that do not fill a tile."""
_VECTOR_ROWS = 4  # rows of a tile in vectors
_MIN_UNIT = 16  # bytes per row of a tile: fewer would waste too much of the unit
_SIGN_BITS = 0x80808080


def block_tiles(layout: BlockFormat, machine: Machine) -> Instruction | None:
    """The machine's tile instruction for quantized data, or None: unsigned bytes if the integers have no common zero
    point, signed bytes if the integers minus their zero point fit."""
    if layout.numbers or layout.unit < _MIN_UNIT:
        return None
    if not layout.zero:
        return tile_instruction(machine, DOT_S8U8)
    fits = layout.zero <= 128 and (1 << layout.bits) - 1 - layout.zero <= 127
    return tile_instruction(machine, DOT_S8S8) if fits else None


class BlockTilesWriter(BlockWriter):
    """Writes a matmul with tile instructions."""

    max_rows: ClassVar[int] = 256

    def __init__(self, parts: Parts, fused: FusedKernel, machine: Machine, instruction: Instruction) -> None:
        super().__init__(parts, fused, machine, rows=ROWS, vectors=PANEL // machine.lanes("float32"))
        self.instruction, self.pack = instruction, True

    def _packed_panel(self, batch: Batch, column: Expr, width: int, block: Block | None) -> tuple[list[Stmt], Expr]:
        return self._unpacked(self._panel(batch, index(0), column))

    def _unpacked(self, panel: Expr) -> tuple[list[Stmt], Expr]:
        """Statements that unpack a panel into words of four bytes, and the unpacked panel (depth / 4, columns)."""
        words = self.layout.padded_depth(int(self.form.depth.extent)) // WORD_BYTES
        bytes_, allocation = allocate("panel", (words, PANEL), "int32")
        run = max(8 // bits for bits in self.layout.planes)  # quads of a word of every plane

        def quads(at: Expr) -> Stmt:
            def element(quad: int, lane: Expr) -> Stmt:
                position = Position({}, index(0), panel, index(0))
                bits = self._bits(position, lane, at * run, quad, None)
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

        def vectors(first: Index, count: int) -> Stmt:
            return super(BlockTilesWriter, self)._tile(at.part(first, count))

        return split_repeat("tile", int(at.rows), _VECTOR_ROWS, vectors)

    def _in_tile(self, at: Tile, first: int) -> Stmt:
        """A tile's rows by at most `COLUMNS` columns, starting at the panel's column `first`."""
        width, panel = min(COLUMNS, at.width - first), at.load(index(0), index(0)).source
        data, unit = self.parts.data.source, self.layout.unit
        *_, units, words = shape_of(data)
        totals = RegisterTile(ROWS, width, self.lanes, "float32")
        sums, allocation = allocate("sums", (ROWS, COLUMNS), "int32")
        position = Position(at.batch, at.row, self._panel(at.batch, at.row, at.column), index(first))

        def step(number: Expr) -> Stmt:
            operands = (
                (self._data(position, 0, number, HEADER), units * words * WORD_BYTES),
                (load(panel, number * (unit // WORD_BYTES), first), PANEL * WORD_BYTES),
            )
            arguments = [each for start, pitch in operands for each in (tirx.address_of(start), expression(pitch))]
            arguments.append(tirx.address_of(load(sums, 0, 0)))
            call = tirx.Evaluate(tirx.call_extern("int32", unit_symbol(self.instruction, unit), *arguments))
            group = number if unit == self.layout.group else tirx.FloorDiv(number, index(self.layout.group // unit))
            return sequence(
                call, self._integer_end(totals, lambda i, lane: load(sums, i, lane), position, number, group)
            )

        return sequence(
            totals.cleared(),
            allocation,
            repeat_symbolic("unit", units, step),
            self._finish(totals, replace(at, column=at.column + first, width=width)),
        )


def signed(words: Expr, layout: BlockFormat) -> Expr:
    """Words of unsigned bytes minus the format's zero point, if that is not 0 and the difference fits signed bytes.

    The difference plus 128 is never negative, so bytes do not borrow from each other.
    """
    if not layout.zero:
        return words
    unsigned = tirx.reinterpret("uint32", words)
    if layout.zero < 128:
        unsigned = unsigned + tirx.const((128 - layout.zero) * 0x01010101, "uint32")
    return tirx.reinterpret("int32", unsigned ^ tirx.const(_SIGN_BITS, "uint32"))
