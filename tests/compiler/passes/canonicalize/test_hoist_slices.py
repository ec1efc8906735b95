"""hoist-slices: across transposes, reshapes and arithmetic, only if the sliced value has no other readers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax

from compiler.passes.rewriting.matching import as_constant
from tests.compiler.passes.building import Build, apply, operators, run_module

op = relax.op
NAME = "hoist-slices"


def cut(build: Build, x: Any, axis: int, begin: int, end: int) -> Any:
    return build.emit(op.strided_slice(x, [axis], [begin], [end]))


def check(mod: tvm.IRModule, *shapes: tuple[int, ...]) -> list[str]:
    after = apply(NAME, mod)
    inputs = [np.random.default_rng(1).standard_normal(shape).astype("float32") for shape in shapes]
    for got, expected in zip(run_module(after, *inputs), run_module(mod, *inputs), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)  # sums of products in another order
    return operators(after)


def test_packed_projections_are_cut_before_they_are_moved() -> None:
    build = Build()
    x = build.input("x", (7, 2, 12))
    y = build.emit(op.reshape(x, (1, 7, 2, 3, 4)))
    y = build.emit(op.permute_dims(y, [3, 1, 2, 0, 4]))
    y = build.emit(op.reshape(y, (3, 7, 2, 4)))
    mod = build.module(*(build.emit(op.take(y, as_constant(np.array([i], "int64")), 0)) for i in range(3)))
    after = check(apply("simplify-algebra", mod), (7, 2, 12))
    assert after.count("strided_slice") == 3
    assert apply(NAME, apply("simplify-algebra", mod))["main"].body.blocks[0].bindings[0].value.args[0].name == "x"


def test_a_slice_goes_before_arithmetic() -> None:
    build = Build()
    x = build.input("x", (4, 6))
    y = build.emit(op.clip(build.emit(op.exp(x)), 0.5, 2))
    assert check(build.module(cut(build, y, 1, -2, 6)), (4, 6)) == ["strided_slice", "exp", "clip"]


def test_packed_projections_come_apart() -> None:
    build = Build()
    x = build.input("x", ("n", 6))
    y = build.emit(op.add(build.emit(op.matmul(x, build.constant((6, 12)))), build.constant((12,))))
    mod = build.module(*(cut(build, y, 1, 4 * i, 4 * i + 4) for i in range(3)))
    after = apply(NAME, mod)
    assert sorted(operators(after)) == ["add"] * 3 + ["matmul"] * 3
    values = np.random.default_rng(1).standard_normal((5, 6)).astype("float32")
    for got, expected in zip(run_module(after, values), run_module(mod, values), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_rows_of_a_left_product_and_constants_that_broadcast() -> None:
    build = Build()
    x = build.input("x", (6, 5))
    y = build.emit(op.multiply(build.emit(op.matmul(build.constant((8, 6)), x)), build.constant((8, 1))))
    z = build.emit(op.subtract(build.constant((5,)), y))
    after = check(build.module(cut(build, z, 0, 2, 5)), (6, 5))
    assert "strided_slice" not in after


@pytest.mark.parametrize("kind", ["transpose", "reshape", "unary"])
def test_what_something_else_reads_is_not_cut(kind: str) -> None:
    build = Build()
    x = build.input("x", (4, 6))
    made = {"transpose": op.permute_dims(x), "reshape": op.reshape(x, (6, 4)), "unary": op.exp(x)}[kind]
    y = build.emit(made)
    mod = build.module(cut(build, y, 0, 0, 1), build.emit(op.sin(y)))
    assert apply(NAME, mod).same_as(mod)
    build = Build()
    x = build.input("x", (4, 6))
    y = build.emit(op.exp(x))
    mod = build.module(cut(build, y, 0, 0, 3), cut(build, y, 0, 1, 4))  # they overlap
    assert apply(NAME, mod).same_as(mod)


@settings(max_examples=9, deadline=None)
@given(
    source=st.sampled_from([(2, 12), (24,), (2, 3, 4), (1, 4, 6), (4, 1, 6)]),
    middle=st.sampled_from([(2, 3, 4), (4, 6), (24,), (2, 2, 6), (1, 2, 12), (8, 3)]),
    data=st.data(),
)
def test_any_slice_of_any_reshape_against_numpy(
    source: tuple[int, ...], middle: tuple[int, ...], data: st.DataObject
) -> None:
    axis = data.draw(st.integers(0, len(middle) - 1))
    begin = data.draw(st.integers(0, middle[axis] - 1))
    end = data.draw(st.integers(begin + 1, middle[axis]))
    build = Build()
    x = build.input("x", source)
    y = build.emit(op.reshape(x, middle))
    mod = build.module(cut(build, y, axis, begin, end))
    values = np.random.default_rng(0).standard_normal(source).astype("float32")
    index = tuple(slice(begin, end) if i == axis else slice(None) for i in range(len(middle)))
    np.testing.assert_array_equal(run_module(apply(NAME, mod), values)[0], values.reshape(middle)[index])
