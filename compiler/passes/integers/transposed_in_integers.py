"""transposed-in-integers: turn transposed convolutions of quantized tensors into plain ones, computed in integers.

conv_transpose(dequantize(x), dequantize(w))   => interleave(conv(dequantize(x), dequantize(w'))) interleave(y) + bias
=> interleave(y + bias') relu, clip, quantize (interleave(y))           => interleave(relu, clip, quantize (y))

See `interleaved`. Operators that read the sums move before the interleaving, which then moves bytes;
`compute-in-integers` handles the plain convolution.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import relax
from tvm.ir import IRModule

from compiler.passes.context import PipelineContext
from compiler.passes.integers.compute_in_integers import dequantized_operand
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.constant_products import Interleaved
from compiler.passes.rewriting.graph import Call, Expr, Graph, RuleTable
from compiler.passes.rewriting.matching import (
    Array,
    as_constant,
    both_orders,
    constant_array,
    dtype_of,
    same_shape,
    shape_of,
    static_shape,
)

rules = RuleTable()

_OPERATORS = tuple(f"relax.nn.conv{rank}d_transpose" for rank in (1, 2, 3))
_DATA = ("int8", "uint8", "int16", "uint16")


@graph_pass("transposed-in-integers", summary="Turn transposed convolutions of quantized tensors into plain ones")
def transposed_in_integers(mod: IRModule, context: PipelineContext) -> IRModule:
    """See the equations in the module docstring."""
    return rules.apply(mod)


@rules.on(*_OPERATORS)
def transposed(graph: Graph, call: Call) -> Expr | None:
    """conv_transpose(dequantize(x), dequantize(w)) => interleave(conv(dequantize(x), dequantize(w')))"""
    form = Interleaved.of(call) if dtype_of(call) == "float32" else None
    data, weight = (dequantized_operand(graph, each, _DATA) for each in call.args)
    if form is None or data is None or weight is None:
        return None
    values = constant_array(graph, weight.data)
    shared = weight.scale.size == weight.zero.size == 1
    if values is None or values.dtype.itemsize != 1 or not (shared or (weight.axis == 1 and form.groups == 1)):
        return None
    if not shared and (weight.zero != weight.zero.flat[0]).any():
        return None
    zero = int(weight.zero.flat[0])
    parameters = [each.reshape(()) if shared else form.repeated(each) for each in _alike(weight.scale, weight.zero)]
    wide = graph.emit(
        relax.op.dequantize(
            as_constant(form.kernels(values, zero)), *map(as_constant, parameters), -1 if shared else 0, "float32"
        )
    )
    return form.interleave(graph.emit(form.convolution(call.args[0], wide, "float32")), graph.emit)


def _alike(scale: Array, zero: Array) -> tuple[Array, Array]:
    """Broadcast both to the same number of elements."""
    size = max(scale.size, zero.size)
    return tuple(np.broadcast_to(each.reshape(-1), size) for each in (scale, zero))  # type: ignore[return-value]


@dataclass(frozen=True)
class _Found:
    """Operands of an interleaving, and its calls in order."""

    source: Expr
    calls: tuple[Call, ...]
    filters: int
    phases: int

    def of(self, value: Expr, graph: Graph) -> Expr:
        """Interleave another value of the same shape."""
        for call in self.calls[:-1]:
            value = graph.emit(self._again(call, value))
        return self._again(self.calls[-1], value)

    @staticmethod
    def _again(call: Call, value: Expr) -> Expr:
        return relax.Call(call.op, [value, *list(call.args)[1:]], call.attrs, call.ty_args)


def _interleaving(graph: Graph, expr: Expr) -> _Found | None:
    """Return the interleaving that computes a tensor with a single reader: of a convolution, or of operators moved
    there."""
    calls: list[Call] = []
    for names in (("relax.strided_slice",), ("relax.reshape",), ("relax.permute_dims",), ("relax.reshape",)):
        call = graph.call(expr, *names)
        if call is None and names == ("relax.strided_slice",):
            continue
        if call is None or not graph.only_use(expr):
            return None
        calls.append(call)
        expr = call.args[0]
    split = static_shape(calls[-1])
    source_shape = static_shape(expr)
    if split is None or source_shape is None or len(split) != 2 * len(source_shape) - 2 or not graph.only_use(expr):
        return None
    if split[0] != source_shape[0] or split[-len(source_shape) + 2 :] != source_shape[2:] or not _is_sum(graph, expr):
        return None
    return _Found(expr, tuple(reversed(calls)), split[1], source_shape[1] // split[1])


def _is_sum(graph: Graph, expr: Expr) -> bool:
    """True for a convolution of quantized tensors, optionally with a bias and clipping."""
    while True:
        call = graph.call(expr, "relax.add", "relax.nn.relu", "relax.nn.relu6", "relax.clip")
        if call is None:
            break
        expr = call.args[0]
    product = graph.call(expr, "relax.nn.conv1d", "relax.nn.conv2d", "relax.nn.conv3d")
    return product is not None and all(dequantized_operand(graph, each, _DATA) is not None for each in product.args)


@rules.on("relax.add")
def addition(graph: Graph, call: Call) -> Expr | None:
    """interleave(y) + bias => interleave(y + bias'), a bias per filter"""
    for data, other in both_orders(call):
        bias = constant_array(graph, other)
        interleaving = None if bias is None else _interleaving(graph, data)
        if bias is None or interleaving is None or not same_shape(shape_of(call), shape_of(data)):
            continue
        spatial = len(shape_of(data) or ()) - 2
        full = bias.reshape((1,) * (spatial + 2 - bias.ndim) + bias.shape)
        if full.size not in (1, full.shape[1]):
            continue
        phase_bias = np.repeat(np.broadcast_to(full.reshape(-1), interleaving.filters), interleaving.phases)
        total = graph.emit(relax.op.add(interleaving.source, as_constant(phase_bias.reshape(-1, *[1] * spatial))))
        return interleaving.of(total, graph)
    return None


@rules.on("relax.nn.relu", "relax.nn.relu6", "relax.clip", "relax.quantize")
def function(graph: Graph, call: Call) -> Expr | None:
    """f(interleave(y)) => interleave(f(y)), for elementwise f"""
    interleaving = _interleaving(graph, call.args[0])
    if interleaving is None:
        return None
    if str(call.op.name) == "relax.quantize":
        parameters = [constant_array(graph, each) for each in call.args[1:3]]
        if any(each is None or each.size != 1 for each in parameters):
            return None
    value = graph.emit(relax.Call(call.op, [interleaving.source, *list(call.args)[1:]], call.attrs, call.ty_args))
    return interleaving.of(value, graph)
