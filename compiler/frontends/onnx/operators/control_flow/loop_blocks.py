"""A long loop as a loop over blocks of iterations that are written out one after the other.

An iteration of a loop costs some ten calls of the virtual machine beside those of its own kernels; a block costs as
many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from tvm import relax
from tvm.relax import op as R

from compiler.frontends.onnx.context import NodeContext, PoisonedInputError, RefusedError
from compiler.frontends.onnx.operators.control_flow.loop_functions import recursive_loop
from compiler.frontends.onnx.operators.control_flow.loop_stacks import check_step, stacked
from compiler.frontends.onnx.operators.control_flow.loop_state import Loop, LoopResult, Step, known_scalar
from compiler.frontends.onnx.operators.control_flow.structures import materialized
from compiler.frontends.onnx.symbolic import Dim, expression
from compiler.frontends.onnx.values import Constant, Runtime, Symbolic, Value, size_value, tensor_shape

_NODES = 128  # of a block, and bindings
_LEAST_STEPS = 4  # shorter blocks save little


def loop_in_blocks(context: NodeContext, loop: Loop) -> LoopResult | None:
    """The loop; None where the number of iterations is not known beforehand, or too small, where the body is too large,
    or where the shapes of the state change."""
    count = _iterations(context, loop)
    size = None if count is None else _size_of_iteration(context, loop)
    if count is None or size is None:
        return None
    steps = _NODES // max(size, loop.weight)
    if steps < _LEAST_STEPS or (isinstance(count, int) and count < 2 * steps):
        return None
    blocks = context.arithmetic.floor_divide(count, steps)
    done = context.arithmetic.multiply(blocks, steps)

    def block(number: Value, state: list[Value]) -> Step:
        assert isinstance(number, Runtime)
        first = Runtime(context.emit(R.multiply(number.expr, relax.const(steps, "int64"))), "int64", loop.sources)
        return _run(context, loop, first, steps, state)

    whole = recursive_loop(context, replace(loop, body=block, trips=size_value(blocks)))
    rest = context.arithmetic.subtract(count, done)
    if isinstance(rest, int):
        last = _run(context, loop, size_value(done), rest, whole.state) if rest else None
        result = LoopResult(whole.state, []) if last is None else LoopResult(last.state, last.elements)
    else:
        result = _rest(context, loop, done, rest, whole.state)
    stacks = [
        _joined(context, loop, [stack, *result.stacks[index : index + 1]], (done, count))
        for index, stack in enumerate(whole.stacks)
    ]
    return LoopResult(result.state, stacks)


def _iterations(context: NodeContext, loop: Loop) -> Dim | None:
    """How many iterations there are; None where that is computed, or a condition may prevent them."""
    if loop.go is not None and known_scalar(loop.go) != 1:
        return None
    if isinstance(loop.trips, Constant):
        return max(int(loop.trips.array.reshape(-1)[0]), 0)
    if isinstance(loop.trips, Symbolic):
        (count,) = loop.trips.array.reshape(-1)
        return context.arithmetic.maximum(count, 0)
    return None


def _rest(context: NodeContext, loop: Loop, done: Dim, rest: Dim, state: list[Value]) -> LoopResult:
    """The iterations behind the last block, one by one."""

    def body(number: Value, state: list[Value]) -> Step:
        assert isinstance(number, Runtime)
        before = context.importer.builder.scalars_to_tensor([done], (), "int64")
        return loop.body(Runtime(context.emit(R.add(number.expr, before)), "int64", loop.sources), state)

    return recursive_loop(context, replace(loop, body=body, trips=size_value(rest), state=state))


def _size_of_iteration(context: NodeContext, loop: Loop) -> int | None:
    """How many bindings an iteration has; None where it changes the shapes of the state, or may be the last."""
    importer = context.importer
    refusals, missing = len(importer.refusals), len(importer.missing_values)
    try:
        with importer.builder.region() as code:
            step = loop.body(Runtime(relax.const(0, "int64"), "int64", loop.sources), list(loop.state))
            check_step(step)
        alike = all(_is_alike(context, old, new) for old, new in zip(loop.state, step.state, strict=True))
        return sum(len(block.bindings) for block in code) if alike and known_scalar(step.go) == 1 else None
    except (RefusedError, PoisonedInputError):
        return None  # the usual way says why
    finally:
        del importer.refusals[refusals:], importer.missing_values[missing:]


def _is_alike(context: NodeContext, old: Value, new: Value) -> bool:
    tensors = (Constant, Symbolic, Runtime)
    if not isinstance(old, tensors) or not isinstance(new, tensors) or len(old.shape) != len(new.shape):
        return False
    equal = context.arithmetic.equal_is_proved
    return old.dtype == new.dtype and all(equal(a, b) for a, b in zip(old.shape, new.shape, strict=True))


def _run(context: NodeContext, loop: Loop, first: Value, steps: int, state: list[Value]) -> Step:
    """So many iterations from one on; the elements are stacks."""
    elements: list[list[Value]] = []
    for offset in range(steps):
        step = loop.body(_plus(context, loop, first, offset), state)
        check_step(step)
        state = step.state
        elements.append(step.elements)
    stacks = [stacked(context, loop, list(column)) for column in zip(*elements, strict=True)]
    return Step(Constant(np.array(True)), state, stacks)


def _plus(context: NodeContext, loop: Loop, first: Value, offset: int) -> Value:
    if isinstance(first, Constant):
        return Constant(np.array(int(first.array) + offset, np.int64))
    assert isinstance(first, Runtime)
    if not offset:
        return first
    return Runtime(context.emit(R.add(first.expr, relax.const(offset, "int64"))), "int64", loop.sources)


def _joined(context: NodeContext, loop: Loop, stacks: Sequence[Value], counts: tuple[Dim, Dim]) -> Value:
    """The stack (blocks, steps, ...) of blocks, and perhaps that of the last iterations, as one.

    `counts` are the number of elements in the former and in both.
    """
    tensors = [stack for stack in stacks if isinstance(stack, Constant | Symbolic | Runtime)]
    assert len(tensors) == len(stacks)
    parts = [materialized(context, tensor) for tensor in tensors]
    inner = tensor_shape(parts[0])[2:]
    flat = relax.ShapeExpr([expression(size) for size in (counts[0], *inner)])
    joined = context.emit(R.reshape(parts[0], flat))
    if len(parts) > 1:
        joined = context.match_shape(context.emit(R.concat([joined, parts[1]], 0)), [counts[1], *inner])
    return Runtime(joined, tensors[0].dtype, loop.sources)
