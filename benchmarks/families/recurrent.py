"""Recurrent nets: layers of each kind, size and precision, of fixed and dynamic length, and unrolled cells."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.families._recurrent_torch import Crnn, TextClassifier, UnrolledLstm
from benchmarks.families.registry import floats, integers, net

Array = np.ndarray
_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
_STATES = {"RNN": 1, "GRU": 1, "LSTM": 2}
_ELEMENTS = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}
_Build = Callable[[Sequence[int | str]], onnx.ModelProto]
_LENGTH = 32


class _Graph:
    """An ONNX graph of recurrent layers over `x` (length, batch, features), with random weights."""

    def __init__(self, dtype: str = "float32", seed: int = 0) -> None:
        self.dtype = dtype
        self._generator = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []

    def weights(self, *shape: int) -> Array:
        """Return uniform values like torch's initialization of recurrent layers."""
        bound = 1 / np.sqrt(shape[-1])
        return self._generator.uniform(-bound, bound, shape).astype(np.float32)

    def constant(self, array: Array) -> str:
        """Add an initializer, and return its name; float32 arrays are cast to the graph's type."""
        name = f"constant_{len(self.initializers)}"
        if array.dtype == np.float32 and self.dtype != "float32":
            array = array.astype(np.float16)
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def node(self, operator: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        """Add a node, and return the name of its first output."""
        names = [f"value_{len(self.nodes)}_{number}" for number in range(outputs)]
        self.nodes.append(helper.make_node(operator, list(inputs), names, **attributes))
        return names[0]

    def layer(self, operator: str, x: str, features: int, hidden: int, *, directions: int = 1) -> str:
        """Add a layer, and return its Y as (length, batch, directions * hidden)."""
        gates = _GATES[operator] * hidden
        weights, recurrent = self.weights(directions, gates, features), self.weights(directions, gates, hidden)
        bias = self.weights(directions, 2 * gates)
        operands = [x, *(self.constant(each) for each in (weights, recurrent, bias))]
        attributes: dict[str, Any] = {"linear_before_reset": 1} if operator == "GRU" else {}
        direction = "bidirectional" if directions == 2 else "forward"
        y = self.node(
            operator, *operands, outputs=1 + _STATES[operator], hidden_size=hidden, direction=direction, **attributes
        )
        return self.joined(y, directions * hidden)

    def joined(self, y: str, width: int) -> str:
        """Reshape (length, directions, batch, hidden) to (length, batch, width)."""
        moved = self.node("Transpose", y, perm=[0, 2, 1, 3])
        return self.node("Reshape", moved, self.constant(np.array([0, 0, width], np.int64)))

    def model(self, shape: Sequence[int | str], output: str) -> onnx.ModelProto:
        """Return the model from `x` of a shape to `output`."""
        element = _ELEMENTS[self.dtype]
        self.nodes.append(helper.make_node("Identity", [output], ["y"]))
        graph = helper.make_graph(
            self.nodes,
            "recurrent",
            [helper.make_tensor_value_info("x", element, shape)],
            [helper.make_tensor_value_info("y", element, [None] * 3)],
            self.initializers,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def _stack(
    operator: str,
    shape: Sequence[int | str],
    hidden: int,
    *,
    layers: int = 1,
    directions: int = 1,
    dtype: str = "float32",
) -> onnx.ModelProto:
    graph, x, features = _Graph(dtype), "x", int(shape[-1])
    for _ in range(layers):
        x = graph.layer(operator, x, features, hidden, directions=directions)
        features = directions * hidden
    return graph.model(shape, x)


def _quantized(model: onnx.ModelProto) -> onnx.ModelProto:
    """Quantize with ONNX Runtime's `quantize_dynamic`: DynamicQuantizeLSTM instead of LSTM."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        source, quantized = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        onnx.save(model, source)
        quantize_dynamic(source, quantized, weight_type=QuantType.QInt8)
        return onnx.load(quantized)


def _with_quantized_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Recurrent layers with int8 weights per row, and data quantized before each layer (QDQ)."""
    arrays = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    nodes: list[Any] = []
    for node in model.graph.node:
        if node.op_type in _GATES:
            nodes += _quantize_dequantize(node)
            for index in (1, 2):
                nodes.append(_dequantized_weights(model, node, index, arrays[node.input[index]]))
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def _quantize_dequantize(node: Any) -> list[Any]:
    """Quantize and dequantize the data of a layer."""
    data, parameters = f"{node.output[0]}_data", ["x_scale", "x_zero"]
    nodes = [
        helper.make_node("QuantizeLinear", [node.input[0], *parameters], [f"{data}_quantized"]),
        helper.make_node("DequantizeLinear", [f"{data}_quantized", *parameters], [data]),
    ]
    node.input[0] = data
    return nodes


def _dequantized_weights(model: onnx.ModelProto, node: Any, index: int, array: Array) -> Any:
    name = node.input[index]
    scale = np.abs(array).max().astype(np.float32) / np.float32(127)
    known = {each.name for each in model.graph.initializer}
    arrays = {
        f"{name}_q": np.clip(np.rint(array / scale), -127, 127).astype(np.int8),
        f"{name}_scale": scale,
        f"{name}_zero": np.int8(0),
        "x_scale": np.float32(8 / 255),
        "x_zero": np.uint8(128),
    }
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), key) for key, value in arrays.items() if key not in known
    )
    node.input[index] = f"{name}_dq"
    return helper.make_node("DequantizeLinear", [f"{name}_q", f"{name}_scale", f"{name}_zero"], [f"{name}_dq"])


