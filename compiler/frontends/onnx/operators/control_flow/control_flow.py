"""Loop and Scan."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from tvm import relax
from tvm.relax import op as R

from compiler.frontends.onnx.bounds import require
from compiler.frontends.onnx.context import NodeContext, PoisonedInputError
from compiler.frontends.onnx.evaluation.reference import fold
from compiler.frontends.onnx.loading.loader import all_nodes
from compiler.frontends.onnx.operators.control_flow.loop_body import Loop, LoopResult, Step
from compiler.frontends.onnx.operators.control_flow.loops import run_loop
from compiler.frontends.onnx.operators.control_flow.structures import materialized, sources_with_captures
from compiler.frontends.onnx.registry import converter
from compiler.frontends.onnx.symbolic import Dim, is_number
from compiler.frontends.onnx.values import Constant, Runtime, Symbolic, Value, is_poisoned, tensor_shape

_TRUE = Constant(np.array(True))


@converter("Loop")
def loop(context: NodeContext) -> list[Value]:
    """A loop with a number of iterations, a condition, or both; see `loops` for how it becomes code."""
    body: onnx.GraphProto = context.required_attribute("body")
    state = [context.value(index) for index in range(2, len(context.node.input))]
    if len(body.input) != len(state) + 2 or len(body.output) < len(state) + 1:
        context.invalid(
            f"its body has {len(body.input)} inputs and {len(body.output)} outputs, which does not fit a state of "
            f"{len(state)} values"
        )

    def step(iteration: Value, values: list[Value]) -> Step:
        # In an iteration that runs, the condition it was given is true.
        results = context.import_subgraph(body, [iteration, _TRUE, *values])
        return Step(_folded(context, results[0]), results[1 : len(state) + 1], results[len(state) + 1 :])

    result = run_loop(
        context,
        Loop(
            step,
            _scalar(context, 0),
            _scalar(context, 1),
            state,
            len(all_nodes(body.node)) + 1,
            sources_with_captures(context),
            control=(0, 1),
        ),
    )
    return [*result.state, *result.stacks]


def _scalar(context: NodeContext, index: int) -> Value | None:
    """A scalar input, as a constant when its value is known; None when it is missing."""
    if not context.has_input(index):
        return None
    value = context.tensor(index)
    return _folded(context, value)


def _folded(context: NodeContext, value: Value) -> Value:
    """A value as a constant when it can be known while importing."""
    if is_poisoned(value):
        raise PoisonedInputError
    if isinstance(value, Symbolic) and value.dtype == "bool":
        (element,) = value.array.reshape(-1)
        if is_number(element) or context.arithmetic.proved(element):
            return Constant(np.array(True if not is_number(element) else bool(element)))
    if isinstance(value, Runtime) and value.producer is not None:
        array = fold(value, context.importer.opsets)
        if array is not None:
            return Constant(array)
    return value


@converter("Scan", since=9)
def scan(context: NodeContext) -> list[Value]:
    """A loop over slices of its inputs along an axis."""
    count = int(context.required_attribute("num_scan_inputs"))
    total = len(context.node.input)
    if not 0 < count <= total:
        context.invalid(f"num_scan_inputs is {count}, and it has {total} inputs")
    values = [context.value(index) for index in range(total)]
    axes = context.attribute("scan_input_axes", [0] * count)
    reverse = context.attribute("scan_input_directions", [0] * count)
    inputs = [_SlicedInput(context, v, a, r) for v, a, r in zip(values[total - count :], axes, reverse, strict=True)]
    body: onnx.GraphProto = context.required_attribute("body")
    result = _scan_loop(context, body, values[: total - count], inputs)
    outputs = len(result.stacks)
    axes = context.attribute("scan_output_axes", [0] * outputs)
    reverse = context.attribute("scan_output_directions", [0] * outputs)
    stacks = [_placed(context, v, a, bool(r)) for v, a, r in zip(result.stacks, axes, reverse, strict=True)]
    return [*result.state, *stacks]


@converter("Scan", since=8)
def scan_8(context: NodeContext) -> list[Value]:
    """The first version of Scan: every value has a batch axis in front, and the loop runs for each entry of it."""
    if context.has_input(0):
        context.refuse("sequence_lens is not supported")
    count = int(context.required_attribute("num_scan_inputs"))
    body: onnx.GraphProto = context.required_attribute("body")
    values = [context.value(index) for index in range(1, len(context.node.input))]
    split = len(values) - count
    directions = context.attribute("directions", [0] * count)
    everything = [_SlicedInput(context, value, 0, 0) for value in values]
    entries = _common_count(context, everything)

    def step(entry: Value, _: list[Value]) -> Step:
        slices = [item.at(context, entry) for item in everything]
        inputs = [_SlicedInput(context, v, 0, r) for v, r in zip(slices[split:], directions, strict=True)]
        result = _scan_loop(context, body, slices[:split], inputs)
        return Step(_TRUE, [], [*result.state, *result.stacks])

    sources = sources_with_captures(context)
    weight = len(all_nodes(body.node)) * 4
    return run_loop(context, Loop(step, _size_value(entries), None, [], weight, sources)).stacks


class _SlicedInput:
    """An input that each iteration sees a slice of."""

    def __init__(self, context: NodeContext, value: Value, axis: int, reverse: int) -> None:
        if is_poisoned(value):
            raise PoisonedInputError
        if not isinstance(value, (Constant, Symbolic, Runtime)) or not value.shape:
            context.invalid("its scanned inputs must be tensors with at least one dimension")
        self.value = value
        self.axis = context.axis(axis, len(value.shape))
        self.reverse = bool(reverse)
        self.count: Dim = value.shape[self.axis]
        self.expr = materialized(context, value)

    def at(self, context: NodeContext, iteration: Value) -> Value:
        """The slice of an iteration."""
        if isinstance(iteration, Constant):
            number = int(iteration.array)
            position: relax.Expr = relax.const(number, "int64")
            if self.reverse:
                if not isinstance(self.count, int):
                    position = self._from_end(context, position)
                else:
                    number = self.count - 1 - number
                    position = relax.const(number, "int64")
            if isinstance(self.value, Constant):
                return Constant(np.take(self.value.array, number, self.axis), self.value.dtype)
        else:
            assert isinstance(iteration, Runtime)
            position = self._from_end(context, iteration.expr) if self.reverse else iteration.expr
        taken = context.emit(R.take(self.expr, position, self.axis, mode="clip"))
        return Runtime(taken, self.value.dtype, context.sources())

    def _from_end(self, context: NodeContext, position: relax.Expr) -> relax.Expr:
        last = context.arithmetic.subtract(self.count, 1)
        if isinstance(last, int):
            return context.emit(R.subtract(relax.const(last, "int64"), position))
        tensor = context.importer.builder.scalars_to_tensor([last], (), "int64")
        return context.emit(R.subtract(tensor, position))


def _size_value(size: Dim) -> Value:
    if isinstance(size, int):
        return Constant(np.array(size, np.int64))
    array = np.empty((), object)
    array[()] = size
    return Symbolic(array, "int64")


def _scan_loop(
    context: NodeContext, body: onnx.GraphProto, state: Sequence[Value], inputs: Sequence[_SlicedInput]
) -> LoopResult:
    if len(body.input) != len(state) + len(inputs) or len(body.output) < len(state):
        context.invalid(f"its body has {len(body.input)} inputs; the node gives it {len(state) + len(inputs)}")
    count = _common_count(context, inputs)

    def step(iteration: Value, values: list[Value]) -> Step:
        slices = [item.at(context, iteration) for item in inputs]
        results = context.import_subgraph(body, [*values, *slices])
        return Step(_TRUE, results[: len(state)], results[len(state) :])

    weight = len(all_nodes(body.node)) + len(inputs) + 1
    sources = sources_with_captures(context)
    return run_loop(context, Loop(step, _size_value(count), None, list(state), weight, sources))


def _common_count(context: NodeContext, inputs: Sequence[_SlicedInput]) -> Dim:
    """The number of slices, which all inputs must have."""
    counts = [item.count for item in inputs]
    count = next((c for c in counts if isinstance(c, int)), counts[0])
    if any(isinstance(c, int) and c != count for c in counts):
        context.invalid(f"its scanned inputs have different lengths: {counts}")
    for other in counts:
        require(context, other, "equal", count)
    return count


def _placed(context: NodeContext, stack: Value, axis: int, reverse: bool) -> Value:
    """A stack with its axis where the node wants it, and its order."""
    assert isinstance(stack, (Constant, Runtime))
    rank = len(stack.shape)
    axis = context.axis(axis, rank)
    order = list(range(1, rank))
    order.insert(axis, 0)
    if isinstance(stack, Constant):
        array = stack.array[::-1] if reverse else stack.array
        return Constant(np.transpose(array, order), stack.dtype)
    expr = stack.expr
    if reverse:
        expr = context.emit(R.flip(expr, 0))
    if axis:
        expr = context.emit(R.permute_dims(expr, order))
    assert len(tensor_shape(expr)) == rank
    return Runtime(expr, stack.dtype, stack.sources)
