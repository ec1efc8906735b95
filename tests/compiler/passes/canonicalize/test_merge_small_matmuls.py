"""merge-small-matmuls: several weights on one input become one, with equal results."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax

from compiler.passes.rewriting.matching import as_constant
from tests.compiler.passes.building import Build, apply, operators, run_module

op = relax.op
NAME = "merge-small-matmuls"


def check(mod: tvm.IRModule, *shapes: tuple[int, ...]) -> list[str]:
    after = apply(NAME, mod)
    random = np.random.default_rng(1)
    inputs = [random.standard_normal(shape).astype("float32") for shape in shapes]
    for got, expected in zip(run_module(after, *inputs), run_module(mod, *inputs), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)  # sums in another order
    return operators(after)


@pytest.mark.parametrize("bias", ["all", "some", "none"])
def test_three_products_of_one_input(bias: str) -> None:
    build = Build()
    x = build.input("x", (4, 6))
    outputs = []
    for index in range(3):
        y = build.emit(op.matmul(x, build.constant((6, 3 + index))))
        if bias == "all" or (bias == "some" and index == 1):
            y = build.emit(op.add(build.constant((3 + index,)), y))
        outputs.append(build.emit(op.exp(y)))
    after = check(build.module(*outputs), (4, 6))
    assert after.count("matmul") == 1
    assert after.count("add") == {"all": 1, "some": 1, "none": 0}[bias]
    assert after.count("strided_slice") == 3


def test_convolutions_stay() -> None:
    build = Build()
    x = build.input("x", (1, 3, 6, 6))
    outputs = [build.emit(op.nn.conv2d(x, build.constant((count, 3, 3, 3)), padding=1)) for count in (4, 5)]
    mod = build.module(*outputs)
    assert apply(NAME, mod).same_as(mod)


def test_products_that_differ_in_input_rank_or_weight_stay() -> None:
    build = Build()
    x, y = build.input("x", (4, 6)), build.input("y", (4, 6))
    v = build.input("v", (6, 5))
    build_constant = build.constant
    outputs = [
        build.emit(op.matmul(x, build_constant((6, 3)))),
        build.emit(op.matmul(y, build_constant((6, 3)))),
        build.emit(op.matmul(x, v)),
        build.emit(op.matmul(x, build_constant((2, 6, 3)))),
        build.emit(op.matmul(build_constant((3, 4)), x)),
        build.emit(op.matmul(build_constant((3, 4)), x)),
    ]
    mod = build.module(*outputs)
    assert apply(NAME, mod).same_as(mod)


@pytest.mark.parametrize(("rows", "merged"), [(3, True), (65, False), ("n", False)])
def test_only_products_of_few_rows_are_merged(rows: int | str, merged: bool) -> None:
    build = Build()
    x = build.input("x", (rows, 6))
    mod = build.module(*(build.emit(op.matmul(x, build.constant((6, 3)))) for _ in range(2)))
    after = apply(NAME, mod)
    assert operators(after).count("matmul") == (1 if merged else 2)
    assert after.same_as(mod) != merged


def test_a_product_that_is_used_itself_keeps_its_bias_apart() -> None:
    build = Build()
    x = build.input("x", (4, 6))
    a = build.emit(op.matmul(x, build.constant((6, 3))))
    b = build.emit(op.matmul(x, build.constant((6, 3))))
    mod = build.module(a, build.emit(op.add(a, build.constant((3,)))), build.emit(op.add(b, build.constant((3,)))))
    after = check(mod, (4, 6))
    assert after.count("matmul") == 1
    assert after.count("add") == 2


@settings(max_examples=4, deadline=None)
@given(rows=st.integers(1, 5), inner=st.integers(1, 9), widths=st.lists(st.integers(1, 7), min_size=2, max_size=4))
def test_against_numpy_on_random_shapes(rows: int, inner: int, widths: list[int]) -> None:
    random = np.random.default_rng(inner)
    weights = [random.standard_normal((inner, width)) for width in widths]
    build = Build()
    x = build.input("x", (rows, inner))
    outputs = [build.emit(op.matmul(x, as_constant(weight.astype("float32")))) for weight in weights]
    after = apply(NAME, build.module(*outputs))
    assert operators(after).count("matmul") == 1
    data = random.standard_normal((rows, inner))
    for got, weight in zip(run_module(after, data.astype("float32")), weights, strict=True):
        np.testing.assert_allclose(got, data @ weight, atol=1e-5)
