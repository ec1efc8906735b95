"""Evaluates nodes whose inputs are known when importing, up to symbolic sizes: exported shape computations vanish.

Arrays are numpy's; those with symbolic elements are object arrays of Python numbers and scalar expressions, handled by
the same functions. Only small arrays are evaluated here; large constants are left to the graph passes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from compiler.frontends.onnx import dtypes
from compiler.frontends.onnx.symbolic import Arithmetic, Scalar, cast, is_number
from compiler.frontends.onnx.values import Constant, Runtime, SequenceValue, Symbolic, Value, is_poisoned

if TYPE_CHECKING:
    from compiler.frontends.onnx.context import NodeContext

MAXIMUM_ELEMENTS = 2**16
_SYMBOLIC_DTYPES = frozenset({"int64", "int32", "float32", "float64", "bool"})

Evaluated = list[Value]


class NotEvaluatedError(Exception):
    """This node can not be evaluated while importing; it is converted like any other."""


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


def _load() -> None:
    from compiler.frontends.onnx.evaluation import (
        evaluator_index,  # noqa: F401  (they register themselves)
        evaluator_math,  # noqa: F401  (they register themselves)
    )


def can_evaluate(operator: str) -> bool:
    """Whether nodes of that operator are computed while importing, whatever their inputs."""
    return operator in ("Shape", "Size")


def evaluate(context: NodeContext) -> Evaluated | None:
    """The node's outputs when its inputs are known, else None."""
    _load()
    special = _shape_or_size(context)
    if special is not None:
        return special
    function = EVALUATORS.get(context.operator)
    given = [v for v in context.inputs if v is not None]
    if function is None or not all(isinstance(v, (Constant, Symbolic)) for v in given):
        return None
    if any(isinstance(v, Constant) and v.size > MAXIMUM_ELEMENTS for v in given):
        return None
    if any(v.dtype == "string" for v in given if isinstance(v, (Constant, Symbolic))):
        return None
    operands = Operands(context)
    try:
        results = function(operands)
    except NotEvaluatedError:
        return None
    results = results if isinstance(results, list) else [results]
    dtype = RESULT_DTYPES.get(context.operator, operands.dtype)
    if context.operator == "Cast" or context.operator == "CastLike":
        dtype = operands.dtype
    wrapped = [to_value(array, dtype) for array in results]
    if any(w is None for w in wrapped):
        return None
    return [w for w in wrapped if w is not None]


def to_value(array: np.ndarray, dtype: str) -> Constant | Symbolic | None:
    """An evaluated array as a value: constant when nothing in it is symbolic; None when it has no symbolic form."""
    array = np.asarray(array)
    if array.dtype != object:
        return Constant(np.ascontiguousarray(array).reshape(array.shape), dtype)
    if all(is_number(v) for v in array.reshape(-1)):
        return Constant(_wrapped(array, dtype), dtype)
    return Symbolic(array, dtype) if dtype in _SYMBOLIC_DTYPES else None


def _wrapped(array: np.ndarray, dtype: str) -> np.ndarray:
    """Python numbers as `dtype`, integers wrapped around."""
    if dtypes.is_integer(dtype):
        low, _ = dtypes.integer_limits(dtype)
        span = 2 ** dtypes.bits(dtype)
        values = [(int(v) - low) % span + low for v in array.reshape(-1)]
        return np.array(values, dtypes.numpy_dtype(dtype)).reshape(array.shape)
    return array.astype(dtypes.numpy_dtype(dtype))


def _shape_or_size(context: NodeContext) -> Evaluated | None:
    if context.operator not in ("Shape", "Size") or not context.inputs or is_poisoned(context.inputs[0]):
        return None
    value = context.inputs[0]
    if isinstance(value, SequenceValue) or not isinstance(value, (Constant, Symbolic, Runtime)):
        return None
    dims = list(value.shape)
    if context.operator == "Size":
        array = np.empty((), object)
        array[()] = context.arithmetic.product(dims)
    else:
        dims = dims[slice(context.attribute("start", 0), context.attribute("end", None))]
        array = np.empty((len(dims),), object)
        array[:] = dims
    result = to_value(array, "int64")
    return None if result is None else [result]


def cast_array(operands: Operands, array: np.ndarray, target: str) -> np.ndarray:
    """Cast an array, symbolic elements included; what is not trivial is left to the Cast converter."""
    if array.dtype == object:
        if target not in _SYMBOLIC_DTYPES:
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
