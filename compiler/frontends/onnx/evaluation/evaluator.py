"""Evaluates nodes whose inputs are known when importing, up to symbolic sizes, which removes exported shape
computations.

Arrays are numpy's; those with symbolic elements are object arrays of Python numbers and scalar expressions, handled by
the same functions. Only small arrays are evaluated here; large constants are left to the graph passes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from compiler.frontends.onnx import dtypes
from compiler.frontends.onnx.evaluation import evaluator_index, evaluator_math  # noqa: F401  (they register evaluators)
from compiler.frontends.onnx.evaluation.operands import (
    EVALUATORS,
    MAXIMUM_ELEMENTS,
    RESULT_DTYPES,
    SYMBOLIC_DTYPES,
    NotEvaluatedError,
    Operands,
)
from compiler.frontends.onnx.symbolic import is_number
from compiler.frontends.onnx.values import Constant, Runtime, SequenceValue, Symbolic, Value, is_poisoned

if TYPE_CHECKING:
    from compiler.frontends.onnx.context import NodeContext


Evaluated = list[Value]


def can_evaluate(operator: str) -> bool:
    """True if nodes of that operator are computed while importing, whatever their inputs."""
    return operator in ("Shape", "Size")


def evaluate(context: NodeContext) -> Evaluated | None:
    """The node's outputs when its inputs are known, else None."""
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
    return Symbolic(array, dtype) if dtype in SYMBOLIC_DTYPES else None


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
