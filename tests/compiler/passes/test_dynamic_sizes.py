"""Convolutions and poolings whose spatial sizes stay symbolic: one module at many sizes against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

import compiler
from schedules.conv.tiling import open_register_tile
from tests.schedules.blocked import MACHINES

Array = NDArray[Any]
Node = tuple[str, dict[str, Any], Sequence[tuple[int, ...]]]


def model(channels: int, rank: int, nodes: Sequence[Node]) -> onnx.ModelProto:
    """A chain of operators, each (type, attributes, shapes of its constant inputs); "Add" without constants adds the
    chain's value two operators before."""
    generator = np.random.default_rng(channels)
    values, made, constants = ["x"], [], []
    for number, (kind, attributes, shapes) in enumerate(nodes):
        operands = [values[-1]]
        for place, dimensions in enumerate(shapes):
            name = f"c{number}_{place}"
            scale = 1 / np.sqrt(np.prod(dimensions[1:])) if len(dimensions) > 1 else 1
            array = (generator.standard_normal(dimensions) * scale).astype(np.float32)
            constants.append(onnx.numpy_helper.from_array(array, name))
            operands.append(name)
        if kind == "Add" and not shapes:
            operands.append(values[-3])
        values.append(f"v{number}")
        made.append(helper.make_node(kind, operands, [values[-1]], **attributes))
    shape = ["n", channels, *"dhw"[-rank:]]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    outputs = [helper.make_tensor_value_info(values[-1], TensorProto.FLOAT, None)]
    graph = helper.make_graph(made, "open", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def check(
    proto: onnx.ModelProto, sizes: Sequence[tuple[int, ...]], rules: set[str], spatial: Sequence[int] = ()
) -> dict[str, str]:
    """Compiled once: equal to ONNX Runtime at each of the sizes, by these rules at least; the rule of each kernel.
    `spatial` is fixed where given."""
    names = [each.dim_param for each in proto.graph.input[0].type.tensor_type.shape.dim]
    channels = proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    module = compiler.compile(proto, shapes={"x": (names[0], channels, *(spatial or names[2:]))})
    used = {kernel.kernel: kernel.rule for kernel in module.manifest.kernels}
    assert rules <= set(used.values()), used
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for size in sizes:
        shape = (size[0], channels, *size[1:])
        data = np.random.default_rng(sum(size)).standard_normal(shape).astype(np.float32)
        expected = session.run(None, {"x": data})[0]
        (found,) = module.run({"x": data}).values()
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4, err_msg=str(size))
    return used


def conv(filters: int, channels: int, kernel: Sequence[int], pads: Sequence[int], **attributes: Any) -> Node:
    groups = attributes.get("group", 1)
    shapes = [(filters, channels // groups, *kernel), (filters,)]
    return "Conv", {"kernel_shape": list(kernel), "pads": list(pads), **attributes}, shapes


SIZES = ((1, 7, 7), (1, 1, 1), (2, 31, 57), (3, 8, 129), (1, 64, 5), (1, 2, 260))


def test_image_network() -> None:
    """A first layer of three channels, pooling, a residual block, a pointwise layer and a global mean."""
    nodes = [
        conv(24, 3, (7, 7), (3, 3, 3, 3), strides=[2, 2]),
        ("Relu", {}, []),
        ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}, []),
        conv(24, 24, (3, 3), (1, 1, 1, 1)),
        ("Relu", {}, []),
        conv(24, 24, (3, 3), (1, 1, 1, 1)),
        ("Relu", {}, []),
        ("Add", {}, []),
        conv(70, 24, (1, 1), (0, 0, 0, 0), strides=[2, 2]),
        ("GlobalAveragePool", {}, []),
        ("Flatten", {}, []),
    ]
    check(model(3, 2, nodes), SIZES, {"conv-direct", "conv-winograd", "pool", "global-pool"})


