"""Sorting kernels: a stable merge sort of positions, with n log n comparisons for any size.

Blocks are sorted individually, then merged in pairs; threads share the blocks, and the parts of each merge: the start
of a part in either run is found by bisection (Odeh, Green, Mwassi, Shmueli and Birk, "Merge Path", 2012).

Also loops over independent elements in kernels written statement by statement, emitted into the current `IRBuilder`.
CPUs vectorize them, GPUs run one element per thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from compiler.frontends.flat_buffer import FlatBuffer
from compiler.frontends.onnx import dtypes
from schedules.annotations import SERIAL_REASON
from schedules.codegen.nest import CHUNKED
from schedules.instructions.element_loops import IN_CHUNKS, IN_VECTORS
from schedules.instructions.masks import VECTOR_DTYPES
from schedules.ir.tvm_types import Buffer, Expr, Stmt

_LEVELS = 40  # 2**40 elements exceed any tensor
_BLOCK_LEVELS = 12
_BLOCK = 1 << _BLOCK_LEVELS  # items per task: some 300 microseconds of sorting, 20 of merging
_WORTH_THREADS = 1 << 11  # items, some 100 microseconds of sorting


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
    """True if `a` sorts strictly before `b`; NaN counts as the largest."""
    if dtype in ("float16", "bfloat16"):
        a, b = a.astype("float32"), b.astype("float32")
    elif dtype == "bool":  # LLVM compares no booleans
        a, b = a.astype("uint8"), b.astype("uint8")
    is_before = a > b if descending else a < b
    if not dtypes.is_float(dtype):
        return is_before
    greater, smaller = (a, b) if descending else (b, a)
    return tirx.any(is_before, tirx.all(tirx.isnan(greater), tirx.Not(tirx.isnan(smaller))))


def sorted_positions(data: te.Tensor, *, width: Expr | None = None, descending: bool = False) -> te.Tensor:
    """Return positions that sort each row of `data`; ties keep their order.

    Args:
        data: (rows, n), or (rows, n, width) with `width`: the items are vectors, in lexicographic order.
        descending: largest first.

    Returns:
        int64 (rows, n).
    """
    rows, count = data.shape[0], data.shape[1]
    size = int64(1) if width is None else width
    dtype = str(data.dtype)
    in_blocks = not (isinstance(count, tirx.IntImm) and int(count) <= _BLOCK)
    block = int64(_BLOCK) if in_blocks else count
    blocks = tirx.floordiv(count + int64(_BLOCK - 1), block) if in_blocks else int64(1)

    def generate(ins: list[Expr], outs: list[Expr]) -> Stmt:
        source = FlatBuffer(ins[0])
        order, spare, states = (FlatBuffer(out) for out in outs)

        def item_before(state: StateOfTask, row: Expr, a: Expr, b: Expr) -> Expr:
            if width is None:
                x, y = source[row * count + a], source[row * count + b]
                return comes_before(x, y, dtype, descending=descending)
            state[_IS_RIGHT] = int64(0)  # 1 if item `a` sorts before item `b`, -1 if after
            with T.serial(0, size) as k:
                x, y = source[(row * count + a) * size + k], source[(row * count + b) * size + k]
                with T.If(state[_IS_RIGHT] == int64(0)), T.Then():
                    first = comes_before(x, y, dtype, descending=descending)
                    second = comes_before(y, x, dtype, descending=descending)
                    state[_IS_RIGHT] = tirx.Select(first, int64(1), tirx.Select(second, int64(-1), int64(0)))
            return state[_IS_RIGHT] == int64(1)

        def run_of(task: Expr) -> tuple[Run, Expr, Callable[[Expr, Expr], Expr]]:
            """Return a row, the first item of a block of it, and the order of items."""
            state = StateOfTask(states, task * int64(_LINE))
            row, first = task, int64(0)
            if in_blocks:
                row = _named(tirx.floordiv(task, blocks))
                first = _named((task - row * blocks) * block)
            run = Run(order, spare, state, row * count, count)
            return run, first, lambda a, b: item_before(state, row, a, b)

        with IRBuilder() as builder:
            with T.seq_scope():
                with shared_tasks(rows * blocks, rows * count) as task:
                    run, first, precedes = run_of(task)
                    length = tirx.min(block, count - first) if in_blocks else count
                    with T.serial(0, length) as i:
                        order[run.start + first + i] = first + i
                    sort_positions(Run(order, spare, run.state, run.start + first, length), precedes)
                if in_blocks:
                    with T.serial(0, _LEVELS - _BLOCK_LEVELS) as level:
                        half = int64(_BLOCK) << level
                        with T.If(half < count), T.Then(), T.seq_scope():
                            with shared_tasks(rows * blocks, rows * count) as task:
                                run, first, precedes = run_of(task)
                                _merge_part(run, half, first, precedes)
                            with shared_tasks(rows * blocks, rows * count) as task:
                                run, first, _ = run_of(task)
                                with T.serial(0, tirx.min(int64(_BLOCK), count - first)) as i:
                                    order[run.start + first + i] = spare[run.start + first + i]
            return builder.get()

    shapes = [[rows, count], [rows, count], [rows * blocks, int64(_LINE)]]
    outputs = te.extern(shapes, [data], generate, dtype=["int64"] * 3, name="sorted_positions")
    return outputs[0]


def _named(value: Expr) -> Expr:
    """Return a name that TVM does not inline, like `nest.name_opaque`: otherwise it spends most of a minute simplifying
    quotients of quotients."""
    held = FlatBuffer(T.alloc_buffer([1], "int64", scope="local"))
    held[0] = value
    return T.bind(held[0])


@contextmanager
def shared_tasks(tasks: Expr, items: Expr, least: int = _WORTH_THREADS) -> Iterator[Expr]:
    """Loop over tasks that threads share if there are at least `least` items, enough to pay for starting the
    threads."""
    analyzer = tvm.sym.Analyzer()
    tasks, items = analyzer.simplify(tasks), analyzer.simplify(items)
    if isinstance(tasks, tirx.IntImm) and isinstance(items, tirx.IntImm):
        loop = T.parallel if int(tasks) > 1 and int(items) >= least else T.serial
        with loop(0, tasks) as task, T.seq_scope():
            yield task
        return
    is_shared = items >= int64(least)
    chunks, tasks_of_chunk = tirx.Select(is_shared, tasks, int64(1)), tirx.Select(is_shared, int64(1), tasks)
    with (
        T.parallel(0, chunks, annotations={CHUNKED: tirx.IntImm("int32", 1)}) as chunk,
        T.serial(0, tasks_of_chunk) as offset,
        T.seq_scope(),
    ):
        yield chunk + offset


@contextmanager
def shared_runs(
    outer: Expr, size: Expr, inner: Expr, least: int, most: int | None
) -> Iterator[tuple[Expr, Expr, Expr]]:
    """Yield (row, first column, columns) of tasks on an array (outer, size, inner) that process `size` in order; shared
    by threads from `least` elements. A task has at most `most` columns, if given."""
    length = inner if most is None else int64(most)
    runs = int64(1) if most is None else tvm.sym.Analyzer().simplify(tirx.floordiv(inner + (length - 1), length))
    with shared_tasks(outer * runs, outer * size * inner, least) as task:
        if isinstance(runs, tirx.IntImm) and int(runs) == 1:
            yield task, int64(0), inner
        else:
            first = T.bind(tirx.floormod(task, runs) * length)
            yield T.bind(tirx.floordiv(task, runs)), first, tirx.min(length, inner - first)


@dataclass(frozen=True)
class StateOfTask:
    """The integers of one task, starting at `first`."""

    every: Buffer
    first: Expr

    def __getitem__(self, index: int) -> Expr:
        return self.every[self.first + int64(index)]

    def __setitem__(self, index: int, value: Expr) -> None:
        self.every[self.first + int64(index)] = value


@dataclass(frozen=True)
class Run:
    """`count` positions in `order`, from `start`, with equal space in `spare`, and the `STATE` integers of `state`."""

    order: Buffer
    spare: Buffer
    state: Buffer | StateOfTask
    start: Expr
    count: Expr


def sort_positions(run: Run, before: Callable[[Expr, Expr], Expr]) -> None:
    """Emit a stable sort of a run's positions; `before(a, b)`: True if position `a` sorts before `b`."""
    with T.serial(0, _LEVELS) as level:
        half = int64(1) << level
        with T.If(half < run.count), T.Then(), T.seq_scope():
            _merge_pairs(run, half, before)
            with T.serial(0, run.count) as i:
                run.order[run.start + i] = run.spare[run.start + i]


