"""The graph of kernels for Netron."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

import tensorwright
from compiler.errors import StorageError

_GRAPH = """
agraph (float[n,8] x, bool keep) => (float[n,4] y) {
    [fc] h = MatMul(x, w)
    [choice] c = If(keep) <
        then_branch = then () => (float[n,4] a) { [act] a = Relu(h) },
        else_branch = otherwise () => (float[n,4] b) { [neg] b = Neg(h) }
    >
    [out] y = Exp(c)
}
"""


def _model() -> onnx.ModelProto:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {_GRAPH}')
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((8, 4), np.float32), "w"))
    return model


def _undefined(nodes: Iterable[onnx.NodeProto], known: set[str]) -> set[str]:
    """Inputs of nodes that nothing before them defines, those of branches included."""
    missing: set[str] = set()
    for node in nodes:
        missing |= set(node.input) - known
        for attribute in node.attribute:
            missing |= _undefined(attribute.g.node, set(known))
        known |= set(node.output)
    return missing


def test_kernels_have_the_names_of_layers_and_know_their_operands(tmp_path: Path) -> None:
    tensorwright.export_graph(_model(), tmp_path / "graph.onnx")
    graph = onnx.load(tmp_path / "graph.onnx").graph
    kernels = [node for node in graph.node if node.op_type != "If"]
    assert {"fc", "out"} <= {node.name for node in kernels}
    assert "matmul" in next(node.op_type for node in kernels if node.name == "fc")
    assert not _undefined(graph.node, {each.name for each in (*graph.input, *graph.initializer)})
    (constant,) = graph.initializer
    assert (np.prod(constant.dims), constant.raw_data) == (32, b"")
    assert [dim.dim_param or dim.dim_value for dim in graph.output[0].type.tensor_type.shape.dim] == ["n", 4]


def test_a_folder_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be written"):
        tensorwright.export_graph(_model(), tmp_path / "none" / "graph.onnx")
