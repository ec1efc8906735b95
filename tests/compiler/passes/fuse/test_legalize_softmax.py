"""Softmax in legalize-operators: by the reciprocal of the sum in float32, against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import relax, tirx
from tvm.relax import op

from compiler.passes.context import PipelineContext
from compiler.passes.fuse.legalizations import legalize_operators
from schedules.ir.expression import nodes
from tests.compiler.passes.building import run_module


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_rows_are_multiplied_by_the_reciprocal_of_their_sum(axis: int) -> None:
    x = np.random.default_rng(0).standard_normal((3, 5, 7)).astype("float32")
    x[0, 0, 1:] = x[1:, 2, 3] = -np.inf  # masked elements, and rows with a single one that is not
    builder = relax.BlockBuilder()
    data = relax.Var("x", relax.TensorType(x.shape, "float32"))
    with builder.function("main", [data]):
        with builder.dataflow():
            result = builder.emit_output(builder.emit(op.nn.softmax(data, axis)))
        builder.emit_func_output(result)
    mod = legalize_operators(builder.get(), PipelineContext())
    (kernel,) = (each for _, each in mod.functions_items() if isinstance(each, tirx.PrimFunc))
    (division,) = nodes(kernel.body, tirx.Div)
    assert division.a.value == 1.0
    powers = np.exp(x.astype("float64") - x.max(axis, keepdims=True))
    np.testing.assert_allclose(run_module(mod, x)[0], powers / powers.sum(axis, keepdims=True), rtol=5e-7)