# Positions in `state`: the next of the left and the right run, whether the right one goes first, the last of each; the
# bounds of a search.
_LEFT, _RIGHT, _IS_RIGHT, _LEFT_END, _RIGHT_END, _LOW, _HIGH = range(7)
STATE = 7  # integers of `Run.state`
_LINE = 8  # elements per cache line


def _merge_pairs(run: Run, half: Expr, precedes: Callable[[Expr, Expr], Expr]) -> None:
    """Merge sorted runs of `half` items in pairs, from `order` to `spare`."""
    pairs = tirx.floordiv(run.count + half * int64(2) - int64(1), half * int64(2))
    with T.serial(0, pairs) as pair, T.seq_scope():
        start = pair * half * int64(2)
        middle = tirx.min(start + half, run.count)
        end = tirx.min(middle + half, run.count)
        _merge(run, _Ends(start, middle, middle, end), start, precedes)


def _merge_part(run: Run, half: Expr, first: Expr, precedes: Callable[[Expr, Expr], Expr]) -> None:
    """Compute a block, starting at `first`, of the result of merging runs of `half` items in pairs."""
    start = _named(tirx.floordiv(first, half * int64(2)) * half * int64(2))
    middle = _named(tirx.min(start + half, run.count))
    end = _named(tirx.min(middle + half, run.count))
    cuts = []
    for done in (first - start, tirx.min(first + int64(_BLOCK), end) - start):
        _find_cut(run, _Ends(start, middle, middle, end), done, precedes)
        left = _named(run.state[_LOW])
        cuts.append((start + left, middle + done - left))
    (left_first, right_first), (left_end, right_end) = cuts
    _merge(run, _Ends(left_first, left_end, right_first, right_end), first, precedes)


