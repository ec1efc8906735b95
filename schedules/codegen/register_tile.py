"""The innermost part of every matmul: a register tile of `rows x width` sums along the depth.

Long float32 sums are computed in parts: each is summed from zero, then added to the total.

The error of a sum of n terms, one after another, is at most (n - 1) u sum(|terms|), u = 2^-24. In parts of b terms it
is at most (b + n / b) u sum(|terms|) (Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, section
4.2), which b = sqrt(n) minimizes; longer parts take less time. For terms of random sign, errors grow with the roots.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import product
from math import prod

from schedules.codegen.nest import allocate, allocate_tile, bind, lanes_of, load, repeat, sequence, split_repeat, store
from schedules.instructions.dot_products.amx import BLOCK_ROWS, ROW_BYTES, ROWS, symbol_of
from schedules.instructions.dot_products.operation import ONES, PARTIAL_STEPS, Instruction
from schedules.ir.expression import expression, index
from schedules.ir.numbers import ceil_div
from schedules.ir.stages import shape_of
from schedules.ir.tir import VECTORIZED, Buffer, Expr, Index, Stmt, tirx
from schedules.machine import dtype_bits

# Sums of a block of rows by instructions with tile accumulators; see `schedules.instructions.dot_products.amx`.


@dataclass(frozen=True)
class Taps:
    """The 64-byte pieces of a row multiplied one after another: counts, and strides in bytes, outermost first."""

    counts: tuple[int, int, int]
    bytes: tuple[Index, Index, Index]

    @classmethod
    def run(cls, count: int) -> Taps:
        """`count` contiguous taps."""
        return cls((1, 1, count), (0, 0, ROW_BYTES))


def with_room(buffer: Buffer) -> Buffer:
    """A buffer of rows (..., row), with room after the last one for the most rows that a tile reads."""
    first, *inner, row = shape_of(buffer)
    each = prod(size if isinstance(size, int) else 1 for size in inner)
    shape = [expression(size) for size in (first + ceil_div(ROWS - 1, each), *inner, row)]
    return tirx.decl_buffer(shape, str(buffer.dtype), str(buffer.name), layout=None)


def block_sums(
    instruction: Instruction,
    a: Callable[[Expr], Expr],
    pitch: Index,
    taps: Taps,
    b: Expr,
    sums: Buffer,
    rows: Index,
    start: Index = 0,
    b_pitch: Index = 0,
) -> Stmt:
    """The statement that computes the sums of some rows by the columns of a panel.

    Args:
        a: the first element of a row; rows up to the next multiple of 16 are read. `pitch` is the bytes from one row to
            the next.
        b: the first element of the panel's weights; `b_pitch` is the bytes from one word of a column to the next if it
            differs from a panel's.
        sums: a buffer (rows, width) with room for a multiple of 16 rows; the first row is stored at `start`.
    """
    width = int(sums.ty.shape[-1])

    def block(row: Index, row_tiles: int) -> Stmt:
        numbers: list[Index] = [pitch]
        for count, step in zip(taps.counts, taps.bytes, strict=True):
            numbers += [count, step]
        left, position = a(expression(row)), tirx.BufferLoad(sums, [expression(start + row), expression(0)])
        addresses = [tirx.address_of(each) for each in (left, b, position)]
        behind = [addresses[1], expression(b_pitch or 4 * width), addresses[2]]
        arguments = [addresses[0], *map(expression, numbers), *behind]
        return tirx.Evaluate(tirx.call_extern("int32", symbol_of(instruction, row_tiles, width), *arguments))

    if isinstance(rows, int):
        pairs, rest = divmod(ceil_div(rows, ROWS), 2)
        last = block(pairs * BLOCK_ROWS, 1) if rest else None
    else:
        tiles = tirx.FloorDiv(rows + (ROWS - 1), index(ROWS))
        pairs, rest = tirx.FloorDiv(tiles, index(2)), tirx.FloorMod(tiles, index(2))
        last = tirx.IfThenElse(rest > 0, block(pairs * BLOCK_ROWS, 1), None)
    blocks = repeat("rows", pairs, lambda i: block(i * BLOCK_ROWS, 2)) if not isinstance(pairs, int) or pairs else None
    return sequence(blocks, last)


def block_sums_without_room(
    instruction: Instruction, a: Callable[[Expr], Expr], pitch: int, taps: Taps, b: Expr, sums: Buffer, rows: Index
) -> Stmt:
    """`block_sums` of rows of whole contiguous taps, if memory after the rows must not be read: the last rows, fewer
    than 16, are copied."""
    full = rows // ROWS * ROWS if isinstance(rows, int) else tirx.FloorDiv(rows, index(ROWS)) * ROWS
    data = a(index(0)).source
    lanes = ROW_BYTES * 8 // dtype_bits(str(data.dtype))
    runs = pitch // ROW_BYTES
    copy, allocation = allocate("last_rows", (ROWS, runs * lanes), str(data.dtype))

    def copied(i: Index) -> Stmt:
        *leading, _ = a(expression(full + i)).indices

        def run(at: Index) -> Stmt:
            position = lanes_of(at * lanes, lanes)
            return store(copy, load(data, *leading, position), i, position)

        return repeat("run", runs, run)

    last = sequence(
        allocation,
        repeat("row", rows - full, copied),
        block_sums(instruction, lambda i: load(copy, i, 0), pitch, taps, b, sums, ROWS, full),
    )
    blocks = None if isinstance(full, int) and not full else block_sums(instruction, a, pitch, taps, b, sums, full)
    if isinstance(rows, int):
        return sequence(blocks, last if rows > full else None)
    return sequence(blocks, tirx.IfThenElse(rows > full, last, None))


# Vectors whose lanes are multiplied one by one, on machines with `lane_products`.


def lanes_repeated(values: Sequence[Expr], lanes: int) -> tuple[list[Stmt], Callable[[int, int, int], Expr]]:
    """Statements that bind float32 vectors of `lanes` lanes, and a function of (vector index, lane, count) that
    broadcasts a lane."""
    bound = [bind(f"input{i}", value, "float32", lanes) for i, value in enumerate(values)]

    def repeated(which: int, lane: int, count: int) -> Expr:
        return tirx.Shuffle([bound[which][0]], [tirx.IntImm("int32", lane)] * count)

    return [statement for _, statement in bound], repeated


PART = 256
"""Terms in one part of a matmul or a direct convolution. Adding a register tile to its totals takes as long as one to
two terms."""


def steps_of_part(steps: int, terms: int, wanted: int = PART) -> int:
    """Number of the `steps` steps, of `terms` terms each, that are summed at a time.

    All of them if that is at most 1.5 times `wanted`; otherwise a divisor of the steps if one is near, since a
    remainder needs code of its own.
    """
    if 2 * steps * terms <= 3 * wanted:
        return steps
    best = max(1, wanted // terms)
    near = [each for each in range(ceil_div(best, 2), 2 * best + 1) if steps % each == 0]
    return min(near, key=lambda each: abs(each - best)) if near else best


def in_parts(steps: int, part: int, body: Callable[[Index, int], Stmt]) -> Stmt:
    """`body(first step, number of steps)` for each part."""
    return split_repeat("sums_of", steps, part, body)


# Makes a statement from (row in the tile, index into that row's sums, column in the tile).
EachVector = Callable[[int, Expr, Expr], Stmt]


def pieces(width: int, lanes: int) -> list[tuple[int, int]]:
    """(start, lanes) of the vectors that cover `width` columns; the last may be shorter."""
    whole, rest = divmod(width, lanes)
    found = [(i * lanes, lanes) for i in range(whole)]
    return [*found, (whole * lanes, rest)] if rest else found


def multiply_add(total: Expr, a: Expr, b: Expr) -> Expr:
    """The sum plus the product."""
    return total + a * b


class RegisterTile:
    """Writes a tile.

    `combine(sum, a, b)` adds a product; `partial` (see `Operation.partial`) adds it to sums of `PARTIAL_STEPS` steps of
    a known depth. The sums of each row have their own buffer (see `nest.allocate_tile`); `allocations` are the
    statements that allocate them, emitted first in `code`.
    """

    def __init__(
        self,
        rows: int,
        width: int,
        lanes: int,
        dtype: str,
        combine: Callable[[Expr, Expr, Expr], Expr] = multiply_add,
        partial: Callable[[Expr, Expr, Expr], Expr] | None = None,
    ) -> None:
        self.rows, self.width, self.lanes = rows, width, lanes
        self.combine, self.partial, self._dtype = combine, partial, dtype
        self._sums, self.allocations = allocate_tile("sums", (rows, width), dtype)
        if partial is not None:
            self._halves, more = allocate_tile("halves", (rows, width), "int32")
            self.allocations = [*self.allocations, *more]

    def sum(self, row: int, position: Expr) -> Expr:
        """A sum of the tile."""
        return load(self._sums, row, position)

    def put(self, row: int, position: Expr, value: Expr) -> Stmt:
        """The statement that sets a sum of the tile."""
        return store(self._sums, value, row, position)

    def narrowed(self, width: int) -> RegisterTile:
        """The first `width` columns of the tile, as a tile over the same sums."""
        result = copy(self)
        result.width = width
        return result

    def each(self, make: EachVector) -> list[Stmt]:
        """`make` for every vector of the tile."""
        return [
            repeat(
                "lane",
                lanes,
                lambda lane, i=i, at=at: make(i, expression(at + lane), expression(at + lane)),  # type: ignore[misc]
                VECTORIZED,
            )
            for i in range(self.rows)
            for at, lanes in pieces(self.width, self.lanes)
        ]

    def stores(self, value: Callable[[int, Expr, Expr], Expr]) -> list[Stmt]:
        """Statements that set each sum to `value(row, position, column)`."""
        return self.each(lambda i, position, column: store(self._sums, value(i, position, column), i, position))

    def cleared(self) -> list[Stmt]:
        """The allocations, and zeros in all sums."""
        return [*self.allocations, *self.stores(lambda i, position, column: tirx.const(0, self._dtype))]

    def code(
        self,
        depth: Index,
        a: Callable[[int, Expr], Expr],
        b: Callable[[Expr, Expr], Expr],
        begin: Callable[[int, Expr], Expr],
        end: Sequence[Stmt],
        ahead: Callable[[Expr], list[Stmt]] = lambda k: [],
        a_lanes: Callable[[int, Expr], Expr] | None = None,
    ) -> list[Stmt]:
        """Sum `a(row, k) * b(k, column)` over `depth`, starting from `begin(row, column)`; then `end`, which reads the
        sums.

        `ahead(k)` makes statements that run before step k. `a_lanes(row, k)` is the float32 vector of `a` from k on, if
        there is one and the machine multiplies by its lanes; `b` then receives vectors of columns.
        """

        sums, combine = (self._sums, self.combine) if self.partial is None else (self._halves, self.partial)

        def start(i: int, position: Expr, column: Expr) -> Stmt:
            return store(self._sums, begin(i, column), i, position)

        def step(k: Expr) -> Stmt:
            def add(i: int, position: Expr, column: Expr) -> Stmt:
                return store(sums, combine(load(sums, i, position), a(i, k), b(k, column)), i, position)

            return sequence([*ahead(k), *self.each(add)])

        def steps(first: Index, count: Index) -> list[Stmt]:
            """The steps from `first` on."""
            if a_lanes is None or not isinstance(count, int):
                return [repeat("k", count, lambda k: step(expression(first + k)))]
            vectors, rest = divmod(count, self.lanes)

            def several(k: Index) -> Stmt:
                return sequence(self._by_lanes(expression(first + k * self.lanes), a_lanes, b, ahead))

            loops = [repeat("k", vectors, several)] if vectors else []
            return loops + [step(expression(first + vectors * self.lanes + k)) for k in range(rest)]

        part = self._steps_of_part(depth)
        if part is None:
            return [*self.allocations, *self.each(start), *steps(0, depth), *end]
        totals, allocations, stores = self._sums, list[Stmt](), list[Stmt]()
        if self.partial is None:
            totals, allocations = allocate_tile("totals", (self.rows, self.width), self._dtype)
            stores = self.each(lambda i, position, column: self.put(i, position, load(totals, i, position)))
        zero = tirx.const(0, self._dtype if self.partial is None else "int32")

        def add(i: int, position: Expr, column: Expr) -> Stmt:
            total, found = load(totals, i, position), load(sums, i, position)
            joined = total + found if self.partial is None else self.combine(total, found, tirx.const(ONES, "int32"))
            return store(totals, joined, i, position)

        def one(first: Index, count: int) -> Stmt:
            clear = self.each(lambda i, position, column: store(sums, zero, i, position))
            return sequence(clear, steps(first, count), self.each(add))

        begun = self.each(lambda i, position, column: store(totals, begin(i, column), i, position))
        return [*self.allocations, *allocations, *begun, in_parts(depth, part, one), *stores, *end]

    def _steps_of_part(self, depth: Index) -> int | None:
        """Number of steps that are summed at a time; None for all."""
        if self.partial is not None:
            return PARTIAL_STEPS
        if self._dtype != "float32" or self.combine is not multiply_add or not isinstance(depth, int):
            return None
        part = steps_of_part(depth, 1)
        return part if part < depth else None

    def _by_lanes(
        self,
        k: Expr,
        a_lanes: Callable[[int, Expr], Expr],
        b: Callable[[Expr, Expr], Expr],
        ahead: Callable[[Expr], list[Stmt]],
    ) -> list[Stmt]:
        """A vector's steps from step k on."""
        statements, repeated = lanes_repeated([a_lanes(i, k) for i in range(self.rows)], self.lanes)
        for lane in range(self.lanes):
            statements += ahead(k + lane)
            for i, (at, count) in product(range(self.rows), pieces(self.width, self.lanes)):
                position = lanes_of(at, count)
                total = self.combine(self.sum(i, position), repeated(i, lane, count), b(k + lane, position))
                statements.append(self.put(i, position, total))
        return statements

    def stored(self, target: Callable[[int, Expr], tuple[Buffer, list[Expr]]]) -> list[Stmt]:
        """Statements that store the sums at `target(row, column)`: a buffer and indices."""

        def put(i: int, position: Expr, column: Expr) -> Stmt:
            buffer, indices = target(i, column)
            return tirx.BufferStore(buffer, self.sum(i, position), indices)

        return self.each(put)
