"""keep-weights-narrow: 8-bit weights of matrix products and look-ups stay in 8 bits, with equal results."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax

from compiler.codegen.kernel_lowering import PIPELINE
from compiler.passes.context import PassOptions, PipelineContext
from compiler.passes.pipeline import run_pipeline
from schedules import Machine
from tests.unoptimized import unoptimized_machine

op = relax.op
MACHINE = Machine(architecture="x86_64", vector_bits=256, vector_registers=16, cores=2)
ROWS, COLUMNS = 40, 56


def weight(scale: Any, *, transposed: bool = False) -> Any:
    def make(builder: Any) -> Any:
        shape = (COLUMNS, ROWS) if transposed else (ROWS, COLUMNS)
        values = relax.const(np.random.default_rng(3).integers(-127, 128, shape).astype("int8"))
        wide = builder.emit(op.astype(values, "float32"))
        scaled = builder.emit(op.multiply(wide, relax.const(np.asarray(scale, "float32"))))
        return builder.emit(op.permute_dims(scaled)) if transposed else scaled

    return make


def dequantized(zero: int, kind: str) -> Any:
    def make(builder: Any) -> Any:
        limits = np.iinfo(kind)
        generator = np.random.default_rng(3)
        values = generator.integers(limits.min + 10, limits.max - 10, (ROWS, COLUMNS)).astype(kind)
        scale = generator.uniform(0.01, 0.02, COLUMNS).astype("float32")
        zeros = relax.const(np.full(COLUMNS, zero, kind))
        return builder.emit(op.dequantize(relax.const(values), relax.const(scale), zeros, 1, "float32"))

    return make


def product(make: Any) -> Any:
    return lambda builder, x: builder.emit(op.nn.relu(builder.emit(op.matmul(x, make(builder)))))


def rows_of(make: Any) -> Any:
    def build(builder: Any, x: Any) -> Any:
        index = builder.emit(op.astype(builder.emit(op.clip(x, 0, ROWS - 1)), "int64"))
        return builder.emit(op.take(make(builder), index, 0))

    return build


def both(builder: Any, x: Any) -> Any:
    """The weight is also added to a tensor, so it is needed in full."""
    full = weight(np.full((1, COLUMNS), 0.02))(builder)
    largest = builder.emit(op.max(builder.emit(op.maximum(full, builder.emit(op.max(x))))))
    return builder.emit(op.add(builder.emit(op.matmul(x, full)), largest))


COLUMN_SCALES = np.linspace(0.01, 0.03, COLUMNS).reshape(1, COLUMNS)
ROW_SCALES = np.linspace(0.01, 0.03, ROWS).reshape(ROWS, 1)
NARROW = {
    "scale a column": product(weight(COLUMN_SCALES)),
    "one scale": product(weight(0.02)),
    "transposed": product(weight(COLUMN_SCALES.T, transposed=True)),
    "dequantized": product(dequantized(0, "int8")),
    "with a zero point": product(dequantized(128, "uint8")),
    "rows with a scale each": rows_of(weight(ROW_SCALES)),
    "rows with a scale a column": rows_of(weight(COLUMN_SCALES)),
}
WIDE = {"scale a row of the sum": product(weight(ROW_SCALES)), "read elsewhere": both}


def compiled(build: Any, context: PipelineContext) -> tuple[Any, Any]:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((7, ROWS), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            output = builder.emit_output(relax.Tuple([build(builder, x)]))
        builder.emit_func_output(output)
    result = run_pipeline(builder.get(), context)
    machine = unoptimized_machine(result.mod, own_processor=True, relax_pipeline=None, tir_pipeline=PIPELINE)
    data = np.random.default_rng(1).uniform(-2, 42, (7, ROWS)).astype("float32")
    parameters = [tvm.runtime.tensor(np.ascontiguousarray(value)) for value in result.parameters.values()]
    return result, machine["main"](tvm.runtime.tensor(data), *parameters)[0].numpy()


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("name", [*NARROW, *WIDE])
def test_numbers_and_bytes(name: str, precision: str) -> None:
    build = {**NARROW, **WIDE}[name]
    result, got = compiled(build, PipelineContext(machine=MACHINE, options=PassOptions(precision)))
    _, expected = compiled(build, PipelineContext())
    if precision == "bf16":  # the data is rounded to 8 bits, the integers are exact
        assert np.linalg.norm(got - expected) <= 2.0**-8 * np.linalg.norm(expected)
        return
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-4)
    stored = sum(value.nbytes for value in result.parameters.values())
    full = 4 * ROWS * COLUMNS
    assert stored < full / 2 if name in NARROW else stored >= full
