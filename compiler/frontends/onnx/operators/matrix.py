"""Matrix products."""

from __future__ import annotations

from tvm import relax
from tvm.relax import op as R

from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.registry import converter


@converter("Gemm", since=7)
def gemm(context: NodeContext) -> relax.Expr:
    """alpha * A' * B' + beta * C, where ' is an optional transposition."""
    a, b = context.input(0), context.input(1)
    dtype = context.dtype(0)
    if context.attribute("transA", 0):
        a = context.emit(R.permute_dims(a))
    if context.attribute("transB", 0):
        b = context.emit(R.permute_dims(b))
    product = context.emit(R.matmul(a, b))
    alpha, beta = context.attribute("alpha", 1.0), context.attribute("beta", 1.0)
    if alpha != 1.0:
        product = context.emit(R.multiply(product, context.literal(alpha, dtype)))
    if not context.has_input(2):
        return product
    bias = context.input(2)
    if beta != 1.0:
        bias = context.emit(R.multiply(bias, context.literal(beta, dtype)))
    return R.add(product, bias)
