"""Asking for the weights of the tiles to come while those of the present ones are in use.

Weights that come from memory are read as they are first used, in a burst that waits for memory, and while the same
weights serve further tiles memory has nothing to do. So each tile asks for its share of what comes after them, here and
there in its sum: asked for at once, lines hold up the loads behind them (Zen 5: a convolution of 7 x 7 with weights in
memory reaches 99 % of the peak, 90 % with its share asked for once a channel block, 80 % with what comes next row by
row). Where shares are small it is done less often: asking costs as much as it saves.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from schedules.codegen.nest import prefetch, repeat, sequence, when
from schedules.ir.numbers import ceil_div
from schedules.ir.tir import Expr, Stmt
from schedules.machine import dtype_bits

_LATENCY = 1024  # cycles from asking memory to having the answer, with some room
_MULTIPLY_ADDS = 2  # in a cycle, at most
_LINE_BITS = 512
_UNROLLED = 8
_AT_ONCE = 2  # lines that hold up nothing


def ahead(multiply_adds: int) -> int:
    """How many parts of so many multiply-adds each cover the latency of memory."""
    return max(1, ceil_div(_LATENCY * _MULTIPLY_ADDS, multiply_adds))


def lines_of(buffer: Any, elements: int) -> int:
    """How many cache lines so many elements of a buffer take."""
    return ceil_div(elements, _LINE_BITS // dtype_bits(str(buffer.ty.dtype)))


def depth_to_ask_at(lines: int, extents: Sequence[int], least: int) -> int:
    """Inside of how many of some nested loops, outermost first and `least` of them at least, to ask for a share of
    `lines`: as few as make shares small."""
    return next(
        (depth for depth in range(least, len(extents)) if lines <= _AT_ONCE * prod(extents[:depth])), len(extents)
    )


def ask_share(buffer: Any, start: Sequence[Any], elements: int, turn: Expr | int, turns: int) -> Stmt | None:
    """In turn `turn` of `turns`: ask for that share of the `elements` that lie in memory from `start` on.

    `turns` may be an estimate: turns beyond it do nothing.
    """
    line = _LINE_BITS // dtype_bits(str(buffer.ty.dtype))
    lines = lines_of(buffer, elements)
    each = ceil_div(lines, turns)
    first = turn * each
    *outer, inner = start

    def ask(i: Any) -> Stmt:
        return prefetch(buffer, *outer, inner + (first + i) * line)

    asked = sequence([ask(i) for i in range(each)]) if each <= _UNROLLED else repeat("ahead", each, ask)
    return when(first < lines, asked)
