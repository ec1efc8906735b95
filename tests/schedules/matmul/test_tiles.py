"""Products whose sums stay in tiles: numbers where the processor is simulated, and the instructions where it is not."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import numpy as np
import pytest
from tvm import relax

from schedules.instructions.dot_products.operation import (
    DOT_BF16,
    DOT_F16,
    DOT_S8S8,
    DOT_U8S8,
    HALVES,
    Operation,
)
from schedules.instructions.dot_products.table import tile_instruction
from schedules.instructions.rounding import stored_halves
from schedules.ir.tir import tirx, tvm
from schedules.matmul.packed_operand import pack_words
from schedules.matmul.words import matmul_words
from tests.schedules.harness import Array, assembly, normal, run, scheduled, target_of
from tests.schedules.matmul.test_int8 import integers

SIMULATED, REAL = "granite-rapids-simulated", "granite-rapids"
CASES = [
    (DOT_BF16, "float32"),
    (DOT_F16, "float32"),
    (DOT_U8S8, "uint8"),
    (DOT_U8S8, "int8"),
    (DOT_S8S8, "int8"),
]


def build(operation: Operation, weight: Array, target: str) -> Any:
    product = tile_instruction(target_of(target).machine, operation)
    assert product is not None
    width = 32 if weight.shape[1] > 16 else 16
    stored = stored_halves(weight, operation) if operation in HALVES.values() else weight
    packed = pack_words(stored, width, operation.group, product.depth)

    def make(builder: Any, data: Any) -> Any:
        call = builder.call_te(
            partial(matmul_words, operation=operation),
            data,
            relax.const(tvm.runtime.tensor(packed)),
            weight.shape[1],
            primfunc_name_hint="matmul",
            primfunc_attrs={"op_pattern": 4},
        )
        return builder.emit(relax.op.nn.relu(builder.emit(call)))

    return make


def operands(
    operation: Operation, dtype: str, leading: tuple[int, ...], depth: int, columns: int
) -> tuple[Array, Array]:
    if operation in HALVES.values():
        return normal((*leading, depth)), normal((depth, columns), 1)
    return integers((*leading, depth), dtype, 0), integers((depth, columns), "int8", 1)


def expected(operation: Operation, data: Array, weight: Array) -> Array:
    if operation in HALVES.values():
        left, right = (each.astype(operation.a).astype("float64") for each in (data, weight))
        return np.asarray(np.maximum(left @ right, 0))
    wide = data.astype("int64") + operation.shift(str(data.dtype))
    return np.asarray(np.maximum(wide @ weight.astype("int64"), 0))


@pytest.mark.parametrize(("operation", "dtype"), CASES, ids=lambda each: getattr(each, "short", each))
@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize(
    ("leading", "depth", "columns"),
    [((1,), 130, 10), ((3, 11), 64, 33), ((5, 41), 132, 40), ((16,), 32, 16), ((2, 2), 7, 17), ((129,), 200, 64)],
)
def test_any_size(
    operation: Operation, dtype: str, leading: tuple[int, ...], depth: int, columns: int, *, symbolic: bool
) -> None:
    data, weight = operands(operation, dtype, leading, depth, columns)
    shape = (tirx.Var("n", "int64"), *data.shape[1:]) if symbolic else data.shape
    mod, report = scheduled(build(operation, weight, SIMULATED), [(shape, dtype)], SIMULATED)
    assert len(report.kernels) == 1
    assert "tensorwright_tiles_" in str(mod)
    tolerance = {"rtol": 1e-5, "atol": 4e-7 * (depth + 10)} if operation in HALVES.values() else {"rtol": 0, "atol": 0}
    np.testing.assert_allclose(run(mod, SIMULATED, [data]), expected(operation, data, weight), **tolerance)


@pytest.mark.parametrize(("operation", "dtype"), CASES, ids=lambda each: getattr(each, "short", each))
def test_tiles_stay_in_registers(operation: Operation, dtype: str) -> None:
    """Each kernel configures tiles once; a step loads two tiles of each operand for four products."""
    data, weight = operands(operation, dtype, (60,), 130, 70)
    mod, _ = scheduled(build(operation, weight, REAL), [(data.shape, dtype)], REAL)
    code = assembly(mod, REAL)
    name = {DOT_BF16: "tdpbf16ps", DOT_F16: "tdpfp16ps", DOT_U8S8: "tdpbusd", DOT_S8S8: "tdpbssd"}[operation]
    loops = [each for each in re.split(r"\n\.L\w+:", code) if len(re.findall(rf"\b{name}\b", each)) == 4]
    assert loops
    assert all(len(re.findall(r"\btileloadd\b", each)) == 4 and "tilestored" not in each for each in loops)
    assert not re.search(r"tile(loadd|stored)\t.*\(%rsp,", code)  # nothing is spilled
