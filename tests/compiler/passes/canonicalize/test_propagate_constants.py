"""Constants outside of loops that are read in their bodies."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

import compiler
from compiler.frontends.onnx import import_onnx
from compiler.passes.rewriting.graph import bindings_of, operator_name, rewritable_functions
from tests.compiler.passes.building import apply

_SIZE = 272  # 2^16 elements and more, which no node is evaluated with when importing


def _loop_over_quantized_weights() -> onnx.ModelProto:
    """h = tanh(h W) a dynamic number of times; W is dequantized and transposed outside the loop and summed inside
    it."""
    random = np.random.default_rng(0)
    initializers = {
        "w8": random.integers(-127, 128, (_SIZE, _SIZE)).astype(np.int8),
        "scale": np.float32(0.001),
        "go": np.array(True),
        "axes": np.array([0], np.int64),
    }
    value, node = helper.make_tensor_value_info, helper.make_node
    state = [1, _SIZE]
    body = helper.make_graph(
        [
            node("MatMul", ["h", "w"], ["product"]),
            node("ReduceSum", ["w", "axes"], ["sums"], keepdims=1),
            node("Add", ["product", "sums"], ["shifted"]),
            node("Tanh", ["shifted"], ["next"]),
            node("Identity", ["next"], ["stacked"]),
            node("Identity", ["condition"], ["on"]),
        ],
        "body",
        [
            value("i", TensorProto.INT64, []),
            value("condition", TensorProto.BOOL, []),
            value("h", TensorProto.FLOAT, state),
        ],
        [
            value("on", TensorProto.BOOL, []),
            value("next", TensorProto.FLOAT, state),
            value("stacked", TensorProto.FLOAT, state),
        ],
    )
    nodes = [
        node("DequantizeLinear", ["w8", "scale"], ["w32"]),
        node("Transpose", ["w32"], ["w"], perm=[1, 0]),
        node("Loop", ["count", "go", "x"], ["last", "y"], body=body),
    ]
    inputs = [value("count", TensorProto.INT64, []), value("x", TensorProto.FLOAT, state)]
    outputs = [value("last", TensorProto.FLOAT, state), value("y", TensorProto.FLOAT, None)]
    constants = [numpy_helper.from_array(np.asarray(array), name) for name, array in initializers.items()]
    graph = helper.make_graph(nodes, "loop", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def test_what_a_loop_computes_of_constants_is_computed_when_compiling() -> None:
    model = _loop_over_quantized_weights()
    mod = apply("fold-dequantize", apply("fold-constants", import_onnx(model).mod))
    left = {name for var, body in rewritable_functions(mod) if var.name_hint != "main" for name in _operators(body)}
    assert not left & {"relax.sum", "relax.dequantize", "relax.permute_dims"}
    assert "relax.matmul" in left


def _operators(function: Any) -> set[str]:
    return {name for each in bindings_of(function.body) if (name := operator_name(each.value)) is not None}


def test_a_loop_over_constants_from_outside() -> None:
    """The results are correct and the weights are stored in 8 bits."""
    model = _loop_over_quantized_weights()
    module = compiler.compile(model, records=False)
    session: Any = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for count in (1, 3):
        inputs = {"count": np.array(count), "x": np.linspace(-1, 1, _SIZE, dtype=np.float32)[None]}
        for ours, expected in zip(module.run(inputs).values(), session.run(None, inputs), strict=True):
            np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)
    assert sum(array.nbytes for array in module.artifact.parameters.values()) < 1.2 * _SIZE**2