def _fixed(operator: str, hidden: int, batch: int) -> None:
    """One layer of a dynamic length."""
    shape = ("length", batch, hidden)
    name = f"{operator.lower()}-{hidden}-batch{batch}"
    net(name, {"x": floats(*shape)}, [{"length": _LENGTH}])(lambda: _stack(operator, shape, hidden))


def _dynamic(name: str, features: int, build: _Build, dtype: str = "float32", tolerance: float = 1e-4) -> None:
    """A model of dynamic length and batch, run at batch 1 and 8."""
    shape = ("length", "batch", features)
    sizes = [{"length": _LENGTH, "batch": batch} for batch in (1, 8)]
    net(name, {"x": floats(*shape, dtype=dtype)}, sizes, tolerance=tolerance)(lambda: build(shape))


def _bidirectional(operator: str, hidden: int) -> _Build:
    return lambda shape: _stack(operator, shape, hidden, layers=2, directions=2)


def _dynamic_int8(hidden: int) -> _Build:
    return lambda shape: _quantized(_bidirectional("LSTM", hidden)(shape))


def _quantized_weights(operator: str) -> _Build:
    return lambda shape: _with_quantized_weights(_stack(operator, shape, 256))


def _register() -> None:
    for operator in _GATES:
        for hidden in (64, 256, 1024):
            for batch in (1, 8):
                _fixed(operator, hidden, batch)
        _dynamic(f"bi{operator.lower()}-2x256", 128, _bidirectional(operator, 256))
    _dynamic("lstm-3x512", 512, lambda shape: _stack("LSTM", shape, 512, layers=3))
    _dynamic("lstm-512-float16", 512, lambda shape: _stack("LSTM", shape, 512, dtype="float16"), "float16", 2e-3)
    for hidden in (256, 512):
        # If a float32 sum rounds to the other side, the difference is an 8-bit step.
        _dynamic(f"bilstm-2x{hidden}-dynamic-int8", 128, _dynamic_int8(hidden), tolerance=0.05)
    for operator in ("LSTM", "GRU"):
        _dynamic(f"{operator.lower()}-256-qdq", 256, _quantized_weights(operator), tolerance=1e-3)


_register()


@net("crnn", {"image": floats(1, 1, 32, 160)}, exporter="torchscript")
def crnn() -> Any:
    """Text recognition: a convolutional front of 40 columns, and two bidirectional layers written out cell by cell."""
    return Crnn().eval()


@net(
    "unrolled-lstm-512",
    {"x": floats(40, "batch", 512)},
    [{"batch": 1}, {"batch": 8}],
    exporter="torchscript",
)
def unrolled_lstm() -> Any:
    """One layer written out cell by cell, of dynamic batch."""
    return UnrolledLstm(512, 512).eval()


@net(
    "text-classifier",
    {"tokens": integers(1000, "batch", "length")},
    [{"batch": 1, "length": 32}, {"batch": 8, "length": 32}],
    exporter="torchscript",
)
def text_classifier() -> Any:
    """An embedding, a bidirectional GRU and a linear layer, of dynamic batch and length."""
    return TextClassifier().eval()
