"""A tile of a matmul: its position, and the part of the reduction that it covers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from schedules.ir.expression import index
from schedules.ir.tir import Expr, Index, Stmt, tirx

Batch = Mapping[Any, Expr]
# B at (depth, column counted from the start of the panel).
PanelLoad = Callable[[Expr, Expr], Expr]
# (sum, a, b) to the sum with the product added.
Combine = Callable[[Expr, Expr, Expr], Expr]


@dataclass(frozen=True, eq=False)
class Block:
    """A part of the reduction: `depth` terms starting at `start`, added to the sums in `waiting` from `row` on, or to
    zero if `first`. The result is stored there too, or finished if `last`."""

    start: Expr
    depth: Index
    waiting: Expr
    row: Expr
    last: bool
    first: bool = False


@dataclass(frozen=True, eq=False)
class PartialSums:
    """Partial sums of a reduction split into `parts`: (batch, panels, parts, rows) rows of a panel's columns."""

    sums: Expr
    batch: tuple[int, ...]
    panels: int
    parts: int
    rows: int
    depth: int

    @classmethod
    def of(
        cls, batch: Sequence[int], panels: int, parts: int, rows: int, panel: tuple[int, int], dtype: str
    ) -> PartialSums:
        """With `panel`: the depth and columns of one."""
        places = math.prod(batch) * panels * parts * rows
        sums = tirx.decl_buffer([places, panel[1]], dtype, "partial", layout=None)
        return cls(sums, tuple(batch), panels, parts, rows, panel[0])

    @property
    def allocation(self) -> Stmt:
        return tirx.AllocBuffer(self.sums)

    def block(self, batch: Sequence[Expr], panel: Expr, part: Expr, depth: int) -> Block:
        """The part with a given index, of `depth` steps; `row` is the position of its first row."""
        place: Expr = index(0)
        for at, extent in zip((*batch, panel, part), (*self.batch, self.panels, self.parts), strict=True):
            place = place * extent + at
        start = part * depth
        length: Index = depth
        if depth and self.depth % depth:
            length = tirx.Min(index(depth), self.depth - start)
        return Block(start, length, self.sums, place * self.rows, last=False, first=True)


def from_row(block: Block | None, row: Expr) -> Block | None:
    """The block of a tile that starts at a given row."""
    return None if block is None else replace(block, row=block.row + row)


@dataclass(frozen=True, eq=False)
class Tile:
    """`rows` rows from `row` on by `width` columns from `column` on, in one matmul of a batch.

    `load` reads B in the panel of the columns; `block` is the part of the sum, None for all of it.
    """

    batch: Batch
    row: Expr
    rows: Index
    column: Expr
    width: int
    load: PanelLoad
    block: Block | None = None

    def part(self, first: Index, rows: Index) -> Tile:
        """A subset of the rows, starting at a given one, with the same part of the reduction."""
        return replace(self, row=self.row + first, rows=rows)
