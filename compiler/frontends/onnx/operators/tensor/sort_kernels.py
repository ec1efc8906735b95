"""Kernels that sort: a stable merge sort of positions, in n log n comparisons for any size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from compiler.frontends.onnx import dtypes

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Buffer, Expr, Stmt

_LEVELS = 40  # 2**40 elements are more than a tensor can have


def int64(value: int) -> Expr:
    """An index constant."""
    return tirx.const(value, "int64")


def product(sizes: Sequence[Expr]) -> Expr:
    """The product of sizes, int64."""
    result: Expr = int64(1)
    for size in sizes:
        result = result * size
    return result


def comes_before(a: Expr, b: Expr, dtype: str, *, descending: bool) -> Expr:
    """Whether `a` sorts strictly before `b`; NaN counts as the largest."""
    if dtype in ("float16", "bfloat16"):
        a, b = a.astype("float32"), b.astype("float32")
    before = a > b if descending else a < b
    if not dtypes.is_float(dtype):
        return before
    greater, smaller = (a, b) if descending else (b, a)
    return tirx.any(before, tirx.all(tirx.isnan(greater), tirx.Not(tirx.isnan(smaller))))


def sorted_positions(data: te.Tensor, *, width: Expr | None = None, descending: bool = False) -> te.Tensor:
    """Positions that sort each row of `data`; ties keep their order.

    Args:
        data: (rows, n), or (rows, n, width) with `width`: then the items are vectors, in lexicographic order.
        descending: largest first.

    Returns:
        int64 (rows, n).
    """
    rows, count = data.shape[0], data.shape[1]
    size = int64(1) if width is None else width
    dtype = str(data.dtype)

    def generate(ins: list[Expr], outs: list[Expr]) -> Stmt:
        source = T.buffer_proxy(ins[0])
        order, spare, state = (T.buffer_proxy(out) for out in outs)

        def compare(row: Expr, a: Expr, b: Expr) -> None:
            """state[2] becomes 1 when item `a` sorts before item `b`, -1 when after, 0 when equal."""
            state[2] = int64(0)
            with T.serial(0, size) as k:
                x, y = source[(row * count + a) * size + k], source[(row * count + b) * size + k]
                with T.If(state[2] == int64(0)), T.Then():
                    first = comes_before(x, y, dtype, descending=descending)
                    second = comes_before(y, x, dtype, descending=descending)
                    state[2] = tirx.Select(first, int64(1), tirx.Select(second, int64(-1), int64(0)))

        with IRBuilder() as builder:
            with T.serial(0, rows) as row, T.seq_scope():
                with T.serial(0, count) as i:
                    order[row * count + i] = i
                with T.serial(0, _LEVELS) as level:
                    half = int64(1) << level
                    with T.If(half < count), T.Then(), T.seq_scope():
                        _merge_runs(order, spare, state, row, count, half, compare)
                        with T.serial(0, count) as i:
                            order[row * count + i] = spare[row * count + i]
            return builder.get()

    shape = [rows, count]
    outputs = te.extern([shape, shape, [int64(3)]], [data], generate, dtype=["int64"] * 3, name="sorted_positions")
    return outputs[0]


def _merge_runs(
    order: Buffer,
    spare: Buffer,
    state: Buffer,
    row: Expr,
    count: Expr,
    half: Expr,
    compare: Callable[[Expr, Expr, Expr], None],
) -> None:
    """Merge sorted runs of `half` items in pairs, from `order` to `spare`; state[0] and state[1] are the two heads."""
    pairs = tirx.floordiv(count + half * int64(2) - int64(1), half * int64(2))
    base = row * count
    with T.serial(0, pairs) as pair, T.seq_scope():
        start = pair * half * int64(2)
        middle = tirx.min(start + half, count)
        end = tirx.min(middle + half, count)
        state[0] = start
        state[1] = middle
        with T.serial(0, end - start) as k, T.seq_scope():
            state[2] = int64(1)
            with T.If(tirx.all(state[0] < middle, state[1] < end)):
                with T.Then():
                    compare(row, order[base + state[1]], order[base + state[0]])
                with T.Else():
                    state[2] = tirx.Select(state[0] < middle, int64(0), int64(1))
            # The right one goes first only when it is strictly before the left one.
            with T.If(state[2] == int64(1)):
                with T.Then(), T.seq_scope():
                    spare[base + start + k] = order[base + state[1]]
                    state[1] = state[1] + int64(1)
                with T.Else(), T.seq_scope():
                    spare[base + start + k] = order[base + state[0]]
                    state[0] = state[0] + int64(1)