def test_few_filters() -> None:
    """Lanes that have no filter compute neighbors of a row; sizes and epilogue as in any other convolution."""
    nodes = [
        conv(16, 3, (3, 3), (1, 1, 1, 1)),
        ("Relu", {}, []),
        conv(3, 16, (9, 9), (4, 4, 4, 4)),
        ("Tanh", {}, []),
        conv(2, 3, (5, 3), (0, 2, 1, 0), strides=[2, 2]),
    ]
    sizes = [(1, 4, 4), (2, 19, 7), (1, 33, 64), (1, 61, 130)]
    check(model(3, 2, nodes), sizes, {"conv-direct", "conv-folded"})


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER"])
def test_padding_that_follows_from_sizes(mode: str) -> None:
    """Windows include the padding, so that nothing is copied."""

    def padded(filters: int, channels: int, kernel: int, strides: Sequence[int], group: int = 1) -> Node:
        kind, attributes, shapes = conv(filters, channels, (kernel, kernel), (), strides=list(strides), group=group)
        return kind, {**{name: each for name, each in attributes.items() if name != "pads"}, "auto_pad": mode}, shapes

    nodes = [
        padded(16, 3, 3, (2, 2)),
        ("Relu", {}, []),
        padded(16, 16, 3, (2, 2), group=16),
        padded(24, 16, 4, (3, 1)),
        ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": mode}, []),
        ("AveragePool", {"kernel_shape": [2, 3], "strides": [2, 2], "auto_pad": mode}, []),
        ("AveragePool", {"kernel_shape": [3, 2], "strides": [1, 2], "auto_pad": mode, "count_include_pad": 1}, []),
        ("GlobalAveragePool", {}, []),
    ]
    sizes = [(1, 1, 1), (2, 18, 7), (1, 33, 64), (1, 64, 129)]
    used = check(model(3, 2, nodes), sizes, {"conv-direct", "conv-depthwise", "pool", "global-pool"})
    assert "fallback" not in used.values()


def test_tasks_without_tiles() -> None:
    """Tiles of Winograd's method, cut for eight cores: of 209 tiles, 14 for each task, nothing is left for the last."""
    proto = model(32, 2, [conv(16, 32, (3, 3), (1, 1, 1, 1))])
    module = compiler.compile(proto, threads=8)
    assert "conv-winograd" in {kernel.rule for kernel in module.manifest.kernels}
    x = np.random.default_rng(0).standard_normal((1, 32, 44, 76), np.float32)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(
        next(iter(module.run([x]).values())), session.run(None, {"x": x})[0], rtol=1e-4, atol=1e-4
    )


def test_a_resized_image_is_convolved() -> None:
    """Any kernel may produce the operand of a convolution, here one with a single operand."""
    x = np.random.default_rng(0).standard_normal((2, 4, 5, 6), np.float32)
    proto = model(4, 2, [("Resize", {"mode": "nearest"}, [(0,), (4,)]), ("Conv", {"pads": [1] * 4}, [(8, 4, 3, 3)])])
    scales = np.array([1, 1, 2, 2], np.float32)
    proto.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(scales, proto.graph.initializer[1].name))
    module = compiler.compile(proto, shapes={"x": ("n", 4, 5, 6)})
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(
        next(iter(module.run([x]).values())), session.run(None, {"x": x})[0], rtol=1e-4, atol=1e-4
    )


def test_transposed_convolutions() -> None:
    """As many outputs per stride as inputs, and one fewer: a phase has none where there is one input."""
    nodes: list[Node] = [
        conv(24, 5, (1, 1), (0, 0, 0, 0)),
        ("ConvTranspose", {"strides": [2, 2]}, [(24, 20, 2, 2)]),
        ("ConvTranspose", {"strides": [2, 3], "pads": [1, 2, 1, 2], "group": 2}, [(20, 6, 3, 5)]),
        ("Relu", {}, []),
    ]
    used = check(model(5, 2, nodes), [(1, 1, 1), (2, 7, 16)], {"conv-direct"})
    assert not any("conv2d_transpose" in kernel for kernel in used)


