"""Rewrites of expressions that TVM misreads or cannot generate: numbers against numpy."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from compiler.codegen.kernel_lowering import PIPELINE
from schedules.ir.tir import tirx, tvm
from schedules.machine import Machine
from schedules.selection.apply import apply_schedules

# isort: split
from tvm import te

import targets


def scheduled(*tensors: Any, on: str = "host") -> Any:
    """A function of numpy arrays that runs the kernel of these tensors, the last one being the result."""
    function = te.create_prim_func(list(tensors)).with_attr("global_symbol", "kernel")
    target = targets.get(on)
    machine: Machine = target.machine
    mod, report = apply_schedules(tvm.IRModule({"kernel": function}), machine)
    assert not report.failures
    library = tvm.compile(mod, target=target.tvm_target(), tir_pipeline=PIPELINE)
    output = tensors[-1]

    def run(*arrays: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        result = tvm.runtime.empty([int(size) for size in output.shape], str(output.dtype))
        library["kernel"](*(tvm.runtime.tensor(array) for array in arrays), result)
        values: np.ndarray[Any, Any] = result.numpy()
        return values

    return run


@pytest.mark.parametrize("shape", [(2, 17, 7, 6), (3, 4), (1, 5, 1, 2), (8, 9, 16)])
def test_reshape_read_backwards(shape: tuple[int, ...]) -> None:
    source = te.placeholder(shape, "float32", name="source")
    count = int(np.prod(shape))
    strides = [int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))]

    def element(i: Any) -> Any:
        place = tirx.const(count - 1, "int64") - i
        return source(
            *(tirx.floormod(tirx.floordiv(place, step), size) for step, size in zip(strides, shape, strict=True))
        )

    output = te.compute((tirx.const(count, "int64"),), element, name="backwards")
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    np.testing.assert_array_equal(scheduled(source, output)(values), values.reshape(-1)[::-1])


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize(
    ("name", "reference"),
    [("sinh", np.sinh), ("cosh", np.cosh), ("asin", np.arcsin), ("acosh", np.arccosh), ("log1p", np.log1p)],
)
def test_functions_without_a_vector_form(dtype: str, name: str, reference: Any) -> None:
    source = te.placeholder((3, 37), dtype, name="source")
    output = te.compute(source.shape, lambda *i: getattr(tirx, name)(source(*i)), name="result")
    generator = np.random.default_rng(0)
    low, high = (1.0, 3.0) if name == "acosh" else (-0.9, 0.9)
    values = generator.uniform(low, high, (3, 37)).astype(dtype)
    # Two units in the last place of float16; TVM's own float32 and float64 forms are good to 1e-6.
    tolerance = 2e-3 if dtype == "float16" else 1e-6
    expected = reference(values.astype(np.float64))
    np.testing.assert_allclose(scheduled(source, output)(values), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("size", [1, 3, 40])
def test_a_narrow_float_that_is_used_twice_keeps_its_value(size: int) -> None:
    source = te.placeholder((size,), "bfloat16", name="source")
    wide = te.compute((size,), lambda i: source(i).astype("float32"), name="wide")
    index = te.reduce_axis((0, size), "index")
    output = te.compute((1,), lambda _: te.sum(wide(index) * wide(index), axis=index), name="squares")
    values = np.random.default_rng(size).standard_normal(size).astype(ml_dtypes.bfloat16)
    np.testing.assert_allclose(scheduled(source, output)(values), [(values.astype(np.float64) ** 2).sum()], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn"])
def test_one_narrow_float_fills_a_vector(dtype: str) -> None:
    source = te.placeholder((1,), dtype, name="source")
    output = te.compute((3, 40), lambda _row, _column: source(0), name="repeated")
    value = np.array([1.5], getattr(ml_dtypes, dtype))
    filled = scheduled(source, output)(value)
    np.testing.assert_array_equal(filled.astype(np.float32), np.full((3, 40), 1.5, np.float32))


@pytest.mark.parametrize(("rows", "times"), [(8, 2), (4, 8), (16, 4), (5, 5)])
def test_rows_that_repeat_are_repeated(rows: int, times: int) -> None:
    """Loops over a remainder, which LLVM's loop vectorizer would take for loops without."""
    source = te.placeholder((8, rows, 4), "float32", name="source")
    output = te.compute((8, rows * times, 8), lambda i, j, k: source(i, j % rows, k % 4), name="tiled")
    values = np.random.default_rng(rows).standard_normal((8, rows, 4)).astype(np.float32)
    np.testing.assert_array_equal(scheduled(source, output)(values), np.tile(values, (1, times, 2)))


@pytest.mark.parametrize("on", ["host", "x86-64-v3"])  # with bfloat16 instructions where this machine has them; without
@pytest.mark.parametrize(("outer", "inner", "shift"), [(2, 4, 1), (3, 6, 2), (2, 6, 3)])
def test_a_remainder_of_a_remainder_keeps_its_offset(outer: int, inner: int, shift: int, on: str) -> None:
    """As where the tiles of a reflected row are cut."""
    if not targets.get(on).fits_this_machine():
        pytest.skip(f"this machine does not run {on}")
    source = te.placeholder((8,), "float32", name="source")

    def element(row: Any, column: Any) -> Any:
        return source(4 - tirx.floormod(tirx.floormod(column + 1, inner) + shift, outer))

    wide = te.compute((2, 7), element, name="wide")
    output = te.compute(
        (2, 7), lambda i, j: tirx.Select(tirx.isnan(wide(i, j)), wide(i, j), wide(i, j) * 2), name="twice"
    )
    values = np.arange(8, dtype=np.float32)
    places = [4 - ((column + 1) % inner + shift) % outer for column in range(7)]
    np.testing.assert_array_equal(scheduled(source, output, on=on)(values), np.tile(values[places] * 2, (2, 1)))
