"""Reductions, ArgMax, ArgMin, Softmax, LogSoftmax, Hardmax.

CumSum, CumProd, and PyTorch's cumulative products, maxima and minima.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tvm import relax, te, tirx
from tvm.relax import op as R
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from compiler.frontends.flat_buffer import FlatBuffer
from compiler.frontends.onnx import broadcasting, dtypes
from compiler.frontends.onnx.broadcasting import elementwise
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.tensor.cast import is_narrow_float
from compiler.frontends.onnx.operators.tensor.create import filled
from compiler.frontends.onnx.operators.tensor.reshape import axes_operand
from compiler.frontends.onnx.operators.tensor.sort_kernels import in_sequence, in_vectors, product, shared_runs
from compiler.frontends.onnx.registry import TORCH_DOMAIN, converter
from compiler.frontends.onnx.values import tensor_shape
from compiler.passes.fuse.legalizations import reduce_axes
from schedules.codegen.parallel import MIN_PARALLEL_WORK
from schedules.ir.tvm_types import Expr, Stmt

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
    """Reduce the given axes, or all; with `noop_with_empty_axes` apply only the elementwise part."""
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
    """Reduce an empty axis: TVM's kernels would leave the result uninitialized."""
    dtype, operator = context.dtype(0), context.operator
    values: dict[str, float | int] = {
        "ReduceProd": 1,
        "ReduceMax": broadcasting.lowest(dtype),
        "ReduceMin": broadcasting.highest(dtype),
        "ReduceLogSum": broadcasting.lowest(dtype),
        "ReduceLogSumExp": broadcasting.lowest(dtype),
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

    return elementwise(context, "mean", broadcasting.truncated_division, summed, divisor)


def _product(context: NodeContext, data: relax.Expr, axes: list[int], keep: bool) -> relax.Expr:
    return R.prod(data, axes, keep) if axes else data


def _extremum(context: NodeContext, data: relax.Expr, axes: list[int], keep: bool) -> relax.Expr:
    """Maximum or minimum; NaN wins; over no elements, the type's limit."""
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
    return reduce_with(context, data, axes, keep, broadcasting.extremum_reducer(dtype, greatest=greatest))


def reduce_with(
    context: NodeContext, data: relax.Expr, axes: list[int], keep: bool, reducer: Callable[..., Expr]
) -> relax.Expr:
    """Reduce axes with a commutative reducer as a separate kernel."""
    kernel = partial(reduce_axes, axes=axes, keep=keep, reducer=reducer)
    return context.emit_te(kernel, data, primfunc_name_hint="reduce")


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
    """log(sum(exp(x - m))) + m with m the largest element, to avoid overflow."""
    dtype = str(data.ty.dtype)
    if not axes:
        return data
    if not dtypes.is_float(dtype):
        wide = context.emit(R.astype(data, "float64"))
        return R.astype(context.emit(_log_sum_exp(context, wide, axes, keep)), dtype)
    reducer = broadcasting.extremum_reducer(dtype, greatest=True)
    largest = reduce_with(context, data, axes, True, reducer)
    # An infinite or missing largest element would give inf - inf.
    infinite = context.emit(R.equal(context.emit(R.abs(largest)), context.literal(float("inf"), dtype)))
    shift = context.emit(R.where(infinite, context.literal(0, dtype), largest))
    powers = context.emit(R.exp(context.emit(R.subtract(data, shift))))
    summed = context.emit(R.add(context.emit(R.log(context.emit(R.sum(powers, axes, True)))), shift))
    if keep:
        return summed
    return context.reshape(summed, [size for axis, size in enumerate(tensor_shape(data)) if axis not in axes])


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
    """Return the index of the first (or last, with select_last_index) largest or smallest element, int64; NaN wins.

    The extremum is computed first, and then the position of an element equal to it: both are vectorized.
    The Ethos-U target recognizes it by name and by its computation (targets/ethos_u/partition.py).
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
    return position_of_extremum(context, data, axis, keep=keep, greatest=context.operator == "ArgMax", last=last)


def position_of_extremum(
    context: NodeContext, data: relax.Expr, axis: int, *, keep: bool, greatest: bool = True, last: bool = False
) -> relax.Expr:
    """Return the index along an axis, int64, of the first (or last) largest or smallest element; NaN wins."""
    dtype, size = str(data.ty.dtype), tensor_shape(data)[axis]
    index_type = "int32" if isinstance(size, int) and size < 2**31 else "int64"

    def compute(source: te.Tensor) -> te.Tensor:
        k = te.reduce_axis((0, source.shape[axis]), "k")
        n = te.reduce_axis((0, source.shape[axis]), "n")
        shape = [s for a, s in enumerate(source.shape) if a != axis]
        if keep:
            shape.insert(axis, tirx.const(1, "int64"))
        none = tirx.const(-1, index_type) if last else source.shape[axis].astype(index_type)
        reducer = broadcasting.extremum_reducer(dtype, greatest=greatest)

        def read(indices: tuple[Expr, ...], along: Expr) -> Expr:
            return source(*indices[:axis], along.var, *indices[axis + 1 if keep else axis :])

        best = te.compute(shape, lambda *indices: reducer(read(indices, k), axis=k), name="best")

        def position(*indices: Expr) -> Expr:
            value = read(indices, n)
            is_extremum = value == best(*indices)
            is_extremum = tirx.any(is_extremum, broadcasting.is_nan(value)) if dtypes.is_float(dtype) else is_extremum
            index = tirx.Select(is_extremum, n.var.astype(index_type), none)
            return te.max(index, axis=n) if last else te.min(index, axis=n)

        index = te.compute(shape, position, name="index")
        return te.compute(shape, lambda *indices: index(*indices).astype("int64"), name="wide")

    return context.emit_te(compute, data, primfunc_name_hint="arg_extremum")


@converter("Softmax", "LogSoftmax", "Hardmax")
def softmax_of_matrix(context: NodeContext) -> relax.Expr:
    """Softmax before opset 13: over all axes from `axis` on, flattened."""
    shape = context.shape(0)
    axis = context.axis(context.attribute("axis", 1), max(len(shape), 1)) if shape else 0
    product = context.arithmetic.product
    matrix = context.reshape(context.input(0), [product(shape[:axis]), product(shape[axis:])])
    return context.reshape(context.emit(_softmax(context, matrix, 1)), shape)


@converter("Softmax", "LogSoftmax", "Hardmax", since=13)
def softmax(context: NodeContext) -> relax.Expr:
    """Softmax along one axis."""
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
    """Softmax with every step rounded to float16, as defined by onnx: in a wider type, elements differ by two units."""

    def wide(tensor: relax.Expr) -> relax.Expr:
        return context.emit(R.astype(tensor, "float32"))

    def half(tensor: relax.Expr) -> relax.Expr:
        return context.emit(R.astype(context.emit(tensor), "float16"))

    shifted = context.emit(R.subtract(data, context.emit(R.max(data, axis, True))))
    powers = half(R.exp(wide(shifted)))
    return R.divide(powers, half(R.sum(wide(powers), axis, True)))


def _hardmax(context: NodeContext, data: relax.Expr, axis: int) -> relax.Expr:
    """1 at the first largest element, 0 elsewhere; NaN wins."""
    first = position_of_extremum(context, data, axis, keep=True)

    def mark(index: te.Tensor, like: te.Tensor) -> te.Tensor:
        def element(*indices: Expr) -> Expr:
            hit = index(*(tirx.const(0, "int64") if a == axis else p for a, p in enumerate(indices)))
            one, zero = tirx.const(1, like.dtype), tirx.const(0, like.dtype)
            return tirx.Select(hit == indices[axis], one, zero)

        return te.compute(like.shape, element, name="hardmax")

    return context.emit_te(mark, first, data, primfunc_name_hint="hardmax")


_COLUMNS = 64  # per task: neighbors along the axes after the scan axis
_SCAN = "a scan along one axis"


@converter("CumSum", since=11)
@converter("CumProd", since=26)
def cumulative(context: NodeContext) -> relax.Expr:
    """Cumulative sum or product along an axis; `exclusive` excludes the element itself, `reverse` runs backwards."""
    data = context.input(0)
    axis = context.axis(int(context.scalar(1)), context.rank(0))
    exclusive, reverse = bool(context.attribute("exclusive", 0)), bool(context.attribute("reverse", 0))
    return _running(context, data, axis, context.operator == "CumSum", exclusive=exclusive, reverse=reverse)


@converter("CumProd", domain=TORCH_DOMAIN)
def running_product(context: NodeContext) -> relax.Expr:
    """Cumulative product along the attribute `axis`, in the input's type."""
    return _running(context, context.input(0), context.axis(context.attribute("axis", 0), context.rank(0)), adds=False)


@converter("RunningArgMax", "RunningArgMin", domain=TORCH_DOMAIN)
def running_extremum(context: NodeContext) -> relax.Expr:
    """Return the position, int64, of the largest or smallest element so far along `axis`: ties go to the last, NaN
    wins."""
    axis = context.axis(context.attribute("axis", 0), context.rank(0))
    kernel = _extremum_kernel(axis, greatest=context.operator == "RunningArgMax")
    return context.emit_te(kernel, context.input(0), primfunc_name_hint=context.operator.lower())


def _running(
    context: NodeContext, data: relax.Expr, axis: int, adds: bool, *, exclusive: bool = False, reverse: bool = False
) -> relax.Expr:
    dtype = context.dtype(0)
    if 0 in context.shape(0):
        return data
    narrow = is_narrow_float(dtype)
    if narrow:
        data = context.emit(R.astype(data, "float32"))
    kernel = _cumulative_kernel(axis, adds, exclusive=exclusive, reverse=reverse)
    result = context.emit_te(kernel, data, primfunc_name_hint=context.operator.lower())
    return R.astype(result, dtype) if narrow else result


def _cumulative_kernel(axis: int, adds: bool, *, exclusive: bool, reverse: bool) -> Callable[..., te.Tensor]:
    """Return a kernel for a cumulative sum or product along an axis of any size."""

    def compute(data: te.Tensor) -> te.Tensor:
        dtype, size = str(data.dtype), data.shape[axis]
        outer, inner = product(data.shape[:axis]), product(data.shape[axis + 1 :])
        # -0 + x is x, also if x is -0.
        initial = -0.0 if adds and not exclusive and dtypes.is_float(dtype) else 0 if adds else 1

        def generate(ins: list[Expr], outs: list[Expr]) -> Stmt:
            source, result = FlatBuffer(ins[0]), FlatBuffer(outs[0])
            with IRBuilder() as builder:
                with shared_runs(outer, size, inner, MIN_PARALLEL_WORK, _COLUMNS) as (row, first, columns):

                    def run(column: Expr) -> None:
                        total = FlatBuffer(T.alloc_buffer([1], dtype, scope="local"))
                        total[0] = tirx.const(initial, dtype)
                        with in_sequence(size, _SCAN) as step, T.seq_scope():
                            at = (row * size + (size - 1 - step if reverse else step)) * inner + (first + column)
                            if exclusive:
                                result[at] = total[0]
                            total[0] = total[0] + source[at] if adds else total[0] * source[at]
                            if not exclusive:
                                result[at] = total[0]

                    in_vectors(columns, dtype, run)
                return builder.get()

        out = tirx.decl_buffer(data.shape, dtype, "cumulative", layout=None)
        return te.extern([data.shape], [data], generate, dtype=dtype, out_buffers=[out], name="cumulative")

    return compute


def _extremum_kernel(axis: int, *, greatest: bool) -> Callable[..., te.Tensor]:
    """Return a kernel for positions of cumulative maxima or minima along an axis of any size."""

    def compute(data: te.Tensor) -> te.Tensor:
        size, inner = data.shape[axis], product(data.shape[axis + 1 :])

        def generate(ins: list[Expr], outs: list[Expr]) -> Stmt:
            source, result = FlatBuffer(ins[0]), FlatBuffer(outs[0])
            with IRBuilder() as builder:
                outer = product(data.shape[:axis])
                with (
                    shared_runs(outer, size, inner, MIN_PARALLEL_WORK, _COLUMNS) as (row, first, columns),
                    in_sequence(size, _SCAN) as step,
                    T.serial(0, columns) as column,
                ):

                    def at(position: Expr) -> Expr:
                        return (row * size + position) * inner + (first + column)

                    with T.If(step == 0):
                        with T.Then():
                            result[at(step)] = tirx.const(0, "int64")
                        with T.Else():
                            previous = result[at(step - 1)]
                            new, best = (_comparable(source[at(each)]) for each in (step, previous))
                            wins = new >= best if greatest else new <= best
                            wins = (
                                tirx.any(wins, broadcasting.is_nan(new)) if dtypes.is_float(str(data.dtype)) else wins
                            )
                            result[at(step)] = tirx.Select(wins, step, previous)
                return builder.get()

        out = tirx.decl_buffer(data.shape, "int64", "running", layout=None)
        return te.extern([data.shape], [data], generate, dtype="int64", out_buffers=[out], name="running")

    return compute


def _comparable(value: Expr) -> Expr:
    """Cast booleans to integers: comparing them fails in TVM's LLVM backend."""
    return tirx.Cast("int8", value) if str(value.ty) == "bool" else value
