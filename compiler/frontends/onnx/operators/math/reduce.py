"""Reductions, ArgMax, ArgMin, Softmax, LogSoftmax, Hardmax."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tvm import relax, te, tirx
from tvm.relax import op as R

from compiler.frontends.onnx import dtypes, scalars
from compiler.frontends.onnx.broadcasting import elementwise
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.tensor.create import filled
from compiler.frontends.onnx.operators.tensor.narrow_floats import is_narrow_float
from compiler.frontends.onnx.operators.tensor.reshape import axes_operand, reshaped
from compiler.frontends.onnx.registry import converter
from compiler.frontends.onnx.values import tensor_shape

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Expr

Reduction = Callable[[NodeContext, relax.Expr, list[int], bool], relax.Expr]


@converter(
    "ReduceSum",
    "ReduceMean",
    "ReduceProd",
    "ReduceMax",
    "ReduceMin",
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceSumSquare",
)
def reduction(context: NodeContext) -> relax.Expr:
    """Over the given axes, or all; with `noop_with_empty_axes` only the part that is elementwise."""
    axes, rank = axes_operand(context), context.rank(0)
    keep = bool(context.attribute("keepdims", 1))
    if not axes and context.attribute("noop_with_empty_axes", 0):
        return _REDUCTIONS[context.operator](context, context.input(0), [], True)
    chosen = sorted(context.axes(axes, rank)) if axes else list(range(rank))
    data, dtype = context.input(0), context.dtype(0)
    if any(isinstance(size, int) and size == 0 for size in (context.shape(0)[axis] for axis in chosen)):
        return _of_nothing(context, chosen, keep)
    narrow = is_narrow_float(dtype)
    if narrow:
        data = context.emit(R.astype(data, "float32"))
    result = _REDUCTIONS[context.operator](context, data, chosen, keep)
    return R.astype(context.emit(result), dtype) if narrow else result


def _of_nothing(context: NodeContext, axes: list[int], keep: bool) -> relax.Expr:
    """A reduction over an empty axis: TVM's kernels would leave the result unset."""
    dtype, operator = context.dtype(0), context.operator
    values: dict[str, float | int] = {
        "ReduceProd": 1,
        "ReduceMax": scalars.lowest(dtype),
        "ReduceMin": scalars.highest(dtype),
        "ReduceLogSum": scalars.lowest(dtype),
        "ReduceLogSumExp": scalars.lowest(dtype),
        "ReduceMean": float("nan") if dtypes.is_float(dtype) else 0,
    }
    old = context.shape(0)
    shape = [1 if axis in axes else size for axis, size in enumerate(old) if keep or axis not in axes]
    return filled(context, values.get(operator, 0), dtype, shape)


def _sum(context: NodeContext, data: relax.Expr, axes: list[int], keep: bool) -> relax.Expr:
    return R.sum(data, axes, keep) if axes else data


def _mean(context: NodeContext, data: relax.Expr, axes: list[int], keep: bool) -> relax.Expr:
    if not axes:
        return data
    dtype = str(data.ty.dtype)
    if not dtypes.is_integer(dtype):
        return R.mean(data, axes, keep)
    count = context.arithmetic.product(tensor_shape(data)[axis] for axis in axes)
    summed = context.emit(R.sum(data, axes, keep))
    divisor = context.importer.builder.scalars_to_tensor([count], (), dtype)

    return elementwise(context, "mean", scalars.truncated_division, summed, divisor)


def _product(context: NodeContext, data: relax.Expr, axes: list[int], keep: bool) -> relax.Expr:
    return R.prod(data, axes, keep) if axes else data


def _extremum(context: NodeContext, data: relax.Expr, axes: list[int], keep: bool) -> relax.Expr:
    """Largest or smallest; NaN wins; an empty one gives the type's limit."""
    if not axes:
        return data
    greatest = context.operator == "ReduceMax"
    dtype = str(data.ty.dtype)
    if dtype == "bool":
        data = context.emit(R.astype(data, "int8"))
        result = R.max(data, axes, keep) if greatest else R.min(data, axes, keep)
        return R.astype(context.emit(result), "bool")
    if not dtypes.is_float(dtype):
        return R.max(data, axes, keep) if greatest else R.min(data, axes, keep)
    return reduce_with(context, data, axes, keep, scalars.extremum_reducer(dtype, greatest=greatest))


