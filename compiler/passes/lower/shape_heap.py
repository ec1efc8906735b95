"""Functions on the shape heap, as `lower-shapes` leaves them, and calls of TVM's runtime on shapes: names, and codes of
their arguments.

A match takes a tensor, the shape heap, the rank, then (code, value) for each dimension, and a context; a shape is made
of the heap, the rank, and (code, value) for each dimension.

order-sizes: sizes are computed in the order of their places on the shape heap.

TVM goes through a set of pointers there, so that the order of independent statements differs from process to process.

share-shapes: each shape of dynamic sizes is made once.

`lower-shapes` makes a shape wherever one is used, by a call that allocates an object. Where tensors are small, these
calls are most of a run: DLRM with 26 embeddings makes 177 shapes, of which a tenth differ.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

from tvm import relax, tirx
from tvm.ir import IRModule
from tvm.tirx import IntImm
from tvm_ffi import StructuralKey

from compiler.passes.context import PipelineContext
from compiler.passes.registry import graph_pass
from schedules.ir.access import accesses_of
from schedules.ir.tvm_private import set_type
from schedules.ir.tvm_types import Binding, Call, Expr, SeqExpr

_HOST = "tirx.is_host_func"


def is_shape_function(function: tirx.PrimFunc) -> bool:
    """True if a function computes on the shape heap."""
    return bool(function.attrs and _HOST in function.attrs)


def rewrite_shape_functions(mod: IRModule, rewrite: Callable[[tirx.PrimFunc], tirx.PrimFunc | None]) -> IRModule:
    """The module with each function on the shape heap replaced by what `rewrite` makes of it; None leaves it."""
    changed = {}
    for variable, function in mod.functions_items():
        if isinstance(function, tirx.PrimFunc) and is_shape_function(function):
            rewritten = rewrite(function)
            if rewritten is not None:
                changed[variable] = rewritten
    return IRModule({**dict(mod.functions_items()), **changed}, mod.attrs, mod.global_infos) if changed else mod


MAKE_SHAPE = "vm.builtin.make_shape"
MATCH_SHAPE = "vm.builtin.match_shape"
CHECK_TYPE = "vm.builtin.check_tensor_info"
ALLOCATE_HEAP = "vm.builtin.alloc_shape_heap"

_FIRST_CODE_OF_MATCH, _FIRST_CODE_OF_SHAPE = 3, 2
EQUALS_NUMBER, STORES, EQUALS_PLACE = 0, 1, 3  # what a match does with a dimension
IS_NUMBER, IS_PLACE = 0, 1  # what a dimension of a shape is

Dimension = tuple[int | None, int | None]
"""A code and its value: a number, or a place on the heap."""


def called(call: Expr) -> str | None:
    """The name of the function of the runtime that a call calls; None for everything else."""
    if not isinstance(call, relax.Call):
        return None
    name = getattr(call.op, "name", "")
    callee = call.args[0] if name == "relax.call_builtin_with_ctx" else call.op
    return str(callee.global_symbol) if isinstance(callee, relax.ExternFunc) else None


def matched(call: Call) -> list[Dimension]:
    """Action of a match on each dimension."""
    return _pairs(call.args[_FIRST_CODE_OF_MATCH:-1])


def made(call: Call) -> list[Dimension]:
    """Kind of each dimension of a shape."""
    return _pairs(call.args[_FIRST_CODE_OF_SHAPE:])


def number(expression: Expr) -> int | None:
    """The integer that an argument is."""
    value = getattr(expression, "value", expression)
    return int(value) if isinstance(value, int | IntImm) else None


def _pairs(arguments: list[Expr]) -> list[Dimension]:
    numbers = [number(each) for each in arguments]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


@graph_pass("order-sizes", summary="Compute sizes in one order, whatever the process")
def order_sizes(mod: IRModule, context: PipelineContext) -> IRModule:
    """After `lower-shapes`: the statements of each function on the shape heap by the place that they write."""
    return rewrite_shape_functions(mod, _ordered)


def _ordered(function: tirx.PrimFunc) -> tirx.PrimFunc | None:
    """The function with its statements in order; None when they are, or when one may read what another writes."""
    body = function.body
    if not isinstance(body, tirx.SeqStmt) or not all(isinstance(each, tirx.BufferStore) for each in body.seq):
        return None
    places = [_place(each.indices) for each in body.seq]
    reads = [_place(access.indices) for each in body.seq for access in accesses_of(each.value)]
    if None in places or None in reads or set(places) & set(reads) or len(set(places)) < len(places):
        return None
    order = sorted(range(len(places)), key=lambda index: places[index] or 0)
    if order == list(range(len(places))):
        return None
    return function.with_body(tirx.SeqStmt([body.seq[index] for index in order]), function.span)


def _place(indices: Sequence[Expr]) -> int | None:
    """The constant place on the heap."""
    (index,) = indices
    return int(index.value) if isinstance(index, tirx.IntImm) else None


Made = dict[Any, Any]
"""Variables of the shapes made so far, by the arguments of their calls: the heap, and constants or places on it."""
Names = dict[Any, Any]
"""The variables of shapes that are left out, and the ones in their places."""


@graph_pass("share-shapes", summary="Make each shape of dynamic sizes once")
def share_shapes(mod: IRModule, context: PipelineContext) -> IRModule:
    """After `lower-shapes`, which writes each place on a function's shape heap once, before it is read."""
    result = dict(mod.functions_items())
    changed = False
    for variable, function in mod.functions_items():
        if not isinstance(function, relax.Function) or not isinstance(function.body, relax.SeqExpr):
            continue
        body = _shared(function.body, {}, {})
        if body is not function.body:
            changed = True
            result[variable] = relax.Function(
                function.params, body, function.ret_ty, function.is_pure, function.attrs, function.span
            )
    return IRModule(result, mod.attrs, mod.global_infos) if changed else mod


