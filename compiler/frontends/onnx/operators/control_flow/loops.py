"""Loops over a body that is imported as often as needed: unrolled, or once as a private function that calls itself."""

from __future__ import annotations

import numpy as np
from tvm.relax import op as R

from compiler.frontends.onnx.context import NodeContext, PoisonedInputError, RefusedError
from compiler.frontends.onnx.operators.control_flow.loop_body import (
    Loop,
    LoopResult,
    Step,
    element_kind,
    empty_stack,
    known_scalar,
)
from compiler.frontends.onnx.operators.control_flow.loop_functions import recursive_loop
from compiler.frontends.onnx.operators.control_flow.structures import materialized, require_known
from compiler.frontends.onnx.values import Constant, Runtime, Symbolic, Value, is_poisoned

# A body of so many nodes in total is written out; above it compiling costs more than the calls that it saves.
_UNROLLED_NODES = 256
# The same for a loop that cannot be a function: its state holds sequences that grow, say.
_FORCED_NODES = 2**15


def run_loop(context: NodeContext, loop: Loop) -> LoopResult:
    """Emit the loop. Refuses a state that changes its kind or its number of dimensions from iteration to iteration."""
    trips, go = known_scalar(loop.trips), True if loop.go is None else known_scalar(loop.go)
    if go == 0:
        trips = 0
    size = None if trips is None else max(trips, 0) * loop.weight
    if go is not None and size is not None and size <= _UNROLLED_NODES:
        result = _unrolled(context, loop, max(trips or 0, 0))
        if result is not None:
            return result
    refusals, missing = len(context.importer.refusals), len(context.importer.missing_values)
    try:
        return recursive_loop(context, loop)
    except (RefusedError, PoisonedInputError):
        if go is None or size is None:
            require_known(context, loop.control)
            raise
        if size > _FORCED_NODES:
            raise
        saved = context.importer.refusals[refusals:], context.importer.missing_values[missing:]
        del context.importer.refusals[refusals:], context.importer.missing_values[missing:]
        result = _unrolled(context, loop, max(trips or 0, 0))
        if result is None:
            context.importer.refusals.extend(saved[0])
            context.importer.missing_values.extend(saved[1])
            raise
        return result


def _unrolled(context: NodeContext, loop: Loop, trips: int) -> LoopResult | None:
    """The iterations one after the other; None when the condition to go on is known only when running."""
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
    """The state as it was, and stacks without elements; the body tells their shape, as far as it is known here."""
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
