"""cancel-reshapes: a reshape and its inverse are removed, even with elementwise functions between them.

    reshape(f(...reshape(x))) => f(...x), where the outer reshape restores x's shape

Kernels then end where the elementwise functions end, not at the first reshape.
"""

from __future__ import annotations

from tvm import relax
from tvm.ir import IRModule

from compiler.passes.context import PipelineContext
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.graph import Call, Expr, Graph, RuleTable, operator_name
from compiler.passes.rewriting.matching import constant_array, same_shape, shape_of

rules = RuleTable()

_FUNCTIONS = frozenset(
    {
        *(f"relax.{name}" for name in ("astype", "clip", "erf", "exp", "negative", "sigmoid", "sqrt", "tanh")),
        *(f"relax.nn.{name}" for name in ("gelu", "gelu_tanh", "relu", "relu6", "silu")),
    }
)
_WITH_SCALARS = frozenset(
    f"relax.{name}" for name in ("quantize", "dequantize", "add", "subtract", "multiply", "divide")
)


@graph_pass("cancel-reshapes", summary="Remove reshapes that a later reshape undoes")
def cancel_reshapes(mod: IRModule, context: PipelineContext) -> IRModule:
    """See the equation in the module's documentation."""
    return rules.apply(mod)


@rules.on("relax.reshape")
def reshaped_back(graph: Graph, call: Call) -> Expr | None:
    """reshape(f(reshape(x))) => f(x)"""
    functions: list[Call] = []
    expr = call.args[0]
    while graph.only_use(expr):
        inner = graph.definition(expr)
        if operator_name(inner) == "relax.reshape":
            if not functions or not same_shape(shape_of(inner.args[0]), shape_of(call)):
                return None
            return _applied(graph, functions, inner.args[0])
        if not _is_of_single_elements(graph, inner):
            return None
        functions.append(inner)
        expr = inner.args[0]
    return None


def _is_of_single_elements(graph: Graph, call: Expr) -> bool:
    """Whether each element of the result depends on one element of the first operand, wherever it lies."""
    name = operator_name(call)
    if name in _FUNCTIONS:
        return True
    if name not in _WITH_SCALARS:
        return False
    arrays = [constant_array(graph, each) for each in list(call.args)[1:]]
    return all(array is not None and array.ndim == 0 for array in arrays)


def _applied(graph: Graph, functions: list[Call], value: Expr) -> Expr:
    """The functions, the last one first in the list, on another value."""
    for function in reversed(functions):
        value = graph.emit(relax.Call(function.op, [value, *list(function.args)[1:]], function.attrs, function.ty_args))
    return value
