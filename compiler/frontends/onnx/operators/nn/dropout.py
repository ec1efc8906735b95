"""Dropout, which lets everything through when a model is run."""

from __future__ import annotations

from tvm import relax

from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.tensor.create import filled
from compiler.frontends.onnx.registry import converter
from compiler.frontends.onnx.values import Value


@converter("Dropout", since=7)
def dropout(context: NodeContext) -> list[Value | relax.Expr | None]:
    """The input and, when asked for, a mask of ones."""
    if context.opset >= 12 and context.has_input(2) and bool(context.scalar(2)):
        ratio = float(context.scalar(1, 0.5))
        if ratio != 0.0:
            context.refuse("in training mode it drops elements at random")
    if not context.output_used(1):
        return [context.tensor(0), None]
    dtype = "bool" if context.opset >= 10 else context.dtype(0)
    return [context.tensor(0), filled(context, 1, dtype, context.shape(0))]