def test_depthwise_network() -> None:
    """Expansion, depthwise, squeeze with its gate, and a sum of two tensors of the same symbolic size."""
    nodes = [
        conv(40, 16, (1, 1), (0, 0, 0, 0)),
        ("Clip", {}, []),
        conv(40, 40, (3, 3), (1, 1, 1, 1), group=40),
        ("PRelu", {}, [(40, 1, 1)]),
        conv(40, 40, (5, 5), (2, 2, 2, 2), group=40, strides=[2, 2]),
        ("GlobalMaxPool", {}, []),
    ]
    check(model(16, 2, nodes), SIZES, {"conv-direct", "conv-depthwise", "global-pool"})


@pytest.mark.parametrize("ceil", [0, 1])
def test_pooling(ceil: int) -> None:
    nodes = [
        conv(17, 5, (3, 2), (1, 0, 1, 1)),
        ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": ceil}, []),
        ("AveragePool", {"kernel_shape": [3, 2], "strides": [1, 2], "pads": [1, 0, 1, 1]}, []),
    ]
    check(model(5, 2, nodes), [size for size in SIZES if min(size[1:]) >= 3], {"conv-direct", "pool"})


def test_sequence() -> None:
    """One dimension of any length, with strides, dilation and groups."""
    nodes = [
        conv(32, 1, (10,), (0, 0), strides=[5]),
        ("Relu", {}, []),
        conv(48, 32, (3,), (2, 2), dilations=[2]),
        conv(48, 48, (4,), (2, 1), group=3),
        conv(33, 48, (1,), (0, 0)),
    ]
    check(model(1, 1, nodes), [(1, 10), (2, 16), (1, 997), (3, 4001), (1, 16000)], {"conv-direct"})


def test_volume() -> None:
    nodes = [conv(20, 6, (3, 2, 3), (1, 0, 1, 1, 1, 1)), ("Relu", {}, []), conv(9, 20, (1, 1, 1), (0,) * 6)]
    check(model(6, 3, nodes), [(1, 1, 1, 1), (2, 5, 9, 17), (1, 3, 4, 40)], {"conv-direct"})


def test_an_open_batch_of_images_of_known_size_is_convolved_by_winograds_method() -> None:
    nodes = [conv(64, 48, (3, 3), (1, 1, 1, 1)), ("Relu", {}, [])]
    check(model(48, 2, nodes), [(1, 29, 30), (3, 29, 30)], {"conv-winograd"}, spatial=(29, 30))


def test_images_of_open_size_are_convolved_by_winograds_method_of_either_stride() -> None:
    """Tasks of a few tiles and of many, rows and columns that tiles do not divide."""
    nodes = [conv(40, 24, (3, 3), (1, 0, 2, 1), strides=[2, 2]), conv(40, 40, (3, 3), (1, 1, 1, 1))]
    sizes = [(1, 4, 4), (2, 15, 15), (1, 58, 63), (3, 113, 30)]
    check(model(24, 2, nodes), sizes, {"conv-winograd"})


@pytest.mark.parametrize("seed", range(6))
def test_random_convolutions(seed: int) -> None:
    """Any kernel, stride, dilation, padding and grouping, at random sizes down to the smallest that fits."""
    generator = np.random.default_rng(seed)

    def draw(low: int, high: int) -> int:
        return int(generator.integers(low, high + 1))

    groups = (1, 1, 2, 7)[draw(0, 3)]
    channels, filters = groups * draw(1, 20), groups * draw(1, 40)
    kernel, strides, dilations = [[draw(1, limit) for _ in range(2)] for limit in (4, 3, 2)]
    pads = [draw(0, 2) for _ in range(4)]
    node = conv(filters, channels, kernel, pads, strides=strides, dilations=dilations, group=groups)
    reach = [
        max(1, (size - 1) * step + 1 - pads[i] - pads[i + 2])
        for i, (size, step) in enumerate(zip(kernel, dilations, strict=True))
    ]
    sizes = [(draw(1, 3), *(each + draw(0, 90) for each in reach)) for _ in range(4)]
    check(model(channels, 2, [node]), [(1, *reach), *sizes], set())


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_register_tile_fits(machine: Any) -> None:
    for blocks in range(1, 33):
        pixels, wide = open_register_tile(blocks, machine)
        assert blocks % wide == 0
        assert pixels * wide + wide + 1 <= machine.vector_registers
