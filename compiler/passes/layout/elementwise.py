"""Elementwise operators: the same operator on blocked operands, the others broadcast to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tvm import relax

from compiler.passes.layout.table import handles
from compiler.passes.layout.values import BLOCKABLE, Blocked, LayoutBuilder
from compiler.passes.rewriting.matching import dtype_of, same_shape, shape_of

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Call, Expr, Index

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
    """The operand that has the shape of the result and lies in blocks."""
    for argument in operands:
        blocked = builder.blocked(argument)
        if blocked is not None and same_shape(list(blocked.shape), shape):
            return blocked
    return None
