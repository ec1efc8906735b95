"""The inputs of nodes that are evaluated while importing, and the table of evaluators."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from compiler.frontends.onnx import dtypes
from compiler.frontends.onnx.symbolic import Arithmetic, Scalar, cast, is_number
from compiler.frontends.onnx.values import Constant, Symbolic

if TYPE_CHECKING:
    from compiler.frontends.onnx.context import NodeContext

MAXIMUM_ELEMENTS = 2**16
SYMBOLIC_DTYPES = frozenset({"int64", "int32", "float32", "float64", "bool"})


class NotEvaluatedError(Exception):
    """This node cannot be evaluated while importing; it is converted like any other."""


class Operands:
    """The inputs of a node that is being evaluated, as arrays."""

    def __init__(self, context: NodeContext) -> None:
        self.context = context
        self.arithmetic: Arithmetic = context.arithmetic
        self.symbolic = any(isinstance(v, Symbolic) for v in context.inputs)
        self.dtype = next((v.dtype for v in context.inputs if isinstance(v, (Constant, Symbolic))), "float32")

    @property
    def count(self) -> int:
        return len(self.context.inputs)

    def given(self, index: int) -> bool:
        return self.context.has_input(index)

    def array(self, index: int) -> np.ndarray:
        """Input `index`; an object array when any input is symbolic."""
        value = self.context.inputs[index]
        assert isinstance(value, (Constant, Symbolic))
        if isinstance(value, Symbolic):
            return value.array
        return value.array.astype(object) if self.symbolic else value.array

    def real(self, index: int) -> np.ndarray:
        """Input `index`, which must have no symbolic element."""
        value = self.context.inputs[index]
        if not isinstance(value, Constant):
            raise NotEvaluatedError
        return value.array

    def integers(self, index: int) -> list[int]:
        return [int(v) for v in self.real(index).reshape(-1)]

    def sizes(self, index: int) -> list[int]:
        """A list of sizes for an array made while importing: none symbolic, none absurd."""
        sizes = self.integers(index)
        if any(s < 0 for s in sizes):
            self.context.invalid(f"a size is negative: {sizes}")
        if np.prod([float(s) for s in sizes]) > MAXIMUM_ELEMENTS:
            raise NotEvaluatedError
        return sizes


Evaluator = Callable[[Operands], np.ndarray | list[np.ndarray]]
EVALUATORS: dict[str, Evaluator] = {}
RESULT_DTYPES: dict[str, str] = {}


def evaluates(*operators: str, dtype: str | None = None) -> Callable[[Evaluator], Evaluator]:
    """Register an evaluator; `dtype` is the result's when it is not that of the first input."""

    def register(function: Evaluator) -> Evaluator:
        for operator in operators:
            EVALUATORS[operator] = function
            if dtype is not None:
                RESULT_DTYPES[operator] = dtype
        return function

    return register


def elementwise(function: Callable[..., object], *arrays: np.ndarray) -> np.ndarray:
    """Apply a scalar function over broadcast object arrays."""
    result = np.frompyfunc(function, len(arrays), 1)(*arrays)
    if isinstance(result, np.ndarray):
        return result
    scalar = np.empty((), object)
    scalar[()] = result
    return scalar


def cast_array(operands: Operands, array: np.ndarray, target: str) -> np.ndarray:
    """Cast an array, symbolic elements included; what is not trivial is left to the Cast converter."""
    if array.dtype == object:
        if target not in SYMBOLIC_DTYPES:
            raise NotEvaluatedError
        kind = "int64" if dtypes.is_integer(target) else target
        arithmetic, builder = operands.arithmetic, operands.context.importer.builder

        def converted(value: Scalar) -> Scalar:
            if kind == "int64" and not is_number(value) and arithmetic.is_float(value):
                return builder.truncated_size(value)
            return arithmetic.simplify(cast(value, kind))

        return elementwise(converted, array)
    source = array.dtype.name
    trivial = {"int64", "int32", "bool", "float32", "float64"}
    if source not in trivial or target not in trivial:
        raise NotEvaluatedError
    if dtypes.is_float(source) and dtypes.is_integer(target):
        limits = dtypes.integer_limits(target)
        if not np.all(np.isfinite(array)) or np.any(np.abs(array) >= float(limits[1])):
            raise NotEvaluatedError
    return array.astype(dtypes.numpy_dtype(target))
