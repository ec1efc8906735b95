"""Strings: they do not exist when the module runs, so what is computed from them must be known when compiling."""

from __future__ import annotations

import numpy as np

from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.folding import fold_node
from compiler.frontends.onnx.registry import converter
from compiler.frontends.onnx.values import Constant, Value


@converter("StringConcat", "StringNormalizer", "StringSplit", "RegexFullMatch")
def string_function(context: NodeContext) -> list[Value]:
    """Evaluated while importing; refused on anything but constants."""
    return evaluated(context)


def evaluated(context: NodeContext) -> list[Value]:
    """The outputs of a node whose inputs are all constants, from onnx's reference implementation."""
    arrays = [context.constant(index) if context.has_input(index) else None for index in range(len(context.inputs))]
    results = fold_node(context.node, arrays, context.opset, context.importer.opsets)
    if results is None:
        context.refuse("onnx's reference implementation can not evaluate it")
    return [Constant(_stored(result)) for result in results]


def _stored(result: np.ndarray) -> np.ndarray:
    return result.astype(object) if result.dtype.kind in "US" else result
