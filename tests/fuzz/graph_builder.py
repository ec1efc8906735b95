"""Random ONNX graphs that any runtime must agree on: shapes known, values bounded, no thresholds on computed values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 21
MAX_ELEMENTS = 1 << 14


@dataclass(frozen=True)
class Tensor:
    """A value of the graph. `bounded`: floats known to stay small, so that functions like exp are safe."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    bounded: bool = True

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))


@dataclass
class GraphBuilder:
    """A graph under construction.

    Attributes:
        random: the source of every choice.
        symbolic: True if the first dimension of every input is the symbolic "batch".
    """

    random: np.random.Generator
    tensors: list[Tensor] = field(default_factory=list)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    inputs: dict[str, NDArray[Any]] = field(default_factory=dict)
    initializers: dict[str, NDArray[Any]] = field(default_factory=dict)

    def add_input(self, shape: tuple[int, ...], dtype: str = "float32") -> Tensor:
        """A graph input with values in [-2, 2], or small integers, or booleans."""
        name = f"input_{len(self.inputs)}"
        self.inputs[name] = self._values(shape, dtype)
        tensor = Tensor(name, shape, dtype)
        self.tensors.append(tensor)
        return tensor

    def constant(self, array: NDArray[Any] | np.generic) -> str:
        """An initializer's name."""
        name = f"constant_{len(self.initializers)}"
        self.initializers[name] = np.asarray(array)
        return name

    def weight(self, *shape: int) -> str:
        """A random float initializer, scaled so that sums over it stay near one."""
        fan_in = max(1, int(np.prod(shape[1:])))
        values = self.random.standard_normal(shape) / np.sqrt(fan_in)
        return self.constant(values.astype(np.float32))

    def node(
        self,
        operator: str,
        inputs: list[str],
        shapes: list[tuple[int, ...]],
        *,
        dtype: str = "float32",
        bounded: bool = True,
        **attributes: Any,
    ) -> list[Tensor]:
        """Append a node; its outputs join the pool."""
        index = len(self.nodes)
        outputs = [Tensor(f"value_{index}_{k}", shape, dtype, bounded) for k, shape in enumerate(shapes)]
        names = [output.name for output in outputs]
        self.nodes.append(helper.make_node(operator, inputs, names, name=f"node_{index}", **attributes))
        self.tensors.extend(outputs)
        return outputs

    def pick(
        self, dtype: str = "float32", min_rank: int = 0, max_rank: int = 6, bounded: bool = False
    ) -> Tensor | None:
        """A random value of the pool, later ones more often; None if nothing fits."""
        fitting = [
            tensor
            for tensor in self.tensors
            if tensor.dtype == dtype
            and min_rank <= tensor.rank <= max_rank
            and 0 < tensor.size <= MAX_ELEMENTS
            and (tensor.bounded or not bounded)
        ]
        if not fitting:
            return None
        position = int(len(fitting) * np.sqrt(self.random.random()))
        return fitting[min(position, len(fitting) - 1)]

    def integer(self, low: int, high: int) -> int:
        """A random integer in [low, high]."""
        return int(self.random.integers(low, high + 1))

    def chance(self, probability: float = 0.5) -> bool:
        return bool(self.random.random() < probability)

    def choice(self, options: Any) -> Any:
        return options[self.integer(0, len(options) - 1)]

    def model(self) -> onnx.ModelProto:
        """The graph as a model: outputs are the values that no node reads, and one that is read."""
        read = {name for node in self.nodes for name in node.input}
        produced = [tensor for tensor in self.tensors if tensor.name not in self.inputs]
        outputs = [tensor for tensor in produced if tensor.name not in read]
        inner = [tensor for tensor in produced if tensor.name in read]
        if inner and self.chance(0.3):
            outputs.append(self.choice(inner))
        graph = helper.make_graph(
            self.nodes,
            "random",
            [
                helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
                for name, array in self.inputs.items()
            ],
            [
                helper.make_tensor_value_info(tensor.name, _element_type(tensor.dtype), tensor.shape)
                for tensor in outputs
            ],
            [numpy_helper.from_array(array, name) for name, array in self.initializers.items()],
        )
        # Current runtimes read IR version 10.
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)

    def _values(self, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        if dtype == "bool":
            return self.random.integers(0, 2, shape).astype(bool)
        if dtype.startswith("int"):
            return self.random.integers(-5, 6, shape).astype(dtype)
        return self.random.uniform(-2, 2, shape).astype(dtype)


def _element_type(dtype: str) -> int:
    return {
        "float32": TensorProto.FLOAT,
        "int64": TensorProto.INT64,
        "bool": TensorProto.BOOL,
        "int32": TensorProto.INT32,
    }[dtype]
