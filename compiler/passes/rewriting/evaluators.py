"""Evaluation of operators on constants in numpy, without compilation.

Only operators for which numpy matches TVM's kernels; the rest is left to TVM
(`engine_evaluation`). An evaluator returns None for operands it does not handle.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from tvm import relax
from tvm.ir import Constant, GenericConst, GlobalVar
from tvm.tirx import IntImm

from compiler.passes.rewriting.graph import operator_name
from compiler.passes.rewriting.matching import Array, array_of, plain, static_shape
from compiler.support.registry import registers_in
from schedules.ir.tvm_types import Call, Expr, Type

Evaluator: TypeAlias = "Callable[[Call, list[Array]], Array | None]"

EVALUATORS: dict[str, Evaluator] = {}
evaluator = registers_in(EVALUATORS, prefix="relax.")


def evaluate_in_numpy(call: Call) -> Array | None:
    """Return the value of a call on constant tensors, or None if no evaluator handles it."""
    function = EVALUATORS.get(operator_name(call) or "")
    if function is None:
        return None
    arrays = constant_operands(call)
    if arrays is None or any(array.dtype.kind not in "biuf" for array in arrays):
        return None  # numpy does not compute in bfloat16 and 8-bit floats like TVM
    with np.errstate(all="ignore"):
        result = function(call, arrays)
    ty = call.ty
    if result is None or not isinstance(ty, relax.TensorType) or str(ty.dtype) != result.dtype.name:
        return None
    return result


def constant_operands(call: Call) -> list[Array] | None:
    """Return the tensor operands in order, tuples flattened; None if an operand, shapes included, is not constant."""
    arrays: list[Array] = []
    for argument in call.args:
        for item in argument.fields if isinstance(argument, relax.Tuple) else (argument,):
            if isinstance(item, GenericConst) and isinstance(item.ty, relax.TensorType):
                arrays.append(array_of(item))
            elif not _is_literal(item):
                return None
    return arrays


def _is_literal(item: Expr) -> bool:
    if isinstance(item, relax.ShapeExpr):
        return all(isinstance(value, IntImm) for value in item.values)
    return isinstance(item, Constant | GlobalVar)


def _elementwise(functions: dict[str, Callable[..., Any]], kinds: str) -> None:
    """Register numpy functions for operands whose data types are of `kinds` (numpy's letters)."""
    for name, function in functions.items():

        def evaluate(_call: Call, arrays: list[Array], function: Callable[..., Any] = function) -> Array | None:
            if any(array.dtype.kind not in kinds for array in arrays):
                return None
            return np.asarray(function(*arrays))

        EVALUATORS[f"relax.{name}"] = evaluate


def _rounded_once(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """Compute an elementary function in float64: numpy's float32 functions are off by up to 2.5 ulp, which shows in
    frequencies multiplied by large times or positions."""

    def evaluate(array: Array) -> Array:
        with np.errstate(all="ignore"):
            return np.asarray(function(array.astype(np.float64)).astype(array.dtype))

    return evaluate


def _of_numpy(*names: str) -> dict[str, Callable[..., Array]]:
    """Return the numpy functions that have the same names in Relax."""
    return {name: getattr(np, name) for name in names}


_elementwise(_of_numpy("add", "subtract", "multiply", "negative", "abs", "square"), "iuf")
_elementwise(_of_numpy("equal", "not_equal", "greater", "greater_equal", "less", "less_equal"), "iuf")
_elementwise(_of_numpy("divide", "sqrt", "floor", "ceil", "trunc"), "f")
_elementwise({each.__name__: _rounded_once(each) for each in (np.exp, np.log, np.sin, np.cos, np.tanh)}, "f")
_elementwise(_of_numpy("logical_and", "logical_or", "logical_xor", "logical_not"), "b")
_elementwise(_of_numpy("bitwise_and", "bitwise_or", "bitwise_xor"), "biu")


@evaluator("rsqrt")
def _rsqrt(_call: Call, arrays: list[Array]) -> Array | None:
    one = arrays[0].dtype.type(1)
    return np.asarray(one / np.sqrt(arrays[0])) if arrays[0].dtype.kind == "f" else None


@evaluator("maximum", "minimum")
def _extreme(call: Call, arrays: list[Array]) -> Array | None:
    result = np.maximum(*arrays) if call.op.name == "relax.maximum" else np.minimum(*arrays)
    # TVM does not propagate NaN like numpy.
    return None if result.dtype.kind == "f" and bool(np.isnan(result).any()) else np.asarray(result)


@evaluator("where")
def _where(_call: Call, arrays: list[Array]) -> Array | None:
    condition, yes, no = arrays
    return np.where(condition, yes, no) if yes.dtype == no.dtype else None


@evaluator("astype")
def _astype(call: Call, arrays: list[Array]) -> Array | None:
    source, target = arrays[0], np.dtype(str(call.attrs.dtype)) if _is_numpy(call.attrs.dtype) else None
    if target is None:
        return None
    if source.dtype.kind == "f" and target.kind in "iu":
        limits = np.iinfo(target)
        inside = np.isfinite(source) & (source >= limits.min) & (source <= limits.max)
        if not bool(inside.all()):
            return None  # undefined; TVM's code decides
    return source.astype(target)


def _is_numpy(dtype: object) -> bool:
    try:
        return np.dtype(str(dtype)).kind in "biuf"
    except TypeError:
        return False


@evaluator("reshape", "flatten", "expand_dims", "squeeze", "nn.batch_flatten")
def _reshape(call: Call, arrays: list[Array]) -> Array | None:
    shape = static_shape(call)
    return None if shape is None else np.ascontiguousarray(arrays[0]).reshape(shape)


@evaluator("broadcast_to")
def _broadcast(call: Call, arrays: list[Array]) -> Array | None:
    shape = static_shape(call)
    return None if shape is None else np.broadcast_to(arrays[0], shape)


@evaluator("permute_dims")
def _permute(call: Call, arrays: list[Array]) -> Array | None:
    axes = call.attrs.axes
    return np.transpose(arrays[0], None if axes is None else [int(axis) for axis in axes])


@evaluator("concat")
def _concat(call: Call, arrays: list[Array]) -> Array | None:
    axis = call.attrs.axis
    if axis is None:
        return np.concatenate([array.reshape(-1) for array in arrays])
    return np.concatenate(arrays, int(axis))


@evaluator("stack")
def _stack(call: Call, arrays: list[Array]) -> Array | None:
    axis = call.attrs.axis
    return np.stack(arrays, 0 if axis is None else int(axis))


@evaluator("take")
def _take(call: Call, arrays: list[Array]) -> Array | None:
    data, index = arrays
    axis = call.attrs.axis
    size = data.size if axis is None else data.shape[int(axis)]
    if index.size and (index.min() < 0 or index.max() >= size):
        return None  # depends on the mode
    return np.asarray(np.take(data, index, None if axis is None else int(axis)))


@evaluator("strided_slice")
def _strided_slice(call: Call, arrays: list[Array]) -> Array | None:
    fields = [_integers(argument) for argument in call.args[1:]]
    if any(field is None for field in fields):
        return None
    axes, begins, ends = (field or [] for field in fields[:3])
    strides = (fields[3] or []) if len(fields) > 3 else [1] * len(axes)
    index: list[slice] = [slice(None)] * arrays[0].ndim
    for axis, begin, end, stride in zip(axes, begins, ends, strides, strict=True):
        if stride <= 0:
            return None  # an end before the first element is ambiguous
        index[axis] = slice(begin, end, stride)
    result = arrays[0][tuple(index)]
    return result if result.shape == static_shape(call) else None


def _integers(argument: Expr) -> list[int] | None:
    values = argument.fields if isinstance(argument, relax.Tuple) else getattr(argument, "values", None)
    if values is None:
        return None
    numbers = [plain(value) for value in values]
    return numbers if all(isinstance(number, int) for number in numbers) else None


@evaluator("sum", "mean", "prod", "max", "min")
def _reduce(call: Call, arrays: list[Array]) -> Array | None:
    array, name = arrays[0], str(call.op.name).removeprefix("relax.")
    if array.size == 0 or array.dtype.kind not in "iuf" or (name == "mean" and array.dtype.kind != "f"):
        return None
    if array.dtype.kind == "f" and bool(np.isnan(array).any()):
        return None
    axes = call.attrs.axis
    axis = None if axes is None else tuple(int(each) for each in axes)
    keepdims = bool(call.attrs.keepdims)
    if name in ("max", "min"):
        extreme = np.max if name == "max" else np.min
        return np.asarray(extreme(array, axis=axis, keepdims=keepdims))
    totals: dict[str, Callable[..., Any]] = {"sum": np.sum, "mean": np.mean, "prod": np.prod}
    return np.asarray(totals[name](array, axis=axis, keepdims=keepdims, dtype=array.dtype))


@evaluator("zeros", "ones", "full", "zeros_like", "ones_like", "full_like")
def _filled(call: Call, arrays: list[Array]) -> Array | None:
    shape, dtype = static_shape(call), call.ty.dtype
    if shape is None or not _is_numpy(dtype):
        return None
    name = str(call.op.name)
    value = arrays[-1].reshape(()) if "full" in name else (1 if "ones" in name else 0)
    return np.full(shape, value, np.dtype(str(dtype)))


@evaluator("arange")
def _arange(call: Call, _arrays: list[Array]) -> Array | None:
    bounds = [plain(argument) for argument in call.args]
    dtype = call.ty.dtype
    if not _is_numpy(dtype) or not all(isinstance(bound, int) for bound in bounds):
        return None
    return np.arange(*bounds, dtype=np.dtype(str(dtype)))


@evaluator("shape_to_tensor")
def _shape_to_tensor(call: Call, _arrays: list[Array]) -> Array | None:
    values = _integers(call.args[0])
    return None if values is None else np.asarray(values, "int64")


@evaluator("matmul")
def _matmul(call: Call, arrays: list[Array]) -> Array | None:
    left, right = arrays
    same = left.dtype == right.dtype and left.dtype.kind == "f"
    return np.asarray(np.matmul(left, right)) if same and left.ndim and right.ndim else None


@evaluator("tile")
def _tile(call: Call, arrays: list[Array]) -> Array | None:
    return np.tile(arrays[0], [int(each) for each in call.attrs.repeats])


@evaluator("flip")
def _flip(call: Call, arrays: list[Array]) -> Array | None:
    return np.flip(arrays[0], int(call.attrs.axis))


@evaluator("dequantize")
def _dequantize(call: Call, arrays: list[Array]) -> Array | None:
    data, scale, zero = arrays
    if scale.dtype != np.float32 or str(call.ty.dtype) != "float32":
        return None
    axis = int(call.attrs.axis) % max(data.ndim, 1)
    spread = [-1 if position == axis else 1 for position in range(data.ndim)]
    if scale.ndim == 1 and scale.size > 1:
        scale = scale.reshape(spread)
    if zero.ndim == 1 and zero.size > 1:
        zero = zero.reshape(spread)
    shifted = data.astype(np.int32) - zero.astype(np.int32)
    return np.asarray(shifted.astype(np.float32) * scale).reshape(data.shape)


def result_bytes(ty: Type) -> int | None:
    """Return the bytes of a value of this type, tuples summed; None unless all sizes are known."""
    if isinstance(ty, relax.TupleType):
        sizes = [result_bytes(field) for field in ty.fields]
        return None if any(size is None for size in sizes) else sum(size or 0 for size in sizes)
    if not isinstance(ty, relax.TensorType) or not isinstance(ty.shape, relax.ShapeExpr) or ty.dtype is None:
        return None
    count = 1
    for value in ty.shape.values:
        if not isinstance(plain(value), int):
            return None
        count *= plain(value)
    return count * max(1, int(ty.dtype.dtype.bits) // 8)
