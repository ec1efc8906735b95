"""Static value ranges of expressions."""

from __future__ import annotations

import numpy as np

from compiler.passes.rewriting.graph import Expr, Graph, operator_name
from compiler.passes.rewriting.matching import constant_array, dtype_of

_ALWAYS = {"exp", "sigmoid", "abs", "square", "nn.softmax", "variance", "std", "nn.softplus"}
# Of operands that are non-negative themselves.
_INHERITED = {"sum", "mean", "max", "min", "prod", "reshape", "add", "multiply", "divide", "permute_dims"}
_INHERITED |= {"broadcast_to", "maximum", "minimum", "expand_dims", "squeeze", "astype", "strided_slice"}
_INHERITED |= {"sqrt", "rsqrt", "nn.relu", "take"}


def is_non_negative(graph: Graph, expr: Expr, depth: int = 6) -> bool:
    """True if every element that is not NaN is provably at least +0 (-0 is not: 1/sqrt(-0) is -inf)."""
    constant = constant_array(graph, expr)
    if constant is not None:
        return constant.size <= 4096 and not bool((np.signbit(constant) | np.isnan(constant)).any())
    value = graph.definition(expr)
    name = (operator_name(value) or "").removeprefix("relax.")
    if not name or depth == 0:
        return False
    if name in _ALWAYS or (name == "multiply" and value.args[0].same_as(value.args[1])):
        return True
    tensors = value.args[:1] if name == "take" else [each for each in value.args if dtype_of(each)]
    return name in _INHERITED and all(is_non_negative(graph, operand, depth - 1) for operand in tensors)
