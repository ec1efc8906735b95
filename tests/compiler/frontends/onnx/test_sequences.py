"""Sequences and optionals are resolved at import."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.helper

from tests.compiler.frontends.onnx.support import check_model, make_model

Node = onnx.helper.make_node
FLOAT = onnx.TensorProto.FLOAT
X = onnx.helper.make_tensor_value_info("x", FLOAT, [5, 3])
DATA = {"x": np.arange(15, dtype=np.float32).reshape(5, 3)}


def weights(**arrays: object) -> list[onnx.TensorProto]:
    return [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()]


def test_split_edit_and_join() -> None:
    nodes = [
        Node("SplitToSequence", ["x", "two"], ["parts"], axis=0),
        Node("SequenceAt", ["parts", "minus"], ["last"]),
        Node("SequenceInsert", ["parts", "last", "zero"], ["more"]),
        Node("SequenceErase", ["more", "one"], ["fewer"]),
        Node("SequenceLength", ["fewer"], ["length"]),
        Node("Cast", ["length"], ["count"], to=FLOAT),
        Node("ConcatFromSequence", ["fewer"], ["joined"], axis=0),
        Node("Mul", ["joined", "count"], ["y"]),
    ]
    check_model(make_model(nodes, [X], ["y"], weights(two=2, minus=-1, zero=0, one=1)), DATA)


def test_split_without_the_axis_and_stack() -> None:
    nodes = [
        Node("SplitToSequence", ["x"], ["rows"], axis=1, keepdims=0),
        Node("ConcatFromSequence", ["rows"], ["y"], axis=0, new_axis=1),
    ]
    check_model(make_model(nodes, [X], ["y"]), DATA)


def test_map_over_a_sequence() -> None:
    row = onnx.helper.make_tensor_value_info("row", FLOAT, None)
    other = onnx.helper.make_tensor_value_info("other", FLOAT, None)
    out = onnx.helper.make_tensor_value_info("out", FLOAT, None)
    body = onnx.helper.make_graph([Node("Add", ["row", "other"], ["out"])], "body", [row, other], [out])
    nodes = [
        Node("SplitToSequence", ["x"], ["rows"], axis=0),
        Node("SequenceMap", ["rows", "x"], ["mapped"], body=body),
        Node("ConcatFromSequence", ["mapped"], ["y"], axis=1),
    ]
    check_model(make_model(nodes, [X], ["y"]), DATA)


def test_optionals() -> None:
    nodes = [
        Node("Optional", ["x"], ["some"]),
        Node("OptionalHasElement", ["some"], ["there"]),
        Node("OptionalGetElement", ["some"], ["value"]),
        Node("Where", ["there", "value", "zero"], ["y"]),
    ]
    check_model(make_model(nodes, [X], ["y"], weights(zero=np.float32(0))), DATA)
