"""Kernels that sort: a stable merge sort of positions, in n log n comparisons for any size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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

        def item_before(row: Expr, a: Expr, b: Expr) -> Expr:
            if width is None:
                x, y = source[row * count + a], source[row * count + b]
                return comes_before(x, y, dtype, descending=descending)
            state[_IS_RIGHT] = int64(0)  # 1 when item `a` sorts before item `b`, -1 when after
            with T.serial(0, size) as k:
                x, y = source[(row * count + a) * size + k], source[(row * count + b) * size + k]
                with T.If(state[_IS_RIGHT] == int64(0)), T.Then():
                    first = comes_before(x, y, dtype, descending=descending)
                    second = comes_before(y, x, dtype, descending=descending)
                    state[_IS_RIGHT] = tirx.Select(first, int64(1), tirx.Select(second, int64(-1), int64(0)))
            return state[_IS_RIGHT] == int64(1)

        with IRBuilder() as builder:
            with T.serial(0, rows) as row, T.seq_scope():
                with T.serial(0, count) as i:
                    order[row * count + i] = i
                sort_positions(Run(order, spare, state, row * count, count), lambda a, b: item_before(row, a, b))
            return builder.get()

    shape = [rows, count]
    outputs = te.extern([shape, shape, [int64(STATE)]], [data], generate, dtype=["int64"] * 3, name="sorted_positions")
    return outputs[0]


@dataclass(frozen=True)
class Run:
    """`count` positions in `order`, from `start`, room for as many in `spare`, and the `STATE` integers of `state`."""

    order: Buffer
    spare: Buffer
    state: Buffer
    start: Expr
    count: Expr


def sort_positions(run: Run, before: Callable[[Expr, Expr], Expr]) -> None:
    """Emit a stable sort of the positions of a run, where `before(a, b)` is whether position `a` sorts before `b`."""
    with T.serial(0, _LEVELS) as level:
        half = int64(1) << level
        with T.If(half < run.count), T.Then(), T.seq_scope():
            _merge_pairs(run, half, before)
            with T.serial(0, run.count) as i:
                run.order[run.start + i] = run.spare[run.start + i]


# Places in `state`: the next of the left and of the right run, whether the right one goes first, the last of each.
_LEFT, _RIGHT, _IS_RIGHT, _LEFT_END, _RIGHT_END = range(5)
STATE = 5  # integers of `Run.state`


def _merge_pairs(run: Run, half: Expr, before: Callable[[Expr, Expr], Expr]) -> None:
    """Merge sorted runs of `half` items in pairs, from `order` to `spare`: from both ends, which the processor does at
    the same time."""
    count, state = run.count, run.state
    pairs = tirx.floordiv(count + half * int64(2) - int64(1), half * int64(2))
    with T.serial(0, pairs) as pair, T.seq_scope():
        start = pair * half * int64(2)
        middle = tirx.min(start + half, count)
        end = tirx.min(middle + half, count)
        state[_LEFT] = start
        state[_RIGHT] = middle
        state[_LEFT_END] = middle - int64(1)
        state[_RIGHT_END] = end - int64(1)
        with T.serial(0, tirx.floordiv(end - start, int64(2))) as k, T.seq_scope():
            _take_first(run, start + k, middle, end, before)
            _take_last(run, end - int64(1) - k, start, middle, before)
        with T.If(tirx.floormod(end - start, int64(2)) == int64(1)), T.Then(), T.seq_scope():
            _take_first(run, start + tirx.floordiv(end - start, int64(2)), middle, end, before)


def _take_first(run: Run, to: Expr, middle: Expr, end: Expr, before: Callable[[Expr, Expr], Expr]) -> None:
    """The first of what is left goes to `to`. Selected, not branched on: which run has it cannot be predicted. Where a
    run is used up, an item that may be read stands for its next."""
    order, state, base = run.order, run.state, run.start
    left = order[base + tirx.min(state[_LEFT], middle - int64(1))]
    right = order[base + tirx.min(state[_RIGHT], end - int64(1))]
    # The right one goes first only when it is strictly before the left one.
    is_before = before(right, left)
    is_right = tirx.any(state[_LEFT] >= middle, tirx.all(state[_RIGHT] < end, is_before))
    state[_IS_RIGHT] = tirx.Select(is_right, int64(1), int64(0))
    run.spare[base + to] = tirx.Select(state[_IS_RIGHT] == int64(1), right, left)
    state[_RIGHT] = state[_RIGHT] + state[_IS_RIGHT]
    state[_LEFT] = state[_LEFT] + int64(1) - state[_IS_RIGHT]


def _take_last(run: Run, to: Expr, start: Expr, middle: Expr, before: Callable[[Expr, Expr], Expr]) -> None:
    """The last of what is left goes to `to`: of equal ones the right one."""
    order, state, base = run.order, run.state, run.start
    left, right = order[base + tirx.max(state[_LEFT_END], start)], order[base + state[_RIGHT_END]]
    is_before = before(right, left)
    is_left = tirx.any(state[_RIGHT_END] < middle, tirx.all(state[_LEFT_END] >= start, is_before))
    state[_IS_RIGHT] = tirx.Select(is_left, int64(0), int64(1))
    run.spare[base + to] = tirx.Select(state[_IS_RIGHT] == int64(1), right, left)
    state[_RIGHT_END] = state[_RIGHT_END] - state[_IS_RIGHT]
    state[_LEFT_END] = state[_LEFT_END] - int64(1) + state[_IS_RIGHT]
