"""Reductions and choices that keep NaN: right for every value, and in vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax, te

from compiler.frontends.onnx import broadcasting
from schedules.ir.tir import tirx
from tests.schedules.harness import assembly, evaluate, normal, runnable, scheduled

TARGETS = runnable()
SIZES = st.sampled_from([1, 2, 7, 16, 33, 131])
KINDS = {"largest": (broadcasting.maximum, -np.inf, np.max), "smallest": (broadcasting.minimum, np.inf, np.min)}


def extremum(kind: str, axis: int) -> Any:
    """A reduction of two axes' one, as the importer writes it."""
    combine, start, _ = KINDS[kind]
    reducer = te.comm_reducer(combine, lambda dtype: tirx.const(start, str(dtype)), name="extremum")

    def reduced(data: Any) -> Any:
        along = te.reduce_axis((0, data.shape[axis]), "k")

        def point(i: Any) -> Any:
            return reducer(data(along.var, i) if axis == 0 else data(i, along.var), axis=along)

        return te.compute((data.shape[1 - axis],), point, name="reduced")

    return lambda builder, x: builder.emit_te(reduced, builder.emit(relax.op.add(x, x)))


def with_odd_values(shape: tuple[int, int]) -> Any:
    x = normal(shape)
    x.flat[:: max(1, x.size // 3)] = np.nan
    x.flat[1 % x.size] = np.inf
    x.flat[-1] = -np.inf
    return x


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("axis", [0, 1])
@settings(max_examples=4, deadline=None)
@given(rows=SIZES, columns=SIZES)
def test_extremes_keep_nan(target: str, kind: str, axis: int, rows: int, columns: int) -> None:
    x = with_odd_values((rows, columns))
    np.testing.assert_array_equal(evaluate(extremum(kind, axis), [x], target), KINDS[kind][2](x + x, axis=axis))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("axis", [0, 1])
def test_extremes_run_in_vectors(target: str, axis: int) -> None:
    mod, _ = scheduled(extremum("largest", axis), [((128, 256), "float32")], target)
    text = assembly(mod, target)
    assert "cmpgtps" in text or "cmpltps" in text or "maxps" in text
    assert "cmpunordss" not in text


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_tests_for_nan(target: str, dtype: str) -> None:
    def replaced(data: Any) -> Any:
        zero = tirx.const(0, dtype)
        return te.compute(data.shape, lambda i: tirx.Select(tirx.isnan(data(i)), zero, data(i)), name="replaced")

    x = np.array([0.0, -0.0, 1.5, -2.0, np.inf, -np.inf, np.nan, -np.nan, *normal((40,))]).astype(dtype)
    result = evaluate(lambda builder, value: builder.emit_te(replaced, value), [x], target)
    np.testing.assert_array_equal(result, np.where(np.isnan(x), 0, x))
