"""cancel-reshapes: a reshape and its inverse are removed, even with elementwise functions between them.

    reshape(f(...reshape(x))) => f(...x), where the outer reshape restores x's shape
    reshape(f(reshape(x), y)) => f(x, reshape(y)), where the inner reshape only inserts dimensions of 1 besides

Kernels then end where the elementwise functions end, not at the first reshape; attention that adds a mask to each
window of an image is recognized.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tvm import relax
from tvm.ir import IRModule

from compiler.passes.context import PipelineContext
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.graph import Call, Expr, Graph, RuleTable, operator_name
from compiler.passes.rewriting.matching import constant_array, same_shape, shape_of

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Index

rules = RuleTable()

_FUNCTIONS = frozenset(
    {
        *(f"relax.{name}" for name in ("astype", "clip", "erf", "exp", "negative", "sigmoid", "sqrt", "tanh")),
        *(f"relax.nn.{name}" for name in ("gelu", "gelu_tanh", "relu", "relu6", "silu")),
    }
)
_OF_TWO = frozenset(f"relax.{name}" for name in ("add", "subtract", "multiply", "divide", "maximum", "minimum"))
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


@rules.on("relax.reshape")
def inserted_dimensions(graph: Graph, call: Call) -> Expr | None:
    """reshape(f(reshape(x), y)) => f(x, reshape(y)), where the inner reshape inserts dimensions of 1"""
    outer = graph.definition(call.args[0])
    if operator_name(outer) not in _OF_TWO or not graph.only_use(call.args[0]):
        return None
    for place, operand in enumerate(outer.args):
        inner = graph.call(operand, "relax.reshape")
        if inner is None or not same_shape(shape_of(inner.args[0]), shape_of(call)):
            continue
        inserted = _inserted(shape_of(inner.args[0]), shape_of(inner))
        other = outer.args[1 - place]
        kept = None if inserted is None else _without(shape_of(other), inserted, len(shape_of(inner) or ()))
        if kept is None or not same_shape(shape_of(outer), shape_of(inner)):
            continue
        arguments = [inner.args[0], graph.emit(relax.op.reshape(other, kept))]
        return relax.Call(outer.op, arguments if place == 0 else arguments[::-1], outer.attrs, outer.ty_args)
    return None


def _inserted(before: Sequence[Index] | None, after: Sequence[Index] | None) -> list[int] | None:
    """Axes of `after`, each of extent 1, that are not in `before`; None where the two differ otherwise."""
    if before is None or after is None or len(after) <= len(before):
        return None
    left = list(before)
    found: list[int] = []
    for axis, size in enumerate(after):
        if left and same_shape([size], left[:1]) and (size != 1 or len(after) - axis == len(left)):
            left.pop(0)
        elif isinstance(size, int) and size == 1:
            found.append(axis)
        else:
            return None
    return None if left else found


def _without(shape: Sequence[Index] | None, axes: Sequence[int], rank: int) -> list[Index] | None:
    """The shape of what is broadcast to `rank` dimensions, without some axes that are 1 in it."""
    if shape is None or len(shape) > rank:
        return None
    full = [*(1 for _ in range(rank - len(shape))), *shape]
    if any(not isinstance(full[axis], int) or full[axis] != 1 for axis in axes):
        return None
    return [size for axis, size in enumerate(full) if axis not in axes]


def _is_of_single_elements(graph: Graph, call: Expr) -> bool:
    """True if each element of the result depends on one element of the first operand, wherever it lies."""
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
