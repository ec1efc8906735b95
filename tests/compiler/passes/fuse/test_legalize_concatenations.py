"""Many tensors are concatenated in several steps, with larger steps for static sizes; few tensors in one step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tvm import relax, tirx
from tvm.relax import op

from compiler.passes.context import PipelineContext
from compiler.passes.fuse.legalizations import legalize_operators
from tests.compiler.passes.building import run_module


def _joined(sizes: list[Any]) -> Any:
    builder = relax.BlockBuilder()
    inputs = [relax.Var(f"x{i}", relax.TensorType([2, size], "float32")) for i, size in enumerate(sizes)]
    with builder.function("main", inputs):
        with builder.dataflow():
            result = builder.emit_output(builder.emit(op.concat(inputs, axis=-1)))
        builder.emit_func_output(result)
    return legalize_operators(builder.get(), PipelineContext())


@pytest.mark.parametrize(("count", "kernels"), [(8, 1), (9, 2), (67, 11)])
def test_tensors_of_dynamic_sizes_are_joined_in_steps(count: int, kernels: int) -> None:
    mod = _joined([tirx.Var(f"n{i}", "int64") for i in range(count)])
    assert mod["main"].script().count("R.call_tir(") == kernels
    generator = np.random.default_rng(count)
    arrays = [generator.standard_normal((2, i % 4)).astype(np.float32) for i in range(count)]
    np.testing.assert_array_equal(run_module(mod, *arrays)[0], np.concatenate(arrays, axis=-1))


@pytest.mark.parametrize(("count", "kernels"), [(64, 1), (65, 4)])
def test_tensors_of_known_sizes_are_joined_in_longer_steps(count: int, kernels: int) -> None:
    mod = _joined([1 + i % 3 for i in range(count)])
    assert mod["main"].script().count("R.call_tir(") == kernels
    generator = np.random.default_rng(count)
    arrays = [generator.standard_normal((2, 1 + i % 3)).astype(np.float32) for i in range(count)]
    np.testing.assert_array_equal(run_module(mod, *arrays)[0], np.concatenate(arrays, axis=-1))
