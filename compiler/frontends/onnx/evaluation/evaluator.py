"""Evaluation of nodes with known inputs: creation, indexing, slicing, reshaping, arithmetic, comparison, logic and
reduction of constants and sizes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import numpy_helper

from compiler.frontends.onnx import dtypes
from compiler.frontends.onnx.symbolic import Arithmetic, Scalar, cast, is_number
from compiler.frontends.onnx.values import Constant, Runtime, SequenceValue, Symbolic, Value, is_poisoned

if TYPE_CHECKING:
    from compiler.frontends.onnx.context import NodeContext

MAX_ELEMENTS = 2**16
SYMBOLIC_DTYPES = frozenset({"int64", "int32", "float32", "float64", "bool"})


class NotEvaluatedError(Exception):
    """The node cannot be evaluated during import; it is converted like any other."""


class Operands:
    """The inputs of a node being evaluated, as arrays."""

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
        """Return input `index`; an object array if any input is symbolic."""
        value = self.context.inputs[index]
        assert isinstance(value, (Constant, Symbolic))
        if isinstance(value, Symbolic):
            return value.array
        return value.array.astype(object) if self.symbolic else value.array

    def real(self, index: int) -> np.ndarray:
        """Return input `index`, which must have no symbolic element."""
        value = self.context.inputs[index]
        if not isinstance(value, Constant):
            raise NotEvaluatedError
        return value.array

    def integers(self, index: int) -> list[int]:
        return [int(v) for v in self.real(index).reshape(-1)]

    def sizes(self, index: int) -> list[int]:
        """Return a list of sizes for an array created during import: none symbolic or absurdly large."""
        sizes = self.integers(index)
        if any(s < 0 for s in sizes):
            self.context.invalid(f"a size is negative: {sizes}")
        if np.prod([float(s) for s in sizes]) > MAX_ELEMENTS:
            raise NotEvaluatedError
        return sizes


Evaluator = Callable[[Operands], np.ndarray | list[np.ndarray]]
EVALUATORS: dict[str, Evaluator] = {}
RESULT_DTYPES: dict[str, str] = {}


def evaluates(*operators: str, dtype: str | None = None) -> Callable[[Evaluator], Evaluator]:
    """Register an evaluator; `dtype` is the result's if it differs from the first input's."""

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
    """Cast an array, including symbolic elements; nontrivial casts are left to the Cast converter."""
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


Evaluated = list[Value]
_MAX_SYMBOLIC = 256  # elements of an array of expressions


def can_evaluate(operator: str) -> bool:
    """True if nodes of that operator are always evaluated during import."""
    return operator in ("Shape", "Size")


def evaluate(context: NodeContext) -> Evaluated | None:
    """Return the node's outputs if its inputs are known, otherwise None."""
    special = _shape_or_size(context)
    if special is not None:
        return special
    function = EVALUATORS.get(context.operator)
    inputs = [v for v in context.inputs if v is not None]
    if function is None or not all(isinstance(v, (Constant, Symbolic)) for v in inputs):
        return None
    if any(isinstance(v, Constant) and v.size > MAX_ELEMENTS for v in inputs):
        return None
    if any(v.dtype == "string" for v in inputs if isinstance(v, (Constant, Symbolic))):
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
    """Convert an evaluated array to a value: a constant if nothing in it is symbolic; None if it has no symbolic form,
    or too many elements to compute individually."""
    array = np.asarray(array)
    if array.dtype != object:
        return Constant(np.ascontiguousarray(array).reshape(array.shape), dtype)
    if all(is_number(v) for v in array.reshape(-1)):
        return Constant(_wrapped(array, dtype), dtype)
    return Symbolic(array, dtype) if dtype in SYMBOLIC_DTYPES and array.size <= _MAX_SYMBOLIC else None


def _wrapped(array: np.ndarray, dtype: str) -> np.ndarray:
    """Return Python numbers as `dtype`, integers wrapped around."""
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


@evaluates("Gather")
def _gather(operands: Operands) -> np.ndarray:
    array = operands.array(0)
    axis = operands.context.axis(operands.context.attribute("axis", 0), array.ndim)
    indices = operands.real(1)
    _check_indices(operands, indices, array.shape[axis])
    result = np.empty(array.shape[:axis] + indices.shape + array.shape[axis + 1 :], array.dtype)
    result[...] = np.take(array, indices, axis=axis)
    return result


