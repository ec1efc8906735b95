"""How tasks of a matrix product share its row tiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from schedules.codegen.nest import CHUNKS_PER_CORE, expression
from schedules.ir.expression import index
from schedules.ir.tir import Expr, tirx

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Index

_CHUNK_TILES = 8  # row tiles of a task when the number of rows is symbolic


def row_chunks(tiles: Index, others: Sequence[Index], cores: int) -> tuple[Index, Index]:
    """(chunks of rows, row tiles of a chunk): as few as give every core enough tasks.

    `others`: extents of the grid of tasks beside chunks, panels first; a symbolic number of panels counts as one per
    core.
    """
    if not isinstance(tiles, int):
        ceil = tirx.FloorDiv(tiles + (_CHUNK_TILES - 1), index(_CHUNK_TILES))
        return tirx.Max(ceil, index(1)), _CHUNK_TILES
    panels, *batch = others
    tasks = panels if isinstance(panels, int) else cores
    for extent in batch:
        tasks *= extent if isinstance(extent, int) else 1
    enough = CHUNKS_PER_CORE * cores
    wanted = -(-enough // tasks)
    if tasks % cores and tasks < 4 * enough:
        wanted = -(-wanted // cores) * cores  # or one core would have a task more than the others
    per_chunk = max(1, -(-tiles // max(1, min(wanted, tiles))))
    return max(1, -(-tiles // per_chunk)), per_chunk


def tiles_of_chunk(per_chunk: Index, tiles: Expr, first: Expr, chunks: Expr) -> Expr:
    """How many row tiles a chunk has: the last may have fewer."""
    if isinstance(chunks, int) and chunks == 1:
        return tiles
    if isinstance(tiles, int) and isinstance(per_chunk, int) and tiles % per_chunk == 0:
        return per_chunk
    return tirx.Min(expression(per_chunk), (index(tiles) if isinstance(tiles, int) else tiles) - first)


def falling_halves(size: int) -> Sequence[int]:
    """Powers of two below `size`, falling: what is left of rows is done in these."""
    return [1 << bit for bit in reversed(range((size - 1).bit_length()))]
