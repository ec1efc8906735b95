"""Repetition along dynamic sizes copies whole runs: no index is divided by a size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tvm import relax, tirx
from tvm.relax import op

import compiler
from compiler.passes.context import PipelineContext
from compiler.passes.fuse.legalizations import legalize_operators


def test_a_tile_of_dynamic_sizes_is_a_broadcast_and_a_view() -> None:
    builder = relax.BlockBuilder()
    rows, columns = tirx.Var("rows", "int64"), tirx.Var("columns", "int64")
    x = relax.Var("x", relax.TensorType([rows, 3, columns], "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            result = builder.emit_output(builder.emit(op.tile(x, [2, 1, 4])))
        builder.emit_func_output(result)
    lowered = legalize_operators(builder.get(), PipelineContext())
    kernels = {var.name_hint: function for var, function in lowered.functions_items()}
    assert "%" not in kernels["tile"].script()
    assert "//" not in kernels["tile"].script()
    assert [int(size) if isinstance(size, tirx.IntImm) else 0 for size in kernels["tile"].params[1].ty.shape] == [
        2, 0, 3, 4, 0,
    ]  # fmt: skip
    assert "tensorwright.reshape" in kernels["reshape"].attrs


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize(
    ("axes", "counts"),
    [(("a", 3, "b"), (2, 1, 4)), (("a",), (3,)), (("a", 1, 4), (1, 5, 2)), (("a", "b"), (0, 2)), ((2, "b"), (1, 1))],
)
def test_numbers(axes: Sequence[Any], counts: Sequence[int], known: bool) -> None:
    """Counts that are known, and that are an input."""
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, axes)]
    given = np.array(counts, np.int64)
    if not known:
        inputs.append(helper.make_tensor_value_info("counts", TensorProto.INT64, [len(counts)]))
    graph = helper.make_graph(
        [helper.make_node("Tile", ["x", "counts"], ["y"])],
        "tile",
        inputs,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(given, "counts")] if known else [],
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    module = compiler.compile(model, progress=None)
    for size in (0, 1, 2, 5):
        shape = [each if isinstance(each, int) else size + number for number, each in enumerate(axes)]
        x = np.random.default_rng(size).standard_normal(shape, np.float32)
        (found,) = module.run({"x": x} if known else {"x": x, "counts": given}).values()
        np.testing.assert_array_equal(found, np.tile(x, counts))
