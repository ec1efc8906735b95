"""Sums, differences and products of quantized tensors, or of one and a constant, in int32 between two rescalings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from schedules.ir.tvm_types import Call, Expr
from targets.ethos_u.folding import column_channels, in_columns
from targets.ethos_u.layout import channels_last
from targets.ethos_u.operators.registry import operator
from targets.ethos_u.steps import Array, Emit, Emitter, Form, Quantized, Result, Step, Unsupported, Value
from targets.ethos_u.tosa import Tensor, TosaGraph
from targets.ethos_u.view import View, registered_name

# Additional bits of a sum's operands before they are rescaled to one scale: 9-bit differences of int8 stay within 31.
_GAIN = 1 << 20
# Largest factor of a constant: its products with 9-bit differences of int8 stay within 31 bits, too.
_LARGEST_FACTOR = (1 << 20) - 1
Operand = Quantized | Array


@operator("relax.add", "relax.subtract")
def total(view: View, call: Call, result: Result) -> Step:
    """add or subtract(dequantize(a), dequantize(b)), one of which may be a constant."""
    operands = _operands(view, call.args, result)
    code = "ADD" if str(call.op.name) == "relax.add" else "SUB"
    common = 2 * max(_reach(each) for each in operands)
    if all(isinstance(each, Quantized) and each.scale == common / 2 for each in operands):
        # Equal scales need no additional bits, and Vela 5.2 does not fuse two factors of 2**19 into a sum.
        common *= _GAIN / 2

    def written(emitter: Emitter, inputs: Sequence[Value], channels: int | None = None) -> Value:
        graph = emitter.graph
        tensors, last = _aligned(emitter, operands, inputs, _GAIN / common)
        shape = tuple(np.broadcast_shapes(*(tensor.shape for tensor in tensors)))
        if channels is not None:
            tensors = [graph.reshape(tensor, in_columns(tensor.shape, channels)) for tensor in tensors]
        wide = _at_one_scale(graph, tensors, operands, common)
        sums = graph.emit(code, wide, _broadcast(wide), "int32", f"{code.title()}Attribute")
        finished = emitter.finished(sums, [common / (_GAIN * result.output.scale)], result)
        return emitter.made(graph.reshape(finished, shape), last)

    same = len(operands) == 2 and all(
        isinstance(each, Quantized) and each.shape == result.output.shape for each in operands
    )
    forms = {
        f"columns of {channels} channels": Form(partial(written, channels=channels))
        for channels in (column_channels(result.output.shape) if same else ())
    }
    return _step("addition" if code == "ADD" else "subtraction", operands, result, written, forms)


@operator("relax.multiply", "relax.divide")
def product(view: View, call: Call, result: Result) -> Step:
    """multiply(dequantize(a), dequantize(b)), one of which may be a constant; divide by a constant."""
    operands = _operands(view, call.args, result)
    if str(call.op.name) == "relax.divide":
        divisor = operands[1]
        if not isinstance(divisor, np.ndarray) or not np.all(divisor):
            raise Unsupported("its divisor is not a constant, or is zero")
        operands = [operands[0], 1 / divisor]
    factors = [np.abs(each).max() if isinstance(each, np.ndarray) else 1.0 for each in operands]
    gain = _LARGEST_FACTOR / (math.prod(float(factor) for factor in factors) or 1.0)
    has_constant = any(isinstance(each, np.ndarray) for each in operands)
    scale = math.prod(each.scale for each in operands if isinstance(each, Quantized)) / result.output.scale

    def emit(emitter: Emitter, inputs: Sequence[Value]) -> Value:
        graph = emitter.graph
        tensors, last = _aligned(emitter, operands, inputs, gain)
        wide = [
            tensor if isinstance(each, np.ndarray) else graph.rescale(tensor, [1.0], "int32", zero=each.zero)
            for tensor, each in zip(tensors, operands, strict=True)
        ]
        shift = graph.constant(np.zeros(1, np.int8))
        products = graph.emit("MUL", [*wide, shift], _broadcast(wide), "int32", "MulAttribute")
        scales = [scale / gain if has_constant else scale]
        return emitter.made(emitter.finished(products, scales, result), last)

    return _step("multiplication", operands, result, emit)


def _step(
    name: str, operands: Sequence[Operand], result: Result, emit: Emit, forms: Mapping[str, Form] | None = None
) -> Step:
    inputs = tuple(each for each in operands if isinstance(each, Quantized))
    kind = name if len(inputs) == len(operands) else f"{name} of a constant"
    return Step(kind, "x".join(map(str, result.output.shape)), inputs, result.output, 0, emit, forms or {})


def _operands(view: View, arguments: Sequence[Expr], result: Result) -> list[Operand]:
    """Two quantized tensors, or one and a constant."""
    operands: list[Operand] = []
    for argument in arguments:
        constant = view.number(argument)
        operands.append(view.quantized(argument) if constant is None else constant)
    if not any(isinstance(each, Quantized) for each in operands):
        raise Unsupported("both of its operands are constants")
    if len(result.output.shape) > 4:
        raise Unsupported(f"it has {len(result.output.shape)} axes, and the accelerator takes up to 4")
    return operands


def _reach(operand: Operand) -> float:
    """The step of a tensor; for a constant, a step with which its values stay within as many steps."""
    return float(np.abs(operand).max()) / 255 if isinstance(operand, np.ndarray) else operand.scale


def _aligned(
    emitter: Emitter, operands: Sequence[Operand], inputs: Sequence[Value], gain: float
) -> tuple[list[Tensor], bool]:
    """Both operands with the same number of axes, in one layout; constants times `gain` as int32."""
    rank = max(len(each.shape) for each in operands)
    left = iter(inputs)
    values = {index: next(left) for index, each in enumerate(operands) if isinstance(each, Quantized)}
    for index, value in values.items():
        shape = operands[index].shape
        if len(shape) < rank:
            padded = (1,) * (rank - len(shape)) + shape
            values[index] = Value(emitter.graph.reshape(emitter.first(value), padded), False)
    tensors, last = emitter.together(list(values.values()))
    whole = np.broadcast_shapes(*(each.shape for each in operands))
    shape = tuple(whole[axis] for axis in channels_last(rank)) if last else whole
    aligned = dict(zip(values, tensors, strict=True))
    if all(aligned[index].shape != shape for index in aligned):
        # The accelerator broadcasts one operand.
        index = next(iter(aligned))
        counts = [wanted // size for wanted, size in zip(shape, aligned[index].shape, strict=True)]
        aligned[index] = emitter.graph.tile(aligned[index], counts)
    for index, operand in enumerate(operands):
        if isinstance(operand, np.ndarray):
            wide = np.rint(operand.reshape((1,) * (rank - operand.ndim) + operand.shape) * gain).astype(np.int32)
            aligned[index] = emitter.graph.constant(
                np.ascontiguousarray(wide.transpose(channels_last(rank)) if last else wide)
            )
    return [aligned[index] for index in range(len(operands))], last


def _at_one_scale(
    graph: TosaGraph, tensors: Sequence[Tensor], operands: Sequence[Operand], common: float
) -> list[Tensor]:
    """int32 tensors in steps of `common` / 2**20; constants already are."""
    return [
        tensor
        if isinstance(each, np.ndarray)
        else graph.rescale(tensor, [_GAIN * each.scale / common], "int32", zero=each.zero)
        for tensor, each in zip(tensors, operands, strict=True)
    ]


def _broadcast(tensors: Sequence[Tensor]) -> tuple[int, ...]:
    return tuple(np.broadcast_shapes(*(tensor.shape for tensor in tensors)))


@operator("relax.maximum", "relax.minimum", "kernel.max", "kernel.min")
def extreme(view: View, call: Call, result: Result) -> Step:
    """maximum or minimum(dequantize(a), dequantize(b)), one of which may be a constant."""
    arguments = list(call.args[1].fields) if str(call.op.name) == "relax.call_tir" else list(call.args)
    if len(arguments) != 2:
        raise Unsupported(f"it has {len(arguments)} operands")
    greatest = "max" in registered_name(call)
    operands = _operands(view, arguments, result)
    common = max(_reach(each) for each in operands) * 2
    if all(isinstance(each, Quantized) and each.scale == common / 2 for each in operands):
        common *= _GAIN / 2  # as in a sum

    def emit(emitter: Emitter, inputs: Sequence[Value]) -> Value:
        graph = emitter.graph
        tensors, last = _aligned(emitter, operands, inputs, _GAIN / common)
        wide = _at_one_scale(graph, tensors, operands, common)
        values = [graph.nan_mode()]
        code, name = ("MAXIMUM", "MaximumAttribute") if greatest else ("MINIMUM", "MinimumAttribute")
        found = graph.emit(code, wide, _broadcast(wide), "int32", name, *values)
        return emitter.made(emitter.finished(found, [common / (_GAIN * result.output.scale)], result), last)

    return _step("maximum" if greatest else "minimum", operands, result, emit)


@operator("relax.nn.prelu", "kernel.prelu")
def sloped(view: View, call: Call, result: Result) -> Step:
    """prelu(dequantize(x), slopes): max(x, 0) + slopes * min(x, 0)."""
    is_kernel = str(call.op.name) == "relax.call_tir"
    arguments = list(call.args[1].fields) if is_kernel else list(call.args)
    slopes = view.number(arguments[1])
    data = view.quantized(arguments[0])
    if slopes is None:
        raise Unsupported("its slopes are not constant")
    if not is_kernel and slopes.size > 1:
        axis = int(call.attrs.axis) % len(data.shape)
        slopes = slopes.reshape([-1 if each == axis else 1 for each in range(len(data.shape))])
    gain = _LARGEST_FACTOR / max(float(np.abs(slopes).max()), 1.0)
    operands: list[Operand] = [data, slopes]

    def emit(emitter: Emitter, inputs: Sequence[Value]) -> Value:
        graph = emitter.graph
        (x, factors), last = _aligned(emitter, operands, inputs, gain)
        wide = graph.rescale(x, [1.0], "int32", zero=data.zero)
        zero = graph.constant(np.zeros((1,) * len(x.shape), np.int32))
        unit = graph.constant(np.full((1,) * len(x.shape), round(gain), np.int32))
        shift, mode = graph.constant(np.zeros(1, np.int8)), graph.nan_mode()
        sides = [
            graph.emit(
                "MUL",
                [graph.emit(code, [wide, zero], x.shape, "int32", name, mode), factor, shift],
                x.shape,
                "int32",
                "MulAttribute",
            )
            for code, name, factor in (("MAXIMUM", "MaximumAttribute", unit), ("MINIMUM", "MinimumAttribute", factors))
        ]
        sums = graph.emit("ADD", sides, x.shape, "int32", "AddAttribute")
        return emitter.made(emitter.finished(sums, [data.scale / (gain * result.output.scale)], result), last)

    return Step("prelu", "x".join(map(str, result.output.shape)), (data,), result.output, 0, emit)
