"""Weights and batch norms with which the outputs of an untrained net depend on every layer.

With initial weights, activations vanish or grow from layer to layer: the output is the last bias, or a softmax of one
and zeros, whatever a kernel computes, and a comparison with another runtime cannot fail.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

if TYPE_CHECKING:
    import torch

Array = np.ndarray


def wake(net: torch.nn.Module) -> None:
    """Initialize heads of zeros (vit_b_16), and residual branches that are scaled by 1e-6 (ConvNeXt)."""
    import torch

    with torch.no_grad():
        for name, weight in net.named_parameters():
            if name.endswith("layer_scale"):
                weight.fill_(1)
            elif weight.ndim > 1 and not weight.any():
                weight.normal_(std=0.02)


def calibrate_batch_norms(net: torch.nn.Module, batch: torch.Tensor) -> None:
    """Set mean and variance of each batch norm of a module in evaluation mode to those of its input, in one pass."""
    import torch

    norms = [each for each in net.modules() if isinstance(each, torch.nn.modules.batchnorm._BatchNorm)]
    momenta = [each.momentum for each in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    with torch.no_grad():
        net(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval()
        norm.momentum = momentum


def with_random_weights(model: onnx.ModelProto, feeds: Mapping[str, Array], seed: int = 0) -> onnx.ModelProto:
    """Return a copy with random float32 weights, including constants of one value, and batch norms that fit `feeds`.

    Weights with two or more axes are normal with variance 2 / fan-in (He et al. 2015, equation 10), with the outputs
    as their first axis; scales are near 1, biases near 0.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph, generator = result.graph, np.random.default_rng(seed)
    shapes = dict(_weight_shapes(graph))
    scales = {node.input[1] for node in graph.node if node.op_type == "BatchNormalization"} | _multipliers(graph)
    kept_nodes = [node for node in graph.node if not set(node.output) & shapes.keys()]
    unchanged = [each for each in graph.initializer if each.name not in shapes]
    arrays = {name: _random(shape, name in scales, generator) for name, shape in shapes.items()}
    del graph.node[:], graph.initializer[:]
    graph.node.extend(kept_nodes)
    graph.initializer.extend(unchanged + [numpy_helper.from_array(array, name) for name, array in arrays.items()])
    _drop_unused(graph)
    _fit_batch_norms(result, feeds)
    return result


def _weight_shapes(graph: onnx.GraphProto) -> Iterator[tuple[str, tuple[int, ...]]]:
    constants = {initializer.name: initializer for initializer in graph.initializer}
    for initializer in graph.initializer:
        if initializer.data_type == onnx.TensorProto.FLOAT:
            yield initializer.name, tuple(initializer.dims)
    for node in graph.node:
        if node.op_type == "ConstantOfShape" and node.input[0] in constants:
            yield node.output[0], tuple(numpy_helper.to_array(constants[node.input[0]]).tolist())


def _multipliers(graph: onnx.GraphProto) -> set[str]:
    """Return vectors that a Mul applies to each channel."""
    widened = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Unsqueeze"}
    return {widened[name] for node in graph.node if node.op_type == "Mul" for name in node.input if name in widened}


def _drop_unused(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input}
    inputs = [each for each in graph.input if each.name in used]
    initializers = [each for each in graph.initializer if each.name in used]
    del graph.input[:], graph.initializer[:]
    graph.input.extend(inputs)
    graph.initializer.extend(initializers)


def _random(shape: tuple[int, ...], scale: bool, generator: np.random.Generator) -> Array:
    values = generator.standard_normal(shape, dtype=np.float32)
    if len(shape) > 1:
        return values * np.float32(np.sqrt(2 / np.prod(shape[1:])))
    return values * np.float32(0.1) + np.float32(scale)


def _fit_batch_norms(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> None:
    """Set mean and variance of each batch norm in place.

    One run gives all of them: for a batch of one, an instance norm is a batch norm that computes its statistics.
    """
    import onnxruntime

    norms = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    if not norms:
        return
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    nodes = [part for node in probe.graph.node for part in _probed(node)]
    names = [f"{node.output[0]}:{moment}" for node in norms for moment in ("mean", "square")]
    del probe.graph.node[:], probe.graph.output[:]
    probe.graph.node.extend(nodes)
    probe.graph.output.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    _drop_unused(probe.graph)
    session = onnxruntime.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    moments = iter(session.run(names, dict(feeds)))
    constants = {each.name: each for each in model.graph.initializer}
    for node, mean, square in zip(norms, moments, moments, strict=True):
        constants[node.input[3]].CopyFrom(numpy_helper.from_array(mean, node.input[3]))
        constants[node.input[4]].CopyFrom(numpy_helper.from_array(square - mean * mean, node.input[4]))


def _probed(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    if node.op_type != "BatchNormalization":
        return [node]
    value, result = node.input[0], node.output[0]
    epsilon = {each.name: each.f for each in node.attribute if each.name == "epsilon"}
    spatial: dict[str, Any] = {"axes": [0, 2, 3], "keepdims": 0}
    return [
        helper.make_node("InstanceNormalization", node.input[:3], [result], **epsilon),
        helper.make_node("ReduceMean", [value], [f"{result}:mean"], **spatial),
        helper.make_node("Mul", [value, value], [f"{result}:squares"]),
        helper.make_node("ReduceMean", [f"{result}:squares"], [f"{result}:square"], **spatial),
    ]
