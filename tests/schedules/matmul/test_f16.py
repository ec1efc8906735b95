"""Products of float16 operands in vectors that add in float16: few steps each, summed in float32."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import numpy as np
import pytest
from tvm import relax

from schedules.instructions.dot_products.operation import DOT_F16
from schedules.ir.tir import tirx, tvm
from schedules.matmul.packed_operand import pack_words
from schedules.matmul.words import matmul_words
from tests.schedules.harness import Array, assembly, normal, run, scheduled

SIMULATED, REAL = "sapphire-rapids-simulated", "sapphire-rapids"


def build(weight: Array, *, rectified: bool = True) -> Any:
    packed = pack_words(weight.astype(np.float16), 32, DOT_F16.group)

    def make(builder: Any, data: Any) -> Any:
        call = builder.call_te(
            partial(matmul_words, operation=DOT_F16),
            data,
            relax.const(tvm.runtime.tensor(packed)),
            weight.shape[1],
            primfunc_name_hint="matmul",
            primfunc_attrs={"op_pattern": 4},
        )
        result = builder.emit(call)
        return builder.emit(relax.op.nn.relu(result)) if rectified else result

    return make


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize(
    ("rows", "depth", "columns"), [(1, 7, 17), (7, 128, 33), (30, 300, 64), (1, 1025, 40), (2, 33, 16)]
)
def test_any_size(rows: int, depth: int, columns: int, *, symbolic: bool) -> None:
    data, weight = normal((rows, depth)), normal((depth, columns), 1)
    shape = (tirx.Var("n", "int64"), depth) if symbolic else data.shape
    mod, report = scheduled(build(weight), [(shape, "float32")], SIMULATED)
    assert report.by_rule().get("matmul-f16"), report
    expected = np.maximum(np.matmul(*(each.astype(np.float16).astype("float64") for each in (data, weight))), 0)
    # Sums of 64 steps of values of 1 grow to 8, where float16 rounds by 2^-8 at most, 64 times by chance: 0.02.
    np.testing.assert_allclose(run(mod, SIMULATED, [data]), expected, rtol=0, atol=8e-3 * depth**0.5)


def test_large_and_small_numbers() -> None:
    data = np.array([[1e-3, 6e4, 7e4, -7e4, np.nan]], "float32").T @ np.eye(1, 32, dtype="float32")
    weight = np.eye(32, dtype="float32")
    mod, _ = scheduled(build(weight, rectified=False), [(data.shape, "float32")], SIMULATED)
    with np.errstate(over="ignore"):
        expected = data[:, 0].astype(np.float16)
    np.testing.assert_array_equal(run(mod, SIMULATED, [data])[:, 0], expected)


def test_the_inner_loop_holds_the_instruction() -> None:
    """Two loads of weights and one of each row for two multiplications of a row; sums are joined outside of it."""
    mod, _ = scheduled(build(normal((256, 64))), [((32, 256), "float32")], REAL)
    blocks = re.split(r"\n\.LBB\w+:|\n\tj\w+", assembly(mod, REAL))
    products = [len(re.findall(r"vfmadd231ph\s.*%zmm", each)) for each in blocks if "vcvtph2ps" not in each]
    assert max(products) == 28  # 14 rows
