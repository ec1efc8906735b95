"""Loop and Scan.

Loops over a body that is imported as often as needed: unrolled, or once as a recursive private function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import onnx
from tvm import relax
from tvm.relax import op as R

from compiler.frontends.onnx import dtypes
from compiler.frontends.onnx.bounds import require, require_values
from compiler.frontends.onnx.context import NodeContext, PoisonedInputError, RefusedError
from compiler.frontends.onnx.evaluation.reference import fold
from compiler.frontends.onnx.loading.loader import all_nodes
from compiler.frontends.onnx.operators.composition import Composer
from compiler.frontends.onnx.operators.control_flow.loop_body import (
    Loop,
    LoopResult,
    Step,
    element_kind,
    empty_stack,
    known_scalar,
    recursive_loop,
    size_value,
)
from compiler.frontends.onnx.operators.control_flow.segment_loops import segment_loop
from compiler.frontends.onnx.operators.control_flow.structures import materialized, require_known, sources_with_captures
from compiler.frontends.onnx.registry import converter
from compiler.frontends.onnx.structure import captured_names, subgraphs
from compiler.frontends.onnx.symbolic import Dim, is_number
from compiler.frontends.onnx.values import (
    Constant,
    Runtime,
    SequenceValue,
    StackedSequence,
    Symbolic,
    Value,
    is_poisoned,
    tensor_shape,
)

_TRUE = Constant(np.array(True))


@converter("Loop")
def loop(context: NodeContext) -> list[Value]:
    """Import a loop with a number of iterations, a condition, or both; see `loops` for its code."""
    body: onnx.GraphProto = context.required_attribute("body")
    state = [context.value(index) for index in range(2, len(context.node.input))]
    if len(body.input) != len(state) + 2 or len(body.output) < len(state) + 1:
        context.invalid(
            f"its body has {len(body.input)} inputs and {len(body.output)} outputs, which does not fit a state of "
            f"{len(state)} values"
        )
    trips = _scalar(context, 0)
    if trips is None and (segments := segment_loop(context, body, state)) is not None:
        return segments
    appended = _appended(body, state) if known_scalar(trips) is None else []

    def step(iteration: Value, values: list[Value]) -> Step:
        # In an iteration that runs, the condition passed to it is true.
        rest = iter(values)
        given = [state[index] if index in appended else next(rest) for index in range(len(state))]
        go, *results = context.import_subgraph(body, [iteration, _TRUE, *given])
        carried = [result for index, result in enumerate(results[: len(state)]) if index not in appended]
        elements = [_inserted(results[index]) for index in appended]
        return Step(_folded(context, go), carried, [*results[len(state) :], *elements])

    result = run_loop(
        context,
        Loop(
            step,
            trips,
            _scalar(context, 1),
            [value for index, value in enumerate(state) if index not in appended],
            len(all_nodes(body.node)) + 1,
            sources_with_captures(context),
            control=(0, 1),
        ),
    )
    outputs = len(result.stacks) - len(appended)
    final: list[Value] = list(result.state)
    for index, stack in zip(appended, result.stacks[outputs:], strict=True):
        assert isinstance(stack, (Constant, Symbolic, Runtime))
        final.insert(index, StackedSequence(stack))
    return [*final, *result.stacks[:outputs]]


def _appended(body: onnx.GraphProto, state: Sequence[Value]) -> list[int]:
    """Return the state positions of empty sequences to which each iteration only appends an element."""
    inner = {name for graph in (g for node in body.node for g in subgraphs(node)) for name in captured_names(graph)}
    indices = []
    for index, value in enumerate(state[: len(body.output) - 1]):
        name, result = body.input[index + 2].name, body.output[index + 1].name
        users = [node for node in body.node if name in node.input]
        is_empty = isinstance(value, SequenceValue) and not value.values
        if not is_empty or len(users) != 1 or {name, result} & inner:
            continue
        (user,) = users
        given = [each for each in user.input if each]
        adds = user.op_type == "SequenceInsert" and len(given) == 2 and given[0] == name and given[1] != name
        if adds and user.output[0] == result and not any(result in node.input for node in body.node):
            indices.append(index)
    return indices


def _inserted(sequence: Value) -> Value:
    if is_poisoned(sequence):
        raise PoisonedInputError
    assert isinstance(sequence, SequenceValue)
    (element,) = sequence.values
    return element


def _scalar(context: NodeContext, index: int) -> Value | None:
    """Return a scalar input, as a constant if its value is known; None if it is missing."""
    if not context.has_input(index):
        return None
    value = context.tensor(index)
    return _folded(context, value)


def _folded(context: NodeContext, value: Value) -> Value:
    """Return a value as a constant if it can be computed during import."""
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
    """Import a loop over slices of its inputs along an axis."""
    count = int(context.required_attribute("num_scan_inputs"))
    total = len(context.node.input)
    if not 0 < count <= total:
        context.invalid(f"num_scan_inputs is {count}, but it has {total} inputs")
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
    """Import the first version of Scan: all values have a leading batch axis, and the loop runs for each entry of
    it.

    After the length of an entry in sequence_lens, its state stays and its outputs are zeros.
    """
    count = int(context.required_attribute("num_scan_inputs"))
    body: onnx.GraphProto = context.required_attribute("body")
    values = [context.value(index) for index in range(1, len(context.node.input))]
    split = len(values) - count
    directions = context.attribute("directions", [0] * count)
    if context.has_input(0):
        values[split:] = _reversed_up_to_lengths(context, values[split:], directions)
        values, directions = [*values, context.value(0)], [0] * count
    everything = [_SlicedInput(context, value, 0, 0) for value in values]
    entries = _common_count(context, everything)

    def step(entry: Value, _: list[Value]) -> Step:
        slices = [item.at(context, entry) for item in everything]
        length = slices.pop() if context.has_input(0) else None
        inputs = [_SlicedInput(context, v, 0, r) for v, r in zip(slices[split:], directions, strict=True)]
        result = _scan_loop(context, body, slices[:split], inputs, length)
        return Step(_TRUE, [], [*result.state, *result.stacks])

    sources = sources_with_captures(context)
    weight = len(all_nodes(body.node)) * 4
    return run_loop(context, Loop(step, size_value(entries), None, [], weight, sources)).stacks


def _reversed_up_to_lengths(context: NodeContext, values: Sequence[Value], directions: Sequence[int]) -> list[Value]:
    """Return the scanned inputs (batch, steps, ...), those scanned backwards with the steps of each entry reversed."""
    for value in values:
        if isinstance(value, (Constant, Symbolic, Runtime)) and len(value.shape) > 1:
            require_values(context, 0, 0, context.arithmetic.add(value.shape[1], 1))
    op = Composer(context)
    return [
        op("ReverseSequence", value, context.value(0), batch_axis=0, time_axis=1) if backward else value
        for value, backward in zip(values, directions, strict=True)
    ]


class _SlicedInput:
    """An input of which each iteration sees a slice."""

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
        """Return the slice for an iteration."""
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


def _scan_loop(
    context: NodeContext,
    body: onnx.GraphProto,
    state: Sequence[Value],
    inputs: Sequence[_SlicedInput],
    length: Value | None = None,
) -> LoopResult:
    if len(body.input) != len(state) + len(inputs) or len(body.output) < len(state):
        context.invalid(f"its body has {len(body.input)} inputs; the node gives it {len(state) + len(inputs)}")
    count = _common_count(context, inputs)

    def step(iteration: Value, values: list[Value]) -> Step:
        slices = [item.at(context, iteration) for item in inputs]
        results = context.import_subgraph(body, [*values, *slices])
        if length is not None:
            results = _up_to_length(context, iteration, length, results, values)
        return Step(_TRUE, results[: len(state)], results[len(state) :])

    weight = len(all_nodes(body.node)) + len(inputs) + 1
    sources = sources_with_captures(context)
    return run_loop(context, Loop(step, size_value(count), None, list(state), weight, sources))


def _up_to_length(
    context: NodeContext, iteration: Value, length: Value, results: Sequence[Value], state: Sequence[Value]
) -> list[Value]:
    """Return the results of iterations before the length; after it, the state stays, and other results are zeros."""
    op, chosen = Composer(context), []
    active = op("Less", iteration, length)
    for index, result in enumerate(results):
        if not isinstance(result, (Constant, Symbolic, Runtime)):
            context.refuse("sequence_lens with results that are not tensors is not supported")
        zero = Constant(np.zeros((), dtypes.numpy_dtype(result.dtype)), result.dtype)
        chosen.append(op("Where", active, result, state[index] if index < len(state) else zero))
    return list(chosen)


def _common_count(context: NodeContext, inputs: Sequence[_SlicedInput]) -> Dim:
    """Return the number of slices, which must be the same for all inputs."""
    counts = [item.count for item in inputs]
    count = next((c for c in counts if isinstance(c, int)), counts[0])
    if any(isinstance(c, int) and c != count for c in counts):
        context.invalid(f"its scanned inputs have different lengths: {counts}")
    for other in counts:
        require(context, other, "equal", count)
    return count


def _placed(context: NodeContext, stack: Value, axis: int, reverse: bool) -> Value:
    """Return a stack with its axis and order as the node requires."""
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


# A loop with at most this many nodes in total is unrolled; beyond it compilation costs more than the saved calls.
_UNROLLED_NODES = 256
# The same for a loop that cannot be a function, e.g. because its state holds growing sequences.
_FORCED_NODES = 2**15


def run_loop(context: NodeContext, loop: Loop) -> LoopResult:
    """Emit the loop. Refuses a state whose kind or rank changes between iterations."""
    trips, go = known_scalar(loop.trips), True if loop.go is None else known_scalar(loop.go)
    if go == 0:
        trips = 0
    size = None if trips is None else max(trips, 0) * loop.weight
    if go is not None and size is not None and size <= _UNROLLED_NODES:
        result = _unrolled(context, loop, max(trips or 0, 0))
        if result is not None:
            return result
    attempts: list[Callable[[NodeContext, Loop], LoopResult | None]] = [recursive_loop]
    if go and (loop.trips is None or (trips or 0) > 1):
        attempts.append(_first_apart)
    if go is not None and size is not None and size <= _FORCED_NODES:
        attempts.append(lambda context, loop: _unrolled(context, loop, max(trips or 0, 0)))
    importer = context.importer
    refusals, missing = len(importer.refusals), len(importer.missing_values)
    error: Exception | None = None
    for attempt in attempts:
        earlier = importer.refusals[refusals:], importer.missing_values[missing:]
        del importer.refusals[refusals:], importer.missing_values[missing:]
        try:
            result = attempt(context, loop)
        except (RefusedError, PoisonedInputError) as raised:
            error = raised
            continue
        if result is not None:
            return result
        importer.refusals.extend(earlier[0])
        importer.missing_values.extend(earlier[1])
    if go is None or size is None:
        require_known(context, loop.control)
    assert error is not None
    raise error


def _first_apart(context: NodeContext, loop: Loop) -> LoopResult:
    """Emit the first iteration, which is known to run, before a loop of the others: only the initial state may differ
    in its number of axes, as PaddlePaddle's placeholders for undefined variables do."""
    first = loop.body(Constant(np.array(0, np.int64)), list(loop.state))
    _check(first)
    heads = [_stacked(context, loop, [element]) for element in first.elements]
    if known_scalar(first.go) == 0:
        return LoopResult(first.state, heads)

    def following(iteration: Value, state: list[Value]) -> Step:
        assert isinstance(iteration, (Constant, Runtime))
        number = context.emit(R.add(iteration.expr, relax.const(1, "int64")))
        return loop.body(Runtime(number, "int64", loop.sources), state)

    trips = known_scalar(loop.trips)
    others = None if trips is None else Constant(np.array(trips - 1, np.int64))
    rest = recursive_loop(context, replace(loop, body=following, trips=others, go=first.go, state=first.state))
    return LoopResult(rest.state, [_joined(context, *pair) for pair in zip(heads, rest.stacks, strict=True)])


