"""Products of matrices: with a constant one, as convolutions of 1x1, and of two tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from tvm.ir import GenericConst

from schedules.ir.tvm_types import Call
from targets.ethos_u.folding import Dense
from targets.ethos_u.images import Window
from targets.ethos_u.operators.convolution import check_weight, fitted, folded
from targets.ethos_u.operators.registry import operator
from targets.ethos_u.steps import Emit, Emitter, Form, Quantized, Result, Step, Unsupported, Value
from targets.ethos_u.tosa import Tensor
from targets.ethos_u.view import View

_DEPTH = 65536


@operator("relax.matmul", bias=True)
def product(view: View, call: Call, result: Result) -> Step:
    """matmul(dequantize(x), dequantize(w)) + bias."""
    found = view.call(call.args[1], "relax.dequantize")
    if found is not None and not isinstance(view.definition(found.args[0]), GenericConst):
        return _of_two(view, call, result)
    return _fully_connected(view, call, result)


def _fully_connected(view: View, call: Call, result: Result) -> Step:
    """With a constant matrix (depth, filters)."""
    if len(call.args[1].ty.shape) != 2:
        raise Unsupported("its second operand is constant, and no matrix")
    data = view.quantized(call.args[0])
    weight = view.weight(call.args[1], 1)
    check_weight(weight)
    weight, bias = fitted(weight, data, result, 0)
    depth, filters = weight.values.shape
    if depth > _DEPTH or filters > _DEPTH:
        raise Unsupported(f"it multiplies by {depth}x{filters}, and the accelerator takes up to {_DEPTH}")
    scales = [float(each) for each in data.scale * weight.scale / result.output.scale]
    ordered = np.ascontiguousarray(weight.values.T).reshape(filters, 1, 1, depth)
    rows = math.prod(data.shape[:-1])

    def emit(emitter: Emitter, inputs: Sequence[Value]) -> Value:
        graph = emitter.graph
        # One row is a batch of one; more rows are places of one image.
        x = graph.reshape(emitter.first(inputs[0]), (1, rows, 1, depth))
        sums = graph.convolution(x, ordered, bias, data.zero, padding=(0, 0, 0, 0), strides=(1, 1))
        return emitter.made(graph.reshape(emitter.finished(sums, scales, result), result.output.shape), last=False)

    def in_form(form: Dense) -> Emit:
        def emit_form(emitter: Emitter, inputs: Sequence[Value]) -> Value:
            made = folded(emitter, emitter.first(inputs[0]), form, data.zero, result)
            return emitter.made(emitter.graph.reshape(made, result.output.shape), last=False)

        return emit_form

    whole = Dense((1, rows, 1, depth), ordered, bias, np.asarray(scales), Window((1, 1), (1, 1), (0,) * 4), (rows, 1))
    forms = {name: Form(in_form(form)) for name, form in whole.forms().items()}
    macs = rows * depth * filters
    return Step("fully connected", f"{rows}x{depth}x{filters}", (data,), result.output, macs, emit, forms)


def _of_two(view: View, call: Call, result: Result) -> Step:
    """Step of two tensors, the batches of one of which may be repeated."""
    if result.bias is not None:
        raise Unsupported("a constant is added to a product of two tensors")
    left, right = (view.quantized(each) for each in call.args[:2])
    if min(len(left.shape), len(right.shape)) < 2:
        raise Unsupported("one of its operands is a vector")
    batches = result.output.shape[:-2]
    rows, depth, columns = left.shape[-2], left.shape[-1], right.shape[-1]
    if max(rows, depth, columns) > _DEPTH:
        raise Unsupported(f"it multiplies {rows}x{depth} by {depth}x{columns}; the accelerator takes up to {_DEPTH}")
    ratio = left.scale * right.scale / result.output.scale

    def emit(emitter: Emitter, inputs: Sequence[Value]) -> Value:
        graph = emitter.graph
        operands = [_batched(emitter, *each, batches) for each in zip(inputs, (left, right), strict=True)]
        zeros = [graph.zero("int8", each.zero) for each in (left, right)]
        shape = (math.prod(batches), rows, columns)
        sums = graph.emit("MATMUL", [*operands, *zeros], shape, "int32", "MatMulAttribute")
        finished = emitter.finished(sums, [ratio], result)
        return emitter.made(graph.reshape(finished, result.output.shape), last=False)

    macs = math.prod(batches) * rows * depth * columns
    sizes = "x".join(map(str, (*batches, rows, depth, columns)))
    return Step("product of two tensors", sizes, (left, right), result.output, macs, emit)


def _batched(emitter: Emitter, value: Value, data: Quantized, batches: Sequence[int]) -> Tensor:
    """An operand as (all batches, rows, columns)."""
    x, matrix = emitter.first(value), data.shape[-2:]
    own = (1,) * (len(batches) - len(data.shape) + 2) + data.shape[:-2]
    repeated = [wanted // size for wanted, size in zip(batches, own, strict=True)]
    x = emitter.graph.tile(emitter.graph.reshape(x, (*own, *matrix)), [*repeated, 1, 1])
    return emitter.graph.reshape(x, (math.prod(batches), *matrix))