def _check_indices(operands: Operands, indices: np.ndarray, size: int) -> None:
    if indices.size and (indices.min() < -size or indices.max() >= size):
        operands.context.invalid(f"an index lies outside [-{size}, {size})")


@evaluates("Slice")
def _slice(operands: Operands) -> np.ndarray:
    context, array = operands.context, operands.array(0)
    if context.opset < 10:
        starts, ends = list(context.required_attribute("starts")), list(context.required_attribute("ends"))
        axes, steps = list(context.attribute("axes", list(range(len(starts))))), [1] * len(starts)
    else:
        starts, ends = operands.integers(1), operands.integers(2)
        axes = operands.integers(3) if operands.given(3) else list(range(len(starts)))
        steps = operands.integers(4) if operands.given(4) else [1] * len(starts)
    index = [slice(None)] * array.ndim
    for start, end, axis, step in zip(starts, ends, context.axes(axes, array.ndim), steps, strict=True):
        if step == 0:
            context.invalid("a step is 0")
        to_start = step < 0 and (end < -array.shape[axis] or end in (2**31 - 1, 2**63 - 1))
        index[axis] = slice(start, None if to_start else end, step)
    return array[tuple(index)]


@evaluates("Concat")
def _concat(operands: Operands) -> np.ndarray:
    arrays = [operands.array(i) for i in range(operands.count)]
    axis = operands.context.axis(operands.context.attribute("axis", 1), arrays[0].ndim)
    if sum(a.size for a in arrays) > MAX_ELEMENTS:
        raise NotEvaluatedError
    return np.concatenate(arrays, axis=axis)


def _axes(operands: Operands) -> list[int] | None:
    if operands.given(1):
        return operands.integers(1)
    axes = operands.context.attribute("axes", None)
    return None if axes is None else list(axes)


@evaluates("Unsqueeze")
def _unsqueeze(operands: Operands) -> np.ndarray:
    array, axes = operands.array(0), _axes(operands) or []
    new = sorted(operands.context.axes(axes, array.ndim + len(axes)))
    shape = list(array.shape)
    for axis in new:
        shape.insert(axis, 1)
    return array.reshape(shape)


@evaluates("Squeeze")
def _squeeze(operands: Operands) -> np.ndarray:
    array, axes = operands.array(0), _axes(operands)
    if axes is None:
        removed = [axis for axis, size in enumerate(array.shape) if size == 1]
    else:
        removed = operands.context.axes(axes, array.ndim)
        if any(array.shape[axis] != 1 for axis in removed):
            operands.context.invalid(f"axes {axes} of shape {array.shape} are not all of size 1")
    return array.reshape([size for axis, size in enumerate(array.shape) if axis not in removed])


@evaluates("Reshape")
def _reshape(operands: Operands) -> np.ndarray:
    if operands.context.opset < 5:
        raise NotEvaluatedError
    array, target = operands.array(0), operands.integers(1)
    if not operands.context.attribute("allowzero", 0):
        target = [array.shape[i] if size == 0 and i < array.ndim else size for i, size in enumerate(target)]
    if -1 in target:
        rest = math.prod(size for size in target if size != -1)
        if rest == 0 or array.size % rest:
            operands.context.invalid(f"{array.shape} cannot be reshaped to {target}")
    elif math.prod(target) != array.size:
        operands.context.invalid(f"{array.shape} cannot be reshaped to {target}")
    return array.reshape(target)


@evaluates("Flatten")
def _flatten(operands: Operands) -> np.ndarray:
    array, axis = operands.array(0), operands.context.attribute("axis", 1)
    if not -array.ndim <= axis <= array.ndim:
        operands.context.invalid(f"axis {axis} does not exist in rank {array.ndim}")
    axis = axis + array.ndim if axis < 0 else axis
    return array.reshape([math.prod(array.shape[:axis]), math.prod(array.shape[axis:])])


@evaluates("Transpose")
def _transpose(operands: Operands) -> np.ndarray:
    array = operands.array(0)
    order = operands.context.attribute("perm", list(range(array.ndim))[::-1])
    if sorted(order) != list(range(array.ndim)):
        operands.context.invalid(f"perm {list(order)} is not a permutation of {array.ndim} axes")
    return np.transpose(array, order)


