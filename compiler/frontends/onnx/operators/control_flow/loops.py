"""Loops over a body that is imported as often as needed: unrolled, or once as a private function that calls itself."""

from __future__ import annotations

import numpy as np

from compiler.frontends.onnx.context import NodeContext, PoisonedInputError, RefusedError
from compiler.frontends.onnx.operators.control_flow.loop_blocks import loop_in_blocks
from compiler.frontends.onnx.operators.control_flow.loop_functions import recursive_loop
from compiler.frontends.onnx.operators.control_flow.loop_stacks import check_step, stacked
from compiler.frontends.onnx.operators.control_flow.loop_state import (
    Loop,
    LoopResult,
    element_kind,
    empty_stack,
    known_scalar,
)
from compiler.frontends.onnx.operators.control_flow.structures import require_known
from compiler.frontends.onnx.values import Constant, Runtime, Value

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
    blocks = loop_in_blocks(context, loop)
    if blocks is not None:
        return blocks
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
        check_step(step)
        state = step.state
        elements.append(step.elements)
        go = known_scalar(step.go)
        if go is None and number + 1 < trips:
            return None
        if go == 0:
            break
    return LoopResult(state, [stacked(context, loop, list(column)) for column in zip(*elements, strict=True)])


def _without_iterations(context: NodeContext, loop: Loop) -> LoopResult:
    """The state as it was, and stacks without elements; the body tells their shape, as far as it is known here."""
    builder = context.importer.builder
    with builder.region():
        step = loop.body(Constant(np.array(0, np.int64)), list(loop.state))
        check_step(step)
        kinds = [element_kind(context, value) for value in step.elements]
    stacks: list[Value] = []
    for shape, dtype in kinds:
        visible = [d if builder.size_is_visible(d) else 0 for d in shape]
        stacks.append(Runtime(empty_stack(context, visible, dtype), dtype, loop.sources))
    return LoopResult(list(loop.state), stacks)
