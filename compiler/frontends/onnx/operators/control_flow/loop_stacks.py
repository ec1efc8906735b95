"""Iterations that are written out: what each gives, and their elements as one stack."""

from __future__ import annotations

import numpy as np
from tvm.relax import op as R

from compiler.frontends.onnx.context import NodeContext, PoisonedInputError
from compiler.frontends.onnx.operators.control_flow.loop_state import Loop, Step, element_kind
from compiler.frontends.onnx.operators.control_flow.structures import materialized
from compiler.frontends.onnx.values import Constant, Runtime, Symbolic, Value, is_poisoned


def check_step(step: Step) -> None:
    """Raise PoisonedInputError where a value of an iteration follows from a node that was refused."""
    if any(is_poisoned(value) for value in (step.go, *step.state, *step.elements)):
        raise PoisonedInputError


def stacked(context: NodeContext, loop: Loop, elements: list[Value]) -> Value:
    """The elements of several iterations along a new first axis."""
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
    whole = exprs[0] if len(exprs) == 1 else context.emit(R.concat(exprs, 0))
    return Runtime(whole, dtype, loop.sources)
