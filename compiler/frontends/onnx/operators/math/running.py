"""CumSum, CumProd, and PyTorch's running products, maxima and minima."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import tvm
from tvm import relax, te, tirx
from tvm.relax import op as R
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from compiler.frontends.onnx import dtypes, scalars
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.tensor.narrow_floats import is_narrow_float
from compiler.frontends.onnx.operators.tensor.sort_kernels import int64, product, shared_tasks
from compiler.frontends.onnx.operators.tensor.vector_loops import in_sequence, in_vectors
from compiler.frontends.onnx.registry import TORCH_DOMAIN, converter
from schedules.codegen.parallel import MIN_PARALLEL_WORK

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Expr, Stmt


_COLUMNS = 64  # per task: neighbours along the axes after the scan axis
_SCAN = "a scan along one axis"


@converter("CumSum", since=11)
@converter("CumProd", since=26)
def cumulative(context: NodeContext) -> relax.Expr:
    """Running sum or product along an axis; `exclusive` leaves out the element itself, `reverse` runs backwards."""
    data = context.input(0)
    axis = context.axis(int(context.scalar(1)), context.rank(0))
    exclusive, reverse = bool(context.attribute("exclusive", 0)), bool(context.attribute("reverse", 0))
    return _running(context, data, axis, context.operator == "CumSum", exclusive=exclusive, reverse=reverse)


@converter("CumProd", domain=TORCH_DOMAIN)
def running_product(context: NodeContext) -> relax.Expr:
    """Along the attribute `axis`, in the type of the input."""
    return _running(context, context.input(0), context.axis(context.attribute("axis", 0), context.rank(0)), adds=False)


@converter("RunningArgMax", "RunningArgMin", domain=TORCH_DOMAIN)
def running_extremum(context: NodeContext) -> relax.Expr:
    """The place, int64, of the largest or smallest element so far along `axis`: of equal ones the last, NaN wins."""
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


@contextmanager
def _runs(outer: Expr, size: Expr, inner: Expr) -> Iterator[tuple[Expr, Expr, Expr]]:
    """(row, first column, columns) of the tasks of a scan over an array (outer, size, inner)."""
    length = int64(_COLUMNS)
    runs = tvm.sym.Analyzer().simplify(tirx.floordiv(inner + (length - 1), length))
    with shared_tasks(outer * runs, outer * size * inner, MIN_PARALLEL_WORK) as task:
        if isinstance(runs, tirx.IntImm) and int(runs) == 1:
            yield task, int64(0), inner
        else:
            first = T.bind(tirx.floormod(task, runs) * length)
            yield T.bind(tirx.floordiv(task, runs)), first, tirx.min(length, inner - first)


def _cumulative_kernel(axis: int, adds: bool, *, exclusive: bool, reverse: bool) -> Callable[..., te.Tensor]:
    """A running sum or product along an axis, of any size."""

    def compute(data: te.Tensor) -> te.Tensor:
        dtype, size = str(data.dtype), data.shape[axis]
        outer, inner = product(data.shape[:axis]), product(data.shape[axis + 1 :])

        def generate(ins: list[Expr], outs: list[Expr]) -> Stmt:
            source, result = T.buffer_proxy(ins[0]), T.buffer_proxy(outs[0])
            with IRBuilder() as builder:
                with _runs(outer, size, inner) as (row, first, columns), in_sequence(size, _SCAN) as step:
                    along = size - 1 - step if reverse else step
                    back = along + 1 if reverse else along - 1

                    def place(position: Expr, column: Expr) -> Expr:
                        return (row * size + position) * inner + (first + column)

                    def start(column: Expr) -> None:
                        first = tirx.const(0 if adds else 1, dtype)
                        result[place(along, column)] = first if exclusive else source[place(along, column)]

                    def proceed(column: Expr) -> None:
                        value = source[place(back if exclusive else along, column)]
                        before = result[place(back, column)]
                        result[place(along, column)] = before + value if adds else before * value

                    with T.If(step == 0):
                        with T.Then():
                            in_vectors(columns, dtype, start)
                        with T.Else():
                            in_vectors(columns, dtype, proceed)
                return builder.get()

        out = tirx.decl_buffer(data.shape, dtype, "cumulative", layout=None)
        return te.extern([data.shape], [data], generate, dtype=dtype, out_buffers=[out], name="cumulative")

    return compute


def _extremum_kernel(axis: int, *, greatest: bool) -> Callable[..., te.Tensor]:
    """Places of running maxima or minima along an axis, of any size."""

    def compute(data: te.Tensor) -> te.Tensor:
        size, inner = data.shape[axis], product(data.shape[axis + 1 :])

        def generate(ins: list[Expr], outs: list[Expr]) -> Stmt:
            source, result = T.buffer_proxy(ins[0]), T.buffer_proxy(outs[0])
            with IRBuilder() as builder:
                outer = product(data.shape[:axis])
                with (
                    _runs(outer, size, inner) as (row, first, columns),
                    in_sequence(size, _SCAN) as step,
                    T.serial(0, columns) as column,
                ):

                    def place(position: Expr) -> Expr:
                        return (row * size + position) * inner + (first + column)

                    with T.If(step == 0):
                        with T.Then():
                            result[place(step)] = tirx.const(0, "int64")
                        with T.Else():
                            before = result[place(step - 1)]
                            own, best = (_comparable(source[place(each)]) for each in (step, before))
                            kept = own >= best if greatest else own <= best
                            kept = tirx.any(kept, scalars.is_nan(own)) if dtypes.is_float(str(data.dtype)) else kept
                            result[place(step)] = tirx.Select(kept, step, before)
                return builder.get()

        out = tirx.decl_buffer(data.shape, "int64", "running", layout=None)
        return te.extern([data.shape], [data], generate, dtype="int64", out_buffers=[out], name="running")

    return compute


def _comparable(value: Expr) -> Expr:
    """Booleans as integers: LLVM's comparisons of them fail in TVM."""
    return tirx.Cast("int8", value) if str(value.ty) == "bool" else value
