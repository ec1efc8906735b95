"""Sums of a block of rows by instructions whose sums stay in tiles; see `schedules.instructions.products.amx`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from schedules.codegen.nest import allocate, expression, lanes_of, load, repeat, sequence, store
from schedules.instructions.products.amx import BLOCK_ROWS, ROW_BYTES, ROWS, symbol_of
from schedules.instructions.products.operation import Product
from schedules.ir.expression import index
from schedules.ir.numbers import ceil_div
from schedules.ir.stages import shape_of
from schedules.ir.tir import Buffer, Expr, Index, Stmt, tirx
from schedules.machine import dtype_bits


@dataclass(frozen=True)
class Taps:
    """The 64 bytes of a row that are multiplied in turn: counts, and bytes from each to the next, outermost first."""

    counts: tuple[int, int, int]
    bytes: tuple[Index, Index, Index]

    @classmethod
    def run(cls, count: int) -> Taps:
        """Taps that follow each other in a row."""
        return cls((1, 1, count), (0, 0, ROW_BYTES))


def with_room(buffer: Buffer) -> Buffer:
    """A buffer of rows (..., row) with room for as many rows behind the last one as a tile reads at most."""
    first, *inner, row = shape_of(buffer)
    each = 1
    for size in inner:
        each *= size if isinstance(size, int) else 1
    shape = [expression(size) for size in (first + ceil_div(ROWS - 1, each), *inner, row)]
    return tirx.decl_buffer(shape, str(buffer.dtype), str(buffer.name), layout=None)


def block_sums(
    product: Product,
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
        b: the first element of the panel's weights; `b_pitch` is the bytes from one word of a column to the next where
            they are not those of a panel.
        sums: a buffer (rows, width) with room for a multiple of 16 rows; `start` is where the first row's go.
    """
    width = int(sums.ty.shape[-1])

    def block(row: Index, row_tiles: int) -> Stmt:
        numbers: list[Index] = [pitch]
        for count, step in zip(taps.counts, taps.bytes, strict=True):
            numbers += [count, step]
        left, place = a(expression(row)), tirx.BufferLoad(sums, [expression(start + row), expression(0)])
        addresses = [tirx.address_of(each) for each in (left, b, place)]
        behind = [addresses[1], expression(b_pitch or 4 * width), addresses[2]]
        arguments = [addresses[0], *map(expression, numbers), *behind]
        return tirx.Evaluate(tirx.call_extern("int32", symbol_of(product, row_tiles, width), *arguments))

    if isinstance(rows, int):
        whole, rest = divmod(ceil_div(rows, ROWS), 2)
        last = block(whole * BLOCK_ROWS, 1) if rest else None
    else:
        tiles = tirx.FloorDiv(rows + (ROWS - 1), index(ROWS))
        whole, rest = tirx.FloorDiv(tiles, index(2)), tirx.FloorMod(tiles, index(2))
        last = tirx.IfThenElse(rest > 0, block(whole * BLOCK_ROWS, 1), None)
    blocks = repeat("rows", whole, lambda i: block(i * BLOCK_ROWS, 2)) if not isinstance(whole, int) or whole else None
    return sequence(blocks, last)


def block_sums_without_room(
    product: Product, a: Callable[[Expr], Expr], pitch: int, taps: Taps, b: Expr, sums: Buffer, rows: Index
) -> Stmt:
    """`block_sums` of rows of whole taps that follow each other, with nothing behind them that may be read: the last
    rows, fewer than 16, are copied."""
    whole = rows // ROWS * ROWS if isinstance(rows, int) else tirx.FloorDiv(rows, index(ROWS)) * ROWS
    data = a(index(0)).source
    lanes = ROW_BYTES * 8 // dtype_bits(str(data.dtype))
    runs = pitch // ROW_BYTES
    copy, allocation = allocate("last_rows", (ROWS, runs * lanes), str(data.dtype))

    def copied(i: Index) -> Stmt:
        *lead, _ = a(expression(whole + i)).indices

        def run(at: Index) -> Stmt:
            place = lanes_of(at * lanes, lanes)
            return store(copy, load(data, *lead, place), i, place)

        return repeat("run", runs, run)

    last = sequence(
        allocation,
        repeat("row", rows - whole, copied),
        block_sums(product, lambda i: load(copy, i, 0), pitch, taps, b, sums, ROWS, whole),
    )
    blocks = None if isinstance(whole, int) and not whole else block_sums(product, a, pitch, taps, b, sums, whole)
    if isinstance(rows, int):
        return sequence(blocks, last if rows > whole else None)
    return sequence(blocks, tirx.IfThenElse(rows > whole, last, None))
