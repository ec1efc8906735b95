"""Products of bfloat16 operands: exact products of the rounded operands, summed in float32."""

from __future__ import annotations

from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax

from schedules.instructions.dot_products.operation import DOT_BF16
from schedules.ir.tir import tirx, tvm
from schedules.matmul.packed_operand import pack_words
from schedules.matmul.words import matmul_words
from tests.schedules.harness import (
    Array,
    assembly,
    normal,
    presets_with,
    runnable,
    scheduled,
    target_of,
    virtual_machine,
)

DOTS = presets_with("avx512bf16")[:1]
TARGETS = [*runnable(), *DOTS]
EXTENTS = st.sampled_from([1, 2, 7, 16, 19, 33, 40, 70])


def build(weight: Array, width: int, rectified: bool = False) -> Any:
    packed = pack_words(weight, width, DOT_BF16.group)

    def make(builder: Any, data: Any) -> Any:
        call = builder.call_te(
            partial(matmul_words, operation=DOT_BF16),
            data,
            relax.const(tvm.runtime.tensor(packed)),
            weight.shape[1],
            primfunc_name_hint="matmul",
            primfunc_attrs={"op_pattern": 4},
        )
        result = builder.emit(call)
        return builder.emit(relax.op.nn.relu(result)) if rectified else result

    return make


def rounded(array: Array) -> Array:
    return array.astype(ml_dtypes.bfloat16).astype("float64")


def run(mod: Any, target: str, data: Array) -> Array:
    machine = virtual_machine(mod, target)
    return np.asarray(machine["main"](tvm.runtime.tensor(data)).numpy())


def width_of(target: str) -> int:
    return 2 * target_of(target).machine.lanes("float32")


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=5, deadline=None)
@given(rows=EXTENTS, depth=EXTENTS, columns=EXTENTS)
def test_any_size(target: str, rows: int, depth: int, columns: int) -> None:
    data, weight = normal((rows, depth)), normal((depth, columns), 1)
    mod, report = scheduled(build(weight, width_of(target), True), [(data.shape, "float32")], target)
    assert report.by_rule().get("matmul-bf16"), report
    expected = np.maximum(rounded(data) @ rounded(weight), 0)
    # Products of bfloat16 are exact in float32: what is left is the error of a float32 sum.
    np.testing.assert_allclose(run(mod, target, data), expected, rtol=1e-5, atol=4e-7 * (depth + 10))


@pytest.mark.parametrize("target", TARGETS)
def test_symbolic_rows(target: str) -> None:
    weight = normal((48, 40), 1)
    shape = (tirx.Var("n", "int64"), 3, 48)
    mod, report = scheduled(build(weight, width_of(target)), [(shape, "float32")], target)
    assert report.by_rule().get("matmul-bf16"), report
    data = normal((5, 3, 48))
    expected = rounded(data) @ rounded(weight)
    np.testing.assert_allclose(run(mod, target, data), expected, rtol=1e-5, atol=3e-5)


@pytest.mark.parametrize("target", DOTS)
def test_the_inner_loop_holds_the_instruction(target: str) -> None:
    mod, _ = scheduled(build(normal((64, 64)), 32), [((32, 64), "float32")], target)
    lines = [line for line in assembly(mod, target).splitlines() if "vdpbf16ps" in line]
    assert len(lines) >= 12
    assert all("%zmm" in line for line in lines)


def test_special_values_are_rounded_as_numpy_rounds_them() -> None:
    target = TARGETS[-1]
    values = np.array([[np.inf, 0, 1e-3, 65535.5, -3.1415926, 1.00390625, 3e38, 0]], "float32")
    weight = np.zeros((8, 32), "float32")
    weight[np.arange(2, 7), np.arange(2, 7)] = 1.0
    mod, _ = scheduled(build(weight, width_of(target)), [(values.shape, "float32")], target)
    result = run(mod, target, np.where(np.isinf(values), 0, values).astype("float32"))
    np.testing.assert_array_equal(result[0, 2:7], rounded(values)[0, 2:7])
    mod, _ = scheduled(build(np.ones((8, 32), "float32"), width_of(target)), [(values.shape, "float32")], target)
    assert np.isinf(run(mod, target, values)).all()
    values[0, 0] = np.nan
    assert np.isnan(run(mod, target, values)).all()
