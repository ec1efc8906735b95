"""Prefetching the weights of later tiles while those of the current ones are in use.

Weights in memory are read when first used, in a burst that waits for memory, and memory is idle while the same weights
serve further tiles. So each tile prefetches its share of the weights that follow, spread over its sum: prefetched at
once, lines delay the loads behind them (Zen 5: a convolution of 7 x 7 with weights in memory reaches 99 % of the peak,
90 % when each share is prefetched once per channel block, 80 % when row by row). Small shares are prefetched less
often, since the prefetches cost as much as they save.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from schedules.codegen.nest import prefetch, repeat, sequence, when
from schedules.ir.numbers import ceil_div
from schedules.ir.tir import Buffer, Expr, Index, Stmt
from schedules.machine import dtype_bits

_LATENCY = 1024  # cycles of memory latency, with some margin
_MULTIPLY_ADDS = 2  # in a cycle, at most
_LINE_BITS = 512
_UNROLLED = 8
_AT_ONCE = 2  # cache lines that can be prefetched at once without delaying loads


def ahead(multiply_adds: int) -> int:
    """Prefetch distance, in parts of a given number of multiply-adds, that covers memory latency."""
    return max(1, ceil_div(_LATENCY * _MULTIPLY_ADDS, multiply_adds))


def lines_of(buffer: Buffer, elements: int) -> int:
    """Number of cache lines occupied by a number of elements of a buffer."""
    return ceil_div(elements, _LINE_BITS // dtype_bits(str(buffer.ty.dtype)))


def depth_to_ask_at(lines: int, extents: Sequence[int], least: int) -> int:
    """Loop depth at which to prefetch a share of `lines`, counting from the outermost of the nested loops and at least
    `least`: the smallest that keeps shares small."""
    return next(
        (depth for depth in range(least, len(extents)) if lines <= _AT_ONCE * prod(extents[:depth])), len(extents)
    )


def ask_share(buffer: Buffer, start: Sequence[Index], elements: int, turn: Expr | int, turns: int) -> Stmt | None:
    """In iteration `turn` of `turns`, prefetch that iteration's share of the `elements` that follow `start` in memory.

    `turns` may be an estimate: iterations beyond it do nothing.
    """
    line = _LINE_BITS // dtype_bits(str(buffer.ty.dtype))
    lines = lines_of(buffer, elements)
    each = ceil_div(lines, turns)
    first = turn * each
    *outer, inner = start

    def ask(i: Index) -> Stmt:
        return prefetch(buffer, *outer, inner + (first + i) * line)

    asked = sequence([ask(i) for i in range(each)]) if each <= _UNROLLED else repeat("ahead", each, ask)
    return when(first < lines, asked)
