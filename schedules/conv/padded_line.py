"""Copies a line of the input with padding: existing elements are copied, others cleared."""

from __future__ import annotations

from collections.abc import Callable

from schedules.codegen.nest import both, repeat, sequence, when
from schedules.conv.dynamic_sizes import least, most
from schedules.ir.tir import Index, Stmt


def padded_line(
    start: Index,
    extent: Index,
    size: Index,
    padding: int,
    copy: Callable[[Index, Index, int], Stmt],
    clear: Callable[[Index], Stmt],
    lanes: int = 1,
) -> Stmt:
    """`copy(x, start + x, 1)` for each x below `extent` where the line, of `size` elements, has such an element; else
    `clear(x)`. `padding` is how many elements may lie before the first. Where all of these are known, `lanes` elements
    are copied at a time."""
    if not isinstance(size, int):
        first = least(most(0 - start, 0), extent)
        end = most(least(extent, size - start), first)
        return sequence(
            repeat("x", first, clear) if padding > 0 else None,
            repeat("x", end - first, lambda x: copy(x + first, x + first + start, 1)),
            repeat("x", extent - end, lambda x: clear(x + end)),
        )
    if not isinstance(start, int):
        return repeat(
            "x",
            extent,
            lambda x: sequence(when(both(start + x >= 0, start + x < size), copy(x, start + x, 1), clear(x))),
        )
    before = max(0, -start)
    middle = max(0, min(extent, size - start) - before)
    parts = [clear(x) for x in range(min(before, extent))]

    def run(first: int, count: int, step: int) -> Stmt:
        return repeat("x", count, lambda x: copy(x * step + first, x * step + first + start, step))

    whole = middle // lanes if lanes > 1 else 0
    parts += [run(before, whole, lanes)] if whole else []
    rest = middle - whole * lanes
    parts += [run(before + whole * lanes, rest, 1)] if rest else []
    return sequence(parts, [clear(x) for x in range(before + middle, extent)])
