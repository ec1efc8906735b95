"""Products of slices of one tensor by one weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tvm import relax

from compiler.passes.rewriting.matching import array_of, as_constant
from tests.compiler.passes.building import Build, apply, operators, run_module

op = relax.op
NAME = "merge-products-of-slices"
_STEPS = 5


def _split(build: Build, x: Any, axis: int) -> list[Any]:
    pieces = build.emit(op.split(x, _STEPS, axis))
    return [build.emit(relax.TupleGetItem(pieces, index)) for index in range(_STEPS)]


def _take(build: Build, x: Any, axis: int) -> list[Any]:
    return [build.emit(op.take(x, relax.const(step, "int64"), axis)) for step in reversed(range(_STEPS))]


def _slice(build: Build, x: Any, axis: int) -> list[Any]:
    """But for the first one."""
    return [build.emit(op.strided_slice(x, [axis], [step], [step + 1])) for step in range(1, _STEPS)]


@pytest.mark.parametrize(("cut", "axis"), [(_split, 0), (_split, -2), (_take, 0), (_take, 1), (_slice, 0), (_slice, 1)])
def test_products_of_pieces_are_one(cut: Callable[[Build, Any, int], list[Any]], axis: int) -> None:
    shape = (_STEPS, 2, 6) if axis == 0 else (2, _STEPS, 6)
    build = Build()
    x = build.input("x", shape)
    # Equal weights need not be one object, and others have a product of their own.
    weight = build.constant((6, 3))
    pieces = cut(build, x, axis)
    outputs = [build.emit(op.matmul(piece, as_constant(array_of(weight).copy()))) for piece in pieces]
    outputs += [build.emit(op.matmul(piece, build.constant((6, 4)))) for piece in pieces[:1]]
    mod = build.module(*outputs)
    after = apply(NAME, mod)
    assert operators(after).count("matmul") == 2
    data = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    for found, expected in zip(run_module(after, data), run_module(mod, data), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_dynamic_batch() -> None:
    build = Build()
    x = build.input("x", (_STEPS, "batch", 6))
    weight = build.constant((6, 3))
    after = apply(NAME, build.module(*(build.emit(op.matmul(each, weight)) for each in _split(build, x, 0))))
    assert operators(after).count("matmul") == 1


@pytest.mark.parametrize(
    ("shape", "axis", "used"),
    [((2, 4, _STEPS), 2, _STEPS), ((_STEPS, 2, 6), 0, 2), ((_STEPS, 70, 6), 0, _STEPS)],
    ids=["of what is summed over", "two pieces", "of many rows"],
)
def test_products_that_stay(shape: tuple[int, ...], axis: int, used: int) -> None:
    build = Build()
    pieces = _split(build, build.input("x", shape), axis)
    weight = build.constant((1 if axis == 2 else 6, 3))
    mod = build.module(*(build.emit(op.matmul(piece, weight)) for piece in pieces[:used]))
    assert apply(NAME, mod).same_as(mod)