@evaluates("Split")
def _split(operands: Operands) -> list[np.ndarray]:
    context, array = operands.context, operands.array(0)
    axis = context.axis(context.attribute("axis", 0), array.ndim)
    size, parts = array.shape[axis], len(context.node.output)
    lengths = operands.integers(1) if operands.given(1) else list(context.attribute("split", []))
    if not lengths:
        chunk = -(-size // parts)
        lengths = [min(chunk, max(0, size - i * chunk)) for i in range(parts)]
    if sum(lengths) != size or len(lengths) != parts or min(lengths, default=0) < 0:
        context.invalid(f"a size of {size} cannot be split into {parts} parts of {lengths}")
    return np.split(array, np.cumsum(lengths)[:-1], axis=axis)


@evaluates("Expand")
def _expand(operands: Operands) -> np.ndarray:
    array, target = operands.array(0), operands.sizes(1)
    try:
        shape = np.broadcast_shapes(array.shape, tuple(target))
    except ValueError:
        operands.context.invalid(f"{array.shape} does not broadcast with {target}")
    if math.prod(shape) > MAX_ELEMENTS:
        raise NotEvaluatedError
    return np.broadcast_to(array, shape).copy()


@evaluates("Tile")
def _tile(operands: Operands) -> np.ndarray:
    array = operands.array(0)
    if operands.context.opset < 6 or operands.count != 2:
        raise NotEvaluatedError
    repeats = operands.sizes(1)
    if len(repeats) != array.ndim:
        operands.context.invalid(f"{len(repeats)} repeats for {array.ndim} axes")
    if math.prod(repeats) * array.size > MAX_ELEMENTS:
        raise NotEvaluatedError
    return np.tile(array, repeats)


@evaluates("Range")
def _range(operands: Operands) -> np.ndarray:
    start, limit, delta = (operands.real(i).reshape(-1)[0] for i in range(3))
    if delta == 0:
        operands.context.invalid("delta is 0")
    count = max(0, math.ceil((limit.astype(object) - start.astype(object)) / delta.astype(object)))
    if count > MAX_ELEMENTS:
        raise NotEvaluatedError
    dtype = dtypes.numpy_dtype(operands.dtype)
    return (start + np.arange(count).astype(dtype) * delta).astype(dtype)


@evaluates("ConstantOfShape")
def _constant_of_shape(operands: Operands) -> np.ndarray:
    tensor = operands.context.attribute("value", None)
    value = np.zeros(1, np.float32) if tensor is None else numpy_helper.to_array(tensor)
    if value.size != 1:
        operands.context.invalid("its value must hold one element")
    sizes = operands.sizes(0)
    operands.dtype = dtypes.NAMES[tensor.data_type] if tensor is not None else "float32"
    return np.full(sizes, value.reshape(-1)[0], value.dtype)


@evaluates("ScatterND")
def _scatter_nd(operands: Operands) -> np.ndarray:
    if operands.context.attribute("reduction", "none") != "none":
        raise NotEvaluatedError
    array, indices, updates = operands.array(0).copy(), operands.real(1), operands.array(2)
    depth = indices.shape[-1]
    for axis in range(depth):
        _check_indices(operands, indices[..., axis], array.shape[axis])
    for position in np.ndindex(*indices.shape[:-1]):
        array[tuple(indices[position])] = updates[position]
    return array


@evaluates("ScatterElements")
def _scatter_elements(operands: Operands) -> np.ndarray:
    if operands.context.attribute("reduction", "none") != "none":
        raise NotEvaluatedError
    array, indices, updates = operands.array(0).copy(), operands.real(1), operands.array(2)
    axis = operands.context.axis(operands.context.attribute("axis", 0), array.ndim)
    _check_indices(operands, indices, array.shape[axis])
    for position in np.ndindex(*indices.shape):
        target = list(position)
        target[axis] = indices[position]
        array[tuple(target)] = updates[position]
    return array


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
    """Before opset 7, attributes determined broadcasting: left to the converters."""
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
    """Raise an error if a symbolic integer divisor is 0 at run time: the CPU would trap."""
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