def reduce_with(
    context: NodeContext, data: relax.Expr, axes: list[int], keep: bool, reducer: Callable[..., Expr]
) -> relax.Expr:
    """Reduce axes with a commutative reducer as a kernel of its own."""

    def compute(source: te.Tensor) -> te.Tensor:
        reduced = {axis: te.reduce_axis((0, source.shape[axis]), f"k{axis}") for axis in axes}
        rest = [axis for axis in range(len(source.shape)) if axis not in reduced]
        kept = range(len(source.shape)) if keep else rest
        shape = [tirx.const(1, "int64") if axis in reduced else source.shape[axis] for axis in kept]

        def element(*indices: Expr) -> Expr:
            position = dict(zip(kept, indices, strict=True))
            place = [reduced[a].var if a in reduced else position[a] for a in range(len(source.shape))]
            return reducer(source(*place), axis=list(reduced.values()))

        return te.compute(shape, element, name="reduced")

    return context.emit_te(compute, data, primfunc_name_hint="reduce")


def _l1(context: NodeContext, data: relax.Expr, axes: list[int], keep: bool) -> relax.Expr:
    magnitude = data if dtypes.is_unsigned(str(data.ty.dtype)) else context.emit(R.abs(data))
    return _sum(context, magnitude, axes, keep)


def _sum_square(context: NodeContext, data: relax.Expr, axes: list[int], keep: bool) -> relax.Expr:
    return _sum(context, context.emit(R.multiply(data, data)), axes, keep)


def _l2(context: NodeContext, data: relax.Expr, axes: list[int], keep: bool) -> relax.Expr:
    return _through_float(context, context.emit(_sum_square(context, data, axes, keep)), R.sqrt)


def _log_sum(context: NodeContext, data: relax.Expr, axes: list[int], keep: bool) -> relax.Expr:
    return _through_float(context, context.emit(_sum(context, data, axes, keep)), R.log)


def _through_float(context: NodeContext, data: relax.Expr, function: Callable[[relax.Expr], relax.Expr]) -> relax.Expr:
    dtype = str(data.ty.dtype)
    if dtypes.is_float(dtype):
        return function(data)
    return R.astype(context.emit(function(context.emit(R.astype(data, "float64")))), dtype)


def _log_sum_exp(context: NodeContext, data: relax.Expr, axes: list[int], keep: bool) -> relax.Expr:
    """log(sum(exp(x - m))) + m with m the largest element, so that nothing overflows."""
    dtype = str(data.ty.dtype)
    if not axes:
        return data
    if not dtypes.is_float(dtype):
        wide = context.emit(R.astype(data, "float64"))
        return R.astype(context.emit(_log_sum_exp(context, wide, axes, keep)), dtype)
    reducer = scalars.extremum_reducer(dtype, greatest=True)
    largest = reduce_with(context, data, axes, True, reducer)
    # An infinite or absent largest element would make inf - inf.
    infinite = context.emit(R.equal(context.emit(R.abs(largest)), context.literal(float("inf"), dtype)))
    shift = context.emit(R.where(infinite, context.literal(0, dtype), largest))
    powers = context.emit(R.exp(context.emit(R.subtract(data, shift))))
    summed = context.emit(R.add(context.emit(R.log(context.emit(R.sum(powers, axes, True)))), shift))
    if keep:
        return summed
    return reshaped(context, summed, [size for axis, size in enumerate(tensor_shape(data)) if axis not in axes])


_REDUCTIONS: dict[str, Reduction] = {
    "ReduceSum": _sum,
    "ReduceMean": _mean,
    "ReduceProd": _product,
    "ReduceMax": _extremum,
    "ReduceMin": _extremum,
    "ReduceL1": _l1,
    "ReduceL2": _l2,
    "ReduceLogSum": _log_sum,
    "ReduceLogSumExp": _log_sum_exp,
    "ReduceSumSquare": _sum_square,
}


@converter("ArgMax", "ArgMin")
def arg_extremum(context: NodeContext) -> relax.Expr:
    """Index of the first (or last, with select_last_index) largest or smallest element, int64; NaN wins.

    The extremum is found first, and then the place of an element that equals it: both run in vectors.
    The Ethos-U knows it by its name and by what it computes (targets/ethos_u/places.py).
    """
    rank = context.rank(0)
    axis = context.axis(context.attribute("axis", 0), rank)
    keep, last = bool(context.attribute("keepdims", 1)), bool(context.attribute("select_last_index", 0))
    data = context.input(0)
    if is_narrow_float(context.dtype(0)):
        data = context.emit(R.astype(data, "float32"))
    size = context.shape(0)[axis]
    if isinstance(size, int) and size == 0:
        context.invalid(f"axis {axis} is empty, so that nothing on it is the largest or smallest")
    context.importer.builder.require(size, "at least", 1)
    return place_of_extremum(context, data, axis, keep=keep, greatest=context.operator == "ArgMax", last=last)


