"""Values that depend on constants alone, computed with onnx's reference implementation when an importer needs them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.helper
from onnx.reference import ReferenceEvaluator

from compiler.frontends.onnx import dtypes
from compiler.frontends.onnx.values import Constant, Producer, Runtime, Value

_MAXIMUM_ELEMENTS = 2**22


def fold(value: Runtime, opsets: dict[str, int]) -> np.ndarray | None:
    """The array of a foldable value, or None when the reference implementation has no answer."""
    if value.producer is None:
        return None
    producer = value.producer
    arrays = [_known_array(item, opsets) for item in producer.inputs]
    if any(a is None and item is not None for a, item in zip(arrays, producer.inputs, strict=True)):
        return None
    return _evaluate(producer, arrays, opsets)


def _known_array(value: Value | None, opsets: dict[str, int]) -> np.ndarray | None:
    if isinstance(value, Constant):
        return value.array if value.size <= _MAXIMUM_ELEMENTS else None
    return fold(value, opsets) if isinstance(value, Runtime) else None


def _evaluate(producer: Producer, arrays: list[np.ndarray | None], opsets: dict[str, int]) -> np.ndarray | None:
    node = onnx.NodeProto()
    node.CopyFrom(producer.node)
    del node.input[:], node.output[:]
    node.input.extend("" if a is None else f"i{index}" for index, a in enumerate(arrays))
    node.output.extend(f"o{index}" if name else "" for index, name in enumerate(producer.node.output))
    feeds = {f"i{index}": a for index, a in enumerate(arrays) if a is not None}
    inputs = [onnx.helper.make_tensor_value_info(name, _number(array), array.shape) for name, array in feeds.items()]
    wanted = f"o{producer.output}"
    graph = onnx.helper.make_graph([node], "fold", inputs, [onnx.ValueInfoProto(name=wanted)])
    imports = [onnx.helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    imports = [item for item in imports if item.domain != node.domain]
    imports.append(onnx.helper.make_opsetid(node.domain, producer.opset))
    try:
        result = _run(graph, imports, wanted, feeds)
    except Exception:  # its own failures, of any kind, mean that the value stays unknown
        return None
    return np.asarray(result) if isinstance(result, (np.ndarray, np.generic)) else None


def _number(array: np.ndarray) -> int:
    return dtypes.NUMBERS["string" if array.dtype.kind in "OUS" else array.dtype.name]


def _run(
    graph: onnx.GraphProto, imports: list[onnx.OperatorSetIdProto], wanted: str, feeds: dict[str, np.ndarray]
) -> Any:
    model = onnx.helper.make_model(graph, opset_imports=imports)
    results: Any = ReferenceEvaluator(model).run([wanted], feeds)
    return results[0]
