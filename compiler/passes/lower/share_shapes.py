"""share-shapes: create each dynamic shape once.

`lower-shapes` creates a shape at each use, by a call that allocates an object. With small tensors these calls dominate
a run: DLRM with 26 embeddings creates 177 shapes, of which a tenth are distinct.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from tvm import relax
from tvm.ir import IRModule
from tvm_ffi import StructuralKey

from compiler.passes.context import PipelineContext
from compiler.passes.lower.shape_heap import MAKE_SHAPE, called
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.graph import with_body
from schedules.ir.tvm_private import set_type
from schedules.ir.tvm_types import Binding, Expr, SeqExpr

Made = dict[Any, Any]
"""Variables of the shapes created so far, by the arguments of their calls: the heap, and constants or positions on
it."""
Names = dict[Any, Any]
"""Variables of the removed shapes, with their replacements."""


@graph_pass("share-shapes", summary="Create each dynamic shape once")
def share_shapes(mod: IRModule, context: PipelineContext) -> IRModule:
    """Runs after `lower-shapes`, which writes each position on a function's shape heap once, before it is read."""
    result = dict(mod.functions_items())
    changed = False
    for variable, function in mod.functions_items():
        if not isinstance(function, relax.Function) or not isinstance(function.body, relax.SeqExpr):
            continue
        body = _shared(function.body, {}, {})
        if body is not function.body:
            changed = True
            result[variable] = with_body(function, body)
    return IRModule(result, mod.attrs, mod.global_infos) if changed else mod


def _shared(sequence: SeqExpr, shapes: Made, names: Names) -> Expr:
    """Replace repeated shapes in the sequence by the first ones; return it unchanged if there are none."""
    blocks, changed = [], False
    for block in sequence.blocks:
        bindings = []
        for binding in block.bindings:
            key = _shape_key(binding.value)
            variable = binding.var
            if key is not None and key in shapes:
                names[variable] = shapes[key]
                changed = True
                continue
            if key is not None:
                shapes[key] = variable
            new = _renamed(binding, shapes, names)
            changed |= new is not binding
            bindings.append(new)
        blocks.append(relax.BindingBlock(bindings))
    return relax.SeqExpr(blocks, _value(sequence.body, names), sequence.span) if changed else sequence


def _shape_key(value: Expr) -> Hashable:
    """Return a key of a call that creates a shape; None for other values."""
    if called(value) != MAKE_SHAPE:
        return None
    return tuple(each if isinstance(each, relax.Var) else StructuralKey(each) for each in value.args)


def _renamed(binding: Binding, shapes: Made, names: Names) -> Binding:
    """Replace removed shapes in the binding by the first ones; return it unchanged if it uses none."""
    value = binding.value
    new = _choice(value, shapes, names) if isinstance(value, relax.If) else _value(value, names)
    if new is value:
        return binding
    if isinstance(binding, relax.MatchCast):
        return relax.MatchCast(binding.var, new, binding.ty, binding.span)
    return relax.VarBinding(binding.var, new, binding.span)


def _value(value: Expr, names: Names) -> Expr:
    """Return a value of a lowered function: a variable, or a call or tuple of values."""
    if isinstance(value, relax.Var):
        return names.get(value, value)
    if isinstance(value, relax.Tuple):
        fields = [_value(each, names) for each in value.fields]
        return value if _same(fields, value.fields) else relax.Tuple(fields, value.span)
    if not isinstance(value, relax.Call):
        return value
    arguments = [_value(each, names) for each in value.args]
    if _same(arguments, value.args):
        return value
    return relax.Call(value.op, arguments, value.attrs, value.ty_args, value.span, ret_ty=value.ty)


def _same(new: Sequence[Expr], old: Sequence[Expr]) -> bool:
    return all(a.same_as(b) for a, b in zip(new, old, strict=True))


def _choice(choice: Expr, shapes: Made, names: Names) -> Expr:
    """Return an If whose branches use the shapes created before it; shapes created in a branch are not visible after
    it."""
    branches = [choice.true_branch, choice.false_branch]
    shared = [
        _shared(branch, dict(shapes), names) if isinstance(branch, relax.SeqExpr) else _value(branch, names)
        for branch in branches
    ]
    if _same(shared, branches):
        return choice
    result = relax.If(choice.cond, *shared, choice.span)
    set_type(result, choice.ty)
    return result
