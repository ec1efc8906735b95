"""pack-grouped-weights: weights with one scale per group are stored and read in 4 or 8 bits, with equal results."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tvm import relax

from compiler.passes.context import PipelineContext
from compiler.passes.rewriting.grouped_weights import grouped_expression, grouped_weight
from tests.compiler.passes.integers.test_keep_weights_narrow import MACHINE, ROWS, compiled

COLUMNS, GROUP = 72, 16
GROUPS = -(-ROWS // GROUP)  # the last one is not whole


def product(kind: str, limits: tuple[int, int], zeros: tuple[int, int] | int) -> Any:
    generator = np.random.default_rng(2)
    values = generator.integers(*limits, (ROWS, COLUMNS), endpoint=True).astype(kind)
    scales = generator.uniform(0.5, 2, (GROUPS, COLUMNS)).astype(np.float32)
    zero = (
        np.full((GROUPS, COLUMNS), zeros) if isinstance(zeros, int) else generator.integers(*zeros, (GROUPS, COLUMNS))
    )

    def build(builder: Any, x: Any) -> Any:
        weight = grouped_expression(values, scales, zero.astype(kind), GROUP, builder.emit)
        return builder.emit(relax.op.nn.relu(builder.emit(relax.op.matmul(x, weight))))

    return build


CASES = {
    "int4": (product("int8", (-8, 7), 0), 4),
    "uint4 with the middle as zero": (product("uint8", (0, 15), 8), 4),
    "uint4 with a zero a group": (product("uint8", (0, 15), (0, 16)), 4),
    "int8": (product("int8", (-128, 127), 0), 8),
    "uint8 with a zero a group": (product("uint8", (0, 255), (0, 256)), 8),
}


@pytest.mark.parametrize("name", CASES)
def test_numbers_and_bytes(name: str) -> None:
    build, bits = CASES[name]
    result, got = compiled(build, PipelineContext(machine=MACHINE))
    _, expected = compiled(build, PipelineContext())
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    stored = sum(value.nbytes for value in result.parameters.values())
    scales = 4 * GROUPS * 80 * (2 if "a zero" in name else 1)  # 80 columns: whole panels
    assert stored <= ROWS * 80 * bits // 8 + scales + 64


def test_other_readers_get_the_floats() -> None:
    build, _ = CASES["int4"]

    def both(builder: Any, x: Any) -> Any:
        weight = grouped_expression(
            np.ones((ROWS, COLUMNS), np.int8), np.ones((GROUPS, COLUMNS), np.float32), None, GROUP, builder.emit
        )
        return builder.emit(relax.op.add(build(builder, x), builder.emit(relax.op.max(weight))))

    _, got = compiled(both, PipelineContext(machine=MACHINE))
    _, expected = compiled(both, PipelineContext())
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-2)


def test_scales_of_float16_stay_so() -> None:
    bindings: dict[Any, Any] = {}

    def emit(expr: Any) -> Any:
        value = relax.BlockBuilder().normalize(expr)
        variable = relax.Var(f"v{len(bindings)}", value.ty)
        bindings[variable] = value
        return variable

    scales = np.linspace(0.1, 1, GROUPS * COLUMNS).reshape(GROUPS, COLUMNS).astype(np.float16)
    expr = grouped_expression(np.ones((ROWS, COLUMNS), np.int8), scales, None, GROUP, emit)
    found = grouped_weight(expr, lambda each: bindings.get(each, each))
    assert found is not None
    assert found.scales.dtype == np.float16
    np.testing.assert_array_equal(found.scales, scales)
    assert found.bits == 4
