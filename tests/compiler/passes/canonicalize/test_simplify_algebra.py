# mypy: disable-error-code="valid-type, no-untyped-def"
# ruff: noqa: N805
"""simplify-algebra: each rule applies only where valid and keeps all values, including NaN, infinities and zeros."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from compiler.passes.rewriting.matching import as_constant
from tests.compiler.passes.building import Build, apply, operators, run_module

op = relax.op
SPECIAL = np.array([[np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40], [3.0, -2.5, 1e30, -1e-30, 0.5, -7]], "float32")


def number(value: float, dtype: str = "float32") -> Any:
    return as_constant(np.array(value, dtype))


def chain(*steps: Callable[[Any], Any]) -> tvm.IRModule:
    """x of (2, 6) float32 through the steps, each a function of the value before."""
    build = Build()
    value = build.input("x", (2, 6))
    for step in steps:
        value = build.emit(step(value))
    return build.module(value)


FIRES: list[tuple[str, list[Callable[[Any], Any]], list[str]]] = [
    ("add zero", [lambda x: op.add(x, number(0))], []),
    ("zero add", [lambda x: op.add(as_constant(np.zeros((2, 6), "float32")), x)], []),
    ("multiply one", [lambda x: op.multiply(number(1), x)], []),
    ("multiply -1", [lambda x: op.multiply(x, number(-1))], ["negative"]),
    ("subtract zero", [lambda x: op.subtract(x, number(0))], []),
    ("subtract constant", [lambda x: op.subtract(x, number(3))], ["add"]),
    ("divide by 4", [lambda x: op.divide(x, number(4))], ["multiply"]),
    ("add twice", [lambda x: op.add(x, number(3)), lambda x: op.add(number(4), x)], ["add"]),
    ("scale twice", [lambda x: op.multiply(x, number(3)), lambda x: op.multiply(x, number(0.5))], ["multiply"]),
    ("double negation", [op.negative, op.negative], []),
    ("abs of abs", [op.abs, op.abs], ["abs"]),
    ("abs of square", [lambda x: op.multiply(x, x), op.abs], ["multiply"]),
    ("power 1", [lambda x: op.power(x, number(1))], []),
    ("power 2", [lambda x: op.power(x, number(2))], ["multiply"]),
    ("power 3", [lambda x: op.power(x, number(3))], ["multiply", "multiply"]),
    ("power 4", [lambda x: op.power(x, number(4))], ["multiply"] * 2),
    ("power 7", [lambda x: op.power(x, number(7))], ["multiply"] * 4),
    ("power 8", [lambda x: op.power(x, number(8))], ["multiply"] * 3),
    ("power -1", [lambda x: op.power(x, number(-1))], ["divide"]),
    ("power 0.5", [op.abs, lambda x: op.power(x, number(0.5))], ["abs", "sqrt"]),
    ("power -0.5", [op.exp, lambda x: op.power(x, number(-0.5))], ["exp", "rsqrt"]),
    ("cast to itself", [lambda x: op.astype(x, "float32")], []),
    ("cast there and back", [lambda x: op.astype(x, "float64"), lambda x: op.astype(x, "float32")], []),
    ("cast through", [lambda x: op.astype(x, "float64"), lambda x: op.astype(x, "float16")], ["astype"]),
    ("reshape to itself", [lambda x: op.reshape(x, (2, 6))], []),
    ("broadcast to itself", [lambda x: op.broadcast_to(x, (2, 6))], []),
    ("whole slice", [lambda x: op.strided_slice(x, [1], [0], [6])], []),
    ("tile once", [lambda x: op.tile(x, (1, 1))], []),
    ("empty pad", [lambda x: op.nn.pad(x, [0, 0, 0, 0])], []),
    ("one concat", [lambda x: op.concat([x], 0)], []),
    ("sum of one", [lambda x: op.expand_dims(x, [0]), lambda x: op.sum(x, [0], True)], ["expand_dims"]),
]


@pytest.mark.parametrize(("steps", "expected"), [case[1:] for case in FIRES], ids=[case[0] for case in FIRES])
def test_a_rule_fires_and_keeps_every_number(steps: list[Callable[[Any], Any]], expected: list[str]) -> None:
    mod = chain(*steps)
    after = apply("simplify-algebra", mod)
    assert operators(after) == expected
    with np.errstate(all="ignore"):
        # Joined constants and powers written as products round once more or less.
        np.testing.assert_allclose(run_module(after, SPECIAL)[0], run_module(mod, SPECIAL)[0], rtol=1e-6)


def test_comparisons_of_a_tensor_with_itself_keep_nan() -> None:
    """TVM would fold these to true and false; compare them with numpy."""
    cases: list[tuple[Callable[[Any], Any], list[str], Any]] = [
        (lambda x: op.equal(x, x), ["isnan", "logical_not"], ~np.isnan(SPECIAL)),
        (lambda x: op.less_equal(x, x), ["isnan", "logical_not"], ~np.isnan(SPECIAL)),
        (lambda x: op.not_equal(x, x), ["isnan"], np.isnan(SPECIAL)),
    ]
    for step, expected, wanted in cases:
        after = apply("simplify-algebra", chain(step))
        assert operators(after) == expected
        np.testing.assert_array_equal(run_module(after, SPECIAL)[0], wanted)


STAYS: list[tuple[str, list[Callable[[Any], Any]]]] = [
    ("add that broadcasts", [lambda x: op.add(x, as_constant(np.zeros((3, 2, 6), "float32")))]),
    ("divide by 3", [lambda x: op.divide(x, number(3))]),
    ("divide by a tiny power", [lambda x: op.divide(x, number(2.0**-130))]),
    ("power 0.5 of any sign", [lambda x: op.power(x, number(0.5))]),
    ("power 9", [lambda x: op.power(x, number(9))]),
    ("power 2.5", [lambda x: op.power(x, number(2.5))]),
    ("cast through narrower", [lambda x: op.astype(x, "float16"), lambda x: op.astype(x, "float32")]),
    ("cast through integers", [lambda x: op.astype(x, "int32"), lambda x: op.astype(x, "float32")]),
    ("reversed slice", [lambda x: op.strided_slice(x, [1], [5], [-7], [-1])]),
    ("relu of abs", [op.abs, op.nn.relu]),
    ("open clip, which turns NaN into infinity", [lambda x: op.clip(x, float("-inf"), float("inf"))]),
    ("huge scales", [lambda x: op.multiply(x, number(1e30)), lambda x: op.multiply(x, number(1e-30))]),
    ("add to a scaled", [lambda x: op.multiply(x, number(3)), lambda x: op.add(x, number(3))]),
]


@pytest.mark.parametrize("steps", [case[1] for case in STAYS], ids=[case[0] for case in STAYS])
def test_a_rule_does_not_fire_where_numbers_would_change(steps: list[Callable[[Any], Any]]) -> None:
    mod = chain(*steps)
    assert apply("simplify-algebra", mod).same_as(mod)


def test_constants_are_not_joined_when_the_inner_result_is_used_elsewhere() -> None:
    build = Build()
    x = build.input("x", (2, 6))
    inner = build.emit(op.add(x, number(3)))
    mod = build.module(build.emit(op.add(inner, number(4))), inner)
    assert apply("simplify-algebra", mod).same_as(mod)


def test_scales_of_both_operands_of_a_product_are_joined() -> None:
    build = Build()
    x, y = build.input("x", (3, 4)), build.input("y", (4, 5))
    a, b = build.emit(op.multiply(x, number(0.3))), build.emit(op.multiply(number(0.7), y))
    mod = build.module(build.emit(op.matmul(a, b)))
    after = apply("simplify-algebra", mod)
    assert operators(after) == ["multiply", "matmul"]
    random = np.random.default_rng(0)
    values = random.standard_normal((3, 4)).astype("float32"), random.standard_normal((4, 5)).astype("float32")
    np.testing.assert_allclose(run_module(after, *values)[0], values[0] @ values[1] * 0.21, rtol=1e-5, atol=1e-6)


def test_narrow_types_keep_every_rounding() -> None:
    build = Build()
    x, y = build.input("x", (3, 4), "float16"), build.input("y", (4, 5), "float16")
    a = build.emit(op.multiply(x, number(0.3, "float16")))
    b = build.emit(op.multiply(number(0.7, "float16"), y))
    twice = build.emit(op.add(build.emit(op.add(x, number(0.3, "float16"))), number(0.7, "float16")))
    cube = build.emit(op.power(x, number(3, "float16")))
    mod = build.module(build.emit(op.matmul(a, b, out_dtype="float32")), twice, cube)
    assert apply("simplify-algebra", mod).same_as(mod)


def test_neighbours_are_taken_by_a_slice() -> None:
    build = Build()
    x = build.input("x", (6, "n"))
    some = build.emit(op.take(x, as_constant(np.array([2, 3, 4], "int64")), 0))
    one = build.emit(op.take(x, as_constant(np.array(5, "int64")), 0))
    apart = build.emit(op.take(x, as_constant(np.array([2, 4], "int64")), 0))
    mod = build.module(some, one, apart)
    after = apply("simplify-algebra", mod)
    assert operators(after) == ["strided_slice", "strided_slice", "reshape", "take"]
    values = np.random.default_rng(0).standard_normal((6, 3)).astype("float32")
    for got, expected in zip(run_module(after, values), run_module(mod, values), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_integers_keep_their_meaning() -> None:
    build = Build()
    x = build.input("x", (4,), "int32")
    halves = build.emit(op.divide(x, number(2, "int32")))
    less = build.emit(op.subtract(halves, number(2, "int32")))
    same = build.emit(op.add(less, number(0, "int32")))
    mod = build.module(same)
    after = apply("simplify-algebra", mod)
    assert operators(after) == ["divide", "subtract"]
    values = np.array([-3, 3, 8, -(2**31)], "int32")
    np.testing.assert_array_equal(run_module(after, values)[0], run_module(mod, values)[0])


def test_symbolic_shapes_float16_and_branches() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor(("n", 4), "float16"), c: R.Tensor((), "bool")) -> R.Tensor(("n", 4), "float16"):
            if c:
                a = R.multiply(x, R.const(1.0, "float16"))
                b = R.negative(a)
                r = R.negative(b)
            else:
                d = R.power(x, R.const(2.0, "float16"))
                r = d
            return r

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor(("n", 4), "float16"), c: R.Tensor((), "bool")) -> R.Tensor(("n", 4), "float16"):
            if c:
                r = x
            else:
                d = R.multiply(x, x)
                r = d
            return r

    after = apply("simplify-algebra", Before)
    tvm.ir.assert_structural_equal(after, Expected)
