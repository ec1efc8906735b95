"""Builds the models of the conformance suite: graphs in which every operator's result may be an output."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

Array = np.ndarray
OPSET = 21


class Graph:
    """Collects nodes; each operator's result is an output of the model, named after it."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self.opset = OPSET
        self.nodes: list[NodeProto] = []
        self.inputs: list[ValueInfoProto] = []
        self.outputs: list[ValueInfoProto] = []
        self.constants: list[TensorProto] = []
        self._random = np.random.default_rng(0)

    @property
    def type(self) -> int:
        return int(helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype)))

    def input(self, *shape: int | str) -> str:
        name = f"x{len(self.inputs)}"
        self.inputs.append(helper.make_tensor_value_info(name, self.type, list(shape)))
        return name

    def constant(self, value: Array) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def weight(self, *shape: int) -> str:
        scale = 1 / np.sqrt(np.prod(shape[1:]))
        return self.constant((self._random.standard_normal(shape) * scale).astype(self.dtype))

    def node(self, operator: str, inputs: list[str], outputs: int = 1, **attributes: Any) -> str:
        """The first output's name."""
        name = f"v{len(self.nodes)}_{operator}"
        names = [name, *(f"{name}_{index}" for index in range(1, outputs))]
        self.nodes.append(helper.make_node(operator, inputs, names, **attributes))
        return name

    def output(self, operator: str, inputs: list[str], **attributes: Any) -> None:
        self.result(self.node(operator, inputs, **attributes))

    def result(self, name: str) -> None:
        """Make a node's value an output."""
        self.outputs.append(helper.make_empty_tensor_value_info(name))

    def model(self, name: str) -> onnx.ModelProto:
        """The model, its outputs' types and shapes inferred."""
        graph = helper.make_graph(self.nodes, name, self.inputs, self.outputs, self.constants)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=10)
        known = {value.name: value for value in onnx.shape_inference.infer_shapes(made).graph.output}
        for position, output in enumerate(self.outputs):
            made.graph.output[position].CopyFrom(known[output.name])
        return made
