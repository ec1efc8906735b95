"""com.microsoft: DynamicQuantizeLSTM, whose input and state are quantized as it runs and multiplied as integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.composition import Composer, int64s
from compiler.frontends.onnx.operators.loops import Loop, Step, run_loop
from compiler.frontends.onnx.operators.microsoft_fused import DOMAIN
from compiler.frontends.onnx.registry import converter
from compiler.frontends.onnx.values import Constant, Symbolic, Value

_NODES_OF_A_STEP = 30
_ACTIVATIONS = ["Sigmoid", "Tanh", "Tanh"]


@dataclass(frozen=True)
class _Weights:
    """Of one direction: (inputs, 4 * hidden) integers, their scale and zero point."""

    data: Any
    scale: Any
    zero_point: Any


@converter("DynamicQuantizeLSTM", domain=DOMAIN)
def dynamic_quantize_lstm(context: NodeContext) -> list[Any]:
    """X, W, R, B, lengths, initial h and c, P, then scale and zero point of W and of R; gates in the order iofc.

    The input is quantized as a whole, the state in each step.
    """
    op, direction = Composer(context), context.attribute("direction", "forward")
    if context.has_input(4) or context.has_input(7):
        context.refuse("sequence_lens and peepholes are not supported")
    directions = 2 if direction == "bidirectional" else 1
    if context.attribute("activations", _ACTIVATIONS * directions) != _ACTIVATIONS * directions:
        context.refuse(f"the activations {context.attribute('activations', [])} are not supported")
    if context.has_attribute("clip") or context.attribute("input_forget", 0):
        context.refuse("clip and input_forget are not supported")
    results = [_direction(context, op, d, reverse=d == 1 or direction == "reverse") for d in range(directions)]
    if directions == 1:
        outputs, h, c = results[0]
        return [op("Unsqueeze", outputs, int64s(1)), op("Unsqueeze", h, int64s(0)), op("Unsqueeze", c, int64s(0))]
    outputs, h, c = (list(column) for column in zip(*results, strict=True))
    stacked = op("Concat", *(op("Unsqueeze", item, int64s(1)) for item in outputs), axis=1)
    states = [op("Concat", *(op("Unsqueeze", item, int64s(0)) for item in items), axis=0) for items in (h, c)]
    return [stacked, *states]


def _entry(context: NodeContext, op: Composer, index: int, direction: int) -> Any:
    """One direction's part of an input."""
    return op("Gather", context.value(index), np.int64(direction), axis=0)


def _weights(context: NodeContext, op: Composer, index: int, scale: int, direction: int) -> _Weights:
    zero = _entry(context, op, scale + 1, direction) if context.has_input(scale + 1) else None
    return _Weights(_entry(context, op, index, direction), _entry(context, op, scale, direction), zero)


def _product(op: Composer, value: Any, weights: _Weights) -> Any:
    quantized, scale, zero = op.outputs(3, "DynamicQuantizeLinear", value)
    sums = op("MatMulInteger", quantized, weights.data, zero, weights.zero_point)
    return op("Mul", op("Cast", sums, to=1), op("Mul", scale, weights.scale))


def _direction(context: NodeContext, op: Composer, direction: int, *, reverse: bool) -> tuple[Any, Any, Any]:
    """(outputs (length, batch, hidden), last h, last c)."""
    length, batch = context.shape(0)[:2]
    hidden = int(context.required_attribute("hidden_size"))
    inputs = _product(op, context.value(0), _weights(context, op, 1, 8, direction))
    if context.has_input(3):
        both = _entry(context, op, 3, direction)
        halves = op.outputs(2, "Split", both, axis=0, num_outputs=2)
        inputs = op("Add", inputs, op("Add", *halves))
    recurrent = _weights(context, op, 2, 10, direction)
    state = [_initial(context, op, index, direction, batch, hidden) for index in (5, 6)]
    count = _scalar(length)

    def step(iteration: Value, values: list[Value]) -> Step:
        place = op("Sub", op("Sub", count, np.int64(1)), iteration) if reverse else iteration
        h, c = _cell(op, op("Gather", inputs, place, axis=0), values, recurrent)
        return Step(Constant(np.array(True)), [h, c], [h])

    result = run_loop(context, Loop(step, count, None, state, _NODES_OF_A_STEP, context.sources()))
    outputs = result.stacks[0]
    if reverse:
        outputs = op("Slice", outputs, int64s(-1), int64s(np.iinfo(np.int64).min), int64s(0), int64s(-1))
    return outputs, result.state[0], result.state[1]


def _scalar(size: Any) -> Value:
    if isinstance(size, int):
        return Constant(np.array(size, np.int64))
    array = np.empty((), object)
    array[()] = size
    return Symbolic(array, "int64")


def _initial(context: NodeContext, op: Composer, index: int, direction: int, batch: Any, hidden: int) -> Any:
    if context.has_input(index):
        return _entry(context, op, index, direction)
    if isinstance(batch, int):
        return Constant(np.zeros((batch, hidden), np.float32))
    return op("Expand", np.zeros((1, hidden), np.float32), op("Concat", _row(op, batch), int64s(1), axis=0))


def _row(op: Composer, size: Any) -> Any:
    return op("Reshape", _scalar(size), int64s(1))


def _cell(op: Composer, inputs: Any, state: list[Value], recurrent: _Weights) -> tuple[Any, Any]:
    """The next h and c."""
    h, c = state
    gates = op("Add", inputs, _product(op, h, recurrent))
    i, o, f, g = op.outputs(4, "Split", gates, axis=1, num_outputs=4)
    kept = op("Mul", op("Sigmoid", f), c)
    following = op("Add", kept, op("Mul", op("Sigmoid", i), op("Tanh", g)))
    return op("Mul", op("Sigmoid", o), op("Tanh", following)), following
