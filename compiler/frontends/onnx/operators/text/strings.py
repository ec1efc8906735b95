"""Strings: they do not exist when the module runs, so what is computed from them must be known when compiling."""

from __future__ import annotations

from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.evaluation.reference import fold_strings
from compiler.frontends.onnx.registry import converter
from compiler.frontends.onnx.values import Value


@converter("StringConcat", "StringNormalizer", "StringSplit", "RegexFullMatch")
def string_function(context: NodeContext) -> list[Value]:
    """Evaluated while importing; refused on anything but constants."""
    return fold_strings(context)