def place_of_extremum(
    context: NodeContext, data: relax.Expr, axis: int, *, keep: bool, greatest: bool = True, last: bool = False
) -> relax.Expr:
    """The index along an axis, int64, of the first (or last) largest or smallest element, NaN before all of them."""
    dtype, size = str(data.ty.dtype), tensor_shape(data)[axis]
    index_type = "int32" if isinstance(size, int) and size < 2**31 else "int64"

    def compute(source: te.Tensor) -> te.Tensor:
        k = te.reduce_axis((0, source.shape[axis]), "k")
        n = te.reduce_axis((0, source.shape[axis]), "n")
        shape = [s for a, s in enumerate(source.shape) if a != axis]
        if keep:
            shape.insert(axis, tirx.const(1, "int64"))
        none = tirx.const(-1, index_type) if last else source.shape[axis].astype(index_type)
        reducer = scalars.extremum_reducer(dtype, greatest=greatest)

        def read(indices: tuple[Expr, ...], along: Expr) -> Expr:
            return source(*indices[:axis], along.var, *indices[axis + 1 if keep else axis :])

        best = te.compute(shape, lambda *indices: reducer(read(indices, k), axis=k), name="best")

        def place(*indices: Expr) -> Expr:
            value = read(indices, n)
            found = value == best(*indices)
            found = tirx.any(found, scalars.is_nan(value)) if dtypes.is_float(dtype) else found
            index = tirx.Select(found, n.var.astype(index_type), none)
            return te.max(index, axis=n) if last else te.min(index, axis=n)

        index = te.compute(shape, place, name="index")
        return te.compute(shape, lambda *indices: index(*indices).astype("int64"), name="wide")

    return context.emit_te(compute, data, primfunc_name_hint="arg_extremum")


@converter("Softmax", "LogSoftmax", "Hardmax")
def softmax_of_matrix(context: NodeContext) -> relax.Expr:
    """Before opset 13: over all axes from `axis` on, as if they were one."""
    shape = context.shape(0)
    axis = context.axis(context.attribute("axis", 1), max(len(shape), 1)) if shape else 0
    product = context.arithmetic.product
    matrix = reshaped(context, context.input(0), [product(shape[:axis]), product(shape[axis:])])
    return reshaped(context, context.emit(_softmax(context, matrix, 1)), shape)


@converter("Softmax", "LogSoftmax", "Hardmax", since=13)
def softmax(context: NodeContext) -> relax.Expr:
    """Along one axis."""
    axis = context.axis(context.attribute("axis", -1), context.rank(0))
    return _softmax(context, context.input(0), axis)


def _softmax(context: NodeContext, data: relax.Expr, axis: int) -> relax.Expr:
    dtype = str(data.ty.dtype)
    if context.operator == "Hardmax":
        return _hardmax(context, data, axis)
    if context.operator == "Softmax" and dtype == "float16":
        return _half_softmax(context, data, axis)
    function = R.nn.softmax if context.operator == "Softmax" else R.nn.log_softmax
    if is_narrow_float(dtype):
        wide = context.emit(R.astype(data, "float32"))
        return R.astype(context.emit(function(wide, axis)), dtype)
    return function(data, axis)


def _half_softmax(context: NodeContext, data: relax.Expr, axis: int) -> relax.Expr:
    """Every step rounded to float16, as onnx defines the operator: computed wide, elements differ by two units."""

    def wide(tensor: relax.Expr) -> relax.Expr:
        return context.emit(R.astype(tensor, "float32"))

    def half(tensor: relax.Expr) -> relax.Expr:
        return context.emit(R.astype(context.emit(tensor), "float16"))

    shifted = context.emit(R.subtract(data, context.emit(R.max(data, axis, True))))
    powers = half(R.exp(wide(shifted)))
    return R.divide(powers, half(R.sum(wide(powers), axis, True)))


def _hardmax(context: NodeContext, data: relax.Expr, axis: int) -> relax.Expr:
    """1 at the first largest element, 0 elsewhere; NaN wins."""
    first = place_of_extremum(context, data, axis, keep=True)

    def mark(index: te.Tensor, like: te.Tensor) -> te.Tensor:
        def element(*place: Expr) -> Expr:
            hit = index(*(tirx.const(0, "int64") if a == axis else p for a, p in enumerate(place)))
            one, zero = tirx.const(1, like.dtype), tirx.const(0, like.dtype)
            return tirx.Select(hit == place[axis], one, zero)

        return te.compute(like.shape, element, name="hardmax")

    return context.emit_te(mark, first, data, primfunc_name_hint="hardmax")