def _joined(context: NodeContext, head: Value, rest: Value) -> Value:
    """Return the first element's stack and the others' as one."""
    assert isinstance(head, (Constant, Runtime))
    assert isinstance(rest, Runtime)
    expr = context.match_shape(materialized(context, head), [1, *rest.shape[1:]])
    return Runtime(context.emit(R.concat([expr, rest.expr], 0)), rest.dtype, rest.sources)


def _unrolled(context: NodeContext, loop: Loop, trips: int) -> LoopResult | None:
    """Emit the iterations one after another; None if the loop condition is known only at run time."""
    if trips == 0:
        return _without_iterations(context, loop)
    state = list(loop.state)
    elements: list[list[Value]] = []
    for number in range(trips):
        step = loop.body(Constant(np.array(number, np.int64)), state)
        _check(step)
        state = step.state
        elements.append(step.elements)
        go = known_scalar(step.go)
        if go is None and number + 1 < trips:
            return None
        if go == 0:
            break
    return LoopResult(state, [_stacked(context, loop, list(column)) for column in zip(*elements, strict=True)])


def _check(step: Step) -> None:
    if any(is_poisoned(value) for value in (step.go, *step.state, *step.elements)):
        raise PoisonedInputError


def _without_iterations(context: NodeContext, loop: Loop) -> LoopResult:
    """Return the unchanged state, and empty stacks, whose shapes are taken from the body as far as known here."""
    builder = context.importer.builder
    with builder.region():
        step = loop.body(Constant(np.array(0, np.int64)), list(loop.state))
        _check(step)
        kinds = [element_kind(context, value) for value in step.elements]
    stacks: list[Value] = []
    for shape, dtype in kinds:
        visible = [d if builder.size_is_visible(d) else 0 for d in shape]
        stacks.append(Runtime(empty_stack(context, visible, dtype), dtype, loop.sources))
    return LoopResult(list(loop.state), stacks)


def _stacked(context: NodeContext, loop: Loop, elements: list[Value]) -> Value:
    kinds = [element_kind(context, value) for value in elements]
    first, dtype = kinds[0]
    for shape, other in kinds[1:]:
        if other != dtype or len(shape) != len(first):
            context.invalid("the elements of a stacked output differ in type or number of dimensions")
    if all(isinstance(value, Constant) for value in elements):
        arrays = [value.array for value in elements if isinstance(value, Constant)]
        if any(array.shape != arrays[0].shape for array in arrays):
            context.invalid("the elements of a stacked output differ in shape")
        return Constant(np.stack(arrays), dtype)
    exprs = []
    for value, (shape, _) in zip(elements, kinds, strict=True):
        assert isinstance(value, (Constant, Symbolic, Runtime))
        expr = materialized(context, value)
        arithmetic = context.arithmetic
        if not all(arithmetic.equal_is_proved(a, b) for a, b in zip(shape, first, strict=True)):
            expr = context.match_shape(expr, first)
        exprs.append(context.emit(R.expand_dims(expr, [0])))
    stacked = exprs[0] if len(exprs) == 1 else context.emit(R.concat(exprs, 0))
    return Runtime(stacked, dtype, loop.sources)
