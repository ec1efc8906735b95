"""Broken and hostile ONNX files: mutations of bytes and of the model's structure."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper

from tests.fuzz.byte_mutations import BYTE_MUTATIONS
from tests.fuzz.random_graphs import random_model

Random = np.random.Generator
ModelMutation = Callable[[onnx.ModelProto, Random], None]

HOSTILE_SIZES = (0, -1, -(2**63), 2**31, 2**40, 2**60, 2**63 - 1)
HOSTILE_PATHS = ("../../../../etc/passwd", "/etc/passwd", "", ".", "a\x00b", "missing.bin", "/dev/zero", "~/x")
HOSTILE_NAMES = ("", "a" * 10_000, "x\x00y", "../x", "main", "%s%n", "\u202e", " ")


def _pick(items: Any, random: Random) -> Any:
    return items[int(random.integers(len(items)))] if len(items) else None


# Structure of the model


def drop_initializer(model: onnx.ModelProto, random: Random) -> None:
    initializers = model.graph.initializer
    if initializers:
        del initializers[int(random.integers(len(initializers)))]


def drop_node(model: onnx.ModelProto, random: Random) -> None:
    del model.graph.node[int(random.integers(len(model.graph.node)))]


def make_cycle(model: onnx.ModelProto, random: Random) -> None:
    first, last = _pick(model.graph.node, random), _pick(model.graph.node, random)
    if first.input:
        first.input[0] = last.output[0]


def shuffle_nodes(model: onnx.ModelProto, random: Random) -> None:
    nodes = [copy.deepcopy(node) for node in model.graph.node]
    random.shuffle(nodes)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def rename_value(model: onnx.ModelProto, random: Random) -> None:
    node = _pick(model.graph.node, random)
    names = _pick([names for names in (node.input, node.output) if names], random)
    if names:
        names[int(random.integers(len(names)))] = _pick(HOSTILE_NAMES, random)


def duplicate_output(model: onnx.ModelProto, random: Random) -> None:
    one, other = _pick(model.graph.node, random), _pick(model.graph.node, random)
    other.output[0] = one.output[0]


def change_operator(model: onnx.ModelProto, random: Random) -> None:
    node = _pick(model.graph.node, random)
    others = ["Conv", "Reshape", "Loop", "If", "LSTM", "NoSuchOperator", "", "Gather", "Concat", "Split", "Constant"]
    node.op_type = _pick(others, random)


def change_domain(model: onnx.ModelProto, random: Random) -> None:
    _pick(model.graph.node, random).domain = _pick(("com.nobody", "com.microsoft", "ai.onnx.ml", "\x00"), random)


def change_input_size(model: onnx.ModelProto, random: Random) -> None:
    value = _pick([*model.graph.input, *model.graph.output], random)
    dims = value.type.tensor_type.shape.dim
    if dims:
        _pick(dims, random).dim_value = int(_pick(HOSTILE_SIZES, random))


def change_initializer_size(model: onnx.ModelProto, random: Random) -> None:
    tensor = _pick(model.graph.initializer, random)
    if tensor is not None and tensor.dims:
        tensor.dims[int(random.integers(len(tensor.dims)))] = int(_pick(HOSTILE_SIZES, random))


def change_initializer_type(model: onnx.ModelProto, random: Random) -> None:
    tensor = _pick(model.graph.initializer, random)
    if tensor is not None:
        tensor.data_type = int(random.integers(0, 40))


def change_input_type(model: onnx.ModelProto, random: Random) -> None:
    _pick(model.graph.input, random).type.tensor_type.elem_type = int(random.integers(0, 40))


def external_data(model: onnx.ModelProto, random: Random) -> None:
    tensor = _pick(model.graph.initializer, random)
    if tensor is None:
        return
    tensor.data_location = TensorProto.EXTERNAL
    tensor.ClearField("raw_data")
    entries = {"location": _pick(HOSTILE_PATHS, random), "offset": str(_pick(HOSTILE_SIZES, random)), "length": "x"}
    for key, value in entries.items():
        if random.random() < 0.8:
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value


def change_attribute(model: onnx.ModelProto, random: Random) -> None:
    attribute = _pick([attribute for node in model.graph.node for attribute in node.attribute], random)
    if attribute is None:
        return
    if attribute.type == AttributeProto.INT:
        attribute.i = int(_pick((*HOSTILE_SIZES, 7, -7), random))
    elif attribute.type == AttributeProto.INTS:
        values = [int(_pick((*HOSTILE_SIZES, 1, 2), random)) for _ in range(int(random.integers(0, 6)))]
        del attribute.ints[:]
        attribute.ints.extend(values)
    else:
        attribute.type = int(random.integers(0, 15))


def strange_attribute(model: onnx.ModelProto, random: Random) -> None:
    node = _pick(model.graph.node, random)
    value = _pick((1, 2.5, "text", [1, 2], [1.0], b"\xff\xfe"), random)
    name = _pick(("axis", "axes", "perm", "kernel_shape", "pads", "strides", "group", "to", "mode", "body"), random)
    node.attribute.append(helper.make_attribute(name, value))


def change_inputs(model: onnx.ModelProto, random: Random) -> None:
    node = _pick(model.graph.node, random)
    if random.random() < 0.5 and node.input:
        del node.input[int(random.integers(len(node.input)))]
    else:
        node.input.append(_pick([*[value.name for value in model.graph.input], "", "nowhere"], random))


def change_constant_values(model: onnx.ModelProto, random: Random) -> None:
    integers = [tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.INT64]
    tensor = _pick(integers, random)
    if tensor is not None and tensor.raw_data:
        count = len(tensor.raw_data) // 8
        values = [int(_pick((*HOSTILE_SIZES, 1, -2, 100), random)) for _ in range(count)]
        tensor.raw_data = np.array(values, np.int64).tobytes()


def change_opset(model: onnx.ModelProto, random: Random) -> None:
    version = int(_pick((0, -1, 1, 6, 7, 9999, 2**31, 2**62), random))
    if random.random() < 0.2:
        del model.opset_import[:]
    elif model.opset_import:
        model.opset_import[0].version = version


def nan_weights(model: onnx.ModelProto, random: Random) -> None:
    floats = [tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT and tensor.raw_data]
    tensor = _pick(floats, random)
    if tensor is not None:
        tensor.raw_data = np.full(len(tensor.raw_data) // 4, np.nan, np.float32).tobytes()


def no_outputs(model: onnx.ModelProto, random: Random) -> None:
    del model.graph.output[:]


def unknown_output(model: onnx.ModelProto, random: Random) -> None:
    _pick(model.graph.output, random).name = _pick((*HOSTILE_NAMES, "nowhere"), random)


MODEL_MUTATIONS: tuple[ModelMutation, ...] = (
    drop_initializer,
    drop_node,
    make_cycle,
    shuffle_nodes,
    rename_value,
    duplicate_output,
    change_operator,
    change_domain,
    change_input_size,
    change_initializer_size,
    change_initializer_type,
    change_input_type,
    external_data,
    change_attribute,
    strange_attribute,
    change_inputs,
    change_constant_values,
    change_opset,
    nan_weights,
    no_outputs,
    unknown_output,
)


def mutated_model(seed: int) -> tuple[str, bytes]:
    """The names of the mutations and the bytes of a broken file, the same for the same seed."""
    random = np.random.default_rng(seed)
    model, _ = random_model(int(random.integers(1 << 30)))
    if random.random() < 0.35:
        byte_mutation = _pick(BYTE_MUTATIONS, random)
        return byte_mutation.__name__, byte_mutation(model.SerializeToString(), random)
    names = []
    for _ in range(int(random.integers(1, 4))):
        mutation = _pick(MODEL_MUTATIONS, random)
        if model.graph.node and model.graph.input and model.graph.output:
            mutation(model, random)
            names.append(mutation.__name__)
    return "+".join(names), model.SerializeToString()
