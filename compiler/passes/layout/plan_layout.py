"""plan-layout: convolutions and what lies between them in blocked layouts, weights packed while compiling.

Every value of a dataflow block has a plain form, a blocked one (channels in blocks as wide as a vector register, the
block innermost), or both, each made when an operator first asks for it. Convolutions return blocked results; operators
that can compute on blocked operands do so when an operand is blocked; all others, and the block's outputs, get plain
operands. So there is a conversion only where a region begins or ends, and it is made once. A function without a
convolution is left as it is.
"""

from __future__ import annotations

from tvm import relax
from tvm.ir import IRModule

from compiler.passes.context import PipelineContext
from compiler.passes.layout import convolution, integer, kernels, pooling, rearrange, transposed  # noqa: F401
from compiler.passes.layout.regions import plain_values
from compiler.passes.layout.values import ANCHORS, HANDLERS, NARROW_READERS, Blocked, LayoutBuilder, Value
from compiler.passes.layout.windows import AverageWindow
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.graph import count_uses, operator_name, rewritable_functions
from compiler.passes.rewriting.matching import dtype_of
from schedules.instructions.products.operation import HALVES
from schedules.ir.tvm_types import Binding, BindingBlock, Call, Expr, Function, Var


@graph_pass(
    "plan-layout", summary="Lay out convolution regions in blocks of channels and pack their weights", only="processor"
)
def plan_layout(mod: IRModule, context: PipelineContext) -> IRModule:
    machine = context.machine
    if machine is None:
        return mod
    wanted = [(var, function) for var, function in rewritable_functions(mod) if _has_anchor(function)]
    if not wanted:
        return mod
    builder = relax.BlockBuilder(mod)
    halves = HALVES.get(context.options.precision)

    def layout() -> LayoutBuilder:
        return LayoutBuilder(builder, mod, machine, context.expansions, halves=halves, choose=context.choose)

    planned = {var: _plan(function, layout()) for var, function in wanted}
    result = builder.get()
    for var, function in planned.items():
        result.update_func(var, function)
    return relax.transform.DeadCodeElimination()(relax.transform.Normalize()(result))


def _has_anchor(function: Function) -> bool:
    body = function.body
    return isinstance(body, relax.SeqExpr) and any(
        operator_name(binding.value) in ANCHORS
        for block in body.blocks
        if isinstance(block, relax.DataflowBlock)
        for binding in block.bindings
    )


def _plan(function: Function, builder: LayoutBuilder) -> Function:
    if builder.halves is not None:
        builder.wanted_narrow = _wanted_narrow(function)
    blocks = [
        _plan_block(block, builder) if isinstance(block, relax.DataflowBlock) else block
        for block in function.body.blocks
    ]
    body = relax.SeqExpr(blocks, function.body.body, function.body.span)
    return relax.Function(function.params, body, function.ret_ty, function.is_pure, function.attrs, function.span)


def _wanted_narrow(function: Function) -> set[Expr]:
    """The variables that some operator reads in 16 bits."""
    counts: dict[Var, int] = {}
    readers: dict[Var, list[str]] = {}
    count_uses(function.body, counts, readers)
    return {variable for variable, names in readers.items() if not NARROW_READERS.isdisjoint(names)}


def _plan_block(block: BindingBlock, builder: LayoutBuilder) -> BindingBlock:
    builder.forget_block()
    builder.kept_plain = plain_values(block, lambda call: _averages(call, builder))
    for binding in block.bindings:
        if isinstance(binding, relax.MatchCast):
            operand = builder.plain(binding.value)
            builder.bindings.append(relax.MatchCast(binding.var, operand, binding.ty, binding.span))
            continue
        _plan_binding(binding, builder)
    return relax.DataflowBlock(builder.bindings, block.span)


def _averages(call: Call, builder: LayoutBuilder) -> bool:
    """True if a call is of a kernel that averages over windows."""
    return operator_name(call) == "relax.call_tir" and AverageWindow.of(builder.function(call.args[0])) is not None


def _plan_binding(binding: Binding, builder: LayoutBuilder) -> None:
    value = binding.value
    builder.start_binding(binding.var, value)
    answer = None if binding.var in builder.kept_plain else _answer(value, builder)
    if isinstance(answer, Blocked):
        answer = _value_of(answer, binding.var, builder)
    if isinstance(binding.var, relax.DataflowVar):
        if answer is not None:
            builder.define(binding.var, answer)
            return
    elif answer is not None:
        value = builder.plain_value(answer)
        builder.bindings.append(relax.VarBinding(binding.var, value))
        return
    builder.bindings.append(relax.VarBinding(binding.var, _on_plain(value, builder)))


def _value_of(blocked: Blocked, variable: Var, builder: LayoutBuilder) -> Value:
    """A result, in 16 bits where a reader wants it: rounding it is the last step of the kernel that makes it."""
    if blocked.narrow:
        return Value(narrow=blocked)
    if variable in builder.wanted_narrow and dtype_of(blocked.expr) == "float32":
        return Value(narrow=builder.narrowed(blocked))
    return Value(blocked=blocked)


def _answer(value: Expr, builder: LayoutBuilder) -> Blocked | Value | None:
    if isinstance(value, relax.Var):
        return builder.value(value)
    if isinstance(value, relax.TupleGetItem):
        parts = builder.value(value.tuple_value).parts
        return parts[int(value.index)] if parts is not None else None
    if isinstance(value, relax.Tuple):
        return Value(parts=[builder.value(each) for each in value.fields])
    handler = HANDLERS.get(operator_name(value) or "")
    return handler(builder, value) if handler is not None else None


def _on_plain(value: Expr, builder: LayoutBuilder) -> Expr:
    """The same expression on plain operands."""
    if isinstance(value, relax.Call):
        arguments = [_plain_operand(each, builder) for each in value.args]
        return relax.Call(value.op, arguments, value.attrs, value.ty_args, value.span, ret_ty=value.ty)
    return _plain_operand(value, builder)


def _plain_operand(value: Expr, builder: LayoutBuilder) -> Expr:
    if isinstance(value, relax.Var):
        return builder.plain(value)
    if isinstance(value, relax.Tuple):
        return relax.Tuple([_plain_operand(each, builder) for each in value.fields], value.span)
    if isinstance(value, relax.TupleGetItem):
        return relax.TupleGetItem(builder.plain(value.tuple_value), value.index)
    return value
