"""Loops over independent elements in vectors: running sums and products against numpy."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest

import compiler
import schedules.ir.tir  # noqa: F401
import targets
from schedules.instructions.element_loops import IN_VECTORS, vectorize_element_loops
from schedules.ir.expression import nodes
from schedules.machine import Machine

from tvm import tirx  # isort: skip

_SHAPES = [(3, 7, 1), (2, 5, 15), (2, 9, 64), (1, 4, 101), (3, 2, 181)]


def _expected(x: np.ndarray, axis: int, operator: str, *, exclusive: bool, reverse: bool) -> np.ndarray:
    x = np.flip(x, axis) if reverse else x
    if exclusive:
        first = np.full_like(np.take(x, [0], axis), operator == "CumProd")
        x = np.concatenate([first, np.delete(x, -1, axis)], axis)
    result = (np.cumprod if operator == "CumProd" else np.cumsum)(x, axis, dtype=x.dtype)
    return np.flip(result, axis) if reverse else result


@pytest.mark.parametrize("target", ["host", "x86-64-v3"])
@pytest.mark.parametrize("dtype", ["float", "double", "int32", "int64"])
@pytest.mark.parametrize(("operator", "exclusive", "reverse"), [("CumSum", 0, 0), ("CumSum", 1, 1), ("CumProd", 1, 0)])
def test_running_sums(operator: str, exclusive: int, reverse: int, dtype: str, target: str) -> None:
    attributes = f"exclusive = {exclusive}, reverse = {reverse}"
    axes = range(3)
    nodes = " ".join(f"y{axis} = {operator}<{attributes}>(x, a{axis})" for axis in axes)
    results, positions = (
        ", ".join(f"y{axis}" for axis in axes),
        ", ".join(f"int64 a{axis} = {{{axis}}}" for axis in axes),
    )
    model = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["": 26]> g ({dtype}[a, b, c] x) => ({results}) <{positions}> {{
            {nodes}
        }}"""
    )
    module = compiler.compile(model, target=target, threads=1)
    generator = np.random.default_rng(0)
    for shape in _SHAPES:
        x = generator.integers(-2, 3, shape).astype(
            "float32" if dtype == "float" else dtype.replace("double", "float64")
        )
        for axis, found in enumerate(module.run({"x": x}).values()):
            expected = _expected(x, axis, operator, exclusive=bool(exclusive), reverse=bool(reverse))
            np.testing.assert_array_equal(found, expected)


def test_the_sign_of_zero() -> None:
    """The sum of one element is that element, also if it is -0; the sum of none is 0."""
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 21]> g (float[2, n] x) => (y, z) <int64 axis = {0}> {
            y = CumSum(x, axis)
            z = CumSum<exclusive = 1>(x, axis)
        }"""
    )
    found = compiler.compile(model, threads=1).run({"x": np.full((2, 21), -0.0, np.float32)})
    assert np.signbit(found["y"]).all()
    assert not np.signbit(found["z"]).any()


@pytest.mark.parametrize("target", ["x86-64-v3", "x86-64-v4"])
def test_each_variable_is_defined_once(target: str) -> None:
    """Vectors and the remainder are copies of the body: a variable defined twice fails in some of TVM's passes."""
    source, result = (tirx.decl_buffer([4, 50], "float32", name) for name in ("source", "result"))
    column, step, count = (tirx.Var(name, "int64") for name in ("column", "step", "count"))
    value = tirx.BufferLoad(source, [step, column])
    zero, serial = tirx.const(0, "int64"), tirx.ForKind.SERIAL
    steps = tirx.For(step, zero, tirx.const(4, "int64"), serial, tirx.BufferStore(result, value, [step, column]))
    loop = tirx.For(column, zero, count, serial, steps, annotations={IN_VECTORS: True})
    machine: Machine = targets.get(target).machine
    loops = nodes(vectorize_element_loops(loop, machine), tirx.For)
    assert len(loops) > 4
    assert len({each.loop_var for each in loops}) == len(loops)
