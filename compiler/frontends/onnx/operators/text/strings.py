"""Strings: they do not exist when the module runs, so what is computed from them must be known when compiling."""

from __future__ import annotations

import numpy as np

from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.evaluation.reference import fold_strings
from compiler.frontends.onnx.registry import converter
from compiler.frontends.onnx.values import Constant, Value
from compiler.support.optional import optional_module


@converter("StringConcat", "StringNormalizer", "StringSplit")
def string_function(context: NodeContext) -> list[Value]:
    """Evaluated while importing; refused on anything but constants."""
    return fold_strings(context)


@converter("RegexFullMatch")
def regex_full_match(context: NodeContext) -> Constant:
    """By RE2, whose syntax ONNX prescribes, in time linear in the text; onnx's reference implementation backtracks."""
    texts = context.constant(0)
    re2 = optional_module("re2", "strings", "matches the expressions of RegexFullMatch")
    options = re2.Options()
    options.log_errors = False
    try:
        expression = re2.compile(context.attribute("pattern", ""), options)
    except re2.error as error:
        context.invalid(f"its pattern is not a regular expression of RE2: {error}")
    found = [expression.fullmatch(str(text)) is not None for text in texts.ravel()]
    return Constant(np.array(found, bool).reshape(texts.shape))
