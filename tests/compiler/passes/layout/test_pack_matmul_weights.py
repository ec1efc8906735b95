"""pack-matmul-weights: which products it rewrites, and that their results stay equal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax

from compiler.passes.context import PassOptions, PipelineContext
from compiler.passes.layout.pack_weights import pack_matmul_weights
from schedules.machine import Machine
from tests.unoptimized import unoptimized_machine

MACHINE = Machine(vector_bits=256, features=frozenset({"avx2", "fma"}))
WEIGHT = np.random.default_rng(0).standard_normal((24, 37), dtype="float32")


def build(shape: tuple[Any, ...], weight: np.ndarray[Any, Any] = WEIGHT) -> tvm.IRModule:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(list(shape), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            output = builder.emit_output(builder.emit(relax.op.matmul(x, relax.const(weight))))
        builder.emit_func_output(output)
    return builder.get()


def run(mod: tvm.IRModule, x: Any) -> Any:
    return unoptimized_machine(mod)["main"](tvm.runtime.tensor(x)).numpy()


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("shape", [(5, 24), (2, 3, 24)])
def test_constant_weights_are_packed(shape: tuple[int, ...], precision: str) -> None:
    before = build(shape)
    after = pack_matmul_weights(before, PipelineContext(machine=MACHINE, options=PassOptions(precision)))
    assert [v.name_hint for v, f in after.functions_items() if not isinstance(f, relax.Function)] == ["matmul"]
    x = np.random.default_rng(1).standard_normal(shape, dtype="float32")
    if precision == "bf16":
        return  # its operators run only when scheduled; tests/schedules/matmul/test_bf16.py has the numbers
    np.testing.assert_allclose(run(after, x), x @ WEIGHT, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("shape", "columns"), [((24,), 37), ((5, 24), 3), ((0, 24), 37)])
def test_vectors_narrow_weights_and_empty_data_stay(shape: tuple[int, ...], columns: int) -> None:
    before = build(shape, np.ascontiguousarray(WEIGHT[:, :columns]))
    assert pack_matmul_weights(before, PipelineContext(machine=MACHINE)) is before


def test_nothing_happens_without_a_machine() -> None:
    before = build((5, 24))
    assert pack_matmul_weights(before, PipelineContext()) is before
