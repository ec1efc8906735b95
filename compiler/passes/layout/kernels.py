"""Elementwise, maximum and average kernels written by a frontend: rewritten over blocked operands.

Elementwise operators: the same operator on blocked operands, with the other operands broadcast to them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tvm import relax, te, tirx
from tvm.ir import GenericConst

from compiler.passes.layout.pooling import average_kernel, maximum_kernel
from compiler.passes.layout.values import BLOCKABLE, Blocked, LayoutBuilder, Value, handles
from compiler.passes.rewriting.matching import array_of, dtype_of, same_shape, shape_of
from schedules.ir.access import used_outside_indices
from schedules.ir.expression import constant_int, map_loads, uses
from schedules.ir.inline import inline_stages
from schedules.ir.stages import Kernel, Stage
from schedules.ir.stages import shape_of as buffer_shape
from schedules.ir.tvm_types import Call, Expr, Index, PrimFunc, Tensor, Var


@handles("relax.call_tir")
def kernel(builder: LayoutBuilder, call: Call) -> Blocked | Value | None:
    """Handle elementwise kernels, maxima over the image, and averages over windows."""
    return average_kernel(builder, call) or elementwise_kernel(builder, call) or maximum_kernel(builder, call)


def elementwise_kernel(builder: LayoutBuilder, call: Call) -> Blocked | None:
    shape = shape_of(call)
    arguments = call.args[1]
    if shape is None or dtype_of(call) not in BLOCKABLE or len(call.args) > 2 or not isinstance(arguments, relax.Tuple):
        return None
    function = builder.function(call.args[0])
    # A kernel's arguments other than tensors are the sizes in its shapes.
    given_to = list(zip(function.params, arguments.fields, strict=False))
    pairs = [(parameter, each) for parameter, each in given_to if isinstance(each.ty, relax.TensorType)]
    operands = [each for _, each in pairs]
    anchor = anchor_of(builder, operands, shape)
    if anchor is None:
        return None
    stage = _elementwise_stage(function)
    if stage is None or _computes_with_sizes(stage, function):
        return None
    inputs: list[Expr] = []
    for operand in operands:
        blocked = _scalar(operand)
        blocked = builder.broadcast(operand, anchor) if blocked is None else blocked
        if blocked is None:
            return None
        inputs.append(blocked)
    parameters = [parameter for parameter, _ in pairs]
    result = _emit(builder, stage, parameters, inputs, anchor, str(call.args[0].name_hint))
    return Blocked(result, anchor.shape, anchor.order)


def _computes_with_sizes(stage: Stage, function: PrimFunc) -> bool:
    """True if the value that the kernel stores depends on a size."""
    assert stage.store is not None
    value = map_loads(stage.store.value, lambda load: tirx.Var("loaded", load.ty))
    return any(uses(value, size) for size in _sizes(function))


def _sizes(function: PrimFunc) -> set[Var]:
    """Return the variables in a kernel's shapes."""
    sizes: set[Var] = {each for each in function.params if not tirx.is_buffer_var(each)}
    for parameter in function.params:
        if tirx.is_buffer_var(parameter):
            sizes.update(var for size in parameter.ty.shape for var in tirx.analysis.undefined_vars(size))
    return sizes


def _scalar(operand: Expr) -> Expr | None:
    """Return a one-element constant as an expression."""
    if not isinstance(operand, GenericConst):
        return None
    array = array_of(operand)
    if array.size != 1 or array.dtype.name not in ("float32", "int32", "int64", "bool"):
        return None
    return tirx.const(np.asarray(array).reshape(()).item(), array.dtype.name)


def _elementwise_stage(function: PrimFunc) -> Stage | None:
    """Return the only stage if each output element depends only on the operands' elements at its own position."""
    stages = inline_stages(Kernel.of(function))
    stage = stages[0] if len(stages) == 1 else None
    if not isinstance(stage, Stage) or stage.store is None or stage.reduction or stage.init is not None:
        return None
    if any(used_outside_indices(stage.body, axis.var) for axis in stage.axes):
        return None
    output = [each for each in function.params if tirx.is_buffer_var(each)][-1]
    if not stage.store.buffer.same_as(output) or len(stage.writes) != 1:
        return None
    positions = list(stage.store.indices)
    if not all(any(axis.var.same_as(index) for axis in stage.axes) or constant_int(index) == 0 for index in positions):
        return None
    return stage if all(_at_own_position(load, positions) for load in stage.loads) else None


