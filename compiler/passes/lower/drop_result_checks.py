"""drop-result-checks: a result is not checked for the shape that it was allocated with.

`lower-shapes` ends a function with a check of each result whose type has dynamic sizes. Most results are tensors that
the function allocated, with that very shape.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from tvm import relax
from tvm.ir import IRModule

from compiler.passes.context import PipelineContext
from compiler.passes.lower.shape_heap import (
    EQUALS_NUMBER,
    EQUALS_PLACE,
    IS_NUMBER,
    IS_PLACE,
    MAKE_SHAPE,
    MATCH_SHAPE,
    Dimension,
    called,
    made,
    matched,
    number,
)
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.graph import operator_name
from compiler.passes.rewriting.substitution import leaves

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Binding, Expr, Var

_ALLOCATE = "relax.vm.alloc_tensor"
_SHAPE_ARGUMENT = 2  # of an allocation: storage, offset, shape, element type
_SAME = {EQUALS_NUMBER: IS_NUMBER, EQUALS_PLACE: IS_PLACE}


@graph_pass("drop-result-checks", summary="Results are not checked for the shape that they were allocated with")
def drop_result_checks(mod: IRModule, context: PipelineContext) -> IRModule:
    """After `share-shapes`; the heap's places are written once, so that equal ones have equal values."""
    changed = {}
    for variable, function in mod.functions_items():
        if isinstance(function, relax.Function) and isinstance(function.body, relax.SeqExpr):
            bindings = [binding for block in function.body.blocks for binding in block.bindings]
            kept = _kept(bindings, function.body.body)
            if len(kept) < len(bindings):
                body = relax.SeqExpr([relax.BindingBlock(kept)], function.body.body, function.body.span)
                changed[variable] = relax.Function(
                    function.params, body, function.ret_ty, function.is_pure, function.attrs, function.span
                )
    return IRModule({**dict(mod.functions_items()), **changed}, mod.attrs, mod.global_infos) if changed else mod


def _kept(bindings: list[Binding], result: Expr) -> list[Binding]:
    values = {binding.var: binding.value for binding in bindings if isinstance(binding, relax.VarBinding)}
    needed = [binding for binding in bindings if not _is_known(binding.value, values)]
    if len(needed) == len(bindings):
        return bindings
    read = _read(needed, result)
    return [binding for binding in needed if not isinstance(binding.value, relax.TupleGetItem) or binding.var in read]


def _read(bindings: Iterable[Binding], result: Expr) -> set[Expr]:
    return {leaf for binding in bindings for leaf in leaves(binding.value)} | set(leaves(result))


def _is_known(value: Expr, values: dict[Var, Expr]) -> bool:
    """True if a value is a check that cannot fail."""
    if called(value) != MATCH_SHAPE:
        return False
    allocation = values.get(_source(value.args[0], values))
    if allocation is None or operator_name(allocation) != _ALLOCATE:
        return False
    shape = _dimensions(allocation.args[_SHAPE_ARGUMENT], values)
    wanted = matched(value)
    return len(wanted) == len(shape) and all(
        code in _SAME and (_SAME[code], size) == given for (code, size), given in zip(wanted, shape, strict=True)
    )


def _source(variable: Var, values: dict[Var, Expr]) -> Expr:
    """The variable that was bound to a tensor first, found through tuples and other names."""
    value = values.get(variable)
    if isinstance(value, relax.Var):
        return _source(value, values)
    if isinstance(value, relax.TupleGetItem):
        fields = values.get(value.tuple_value)
        if isinstance(fields, relax.Tuple):
            return _source(fields.fields[value.index], values)
    return variable


def _dimensions(shape: Expr, values: dict[Var, Expr]) -> list[Dimension]:
    """Kind of each dimension of a shape; none for one that is not known."""
    if isinstance(shape, relax.ShapeExpr):
        return [(IS_NUMBER, number(size)) for size in shape.values]
    value = values.get(shape)
    return made(value) if called(value) == MAKE_SHAPE else []
