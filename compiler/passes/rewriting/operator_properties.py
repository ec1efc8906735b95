"""Properties of operators and expressions: elementwise, non-negative."""

from __future__ import annotations

import numpy as np

from compiler.passes.rewriting.graph import Expr, Graph, operator_name
from compiler.passes.rewriting.matching import constant_array, dtype_of

_UNARY = """
    abs acos acosh asin asinh astype atan atanh bitwise_not ceil clip cos cosh erf exp floor isfinite isinf isnan log
    logical_not negative round rsqrt sigmoid sign sin sinh sqrt square tan tanh trunc
    nn.gelu nn.gelu_tanh nn.leakyrelu nn.relu nn.selu nn.silu nn.softplus
"""
_BINARY = """
    add atan2 bitwise_and bitwise_or bitwise_xor divide equal floor_divide floor_mod greater greater_equal left_shift
    less less_equal log_add_exp logical_and logical_or logical_xor maximum minimum mod multiply not_equal power
    right_shift subtract
"""

# With one tensor operand, the first; further operands are numbers.
UNARY = tuple(f"relax.{name}" for name in _UNARY.split())
# With two tensor operands that broadcast against each other.
BINARY = tuple(f"relax.{name}" for name in _BINARY.split())


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