def _find_cut(run: Run, ends: _Ends, done: Expr, precedes: Callable[[Expr, Expr], Expr]) -> None:
    """Set `state[_LOW]` to the number of items from the left run among the first `done` items of a merge."""
    state, order, base = run.state, run.order, run.start
    lefts, rights = ends.left_end - ends.left, ends.right_end - ends.right
    state[_LOW] = tirx.max(done - rights, int64(0))
    state[_HIGH] = tirx.min(done, lefts)
    # A loop with a condition crashes TVM here.
    with T.serial(0, _LEVELS), T.If(state[_LOW] < state[_HIGH]), T.Then(), T.seq_scope():
        middle = _named((state[_LOW] + state[_HIGH]) >> 1)
        right, left = order[base + ends.right + done - middle - int64(1)], order[base + ends.left + middle]
        with T.If(precedes(right, left)):
            with T.Then(), T.seq_scope():
                state[_HIGH] = middle
            with T.Else(), T.seq_scope():
                state[_LOW] = middle + int64(1)


@dataclass(frozen=True)
class _Ends:
    """Two sorted runs: positions in a `Run`; each end is after the last item."""

    left: Expr
    left_end: Expr
    right: Expr
    right_end: Expr


def _merge(run: Run, ends: _Ends, to: Expr, precedes: Callable[[Expr, Expr], Expr]) -> None:
    """Merge two runs from `order` to `spare`, from both ends, which the CPU overlaps."""
    state = run.state
    state[_LEFT] = ends.left
    state[_RIGHT] = ends.right
    state[_LEFT_END] = ends.left_end - int64(1)
    state[_RIGHT_END] = ends.right_end - int64(1)
    count = ends.left_end - ends.left + ends.right_end - ends.right
    with T.serial(0, tirx.floordiv(count, int64(2))) as k, T.seq_scope():
        _take_first(run, to + k, ends, precedes)
        _take_last(run, to + count - int64(1) - k, ends, precedes)
    with T.If(tirx.floormod(count, int64(2)) == int64(1)), T.Then(), T.seq_scope():
        _take_first(run, to + tirx.floordiv(count, int64(2)), ends, precedes)


