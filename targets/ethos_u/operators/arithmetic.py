"""Sums, differences and products of two quantized tensors, in int32 between a rescaling in and one out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from targets.ethos_u.operators.registry import operator
from targets.ethos_u.steps import Emitter, Quantized, Result, Step, Unsupported, Value
from targets.ethos_u.tosa import Tensor
from targets.ethos_u.view import View

# Bits that operands of a sum gain before they are brought to one scale: int8 differences of 9 bits stay within 31.
_GAIN = 1 << 20


@operator("relax.add", "relax.subtract")
def total(view: View, call: Any, result: Result) -> Step:
    """add or subtract(dequantize(a), dequantize(b))."""
    left, right = _operands(view, call, result)
    code = "ADD" if str(call.op.name) == "relax.add" else "SUB"
    common = 2 * max(left.scale, right.scale)

    def emit(emitter: Emitter, inputs: Sequence[Value]) -> Value:
        tensors, last = _aligned(emitter, inputs, len(result.output.shape))
        wide = [
            emitter.graph.rescale(tensor, [_GAIN * each.scale / common], "int32", zero=each.zero)
            for tensor, each in zip(tensors, (left, right), strict=True)
        ]
        shape = _broadcast(wide)
        sums = emitter.graph.emit(code, wide, shape, "int32", f"{code.title()}Attribute")
        return emitter.made(emitter.finished(sums, [common / (_GAIN * result.output.scale)], result), last)

    return _step("addition" if code == "ADD" else "subtraction", left, right, result, emit)


@operator("relax.multiply")
def product(view: View, call: Any, result: Result) -> Step:
    """multiply(dequantize(a), dequantize(b))."""
    left, right = _operands(view, call, result)
    scale = left.scale * right.scale / result.output.scale

    def emit(emitter: Emitter, inputs: Sequence[Value]) -> Value:
        tensors, last = _aligned(emitter, inputs, len(result.output.shape))
        graph = emitter.graph
        wide = [
            graph.rescale(tensor, [1.0], "int32", zero=each.zero)
            for tensor, each in zip(tensors, (left, right), strict=True)
        ]
        shift = graph.constant(np.zeros(1, np.int8))
        products = graph.emit("MUL", [*wide, shift], _broadcast(wide), "int32", "MulAttribute")
        return emitter.made(emitter.finished(products, [scale], result), last)

    return _step("multiplication", left, right, result, emit)


def _step(name: str, left: Quantized, right: Quantized, result: Result, emit: Any) -> Step:
    return Step(name, "x".join(map(str, result.output.shape)), (left, right), result.output, 0, emit)


def _operands(view: View, call: Any, result: Result) -> tuple[Quantized, Quantized]:
    left, right = (view.quantized(each) for each in call.args)
    if result.bias is not None:
        raise Unsupported("it is followed by a sum with a constant that is not quantized between")
    if max(math.prod(left.shape), math.prod(right.shape)) != math.prod(result.output.shape):
        raise Unsupported("both of its operands are broadcast, and the accelerator repeats one of them")
    if len(result.output.shape) > 4:
        raise Unsupported(f"it has {len(result.output.shape)} axes, and the accelerator takes up to 4")
    return left, right


def _aligned(emitter: Emitter, inputs: Sequence[Value], rank: int) -> tuple[list[Tensor], bool]:
    """Both operands with that many axes, in one layout."""
    padded = []
    for value in inputs:
        shape = value.tensor.shape
        if len(shape) < rank:
            value = Value(emitter.graph.reshape(value.tensor, (1,) * (rank - len(shape)) + shape), False)
        padded.append(value)
    return emitter.together(padded)


def _broadcast(tensors: Sequence[Tensor]) -> tuple[int, ...]:
    return tuple(np.broadcast_shapes(*(tensor.shape for tensor in tensors)))
