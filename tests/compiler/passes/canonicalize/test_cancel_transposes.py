# mypy: disable-error-code="valid-type, no-untyped-def"
# ruff: noqa: N805
"""cancel-transposes: pairs cancel across operators, nothing is computed twice, and results stay equal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from compiler.passes.rewriting.matching import as_constant
from tests.compiler.passes.building import Build, apply, operators, run_module

op = relax.op
NAME = "cancel-transposes"
BACK = [0, 3, 1, 2]  # to channels first
FORTH = [0, 2, 3, 1]  # to channels last


def check(mod: tvm.IRModule, *shapes: tuple[int, ...]) -> list[str]:
    """Check that the pass keeps the results, and return the operators after it."""
    after = apply(NAME, mod)
    random = np.random.default_rng(1)
    inputs = [random.standard_normal(shape).astype("float32") for shape in shapes]
    for got, expected in zip(run_module(after, *inputs), run_module(mod, *inputs), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)  # sums in another order
    return operators(after)


BETWEEN: list[tuple[str, Callable[[Build, Any], Any], list[str]]] = [
    ("nothing", lambda _b, x: x, []),
    ("unary", lambda b, x: b.emit(op.nn.relu(x)), ["nn.relu"]),
    ("clip", lambda b, x: b.emit(op.clip(x, 0, 6)), ["clip"]),
    ("cast", lambda b, x: b.emit(op.astype(x, "float16")), ["astype"]),
    ("channel constant", lambda b, x: b.emit(op.add(x, b.constant((4,)))), ["add"]),
    ("full constant", lambda b, x: b.emit(op.multiply(b.constant((1, 5, 6, 4)), x)), ["multiply"]),
    ("scalar", lambda b, x: b.emit(op.power(x, as_constant(np.array(2, "float32")))), ["power"]),
    ("kept reduction", lambda b, x: b.emit(op.mean(x, [1, 2], True)), ["mean"]),
    ("pad", lambda b, x: b.emit(op.nn.pad(x, [0, 0, 1, 2, 0, 1, 3, 0], "constant", 1.5)), ["nn.pad"]),
    ("slice", lambda b, x: b.emit(op.strided_slice(x, [3, -3], [1, 0], [3, 5], [1, 2])), ["strided_slice"]),
    ("concat", lambda b, x: b.emit(op.concat([x, b.constant((2, 5, 6, 1))], -1)), ["concat"]),
]


@pytest.mark.parametrize(("between", "expected"), [c[1:] for c in BETWEEN], ids=[c[0] for c in BETWEEN])
def test_a_pair_cancels_through(between: Callable[[Build, Any], Any], expected: list[str]) -> None:
    build = Build()
    x = build.input("x", (2, 4, 5, 6))
    y = between(build, build.emit(op.permute_dims(x, FORTH)))
    assert check(build.module(build.emit(op.permute_dims(y, BACK))), (2, 4, 5, 6)) == expected


def test_two_branches_meet_in_an_addition_and_a_concatenation() -> None:
    build = Build()
    x, y = build.input("x", (2, 4, 5, 6)), build.input("y", (2, 4, 5, 6))
    a, b = (build.emit(op.permute_dims(each, FORTH)) for each in (x, y))
    both = build.emit(op.concat([build.emit(op.add(a, b)), build.emit(op.permute_dims(x, FORTH))], 3))
    mod = build.module(build.emit(op.permute_dims(both, BACK)))
    assert check(mod, (2, 4, 5, 6), (2, 4, 5, 6)) == ["add", "concat"]


@pytest.mark.parametrize("keepdims", [True, False])
@pytest.mark.parametrize("axes", [[1], [1, 2], [3], None])
@pytest.mark.parametrize("name", ["sum", "mean", "max", "variance"])
def test_reductions(name: str, axes: list[int] | None, keepdims: bool) -> None:
    build = Build()
    x = build.input("x", (2, 4, 5, 6))
    value = build.emit(getattr(op, name)(build.emit(op.permute_dims(x, [0, 3, 2, 1])), axes, keepdims))
    after = check(build.module(value), (2, 4, 5, 6))
    assert after[0] == name
    assert len(after) <= 2


def test_transposes_of_ones_become_reshapes_and_merge() -> None:
    build = Build()
    x = build.input("x", (2, 1, 5, 1))
    y = build.emit(op.permute_dims(x, [1, 0, 3, 2]))
    mod = build.module(build.emit(op.squeeze(y, [0])))
    assert check(mod, (2, 1, 5, 1)) == ["reshape"]


def test_reshapes_merge_and_cancel_through_arithmetic() -> None:
    build = Build()
    x = build.input("x", (2, 3, 4))
    y = build.emit(op.nn.relu(build.emit(op.reshape(x, (6, 4)))))
    y = build.emit(op.multiply(y, as_constant(np.array(3, "float32"))))
    y = build.emit(op.expand_dims(build.emit(op.flatten(y)), [0]))
    mod = build.module(build.emit(op.reshape(y, (2, 3, 4))))
    assert check(mod, (2, 3, 4)) == ["nn.relu", "multiply"]


def test_reshapes_with_symbols() -> None:
    build = Build()
    x = build.input("x", ("n", 3, 4))
    n = x.ty.shape[0]
    y = build.emit(op.reshape(x, relax.ShapeExpr([n * 3, 4])))
    z = build.emit(op.reshape(build.emit(op.exp(y)), relax.ShapeExpr([n, 12])))
    back = build.emit(op.reshape(z, relax.ShapeExpr([n, 3, 4])))
    assert check(build.module(z, back), (5, 3, 4)) == ["exp", "reshape"]


def test_transposes_merge_around_axes_of_one() -> None:
    build = Build()
    x = build.input("x", (1, 5, 3, 4))
    heads = build.emit(op.reshape(build.emit(op.permute_dims(x, [0, 2, 1, 3])), (3, 5, 4)))
    keys = build.emit(op.reshape(build.emit(op.permute_dims(heads, [0, 2, 1])), (1, 3, 4, 5)))
    assert check(build.module(keys), (1, 5, 3, 4)) == ["permute_dims"]


def test_a_product_of_rows_goes_before_the_reshape() -> None:
    build = Build()
    x = build.input("x", (2, 3, 4))
    rows = build.emit(op.reshape(x, (6, 4)))
    back = build.emit(op.reshape(build.emit(op.matmul(rows, build.constant((4, 5)))), (2, 3, 5)))
    other = build.emit(op.matmul(build.emit(op.reshape(x, (8, 3))), build.constant((3, 5))))  # other rows
    assert check(build.module(back, other), (2, 3, 4)) == ["matmul", "reshape", "matmul"]


@pytest.mark.parametrize("kind", ["transpose", "reshape"])
def test_what_something_else_uses_does_not_move(kind: str) -> None:
    build = Build()
    x = build.input("x", (3, 4))
    moved = build.emit(op.permute_dims(x) if kind == "transpose" else op.reshape(x, (4, 3)))
    mod = build.module(build.emit(op.exp(moved)), moved)
    assert apply(NAME, mod).same_as(mod)


def test_what_keeps_its_last_axis_stays() -> None:
    build = Build()
    x, y = build.input("x", (3, 4)), build.input("y", (4, 3))
    soft = build.emit(op.nn.softmax(build.emit(op.permute_dims(x)), -1))
    mixed = build.emit(op.add(build.emit(op.permute_dims(x)), y))  # y is in the other order
    higher = build.emit(op.add(build.emit(op.permute_dims(x)), build.constant((2, 4, 3))))
    mod = build.module(soft, mixed, higher)
    assert apply(NAME, mod).same_as(mod)


def test_before_and_expected() -> None:
    bias = as_constant(np.arange(4, dtype="float32"))
    moved = as_constant(np.arange(4, dtype="float32").reshape(1, 4, 1))

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor(("n", 4, 3), "float32"), c: R.Tensor((), "bool")) -> R.Tensor(("n", 4, 3), "float32"):
            if c:
                a = R.permute_dims(x, [0, 2, 1])
                b = R.add(a, bias)
                d = R.permute_dims(b, [0, 2, 1])
                r = d
            else:
                r = x
            return r

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor(("n", 4, 3), "float32"), c: R.Tensor((), "bool")) -> R.Tensor(("n", 4, 3), "float32"):
            if c:
                b = R.add(x, moved)
                r = b
            else:
                r = x
            return r

    tvm.ir.assert_structural_equal(apply(NAME, Before), Expected)


@settings(max_examples=7, deadline=None)
@given(
    first=st.permutations(range(4)),
    second=st.permutations(range(4)),
    sizes=st.lists(st.integers(1, 4), min_size=4, max_size=4),
)
def test_any_two_transposes_against_numpy(first: list[int], second: list[int], sizes: list[int]) -> None:
    build = Build()
    x = build.input("x", sizes)
    y = build.emit(op.nn.relu(build.emit(op.permute_dims(x, list(first)))))
    after = apply(NAME, build.module(build.emit(op.permute_dims(y, list(second)))))
    assert len(operators(after)) <= 2
    data = np.random.default_rng(0).standard_normal(sizes).astype("float32")
    expected = np.maximum(data.transpose(first), 0).transpose(second)
    np.testing.assert_array_equal(run_module(after, data)[0], expected)


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("other", ["tensor", "vector"])
def test_what_follows_a_reshaped_product_joins_it(other: str, swapped: bool) -> None:
    """As torch exports the projection after attention: flat rows, then the residual in its own shape."""

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((10, 4), "float32"), w: R.Tensor((4, 6), "float32"), y: R.Tensor((2, 5, 6), "float32")):
            with R.dataflow():
                product = R.matmul(x, w)
                shaped = R.reshape(product, (2, 5, 6))
                out = R.add(shaped, y)
                R.output(out)
            return out

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((10, 4), "float32"), w: R.Tensor((4, 6), "float32"), y: R.Tensor((2, 5, 6), "float32")):
            with R.dataflow():
                product = R.matmul(x, w)
                flat = R.reshape(y, (10, 6))
                added = R.add(product, flat)
                out = R.reshape(added, (2, 5, 6))
                R.output(out)
            return out

    if other == "tensor" and not swapped:
        tvm.ir.assert_structural_equal(apply(NAME, Before), Expected)
    build = Build()
    x, w = build.input("x", (10, 4)), build.input("w", (4, 6))
    y = build.input("y", (2, 5, 6) if other == "tensor" else (6,))
    shaped = build.emit(op.reshape(build.emit(op.matmul(x, w)), (2, 5, 6)))
    mod = build.module(build.emit(op.subtract(y, shaped) if swapped else op.subtract(shaped, y)))
    after = check(mod, (10, 4), (4, 6), (2, 5, 6) if other == "tensor" else (6,))
    assert [name for name in after if name != "reshape"] == ["matmul", "subtract"]
    assert after[-1] == "reshape"


def test_a_vector_along_an_axis_that_the_reshape_cuts_stays_behind_it() -> None:
    build = Build()
    x, w, y = build.input("x", (10, 4)), build.input("w", (4, 6)), build.input("y", (3,))
    shaped = build.emit(op.reshape(build.emit(op.matmul(x, w)), (10, 2, 3)))
    assert check(build.module(build.emit(op.add(shaped, y))), (10, 4), (4, 6), (3,)) == ["matmul", "reshape", "add"]
