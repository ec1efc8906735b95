"""Quantized ONNX models with random parameters."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]


class QuantizedGraph:
    """Operators whose operands and results are quantized, with scales and zero points drawn from `rng`."""

    def __init__(self, seed: int, dtype: str = "int8") -> None:
        self.rng = np.random.default_rng(seed)
        self.dtype = np.dtype(dtype)
        self._nodes: list[Any] = []
        self._inputs: list[Any] = []
        self._constants: list[Any] = []
        self._count = 0
        self.rounded_names: set[str] = set()

    def input(self, *shape: int) -> str:
        """A quantized input."""
        name = f"x{len(self._inputs)}"
        self._inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)))
        return self.rounded(name)

    def constant(self, values: Any) -> str:
        """A constant."""
        name = f"c{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def node(self, operator: str, inputs: list[str], **attributes: Any) -> str:
        """A float operator."""
        self._count += 1
        name = f"t{self._count}"
        self._nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        return name

    def split(self, name: str, count: int, axis: int) -> list[str]:
        """Equal parts."""
        self._count += 1
        names = [f"t{self._count}_{part}" for part in range(count)]
        self._nodes.append(helper.make_node("Split", [name], names, axis=axis, num_outputs=count))
        return names

    def rounded(self, name: str, scale: float | None = None, zero: int | None = None) -> str:
        """dequantize(quantize(name))."""
        middle = 128 if self.dtype == np.uint8 else 0
        scale = float(self.rng.uniform(0.01, 0.1)) if scale is None else scale
        zero = middle + int(self.rng.integers(-50, 50)) if zero is None else zero
        parameters = [self.constant(np.float32(scale)), self.constant(self.dtype.type(zero))]
        integers = self.node("QuantizeLinear", [name, *parameters])
        result = self.node("DequantizeLinear", [integers, *parameters])
        self.rounded_names.add(result)
        return result

    def rounded_like(self, name: str, other: str) -> str:
        """dequantize(quantize(name)) with the scale and zero point of a rounded tensor."""
        (parameters,) = [list(each.input[1:]) for each in self._nodes if other in each.output]
        result = self.node("DequantizeLinear", [self.node("QuantizeLinear", [name, *parameters]), *parameters])
        self.rounded_names.add(result)
        return result

    def weight(self, shape: tuple[int, ...], axis: int, *, per_channel: bool = True) -> str:
        """Constant int8 weights."""
        values = self.rng.integers(-127, 128, shape).astype(np.int8)
        count = (shape[axis],) if per_channel else ()
        scale = self.constant(self.rng.uniform(5e-4, 5e-3, count).astype(np.float32))
        return self.node(
            "DequantizeLinear", [self.constant(values), scale, self.constant(np.zeros(count, np.int8))], axis=axis
        )

    def numbers(self, *shape: int) -> str:
        """Random float constants."""
        return self.constant(self.rng.normal(size=shape).astype(np.float32))

    def model(self, *outputs: str) -> onnx.ModelProto:
        """The finished model."""
        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
        graph = helper.make_graph(self._nodes, "graph", self._inputs, values, self._constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
