"""compute-with-int16: split products of 16-bit activations and 8-bit weights into two 8-bit products.

    x = 256 h + l,   h = x >> 8,   l = x & 255
    conv(dequantize(x), dequantize(w)) => scale * (256 conv(h, w) + conv(l, w) - offset), all in int32

Sums are exact: products whose sums might overflow int32 for some data stay in float32. Only for CPUs with 8-bit dot
products: elsewhere two integer products are slower than one in float32. `compute-in-integers` then handles the sums.
"""

from __future__ import annotations

import numpy as np
from tvm import relax
from tvm.ir import IRModule

from compiler.passes.context import PipelineContext
from compiler.passes.integers.compute_in_integers import (
    IntegerWeight,
    Quantized,
    dequantized_operand,
    integer_convolution,
    integer_weight,
    is_plain_convolution,
    is_plain_matmul,
    scaled_sum,
)
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.graph import Call, Expr, Graph, RuleTable
from compiler.passes.rewriting.matching import Array, as_constant, dtype_of
from schedules.instructions.dot_products.table import multiplies_bytes

rules = RuleTable()

WORDS = ("int16", "uint16")
# Upper bound of the sums, with room for adding a bias.
_MAX_SUM = 2**30


@graph_pass("compute-with-int16", summary="Compute with 16-bit activations as two 8-bit products", only="processor")
def compute_with_int16(mod: IRModule, context: PipelineContext) -> IRModule:
    """See the equations in the module docstring."""
    if context.machine is None or not multiplies_bytes(context.machine):
        return mod
    return rules.apply(mod)


@rules.on("relax.nn.conv1d", "relax.nn.conv2d", "relax.nn.conv3d")
def convolution(graph: Graph, call: Call) -> Expr | None:
    """conv(dequantize(x), dequantize(w)) => scale * (256 conv(h, w) + conv(l, w) - offset)"""
    operands = _operands(graph, call, 0) if is_plain_convolution(call) else None
    if operands is None:
        return None
    data, weight = operands
    zero = int(data.zero.reshape(()))
    high, low = (
        integer_convolution(graph, call, part, weight, padding)
        for part, padding in zip(_halves(graph, data.data), (zero >> 8, zero & 0xFF), strict=True)
    )
    return scaled_sum(graph, _joined(graph, high, low), data, weight, len(call.attrs.strides))


@rules.on("relax.matmul")
def matmul(graph: Graph, call: Call) -> Expr | None:
    """matmul(dequantize(x), dequantize(w)) => scale * (256 matmul(h, w) + matmul(l, w) - offset)"""
    operands = _operands(graph, call, 1) if is_plain_matmul(call) else None
    if operands is None:
        return None
    data, weight = operands
    values = as_constant(weight.values)
    high, low = (graph.emit(relax.op.matmul(part, values, out_dtype="int32")) for part in _halves(graph, data.data))
    return scaled_sum(graph, _joined(graph, high, low), data, weight)


def _operands(graph: Graph, call: Call, filters: int) -> tuple[Quantized, IntegerWeight] | None:
    """Return 16-bit data and 8-bit weights whose sums fit int32."""
    data, weight = dequantized_operand(graph, call.args[0], WORDS), integer_weight(graph, call.args[1], filters)
    if data is None or weight is None or not data.is_scalar or weight.values.dtype != np.int8:
        return None
    symmetric = dtype_of(data.data) == "int16" and not data.zero.any()
    return (data, weight) if sums_fit(weight.values, filters, symmetric=symmetric) else None


def sums_fit(weight: Array, filters: int, *, symmetric: bool = True) -> bool:
    """True if int32 holds the sums of any 16-bit data times integer weights with one filter per entry of an axis.
    `symmetric`: the data is int16 with zero point 0: |256 h| + |l| is at most 2**15 + 2**8; otherwise twice that."""
    others = tuple(axis for axis in range(weight.ndim) if axis != filters)
    largest = int(np.abs(weight.astype(np.int64)).sum(axis=others).max())
    return largest * (2**15 + 2**8) * (1 if symmetric else 2) < _MAX_SUM


def _halves(graph: Graph, data: Expr) -> tuple[Expr, Expr]:
    """Split into the upper and the lower bytes."""
    dtype = dtype_of(data)
    high = graph.emit(relax.op.right_shift(data, as_constant(np.asarray(8, dtype))))
    low = graph.emit(relax.op.bitwise_and(data, as_constant(np.asarray(0xFF, dtype))))
    return (
        graph.emit(relax.op.astype(high, "int8" if dtype == "int16" else "uint8")),
        graph.emit(relax.op.astype(low, "uint8")),
    )


def _joined(graph: Graph, high: Expr, low: Expr) -> Expr:
    shifted = graph.emit(relax.op.multiply(high, as_constant(np.asarray(256, np.int32))))
    return graph.emit(relax.op.add(shifted, low))