def _at_own_position(load: Expr, positions: list[Expr]) -> bool:
    """True if a load's indices are the output's, aligned at the end, or 0 for an axis of size 1."""
    sizes = buffer_shape(load.source)
    if len(sizes) > len(positions):
        return False
    trailing = positions[len(positions) - len(sizes) :]
    return all(
        index.same_as(point) or constant_int(index) == constant_int(point) or (size == 1 and constant_int(index) == 0)
        for index, point, size in zip(load.indices, trailing, sizes, strict=True)
        if not (size == 1 and index.same_as(point))
    )


def _emit(
    builder: LayoutBuilder, stage: Stage, parameters: list[Expr], arguments: list[Expr], anchor: Blocked, name: str
) -> Expr:
    tensors = [each for each in arguments if isinstance(each, relax.Var | GenericConst)]
    anchor_index = next(i for i, each in enumerate(tensors) if each is anchor.expr or each.same_as(anchor.expr))

    def kernel(*operands: Tensor) -> Tensor:
        remaining = iter(operands)
        values = [next(remaining) if isinstance(each, relax.Var | GenericConst) else each for each in arguments]

        def point(*at: Expr) -> Expr:
            def replace(load: Expr) -> Expr:
                position = next(i for i, parameter in enumerate(parameters) if parameter.same_as(load.source))
                value = values[position]
                if not isinstance(value, te.Tensor):
                    return value
                if len(value.shape) == 0:
                    return value()
                sizes = zip(value.shape, operands[anchor_index].shape, at, strict=True)
                indices = [0 if _is_one(mine) and not _is_one(full) else index for mine, full, index in sizes]
                return value(*indices)

            return map_loads(stage.store.value, replace)  # type: ignore[union-attr]

        return te.compute(operands[anchor_index].shape, point, name=name)

    return builder.emit_kernel(kernel, *tensors, name=name)


def _is_one(size: Expr) -> bool:
    return bool(constant_int(size) == 1)


_ARITHMETIC = ("add", "subtract", "multiply", "divide", "power", "maximum", "minimum", "where")
_FUNCTIONS = ("abs", "ceil", "clip", "cos", "erf", "exp", "floor", "log", "negative", "round", "rsqrt", "sigmoid")
_BITS = ("bitwise_and", "right_shift")
_MORE_FUNCTIONS = ("sign", "sin", "sqrt", "square", "tan", "tanh", "sinh", "cosh", "atan")
_ACTIVATIONS = ("relu", "relu6", "leakyrelu", "gelu", "gelu_tanh", "silu", "selu", "softplus")

ELEMENTWISE = (
    *(f"relax.{name}" for name in (*_ARITHMETIC, *_BITS, *_FUNCTIONS, *_MORE_FUNCTIONS)),
    *(f"relax.nn.{name}" for name in _ACTIVATIONS),
)


@handles(*ELEMENTWISE)
def elementwise(builder: LayoutBuilder, call: Call) -> Blocked | None:
    shape = shape_of(call)
    if dtype_of(call) not in BLOCKABLE:
        return None
    anchor = anchor_of(builder, call.args, shape)
    if anchor is None:
        return None
    arguments = []
    for argument in call.args:
        if not isinstance(argument.ty, relax.TensorType):
            arguments.append(argument)
            continue
        operand = builder.broadcast(argument, anchor)
        if operand is None:
            return None
        arguments.append(operand)
    result = builder.emit(relax.Call(call.op, arguments, call.attrs, call.ty_args), "blocked")
    return Blocked(result, anchor.shape, anchor.order)


def anchor_of(builder: LayoutBuilder, operands: Sequence[Expr], shape: Sequence[Index] | None) -> Blocked | None:
    """Return the operand that has the shape of the result and a blocked form."""
    for argument in operands:
        blocked = builder.blocked(argument)
        if blocked is not None and same_shape(list(blocked.shape), shape):
            return blocked
    return None
