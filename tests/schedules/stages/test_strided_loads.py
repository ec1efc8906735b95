"""Vectors of elements that lie apart in memory: their numbers, and that nothing beyond the last one is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax, te

from schedules.ir.tir import structural_walk, tirx, tvm
from tests.schedules.harness import Build, evaluate, normal, run, runnable, scheduled

op = relax.op
SIZES = st.sampled_from([1, 2, 3, 5, 16, 17, 33, 50])


def one(function: Callable[..., Any]) -> Build:
    return lambda builder, *inputs: builder.emit(function(*inputs))


@pytest.mark.parametrize("target", runnable())
@settings(max_examples=9, deadline=None)
@given(rows=SIZES, count=SIZES, step=st.integers(2, 5), begin=st.integers(0, 3), dtype=st.sampled_from("fdbhil"))
def test_every_few_elements(target: str, rows: int, count: int, step: int, begin: int, dtype: str) -> None:
    width = begin + step * (count - 1) + 1  # the last element is the last of its row
    x = np.random.default_rng(0).integers(-99, 99, (rows, width)).astype(dtype)
    found = evaluate(one(lambda x: op.strided_slice(x, [1], [begin], [width], [step])), [x], target)
    np.testing.assert_array_equal(found, x[:, begin::step])


@pytest.mark.parametrize("target", runnable())
@settings(max_examples=5, deadline=None)
@given(rows=SIZES, columns=SIZES)
def test_flips(target: str, rows: int, columns: int) -> None:
    x = normal((rows, columns))
    np.testing.assert_array_equal(evaluate(one(lambda x: op.flip(x, 1)), [x], target), x[:, ::-1])


@pytest.mark.parametrize("target", runnable())
@settings(max_examples=5, deadline=None)
@given(rows=SIZES, columns=SIZES, parts=st.integers(2, 4))
def test_arithmetic_on_interleaved_values(target: str, rows: int, columns: int, parts: int) -> None:
    x = normal((rows, columns, parts))

    def compute(x: Any) -> Any:
        return te.compute((rows, columns), lambda i, j: x[i, j, 0] * x[i, j, parts - 1] + x[i, j, 0])

    found = evaluate(lambda builder, x: builder.emit(builder.call_te(compute, x)), [x], target)
    exact = x.astype("float64")
    np.testing.assert_allclose(found, exact[..., 0] * exact[..., -1] + exact[..., 0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("target", runnable())
@settings(max_examples=5, deadline=None)
@given(channels=st.sampled_from([1, 3]), size=st.integers(7, 45), kernel=st.integers(1, 3), stride=st.integers(1, 4))
@pytest.mark.parametrize("kind", ["max", "avg"])
def test_pooling_in_plain_layout(target: str, kind: str, channels: int, size: int, kernel: int, stride: int) -> None:
    x = normal((1, channels, size, size))
    pool = {"max": op.nn.max_pool2d, "avg": op.nn.avg_pool2d}[kind]
    found = evaluate(one(lambda x: pool(x, [kernel, kernel], [stride, stride])), [x], target)
    windows = np.lib.stride_tricks.sliding_window_view(x.astype("float64"), (kernel, kernel), axis=(2, 3))
    windows = windows[:, :, ::stride, ::stride]
    expected = windows.max((-2, -1)) if kind == "max" else windows.mean((-2, -1))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("target", runnable()[-1:])
@pytest.mark.parametrize(("step", "begin"), [(2, 0), (2, 1), (3, 0), (4, 2), (-1, 0)])
def test_nothing_beyond_the_last_element_is_read(target: str, step: int, begin: int) -> None:
    width = begin + step * 36 + 1 if step > 0 else 37

    def build(builder: Any, x: Any) -> Any:
        if step < 0:
            return builder.emit(op.flip(x, 0))
        return builder.emit(op.strided_slice(x, [0], [begin], [width], [step]))

    mod, report = scheduled(build, [((width,), "float32")], target)
    assert report.kernels[0].rule == "copy"
    [function] = [each for _, each in mod.functions_items() if isinstance(each, tirx.PrimFunc)]
    analyzer = tvm.sym.Analyzer()
    reached: list[tuple[int, int]] = []

    def bind(loop: Any) -> None:
        analyzer.bind(loop.loop_var, tvm.ir.Range(loop.min, loop.min + loop.extent))

    def visit(load: Any) -> None:
        (point,) = load.indices
        first, lanes = (
            (point.base, int(str(point.ty).partition("x")[2])) if isinstance(point, tirx.Ramp) else (point, 1)
        )
        bounds = analyzer.const_int_bound(first)
        if str(load.source.name) == "x0":
            reached.append((int(bounds.min_value), int(bounds.max_value) + lanes))

    structural_walk(function.body, (tirx.For, bind))
    structural_walk(function.body, (tvm.ir.TensorLoad, visit))
    assert min(first for first, _ in reached) >= 0
    assert max(end for _, end in reached) <= width
    x = normal((width,))
    expected = x[::-1] if step < 0 else x[begin::step]
    np.testing.assert_array_equal(run(mod, target, [x]), expected)
