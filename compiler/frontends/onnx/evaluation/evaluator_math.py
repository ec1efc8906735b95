"""Evaluation of arithmetic, comparison, logic and reduction."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np

from compiler.frontends.onnx import dtypes
from compiler.frontends.onnx.evaluation.operands import NotEvaluatedError, Operands, cast_array, elementwise, evaluates
from compiler.frontends.onnx.symbolic import Arithmetic

_ARITHMETIC: dict[str, tuple[Callable[..., Any], Callable[[Arithmetic], Callable[..., Any]]]] = {
    "Add": (np.add, lambda a: a.add),
    "Sub": (np.subtract, lambda a: a.subtract),
    "Mul": (np.multiply, lambda a: a.multiply),
    "Min": (np.minimum, lambda a: a.minimum),
    "Max": (np.maximum, lambda a: a.maximum),
    "Sum": (np.add, lambda a: a.add),
}
_COMPARISONS: dict[str, tuple[Callable[..., Any], Callable[[Arithmetic], Callable[..., Any]]]] = {
    "Equal": (np.equal, lambda a: a.equal),
    "Less": (np.less, lambda a: a.less),
    "LessOrEqual": (np.less_equal, lambda a: a.less_equal),
    "Greater": (np.greater, lambda a: lambda x, y: a.less(y, x)),
    "GreaterOrEqual": (np.greater_equal, lambda a: lambda x, y: a.less_equal(y, x)),
    "And": (np.logical_and, lambda a: a.logical_and),
    "Or": (np.logical_or, lambda a: a.logical_or),
}


def _old_broadcast(operands: Operands) -> None:
    """Before opset 7 broadcasting was asked for by attributes: left to the converters."""
    if operands.context.opset < 7:
        raise NotEvaluatedError


@evaluates(*_ARITHMETIC)
def _arithmetic(operands: Operands) -> np.ndarray:
    _old_broadcast(operands)
    on_arrays, on_scalars = _ARITHMETIC[operands.context.operator]
    arrays = [operands.array(i) for i in range(operands.count)]
    if operands.symbolic:
        return reduce(lambda x, y: elementwise(on_scalars(operands.arithmetic), x, y), arrays)
    with np.errstate(all="ignore"):
        return reduce(on_arrays, arrays)


@evaluates(*_COMPARISONS, dtype="bool")
def _comparison(operands: Operands) -> np.ndarray:
    _old_broadcast(operands)
    on_arrays, on_scalars = _COMPARISONS[operands.context.operator]
    if operands.symbolic:
        return elementwise(on_scalars(operands.arithmetic), operands.array(0), operands.array(1))
    return on_arrays(operands.array(0), operands.array(1))


def _require_divisors(operands: Operands, divisors: np.ndarray) -> None:
    """Raise an error when a symbolic divisor of integers turns out to be 0: the processor would trap."""
    arithmetic, builder = operands.arithmetic, operands.context.importer.builder
    for divisor in divisors.reshape(-1):
        if not isinstance(divisor, (int, float)) and not arithmetic.is_float(divisor):
            size = divisor if arithmetic.not_negative(divisor) else arithmetic.absolute(divisor)
            builder.require(size, "at least", 1)


@evaluates("Div")
def _divide(operands: Operands) -> np.ndarray:
    _old_broadcast(operands)
    a, b = operands.array(0), operands.array(1)
    if operands.symbolic:
        try:
            quotients = elementwise(operands.arithmetic.divide, a, b)
            if dtypes.is_integer(operands.dtype):
                _require_divisors(operands, b)
            return quotients
        except ZeroDivisionError as error:
            raise NotEvaluatedError from error
    if not dtypes.is_integer(operands.dtype):
        with np.errstate(all="ignore"):
            return np.divide(a, b)
    if np.any(b == 0):
        raise NotEvaluatedError
    quotient = np.floor_divide(a, b)
    inexact = (quotient * b != a) & ((a < 0) != (b < 0))
    return (quotient + inexact.astype(quotient.dtype)).astype(quotient.dtype)


@evaluates("Mod")
def _modulo(operands: Operands) -> np.ndarray:
    if not dtypes.is_integer(operands.dtype) or (not operands.symbolic and np.any(operands.array(1) == 0)):
        raise NotEvaluatedError
    truncated = bool(operands.context.attribute("fmod", 0))
    a, b = operands.array(0), operands.array(1)
    if operands.symbolic:
        if any(isinstance(divisor, int) and divisor == 0 for divisor in b.reshape(-1)):
            raise NotEvaluatedError
        _require_divisors(operands, b)
        return elementwise(operands.arithmetic.truncated_mod if truncated else operands.arithmetic.floor_mod, a, b)
    return np.fmod(a, b) if truncated else np.mod(a, b)


@evaluates("Neg", "Abs", "Floor", "Ceil", "Not", "Sqrt")
def _unary(operands: Operands) -> np.ndarray:
    array, arithmetic = operands.array(0), operands.arithmetic
    if not operands.symbolic:
        on_arrays = {"Neg": np.negative, "Abs": np.abs, "Floor": np.floor, "Ceil": np.ceil}
        on_arrays.update({"Not": np.logical_not, "Sqrt": np.sqrt})
        with np.errstate(all="ignore"):
            return on_arrays[operands.context.operator](array)
    on_scalars = {"Neg": arithmetic.negative, "Abs": arithmetic.absolute, "Not": arithmetic.logical_not}
    on_scalars.update({"Floor": arithmetic.floor, "Ceil": arithmetic.ceil})
    if operands.context.operator not in on_scalars:
        raise NotEvaluatedError
    return elementwise(on_scalars[operands.context.operator], array)


@evaluates("Cast")
def _cast(operands: Operands) -> np.ndarray:
    target = dtypes.dtype_name(operands.context.required_attribute("to"))
    if target is None:
        operands.context.invalid("its target type is unknown")
    array = cast_array(operands, operands.array(0), target)
    operands.dtype = target
    return array


@evaluates("CastLike")
def _cast_like(operands: Operands) -> np.ndarray:
    target = operands.context.dtype(1)
    source = operands.context.inputs[0]
    array = cast_array(operands, source.array, target)  # type: ignore[union-attr]
    operands.dtype = target
    return array


@evaluates("Where")
def _where(operands: Operands) -> np.ndarray:
    operands.dtype = operands.context.dtype(1)
    arrays = [operands.array(i) for i in range(3)]
    if operands.symbolic:
        return elementwise(operands.arithmetic.select, *arrays)
    return np.where(*arrays)


_REDUCTIONS = {"ReduceSum": "add", "ReduceProd": "multiply", "ReduceMax": "maximum", "ReduceMin": "minimum"}


@evaluates(*_REDUCTIONS)
def _reduce(operands: Operands) -> np.ndarray:
    context, array = operands.context, operands.array(0)
    axes = operands.integers(1) if operands.given(1) else list(context.attribute("axes", []))
    if not axes and context.attribute("noop_with_empty_axes", 0):
        return array
    axes = context.axes(axes, array.ndim) if axes else list(range(array.ndim))
    if any(array.shape[axis] == 0 for axis in axes) or not dtypes.is_integer(operands.dtype):
        raise NotEvaluatedError
    keep = bool(context.attribute("keepdims", 1))
    name = _REDUCTIONS[context.operator]
    if not operands.symbolic:
        ufunc: Any = getattr(np, name)
        return np.asarray(ufunc.reduce(array, tuple(axes), dtype=array.dtype, keepdims=keep))
    scalar = getattr(operands.arithmetic, name)
    rest = [axis for axis in range(array.ndim) if axis not in axes]
    moved = np.transpose(array, [*axes, *rest]).reshape(-1, *[array.shape[axis] for axis in rest])
    result = reduce(
        lambda x, y: elementwise(scalar, x, y), [moved[i] if rest else moved[i : i + 1] for i in range(len(moved))]
    )
    shape = [1 if axis in axes else array.shape[axis] for axis in range(array.ndim)]
    return result.reshape(shape if keep else [array.shape[axis] for axis in rest])
