"""The nets of MLPerf Tiny as ONNX, in their published sizes, with random weights.

Layers as in https://github.com/mlcommons/tiny/tree/master/benchmark/training. The image classifier of visual wake words
is MobileNetV2 here (width 0.35), whose inverted residuals are harder for a compiler than MobileNetV1's layers.

    python -m benchmarks.tiny_nets DIR      # writes each, quantized by ONNX Runtime, as DIR/NAME.onnx
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray


class _Net:
    def __init__(self, *shape: int) -> None:
        self.shape = shape
        self._rng = np.random.default_rng(0)
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def constant(self, values: Any) -> str:
        name = f"c{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def node(self, operator: str, inputs: list[str], **attributes: Any) -> str:
        name = f"t{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        return name

    def weight(self, *shape: int, fan_in: int) -> str:
        return self.constant((self._rng.normal(size=shape) * np.sqrt(2 / fan_in)).astype(np.float32))

    def convolution(
        self, x: str, channels: int, filters: int, kernel: tuple[int, int], stride: int = 1, *, groups: int = 1
    ) -> str:
        depth = channels // groups
        weight = self.weight(filters, depth, *kernel, fan_in=depth * kernel[0] * kernel[1])
        before, after = [(extent - 1) // 2 for extent in kernel], [extent // 2 for extent in kernel]
        y = self.node("Conv", [x, weight], pads=before + after, strides=[stride] * 2, group=groups)
        low = (0.7, -0.1, -0.1, 0.7)  # ranges of scale, bias, mean, variance
        parameters = [self._rng.uniform(least, least + 0.5, filters).astype(np.float32) for least in low]
        return self.node("BatchNormalization", [y, *map(self.constant, parameters)])

    def dense(self, x: str, inputs: int, outputs: int) -> str:
        bias = self.constant((self._rng.normal(size=outputs) * 0.1).astype(np.float32))
        return self.node("Gemm", [x, self.weight(inputs, outputs, fan_in=inputs), bias])

    def relu(self, x: str) -> str:
        return self.node("Relu", [x])

    def relu6(self, x: str) -> str:
        return self.node("Clip", [x, self.constant(np.float32(0)), self.constant(np.float32(6))])

    def head(self, x: str, channels: int, classes: int) -> str:
        pooled = self.node("Flatten", [self.node("GlobalAveragePool", [x])])
        return self.node("Softmax", [self.dense(pooled, channels, classes)], axis=-1)

    def model(self, result: str) -> onnx.ModelProto:
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, list(self.shape))
        y = helper.make_tensor_value_info(result, TensorProto.FLOAT, None)
        graph = helper.make_graph(self._nodes, "tiny", [x], [y], self._constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def mobilenet_v2() -> onnx.ModelProto:
    """MobileNetV2 of width 0.35 on images of 96x96, two classes."""
    net = _Net(1, 3, 96, 96)
    x = net.relu6(net.convolution("x", 3, 16, (3, 3), 2))
    channels = 16
    stages = ((1, 8, 1, 1), (6, 8, 2, 2), (6, 16, 3, 2), (6, 24, 4, 2), (6, 32, 3, 1), (6, 56, 3, 2), (6, 112, 1, 1))
    for expansion, filters, count, first_stride in stages:
        for index in range(count):
            stride, wide, inner = first_stride if index == 0 else 1, channels * expansion, x
            if expansion > 1:
                inner = net.relu6(net.convolution(inner, channels, wide, (1, 1)))
            inner = net.relu6(net.convolution(inner, wide, wide, (3, 3), stride, groups=wide))
            inner = net.convolution(inner, wide, filters, (1, 1))
            x = net.node("Add", [x, inner]) if stride == 1 and channels == filters else inner
            channels = filters
    return net.model(net.head(net.relu6(net.convolution(x, channels, 1280, (1, 1))), 1280, 2))


def ds_cnn() -> onnx.ModelProto:
    """Keyword spotting: depthwise separable convolutions on a spectrogram of 49x10, twelve words."""
    net = _Net(1, 1, 49, 10)
    x = net.relu(net.convolution("x", 1, 64, (10, 4), 2))
    for _ in range(4):
        x = net.relu(net.convolution(x, 64, 64, (3, 3), groups=64))
        x = net.relu(net.convolution(x, 64, 64, (1, 1)))
    return net.model(net.head(x, 64, 12))


def resnet8() -> onnx.ModelProto:
    """Image classification: a residual net on images of 32x32, ten classes."""
    net = _Net(1, 3, 32, 32)
    x, channels = net.relu(net.convolution("x", 3, 16, (3, 3))), 16
    for filters, stride in ((16, 1), (32, 2), (64, 2)):
        inner = net.relu(net.convolution(x, channels, filters, (3, 3), stride))
        inner = net.convolution(inner, filters, filters, (3, 3))
        beside = x if channels == filters else net.convolution(x, channels, filters, (1, 1), stride)
        x, channels = net.relu(net.node("Add", [inner, beside])), filters
    return net.model(net.head(x, 64, 10))


def autoencoder() -> onnx.ModelProto:
    """Anomaly detection: a fully connected autoencoder of 640 values."""
    net = _Net(1, 640)
    x, width = "x", 640
    for outputs in (128, 128, 128, 128, 8, 128, 128, 128, 128):
        x, width = net.relu(net.dense(x, width, outputs)), outputs
    return net.model(net.dense(x, width, 640))


NETS: dict[str, Callable[[], onnx.ModelProto]] = {
    "mobilenet_v2": mobilenet_v2,
    "ds_cnn": ds_cnn,
    "resnet8": resnet8,
    "autoencoder": autoencoder,
}


def quantized_by_onnx_runtime(name: str) -> onnx.ModelProto:
    """Return a net with int8 tensors and per-channel weights, with QuantizeLinear and DequantizeLinear; calibrated on
    random inputs."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Samples(CalibrationDataReader):
        def __init__(self, shape: list[int]) -> None:
            rng = np.random.default_rng(0)
            self._left = iter([{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(4)])

        def get_next(self) -> dict[str, Array] | None:
            return next(self._left, None)

    model = NETS[name]()
    shape = [int(each.dim_value) for each in model.graph.input[0].type.tensor_type.shape.dim]
    with tempfile.TemporaryDirectory(prefix="tensorwright-") as folder:
        plain, folded, quantized = (Path(folder) / f"{stage}.onnx" for stage in ("plain", "folded", "quantized"))
        onnx.save(model, plain)
        quant_pre_process(plain, folded)
        quantize_static(
            folded,
            quantized,
            Samples(shape),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(quantized)


def main() -> None:
    """Write the quantized nets into a folder."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m benchmarks.tiny_nets DIR")
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name in NETS:
        onnx.save(quantized_by_onnx_runtime(name), folder / f"{name}.onnx")
        print(folder / f"{name}.onnx")


if __name__ == "__main__":
    main()
