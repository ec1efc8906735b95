"""Nets with known outputs."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray
SIDE = 64
NAMES = ("cat", "dog", "bird")


def net_with(outputs: dict[str, Array], channels_first: bool = True) -> onnx.ModelProto:
    """A net that reads an image of 64 x 64 and returns these arrays."""
    shape = [1, 3, SIDE, SIDE] if channels_first else [1, SIDE, SIDE, 3]
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["mean"], keepdims=0),
        helper.make_node("Sub", ["mean", "mean"], ["zero"]),
        *(helper.make_node("Add", [f"{name}_value", "zero"], [name]) for name in outputs),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, each.shape) for name, each in outputs.items()],
        [numpy_helper.from_array(each, f"{name}_value") for name, each in outputs.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def centers(count: int = 40) -> tuple[Array, Array]:
    """Boxes as centers and sizes in pixels of the frame, and scores of three classes."""
    generator = np.random.default_rng(1)
    boxes = np.concatenate([generator.uniform(5, 59, (count, 2)), generator.uniform(20, 40, (count, 2))], 1)
    return boxes.astype(np.float32), generator.uniform(0, 1, (count, 3)).astype(np.float32)
