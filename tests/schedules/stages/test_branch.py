"""Branches that loops are split by: their numbers, and that none is left where it could be decided."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import te

from schedules.ir.inline import has_branch
from schedules.ir.stages import Kernel, kernels_of
from schedules.ir.tir import tirx, tvm
from schedules.stages.loops import split_branches
from tests.schedules.harness import (
    AVX512,
    Build,
    evaluate,
    lowered,
    normal,
    runnable,
    scheduled,
    virtual_machine,
)

SIZES = st.sampled_from([1, 2, 3, 4, 6, 16, 17, 48])


def by_remainders(rows: int, columns: int, factor: int) -> Build:
    """The sum of row and column remainders tells which of two tensors an element comes from."""

    def compute(x: Any, y: Any) -> Any:
        def element(i: Any, j: Any) -> Any:
            return tirx.if_then_else(i % factor * 2 + j % factor < 2, x[i, j], y[i, j])

        return te.compute((rows, columns), element)

    return lambda builder, x, y: builder.emit(builder.call_te(compute, x, y))


@pytest.mark.parametrize("target", runnable())
@settings(max_examples=6, deadline=None)
@given(rows=SIZES, columns=SIZES, factor=st.integers(2, 5))
def test_choices_by_remainders(target: str, rows: int, columns: int, factor: int) -> None:
    x, y = normal((rows, columns)), normal((rows, columns), 1)
    i, j = np.indices(x.shape)
    expected = np.where(i % factor * 2 + j % factor < 2, x, y)
    np.testing.assert_array_equal(evaluate(by_remainders(rows, columns, factor), [x, y], target), expected)


def test_remainders_are_decided() -> None:
    [(_, function)] = kernels_of(lowered(by_remainders(16, 20, 2), [((16, 20), "float32")] * 2, AVX512))
    pieces = split_branches(Kernel.of(function).simple_stages[0])
    assert len(pieces) > 1
    assert not any(has_branch(piece.body) for piece in pieces)


def test_a_branch_that_is_always_taken_goes() -> None:
    def compute(x: Any) -> Any:
        return te.compute((7, 9), lambda i, j: tirx.if_then_else(i * 9 + j < 63, x[i, j], tirx.const(0, "float32")))

    build: Build = lambda builder, x: builder.emit(builder.call_te(compute, x))  # noqa: E731
    [(_, function)] = kernels_of(lowered(build, [((7, 9), "float32")], AVX512))
    (piece,) = split_branches(Kernel.of(function).simple_stages[0])
    assert not has_branch(piece.body)


ROWS, COLUMNS = tirx.Var("rows", "int64"), tirx.Var("columns", "int64")
DYNAMIC = [((ROWS, COLUMNS), "float32")]


def padded(x: Any) -> Any:
    """Two rows above and one below, three columns on each side."""

    def element(i: Any, j: Any) -> Any:
        inside = tirx.all(i >= 2, i < x.shape[0] + 2, j >= 3, x.shape[1] + 3 > j)
        return tirx.if_then_else(inside, x[i - 2, j - 3], tirx.const(-1, "float32"))

    return te.compute((x.shape[0] + 3, x.shape[1] + 6), element)


def repeated_edges(x: Any) -> Any:
    """Three copies of the first and last row and column on each side."""

    def inside(at: Any, size: Any) -> Any:
        return tirx.max(tirx.min(at - 3, size - 1), tirx.const(0, "int64"))

    shape = (x.shape[0] + 6, x.shape[1] + 6)
    return te.compute(shape, lambda i, j: x[inside(i, x.shape[0]), inside(j, x.shape[1])])


def mirrored(x: Any) -> Any:
    """The columns from the last to the first, then all of them in order."""
    size = x.shape[1]
    return te.compute((x.shape[0], size * 2), lambda i, j: x[i, tirx.Select(j < size, size - 1 - j, j - size)])


def from_the_tenth(x: Any) -> Any:
    """A choice at a column that may lie beyond the last one."""
    return te.compute(x.shape, lambda i, j: tirx.if_then_else(tirx.LT(tirx.const(9, "int64"), j), x[i, j] * 2, x[i, j]))


def every_other(x: Any) -> Any:
    """Alternating columns of two halves."""
    size = x.shape[1]
    return te.compute(
        (x.shape[0], size * 2), lambda i, j: tirx.if_then_else(j % 2 == 0, x[i, j // 2], -x[i, size - 1 - j // 2])
    )


NUMPY: dict[Any, Callable[[Any], Any]] = {
    padded: lambda x: np.pad(x, [(2, 1), (3, 3)], constant_values=-1),
    repeated_edges: lambda x: np.pad(x, 3, mode="edge"),
    mirrored: lambda x: np.concatenate([x[:, ::-1], x], 1),
    from_the_tenth: lambda x: np.where(np.arange(x.shape[1]) < 10, x, x * 2),
    every_other: lambda x: np.stack([x, -x[:, ::-1]], -1).reshape(len(x), -1),
}


@pytest.mark.parametrize("compute", NUMPY)
def test_branches_at_sizes_that_are_known_when_the_kernel_runs(compute: Any) -> None:
    build: Build = lambda builder, x: builder.emit(builder.call_te(compute, x))  # noqa: E731
    mod, _ = scheduled(build, DYNAMIC, runnable()[-1])
    [(_, function)] = kernels_of(lowered(build, DYNAMIC, AVX512))
    pieces = split_branches(Kernel.of(function).simple_stages[0])
    assert not any(has_branch(piece.body) for piece in pieces)
    machine = virtual_machine(mod, runnable()[-1])
    for shape in [(1, 1), (1, 9), (5, 10), (7, 11), (2, 16), (3, 31), (33, 64), (4, 150)]:
        x = normal(shape)
        result = machine["main"](tvm.runtime.tensor(x)).numpy()
        np.testing.assert_array_equal(result, NUMPY[compute](x), err_msg=str(shape))


def test_a_size_that_other_loops_decide_is_no_cut() -> None:
    """The columns of a triangle end at their row."""
    compute = lambda x: te.compute(x.shape, lambda i, j: tirx.if_then_else(j <= i, x[i, j], tirx.const(0, "float32")))  # noqa: E731
    build: Build = lambda builder, x: builder.emit(builder.call_te(compute, x))  # noqa: E731
    [(_, function)] = kernels_of(lowered(build, DYNAMIC, AVX512))
    (piece,) = split_branches(Kernel.of(function).simple_stages[0])
    assert has_branch(piece.body)


def test_loops_are_not_cut_at_sums_of_many_sizes() -> None:
    """Each index of each part would repeat them (the boxes of 90 classes, concatenated by eight)."""
    groups, terms = 9, 8

    def compute(x: Any) -> Any:
        lengths = [tirx.min(x.shape[0], tirx.const(count, "int64")) for count in range(1, groups * terms + 1)]
        ends = [sum(lengths[1:end], lengths[0]) for end in range(terms, groups * terms + 1, terms)]

        def element(i: Any) -> Any:
            chosen = x[0]
            for number, end in reversed(list(enumerate(ends[:-1]))):
                begin = ends[number - 1] if number else tirx.const(0, "int64")
                own = x[tirx.floormod(i - begin, x.shape[0])] + tirx.const(float(number), "float32")
                chosen = tirx.if_then_else(i - end < 0, own, chosen)
            return chosen

        return te.compute((ends[-1],), element)

    build: Build = lambda builder, x: builder.emit(builder.call_te(compute, x))  # noqa: E731
    [(_, function)] = kernels_of(lowered(build, [((tirx.Var("n", "int64"),), "float32")], AVX512))
    pieces = split_branches(Kernel.of(function).simple_stages[0])
    assert len(pieces) == 3
    mod, _ = scheduled(build, [((tirx.Var("n", "int64"),), "float32")], runnable()[-1])
    machine = virtual_machine(mod, runnable()[-1])
    for size in (1, 5, 100):
        x = normal((size,))
        lengths = np.minimum(size, np.arange(1, groups * terms + 1)).reshape(groups, terms).sum(1)
        parts = [x[np.arange(length) % size] + number for number, length in enumerate(lengths[:-1])]
        expected = np.concatenate([*parts, np.full(lengths[-1], x[0])])
        np.testing.assert_array_equal(machine["main"](tvm.runtime.tensor(x)).numpy(), expected)
