"""On-demand evaluation of values that depend only on constants, with onnx's reference implementation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.helper
from onnx.reference import ReferenceEvaluator

from compiler.frontends.onnx import dtypes
from compiler.frontends.onnx.structure import RANDOM_OPERATORS, subgraphs
from compiler.frontends.onnx.values import Constant, Poisoned, Runtime, Value

if TYPE_CHECKING:
    from compiler.frontends.onnx.context import NodeContext

_MAX_ELEMENTS = 2**22
# Operators that only rearrange elements cost nothing, regardless of size.
_REARRANGES = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
# Regular expressions are matched by backtracking, which may never end.
_NEVER_FOLDED = RANDOM_OPERATORS | {"RegexFullMatch"}


def fold(value: Runtime, opsets: dict[str, int]) -> np.ndarray | None:
    """Return the array of a foldable value, or None if the reference implementation cannot compute it."""
    if value.producer is None:
        return None
    producer = value.producer
    limit = None if producer.node.op_type in _REARRANGES else _MAX_ELEMENTS
    arrays = [_known_array(item, opsets, limit) for item in producer.inputs]
    if any(a is None and item is not None for a, item in zip(arrays, producer.inputs, strict=True)):
        return None
    results = fold_node(producer.node, arrays, producer.opset, opsets)
    result = results[producer.output] if results is not None else None
    return np.asarray(result) if isinstance(result, (np.ndarray, np.generic)) else None


def _known_array(value: Value | None, opsets: dict[str, int], limit: int | None) -> np.ndarray | None:
    if isinstance(value, Constant):
        return value.array if limit is None or value.size <= limit else None
    return fold(value, opsets) if isinstance(value, Runtime) else None


def fold_node(
    node: onnx.NodeProto, arrays: Sequence[np.ndarray | None], opset: int, opsets: dict[str, int]
) -> list[Any] | None:
    """Return all outputs of a node on these inputs, by onnx's reference implementation; None if it fails."""
    try:
        return reference_outputs(node, arrays, opset, opsets)
    except MemoryError:  # with more memory, the value would be known, and the module a different one
        raise
    except Exception:  # its own failures, of any kind, leave the value unknown
        return None


def all_known_with_strings(inputs: Sequence[Value | None]) -> bool:
    """True if every input is a constant, and one holds strings, which only the reference implementation supports."""
    tensors = [value for value in inputs if value is not None]
    return all(isinstance(value, Constant) for value in tensors) and any(
        isinstance(value, Constant) and value.dtype == "string" for value in tensors
    )


def folded_outputs(context: NodeContext) -> list[Value] | None:
    """Return the outputs of a node with constant inputs and no conversion; None for other nodes, or with subgraphs."""
    node = context.node
    if node.op_type in _NEVER_FOLDED or subgraphs(node):
        return None
    known = [_known_array(each, context.importer.opsets, _MAX_ELEMENTS) for each in context.inputs]
    if any(array is None and given is not None for array, given in zip(known, context.inputs, strict=True)):
        return None
    results = fold_node(node, known, context.opset, context.importer.opsets)
    if results is None or not all(isinstance(each, (np.ndarray, np.generic, type(None))) for each in results):
        return None
    return [Poisoned() if each is None else Constant(_stored(np.asarray(each))) for each in results]


def fold_strings(context: NodeContext) -> list[Value]:
    """Return the outputs of a node with constant inputs, from onnx's reference implementation."""
    arrays = [context.constant(index) if context.has_input(index) else None for index in range(len(context.inputs))]
    results = fold_node(context.node, arrays, context.opset, context.importer.opsets)
    if results is None:
        context.refuse("strings are not supported at run time, and onnx's reference implementation cannot evaluate it")
    return [Constant(_stored(np.asarray(result))) for result in results]


def _stored(result: np.ndarray) -> np.ndarray:
    return result.astype(object) if result.dtype.kind in "UST" else result


def reference_outputs(
    node: onnx.NodeProto, arrays: Sequence[np.ndarray | None], opset: int, opsets: dict[str, int]
) -> list[Any]:
    """Return the outputs of onnx's reference implementation; its exceptions are propagated."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    del copy.input[:], copy.output[:]
    copy.input.extend("" if a is None else f"i{index}" for index, a in enumerate(arrays))
    copy.output.extend(f"o{index}" if name else "" for index, name in enumerate(node.output))
    feeds = {f"i{index}": a for index, a in enumerate(arrays) if a is not None}
    inputs = [onnx.helper.make_tensor_value_info(name, _number(array), array.shape) for name, array in feeds.items()]
    outputs = [onnx.ValueInfoProto(name=name) for name in copy.output if name]
    graph = onnx.helper.make_graph([copy], "fold", inputs, outputs)
    imports = [onnx.helper.make_opsetid(d, version) for d, version in opsets.items() if d != node.domain]
    imports.append(onnx.helper.make_opsetid(node.domain, opset))
    model = onnx.helper.make_model(graph, opset_imports=imports)
    results: Any = ReferenceEvaluator(model).run(None, feeds)
    found = iter(results)
    return [next(found) if name else None for name in node.output]


def _number(array: np.ndarray) -> int:
    return dtypes.NUMBERS["string" if array.dtype.kind in "OUST" else array.dtype.name]