def _shared(sequence: SeqExpr, made: Made, names: Names) -> Expr:
    """The sequence with its repeated shapes left out and the first ones used; itself when there are none."""
    blocks, changed = [], False
    for block in sequence.blocks:
        bindings = []
        for binding in block.bindings:
            key = _shape_key(binding.value)
            variable = binding.var
            if key is not None and key in made:
                names[variable] = made[key]
                changed = True
                continue
            if key is not None:
                made[key] = variable
            new = _renamed(binding, made, names)
            changed |= new is not binding
            bindings.append(new)
        blocks.append(relax.BindingBlock(bindings))
    return relax.SeqExpr(blocks, _value(sequence.body, names), sequence.span) if changed else sequence


def _shape_key(value: Expr) -> Hashable:
    """Key of a call that makes a shape; None for other values."""
    if called(value) != MAKE_SHAPE:
        return None
    return tuple(each if isinstance(each, relax.Var) else StructuralKey(each) for each in value.args)


def _renamed(binding: Binding, made: Made, names: Names) -> Binding:
    """The binding with the first shapes for those that were left out; itself when it uses none."""
    value = binding.value
    new = _choice(value, made, names) if isinstance(value, relax.If) else _value(value, names)
    if new is value:
        return binding
    if isinstance(binding, relax.MatchCast):
        return relax.MatchCast(binding.var, new, binding.ty, binding.span)
    return relax.VarBinding(binding.var, new, binding.span)


def _value(value: Expr, names: Names) -> Expr:
    """A value of a lowered function: a variable, or a call or tuple of such values."""
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


def _choice(choice: Expr, made: Made, names: Names) -> Expr:
    """An If whose branches use the shapes made before it; what one of them makes is not there afterwards."""
    branches = [choice.true_branch, choice.false_branch]
    shared = [
        _shared(branch, dict(made), names) if isinstance(branch, relax.SeqExpr) else _value(branch, names)
        for branch in branches
    ]
    if _same(shared, branches):
        return choice
    result = relax.If(choice.cond, *shared, choice.span)
    set_type(result, choice.ty)
    return result
