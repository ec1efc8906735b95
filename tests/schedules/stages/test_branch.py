"""Branches that loops are split by: their numbers, and that none is left where it could be decided."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import te

from schedules.ir.inline import has_branch
from schedules.ir.stages import Kernel, kernels_of
from schedules.ir.tir import tirx
from schedules.stages.loops import split_branches
from tests.schedules.harness import AVX512, Build, evaluate, lowered, normal, runnable

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
