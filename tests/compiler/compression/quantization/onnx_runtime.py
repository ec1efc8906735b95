"""Small nets, quantized by ONNX Runtime with its options."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static

Array = NDArray[Any]


class _Net:
    """An ONNX graph written step by step, its weights random."""

    def __init__(self, shape: tuple[int, ...], seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.shape = shape

    def constant(self, value: Any) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value), f"c{len(self.constants)}"))
        return str(self.constants[-1].name)

    def weight(self, *shape: int, fan_in: int) -> str:
        return self.constant((self.rng.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32))

    def bias(self, size: int) -> str:
        return self.constant((self.rng.standard_normal(size) / 8).astype(np.float32))

    def node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name=f"n{len(self.nodes)}", **attributes))
        return name

    def conv(self, data: str, filters: int, channels: int, kernel: int, group: int = 1, **attributes: Any) -> str:
        weight = self.weight(filters, channels // group, kernel, kernel, fan_in=channels // group * kernel**2)
        pads = [kernel // 2] * 4
        return self.node("Conv", data, weight, self.bias(filters), group=group, pads=pads, **attributes)

    def linear(self, data: str, rows: int, columns: int) -> str:
        product = self.node("MatMul", data, self.weight(rows, columns, fan_in=rows))
        return self.node("Add", product, self.bias(columns))

    def model(self, output: str) -> onnx.ModelProto:
        sides = [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape),
            helper.make_tensor_value_info(output, TensorProto.FLOAT, None),
        ]
        graph = helper.make_graph(self.nodes, "net", sides[:1], sides[1:], self.constants)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        return onnx.shape_inference.infer_shapes(made)


def convolutional() -> onnx.ModelProto:
    """Convolutions, one of them depthwise, a residual sum, pooling and a classifier."""
    net = _Net((1, 3, 14, 13), seed=1)
    first = net.node("Relu", net.conv("x", 16, 3, 3))
    pooled = net.node("MaxPool", first, kernel_shape=[2, 2], strides=[2, 2])
    deep = net.node(
        "Clip", net.conv(pooled, 16, 16, 3, group=16), net.constant(np.float32(0)), net.constant(np.float32(6))
    )
    added = net.node("Relu", net.node("Add", net.conv(deep, 16, 16, 1), pooled))
    last = net.node("Flatten", net.node("GlobalAveragePool", net.conv(added, 20, 16, 3, strides=[2, 2])))
    return net.model(net.node("Gemm", last, net.weight(7, 20, fan_in=20), net.bias(7), transB=1))


def transformer() -> onnx.ModelProto:
    """One block: attention with two heads and a feed-forward part, each with a residual sum."""
    length, width, heads = 7, 16, 2
    net = _Net((1, length, width), seed=2)

    def split(data: str, order: list[int]) -> str:
        shape = net.constant(np.array([1, length, heads, width // heads]))
        return net.node("Transpose", net.node("Reshape", data, shape), perm=order)

    def normalized(data: str) -> str:
        return net.node("LayerNormalization", data, net.constant(np.ones(width, np.float32)), net.bias(width))

    query, key, value = (net.linear("x", width, width) for _ in range(3))
    scores = net.node("MatMul", split(query, [0, 2, 1, 3]), split(key, [0, 2, 3, 1]))
    scores = net.node("Softmax", net.node("Mul", scores, net.constant(np.float32((width // heads) ** -0.5))), axis=-1)
    mixed = net.node("Transpose", net.node("MatMul", scores, split(value, [0, 2, 1, 3])), perm=[0, 2, 1, 3])
    joined = net.node("Reshape", mixed, net.constant(np.array([1, length, width])))
    hidden = normalized(net.node("Add", net.linear(joined, width, width), "x"))
    inner = net.linear(hidden, width, 24)
    half = net.node("Mul", inner, net.constant(np.float32(0.5)))
    error = net.node("Erf", net.node("Mul", inner, net.constant(np.float32(0.5**0.5))))
    gelu = net.node("Mul", half, net.node("Add", error, net.constant(np.float32(1))))
    return net.model(normalized(net.node("Add", net.linear(gelu, 24, width), hidden)))


NETS: dict[str, Callable[[], onnx.ModelProto]] = {"convolutional": convolutional, "transformer": transformer}


def inputs(model: onnx.ModelProto, seed: int) -> Array:
    """A random example of a net's input, float32."""
    shape = [each.dim_value for each in model.graph.input[0].type.tensor_type.shape.dim]
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


class _Samples:
    def __init__(self, model: onnx.ModelProto) -> None:
        self._rest: Iterator[dict[str, Array]] = iter([{"x": inputs(model, seed)} for seed in range(8)])

    def get_next(self) -> dict[str, Array] | None:
        return next(self._rest, None)


def static(
    model: onnx.ModelProto, folder: Path, form: str, types: str, *, per_channel: bool = False, **extra: Any
) -> onnx.ModelProto:
    """Result of `quantize_static`; `types` as in "u8s8", of activations and weights; `extra` as its extra options."""
    reduce_range = extra.pop("reduce_range", False)
    return _quantized(
        model,
        folder,
        lambda source, result: quantize_static(
            source,
            result,
            _Samples(model),
            quant_format=QuantFormat[form],
            activation_type=_TYPES[types[:-2]],
            weight_type=_TYPES[types[-2:]],
            per_channel=per_channel,
            reduce_range=reduce_range,
            extra_options=extra,
        ),
    )


def dynamic(model: onnx.ModelProto, folder: Path, kind: str, **options: Any) -> onnx.ModelProto:
    """Result of `quantize_dynamic`; `kind` is the weights' type, "u8" or "s8"."""
    return _quantized(
        model, folder, lambda source, result: quantize_dynamic(source, result, weight_type=_TYPES[kind], **options)
    )


_TYPES = {"u8": QuantType.QUInt8, "s8": QuantType.QInt8, "u16": QuantType.QUInt16, "s16": QuantType.QInt16}


def _quantized(model: onnx.ModelProto, folder: Path, quantize: Callable[[str, str], None]) -> onnx.ModelProto:
    source, result = str(folder / "float.onnx"), str(folder / "quantized.onnx")
    onnx.save(model, source)
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        quantize(source, result)
    finally:
        logging.root.setLevel(level)
    return onnx.load(result)
