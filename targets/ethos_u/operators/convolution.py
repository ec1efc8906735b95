"""Convolutions of images and sequences: dense, depthwise and in groups.

Limits of U55 and U65 as `vela --supported-ops-report` (5.2.0) lists them for TOSA's CONV2D; the strides of a U85 are
those of the same report for TensorFlow Lite. Groups are convolutions of parts of the channels; strides wider than the
hardware's become stride 1 over patches. Matmuls with a constant are convolutions of 1x1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from tvm.ir import GenericConst

from schedules.ir.tvm_types import Call
from targets.ethos_u.folding import Dense
from targets.ethos_u.images import (
    WIDEST_STRIDE,
    Patches,
    Window,
    check_kernel,
    check_layout,
    check_strides,
    from_image,
    image,
)
from targets.ethos_u.operators.registry import operator
from targets.ethos_u.steps import Array, Emit, Emitter, Form, Quantized, Result, Step, Unsupported, Value
from targets.ethos_u.tosa import Tensor, TosaGraph
from targets.ethos_u.view import View, Weight

_LARGEST_SUM = 127 * 65536
_DEPTH = 65536
_MAX_GROUPS = 64
_LOST = 0.1  # most error, in steps of the result, from rounding weights again


@operator("relax.nn.conv2d", "relax.nn.conv1d", bias=True)
def convolution(view: View, call: Call, result: Result) -> Step:
    """conv(dequantize(x), dequantize(w)) + bias."""
    check_layout(call.attrs.data_layout)
    if not str(call.attrs.kernel_layout).startswith("OI"):
        raise Unsupported(f"the layout of its kernel is {call.attrs.kernel_layout}")
    data, weight = view.quantized(call.args[0]), view.weight(call.args[1], 0)
    check_weight(weight)
    sizes = result.output.shape[2:]
    weight, bias = fitted(weight, data, result, len(sizes))
    window = Window.of(call.attrs, weight.values.shape[2:]).single(data.shape[2:], sizes)
    groups, channels, filters = int(call.attrs.groups), data.shape[1], weight.values.shape[0]
    depthwise = groups == channels and groups > 1
    _check(window, groups, depthwise, channels, filters)
    # (O, C, kh, kw) to (O, kh, kw, C)
    images = weight.values if weight.values.ndim == 4 else weight.values[:, :, None]
    ordered = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    scales = np.broadcast_to(data.scale * weight.scale / result.output.scale, filters)

    def emit(emitter: Emitter, inputs: Sequence[Value]) -> Value:
        graph = emitter.graph
        parts = np.split(np.arange(filters), 1 if depthwise else groups)
        operands = graph.split(image(emitter, inputs[0]), len(parts), 3)
        outputs = [
            emitter.finished(
                _sums(graph, x, ordered[mine], bias[mine], data.zero, window, depthwise), scales[mine].tolist(), result
            )
            for x, mine in zip(operands, parts, strict=True)
        ]
        return from_image(emitter, graph.concat(outputs, 3), len(data.shape))

    name = "depthwise convolution" if depthwise else "convolution"
    macs = int(np.prod(result.output.shape)) * int(np.prod(weight.values.shape[1:]))
    described = "x".join(map(str, weight.values.shape))
    whole = _dense(data, ordered, bias, scales, window) if groups == 1 else None
    forms = {} if whole is None else _forms(whole, data, result)
    return Step(name, described, (data,), result.output, macs, emit, forms)


def _dense(data: Quantized, weight: Array, bias: Array, scales: Array, window: Window) -> Dense:
    """An ungrouped convolution, weights (O, kh, kw, C), as a `Dense` with its forms."""
    batch, channels, *positions = data.shape
    height, width = (1, *positions)[-2:]
    return Dense((batch, height, width, channels), weight, bias, scales, window, window.results((height, width)))


def _forms(dense: Dense, data: Quantized, result: Result) -> dict[str, Form]:
    """All forms of a convolution."""
    forms = {name: Form(_in_form(each, data, result)) for name, each in dense.forms().items()}
    if len(data.shape) == 4:
        for name, (arrangement, part) in dense.arranged().items():
            forms[name] = Form(_in_form(part, data, result), arrangement)
    return forms


def _in_form(form: Dense, data: Quantized, result: Result) -> Emit:
    """Emit a convolution in one of its forms."""

    def emit(emitter: Emitter, inputs: Sequence[Value]) -> Value:
        x = image(emitter, inputs[0])
        finished = folded(emitter, x, form, data.zero, result)
        batch, filters, *positions = result.output.shape
        return from_image(
            emitter, emitter.graph.reshape(finished, (batch, *(1, *positions)[-2:], filters)), len(data.shape)
        )

    return emit


def folded(emitter: Emitter, x: Tensor, form: Dense, zero: int, result: Result) -> Tensor:
    """The result of a convolution in the shape of its form; the bytes are the same in any shape."""
    graph, window = emitter.graph, form.window
    sums = graph.convolution(
        graph.reshape(x, form.image),
        np.ascontiguousarray(form.weight),
        form.bias,
        zero,
        padding=window.padding,
        strides=window.strides,
        dilation=window.dilation,
    )
    return emitter.finished(sums, [float(each) for each in form.scales], result)


def _sums(
    graph: TosaGraph, x: Tensor, weight: Array, bias: Array, zero: int, window: Window, depthwise: bool
) -> Tensor:
    """int32 sums of one group; weights (O, kh, kw, C)."""
    if max(window.strides) > WIDEST_STRIDE:
        sizes = window.results(x.shape[1:3])
        patches = Patches(window, sizes)
        x, weight = patches.apply(graph, x, zero), patches.weight(weight)
        return graph.convolution(x, weight, bias, zero, padding=(0, 0, 0, 0), strides=(1, 1))
    if depthwise:
        filters, height, width, _ = weight.shape
        # (C * M, kh, kw, 1) to (kh, kw, C, M)
        weight = weight[..., 0].reshape(x.shape[3], filters // x.shape[3], height, width).transpose(2, 3, 0, 1)
    return graph.convolution(
        x,
        np.ascontiguousarray(weight),
        bias,
        zero,
        padding=window.padding,
        strides=window.strides,
        dilation=window.dilation,
        depthwise=depthwise,
    )


def _check(window: Window, groups: int, depthwise: bool, channels: int, filters: int) -> None:
    """Raise Unsupported with the exceeded limit."""
    if depthwise or max(window.dilation) > 1:
        check_strides(window.strides)
    if groups > _MAX_GROUPS and not depthwise:
        raise Unsupported(f"it has {groups} groups, and more than {_MAX_GROUPS} are slower than the processor")
    check_kernel(window.extents)
    wide = channels * (np.prod(window.strides) if max(window.strides) > WIDEST_STRIDE else 1)
    if wide > _DEPTH or filters > _DEPTH:
        raise Unsupported(f"it has {max(wide, filters)} channels, and the accelerator takes up to {_DEPTH}")


def check_weight(weight: Weight) -> None:
    """Raise Unsupported if a filter could overflow the accumulators."""
    others = tuple(axis for axis in range(weight.values.ndim) if axis != weight.axis)
    if np.abs(weight.values.astype(np.int64)).sum(axis=others).max() > _LARGEST_SUM:
        raise Unsupported(f"the weights of a filter sum up to more than {_LARGEST_SUM}")


def fitted(weight: Weight, data: Quantized, result: Result, behind: int) -> tuple[Weight, Array]:
    """The weights, and the bias in steps of the sums: int32 (filters); `behind` is the number of axes after the
    filters'.

    A filter whose weight scale is too small for its bias gets a larger scale: its sums are tiny compared to the bias,
    and the error of rounding its weights again is a small part of a step of the result. Raises Unsupported if the bias
    is not one number per filter, or the error is too large.
    """
    filters = weight.values.shape[weight.axis]
    step = np.broadcast_to(np.asarray(data.scale * weight.scale, np.float64), filters)
    numbers = _numbers(result.bias, filters, behind)
    large = np.abs(np.rint(numbers / step)) > 2.0**30  # the sums are added to it
    if large.any():
        larger = np.where(large, np.abs(numbers) / step / 2.0**30, 1.0)
        step = step * larger
        lost = 0.5 * 255 * weight.values.size / filters * step[large].max() / result.output.scale
        if lost > _LOST:
            raise Unsupported("its bias is too large for the steps of its sums")
        positions = [filters if axis == weight.axis else 1 for axis in range(weight.values.ndim)]
        values = np.rint(weight.values / larger.reshape(positions)).astype(np.int8)
        weight = Weight(values, step / data.scale, weight.axis)
    return weight, np.rint(numbers / step).astype(np.int32)


def _numbers(bias: Array | None, filters: int, behind: int) -> Array:
    """A bias as float64 (filters)."""
    if bias is None:
        return np.zeros(filters)
    positions = (1,) * (bias.ndim - 1 - behind) + (filters,) + (1,) * behind
    if bias.size != 1 and bias.shape != positions:
        raise Unsupported(f"its addend has the shape {list(bias.shape)}, and is not a bias")
    return np.broadcast_to(bias.reshape(-1), filters).astype(np.float64)


# Transposed convolutions; strides as `vela --supported-ops-report` (5.2.0) lists them for TOSA's TRANSPOSE_CONV2D.

_STRIDES = ((1, 1), (2, 2))


@operator("relax.nn.conv2d_transpose", bias=True)
def transposed_convolution(view: View, call: Call, result: Result) -> Step:
    """conv2d_transpose(dequantize(x), dequantize(w)) + bias, w (channels, filters, height, width)."""
    if str(call.attrs.data_layout) != "NCHW" or str(call.attrs.kernel_layout) != "IOHW":
        raise Unsupported(f"its layouts are {call.attrs.data_layout} and {call.attrs.kernel_layout}")
    if int(call.attrs.groups) != 1 or any(int(step) != 1 for step in call.attrs.dilation):
        raise Unsupported("it has groups or a dilated kernel")
    data, weight = view.quantized(call.args[0]), view.weight(call.args[1], 1)
    _, filters, height, width = weight.values.shape
    strides = tuple(int(step) for step in call.attrs.strides)
    if strides not in _STRIDES:
        raise Unsupported(f"its strides are {list(strides)}, and the accelerator takes 1 or 2 for both axes")
    check_kernel((height, width))
    check_weight(weight)
    weight, bias = fitted(weight, data, result, 2)
    top, left, bottom, right = (int(each) for each in call.attrs.padding)
    extra = [int(each) for each in call.attrs.output_padding]
    # Padding that TOSA adds at the edges of the result.
    edges = [-top, extra[0] - bottom, -left, extra[1] - right]
    if min(edges[:2]) <= -height or min(edges[2:]) <= -width:
        raise Unsupported("its padding is as wide as its kernel")
    ordered = np.ascontiguousarray(weight.values.transpose(1, 2, 3, 0))
    scales = [float(each) for each in data.scale * weight.scale / result.output.scale]
    sizes = result.output.shape

    def emit(emitter: Emitter, inputs: Sequence[Value]) -> Value:
        sums = emitter.graph.transposed_convolution(
            emitter.last(inputs[0]), ordered, bias, data.zero, edges, strides, (sizes[0], *sizes[2:], filters)
        )
        return emitter.made(emitter.finished(sums, scales, result))

    macs = int(np.prod(data.shape)) * filters * height * width
    sized = "x".join(map(str, weight.values.shape))
    return Step("transposed convolution", sized, (data,), result.output, macs, emit)


@operator("relax.matmul", bias=True)
def product(view: View, call: Call, result: Result) -> Step:
    """matmul(dequantize(x), dequantize(w)) + bias."""
    found = view.call(call.args[1], "relax.dequantize")
    if found is not None and not isinstance(view.definition(found.args[0]), GenericConst):
        return _of_two(view, call, result)
    return _fully_connected(view, call, result)


def _fully_connected(view: View, call: Call, result: Result) -> Step:
    """A matmul with a constant matrix (depth, filters)."""
    if len(call.args[1].ty.shape) != 2:
        raise Unsupported("its second operand is a constant but not a matrix")
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
        # One row is a batch of one; more rows are positions of one image.
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
    """A matmul of two tensors; the batches of one may be broadcast."""
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
    outer_shape = (1,) * (len(batches) - len(data.shape) + 2) + data.shape[:-2]
    repeated = [wanted // size for wanted, size in zip(batches, outer_shape, strict=True)]
    x = emitter.graph.tile(emitter.graph.reshape(x, (*outer_shape, *matrix)), [*repeated, 1, 1])
    return emitter.graph.reshape(x, (math.prod(batches), *matrix))