def _take_first(run: Run, to: Expr, ends: _Ends, precedes: Callable[[Expr, Expr], Expr]) -> None:
    """Move the first remaining item to `to`. Selected without a branch, since the run it is in is unpredictable. If a
    run is exhausted, another readable item replaces its next one."""
    order, state, base = run.order, run.state, run.start
    left = order[base + tirx.max(tirx.min(state[_LEFT], ends.left_end - int64(1)), int64(0))]
    right = order[base + tirx.min(state[_RIGHT], ends.right_end - int64(1))]
    # The right one goes first only if strictly before the left one.
    is_before = precedes(right, left)
    is_right = tirx.any(state[_LEFT] >= ends.left_end, tirx.all(state[_RIGHT] < ends.right_end, is_before))
    state[_IS_RIGHT] = tirx.Select(is_right, int64(1), int64(0))
    run.spare[base + to] = tirx.Select(state[_IS_RIGHT] == int64(1), right, left)
    state[_RIGHT] = state[_RIGHT] + state[_IS_RIGHT]
    state[_LEFT] = state[_LEFT] + int64(1) - state[_IS_RIGHT]


def _take_last(run: Run, to: Expr, ends: _Ends, precedes: Callable[[Expr, Expr], Expr]) -> None:
    """Move the last remaining item to `to`; ties take the right one."""
    order, state, base = run.order, run.state, run.start
    left, right = order[base + tirx.max(state[_LEFT_END], ends.left)], order[base + state[_RIGHT_END]]
    is_before = precedes(right, left)
    is_left = tirx.any(state[_RIGHT_END] < ends.right, tirx.all(state[_LEFT_END] >= ends.left, is_before))
    state[_IS_RIGHT] = tirx.Select(is_left, int64(0), int64(1))
    run.spare[base + to] = tirx.Select(state[_IS_RIGHT] == int64(1), right, left)
    state[_RIGHT_END] = state[_RIGHT_END] - state[_IS_RIGHT]
    state[_LEFT_END] = state[_LEFT_END] - int64(1) + state[_IS_RIGHT]


_MIN_ITERATIONS = 16  # iterations: fewer are not worth vectorizing


def in_vectors(extent: Expr, dtype: object, body: Callable[[Expr], None]) -> None:
    """Run the body, which stores one element of that type, for 0 up to `extent` in any order."""
    _emit(extent, dtype, body, IN_VECTORS)


def for_each(count: Expr, dtype: object, body: Callable[[Expr], None]) -> None:
    """Like `in_vectors`, for outermost loops: threads may share them."""
    _emit(count, dtype, body, IN_CHUNKS)


def in_sequence(extent: Expr, reason: str) -> Any:
    """Serial loop from 0 with dependent iterations; `reason` appears in reports."""
    return T.serial(0, extent, annotations={SERIAL_REASON: reason})


def _emit(extent: Expr, dtype: object, body: Callable[[Expr], None], mark: str) -> None:
    is_short = isinstance(extent, tirx.IntImm) and int(extent) < _MIN_ITERATIONS
    annotations = None if is_short or str(dtype) not in VECTOR_DTYPES else {mark: True}
    with T.serial(0, extent, annotations=annotations) as element:
        body(element)
