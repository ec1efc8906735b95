"""Lets that TVM's code generator stops at, rewritten: the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm

from compiler.codegen.kernel_lowering import PIPELINE
from schedules.ir.lets import chosen_conditions, inlined_divisions, own_differences
from schedules.ir.tir import tirx

Expr = Any
LANES = 8


def integer(number: int) -> Expr:
    return tirx.IntImm("int64", number)


def bound(value: Callable[[Expr], Expr], body: Callable[[Expr], Expr], dtype: str) -> Any:
    """A vector of `body(variable)`, where the variable is bound to `value(element)`."""
    source, result = (tirx.decl_buffer((integer(LANES),), "int64", name) for name in ("source", "result"))
    lane, variable = tirx.Var("lane", "int64"), tirx.Var("variable", dtype)
    let = chosen_conditions(tirx.Let(variable, value(tirx.BufferLoad(source, [lane])), body(variable)))
    store = tirx.BufferStore(result, let, [lane])
    loop = tirx.For(lane, integer(0), integer(LANES), tirx.ForKind.VECTORIZED, store)
    return tirx.PrimFunc([source, result], loop).with_attr({"global_symbol": "main", "tirx.noalias": True})


def run(function: Any, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    chosen = tvm.target.Target({"kind": "llvm", "mcpu": "x86-64-v3"})
    with chosen:
        library = tvm.tirx.build(tvm.IRModule({"main": function}), target=chosen, pipeline=PIPELINE)
    result = tvm.runtime.tensor(np.zeros(LANES, values.dtype))
    library["main"](tvm.runtime.tensor(values), result)
    return np.asarray(result.numpy())


@pytest.fixture
def values() -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(-5, 6, LANES)


def test_a_condition_as_a_number(values: np.ndarray[Any, Any]) -> None:
    function = bound(lambda x: x * tirx.Cast("int64", x > integer(0)) + x, lambda v: v * v, "int64")
    np.testing.assert_array_equal(run(function, values), (values * (values > 0) + values) ** 2)


def test_a_condition(values: np.ndarray[Any, Any]) -> None:
    def body(condition: Expr) -> Expr:
        return tirx.Select(condition, integer(7), integer(3)) + tirx.Cast("int64", tirx.Not(condition))

    function = bound(lambda x: tirx.And(x > integer(-3), x < integer(3)), body, "bool")
    np.testing.assert_array_equal(run(function, values), np.where(abs(values) < 3, 7, 4))


def test_a_loaded_integer_with_bounds(values: np.ndarray[Any, Any]) -> None:
    def body(value: Expr) -> Expr:
        wide = tirx.Cast("int64", value)
        return tirx.Select(wide < integer(0), wide + integer(9), wide)

    offset = tirx.IntImm("int32", 2)
    function = bound(lambda x: tirx.Max(tirx.Cast("int32", x), offset - offset - offset) + offset, body, "int32")
    wanted = np.maximum(values, -2) + 2
    np.testing.assert_array_equal(run(function, values), np.where(wanted < 0, wanted + 9, wanted))


def test_divisions_are_repeated_and_other_lets_stay() -> None:
    a, b, quotient, product = (tirx.Var(name, "int64") for name in ("a", "b", "quotient", "product"))
    inner = tirx.Let(product, a * b, product + quotient)
    found = inlined_divisions(tirx.Let(quotient, tirx.truncdiv(a, b), inner))
    tvm.ir.assert_structural_equal(found, tirx.Let(product, a * b, product + tirx.truncdiv(a, b)), map_free_vars=True)


@pytest.mark.parametrize("dtype", ["int64", "float32"])
def test_differences_of_a_variable_with_itself(values: np.ndarray[Any, Any], dtype: str) -> None:
    zero = tirx.IntImm(dtype, 0) if dtype == "int64" else tirx.FloatImm(dtype, 0.0)
    bodies: list[Callable[[Expr], Expr]] = [lambda v: tirx.Sub(v, v), lambda v: tirx.Mul(v, zero)]
    for body in bodies:
        source, result = (tirx.decl_buffer((integer(LANES),), dtype, name) for name in ("source", "result"))
        lane, variable = tirx.Var("lane", "int64"), tirx.Var("variable", dtype)
        let = tirx.Let(variable, tirx.BufferLoad(source, [lane]), body(variable))
        store = tirx.BufferStore(result, own_differences(let * tirx.BufferLoad(source, [integer(0)])), [lane])
        loop = tirx.For(lane, integer(0), integer(LANES), tirx.ForKind.VECTORIZED, store)
        function = tirx.PrimFunc([source, result], loop).with_attr({"global_symbol": "main", "tirx.noalias": True})
        numbers = values.astype(dtype)
        if dtype == "float32":
            numbers[1:4] = np.nan, np.inf, -np.inf
        with np.errstate(invalid="ignore"):
            np.testing.assert_array_equal(run(function, numbers), numbers - numbers)
