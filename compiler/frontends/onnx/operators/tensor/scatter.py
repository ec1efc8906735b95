"""ScatterElements, ScatterND and TensorScatter.

Updates of the same position are applied in order; threads share the work by positions that no two updates have in
common. An update outside the tensor is skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from tvm import relax, te, tirx
from tvm.relax import op as R
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from compiler.frontends.flat_buffer import FlatBuffer
from compiler.frontends.onnx import broadcasting
from compiler.frontends.onnx.bounds import (
    limited,
    require,
    require_coordinates,
    require_indices,
    require_shape,
    require_values,
    require_within,
)
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.tensor.cast import is_narrow_float
from compiler.frontends.onnx.operators.tensor.sort_kernels import (
    for_each,
    in_sequence,
    in_vectors,
    int64,
    product,
    shared_runs,
)
from compiler.frontends.onnx.registry import TORCH_DOMAIN, converter
from compiler.passes.rewriting.state_writes import write_positions, write_rows
from schedules.annotations import UPDATES
from schedules.codegen.parallel import MIN_PARALLEL_WORK
from schedules.ir.tir import structural_equal
from schedules.ir.tvm_types import Buffer, Expr, Stmt

# Rows written into a tensor: in place if the tensor is a state with no other reader.


@converter("WritePlaces", domain=TORCH_DOMAIN)
def write_rows_at_positions(context: NodeContext) -> relax.Expr:
    """Write row i of input 2 at `positions[i]` (input 1) along `axis` of input 0; a position out of bounds is an
    error."""
    axis = context.axis(context.attribute("axis", 0), context.rank(0))
    shape, positions = context.shape(0), context.shape(1)
    require_shape(context, context.shape(2), [*shape[:axis], positions[0], *shape[axis + 1 :]], "the rows")
    require_values(context, 1, 0, shape[axis])
    data, index, rows = (context.input(position) for position in range(3))
    return write_positions(context.importer.builder.block_builder, data, rows, index, axis)


Combine: TypeAlias = "Callable[[Expr, Expr], Expr]"
_COLUMNS = 128  # per task, in vectors
# Per task, one at a time: a cache line of indices. A thread takes up to 1.7 times as long as with whole rows if those
# come from memory, and 0.8 to 1.0 times otherwise (Zen 3).
_ELEMENTS = 8
_STEPS = 8  # iterations of a vector loop that take as long as one update of a single element
_REDUCTIONS: dict[str, Combine] = {
    "none": lambda old, new: new,
    "add": lambda old, new: old + new,
    "mul": lambda old, new: old * new,
    "max": broadcasting.maximum,
    "min": broadcasting.minimum,
}


def _combine(context: NodeContext) -> Combine:
    reduction = context.choice("reduction", "none", _REDUCTIONS)
    if context.dtype(0) == "bool" and reduction in ("add", "max"):
        return lambda old, new: tirx.any(old, new)
    if context.dtype(0) == "bool" and reduction in ("mul", "min"):
        return lambda old, new: tirx.all(old, new)
    return _REDUCTIONS[reduction]


def _moved(flat: Expr, sizes: Sequence[Expr], target_sizes: Sequence[Expr]) -> Expr:
    """Convert the row-major position `flat` in `sizes` to the position of the same element in an array of other
    sizes."""
    if all(structural_equal(one, other) for one, other in zip(sizes[1:], target_sizes[1:], strict=True)):
        return flat
    positions: list[Expr] = []
    for size in list(sizes)[::-1]:
        positions.insert(0, tirx.floormod(flat, size))
        flat = tirx.floordiv(flat, size)
    return _flat(positions, target_sizes)


def _flat(positions: Sequence[Expr], sizes: Sequence[Expr]) -> Expr:
    result: Expr = tirx.const(0, "int64")
    for index, size in zip(positions, sizes, strict=True):
        result = result * size + index
    return result


@dataclass(frozen=True)
class _Updates:
    """Updates as an array (outer, size, inner): those of one position differ only in the middle axis.

    Attributes:
        target: maps a row, step and column, and the indices, to (position in data, is inside). With vectorized columns,
            that of column 0.
        in_vectors: adjacent columns go to adjacent elements.
    """

    outer: Expr
    size: Expr
    inner: Expr
    target: Callable[[Expr, Expr, Expr, Buffer], tuple[Expr, Expr]]
    in_vectors: bool


def _write_all(data: te.Tensor, indices: te.Tensor, updates: te.Tensor, shape: _Updates, combine: Combine) -> te.Tensor:
    """Copy `data`, then apply every update, as `UPDATES` promises."""

    def generate(ins: list[Expr], outs: list[Expr]) -> Stmt:
        source, index, update = (FlatBuffer(buffer) for buffer in ins)
        result = FlatBuffer(outs[0])

        def write(position: Expr, number: Expr) -> None:
            result[position] = combine(result[position], update[number])

        def write_run(row: Expr, first: Expr, columns: Expr, step: Expr) -> None:
            start = (row * shape.size + step) * shape.inner + first
            if shape.in_vectors:
                position, inside = shape.target(row, step, int64(0), index)
                with T.If(inside), T.Then():
                    base = T.bind(position + first)
                    in_vectors(columns, update.dtype, lambda column: write(base + column, start + column))
                return
            with T.serial(0, columns) as column:
                position, inside = shape.target(row, step, first + column, index)
                with T.If(inside), T.Then():
                    write(position, start + column)

        with IRBuilder() as builder:
            with T.seq_scope():
                for_each(product(data.shape), data.dtype, lambda i: result.__setitem__(i, source[i]))
                least = MIN_PARALLEL_WORK if shape.in_vectors else MIN_PARALLEL_WORK // _STEPS
                most = _COLUMNS if shape.in_vectors else _ELEMENTS
                with (
                    shared_runs(shape.outer, shape.size, shape.inner, least, most) as run,
                    in_sequence(shape.size, "updates of one element are applied in order") as step,
                    T.seq_scope(),
                ):
                    write_run(*run, step)
            return builder.get()

    out = tirx.decl_buffer(data.shape, data.dtype, "scattered", layout=None)
    return te.extern(
        [data.shape], [data, indices, updates], generate, dtype=data.dtype, out_buffers=[out], name="scatter"
    )


def _scattered(context: NodeContext, kernel: Callable[..., te.Tensor], name: str) -> relax.Expr:
    """Call the kernel; narrow floats are combined in float32, booleans are carried as int8."""
    dtype = context.dtype(0)
    if any(isinstance(size, int) and size == 0 for index in (0, 1, 2) for size in context.shape(index)):
        return context.input(0)
    tensors = [context.input(i) for i in range(3)]
    narrow = is_narrow_float(dtype) and context.attribute("reduction", "none") != "none"
    if narrow:
        tensors = [context.emit(R.astype(t, "float32")) if i != 1 else t for i, t in enumerate(tensors)]
    result = context.emit_te(kernel, *tensors, primfunc_name_hint=name, primfunc_attrs={UPDATES: 0})
    return R.astype(result, dtype) if narrow else result


@converter("Scatter", since=9)
@converter("ScatterElements", since=11)
def scatter_elements(context: NodeContext) -> relax.Expr:
    """Write each update to its own coordinates with the one along `axis` replaced by the index."""
    rank = context.rank(0)
    axis, combine = context.axis(context.attribute("axis", 0), rank), _combine(context)
    if context.rank(1) != rank or context.rank(2) != rank:
        context.invalid(f"data, indices and updates have ranks {rank}, {context.rank(1)} and {context.rank(2)}")
    require_indices(context, 1, context.shape(0)[axis])
    require_within(context, context.shape(1), context.shape(0), axis)
    require_shape(context, context.shape(2), context.shape(1), "its updates")

    def kernel(data: te.Tensor, indices: te.Tensor, updates: te.Tensor) -> te.Tensor:
        head, length, tail = updates.shape[:axis], updates.shape[axis], updates.shape[axis + 1 :]
        outer, inner = product(head), product(tail)

        def target(row: Expr, step: Expr, column: Expr, index: Buffer) -> tuple[Expr, Expr]:
            size = data.shape[axis]
            raw = limited(index[(row * length + step) * inner + column], -size - 1, size)
            chosen = broadcasting.select(raw < 0, raw + size, raw)
            leading, rest = _moved(row, head, data.shape[:axis]), _moved(column, tail, data.shape[axis + 1 :])
            position = (leading * size + chosen) * product(data.shape[axis + 1 :]) + rest
            return position, tirx.all(chosen >= 0, chosen < size)

        return _write_all(data, indices, updates, _Updates(outer, length, inner, target, False), combine)

    return _scattered(context, kernel, "scatter_elements")


@converter("ScatterND", since=11)
def scatter_nd(context: NodeContext) -> relax.Expr:
    """Write each slice of updates to the coordinates in the last axis of the indices."""
    depth, combine = context.shape(1)[-1], _combine(context)
    if not isinstance(depth, int):
        context.refuse("the length of its coordinates is not known when compiling")
    if depth > context.rank(0):
        context.invalid(f"coordinates of length {depth} into rank {context.rank(0)}")
    require_coordinates(context, 1, context.shape(0)[:depth])
    require_shape(context, context.shape(2), [*context.shape(1)[:-1], *context.shape(0)[depth:]], "its updates")

    def kernel(data: te.Tensor, indices: te.Tensor, updates: te.Tensor) -> te.Tensor:
        width = product(data.shape[depth:])

        def target(_: Expr, row: Expr, column: Expr, index: Buffer) -> tuple[Expr, Expr]:
            raw = [limited(index[row * depth + i], -data.shape[i] - 1, data.shape[i]) for i in range(depth)]
            positions = [broadcasting.select(r < 0, r + size, r) for r, size in zip(raw, data.shape, strict=False)]
            bounds = [check for p, size in zip(positions, data.shape, strict=False) for check in (p >= 0, p < size)]
            inside = tirx.all(*bounds) if bounds else tirx.const(True, "bool")
            return _flat(positions, data.shape[:depth]) * width + column, inside

        shape = _Updates(int64(1), product(indices.shape[:-1]), width, target, True)
        return _write_all(data, indices, updates, shape, combine)

    return _scattered(context, kernel, "scatter_nd")


@converter("TensorScatter", since=24)
def tensor_scatter(context: NodeContext) -> relax.Expr:
    """Write a run of updates into a cache, from a position given per batch element; `circular` wraps around."""
    rank = context.rank(0)
    axis = context.axis(context.attribute("axis", -2), rank)
    mode = context.attribute("mode", "linear")
    if mode not in ("linear", "circular") or axis == 0:
        context.invalid(f"mode {mode!r} along axis {axis}")

    size, written = context.shape(0)[axis], context.shape(1)
    require_shape(context, written, [s if a != axis else written[a] for a, s in enumerate(context.shape(0))], "update")
    require(context, size, "at least", written[axis])
    if context.has_input(2):
        require_shape(context, context.shape(2), context.shape(0)[:1], "write_indices")
        last = context.arithmetic.subtract(size, written[axis]) if mode == "linear" else size
        require_values(context, 2, 0, context.arithmetic.add(last, 1))

    if mode == "linear" and context.has_input(2):
        builder, (data, new, first) = context.importer.builder.block_builder, map(context.input, range(3))
        return write_rows(builder, data, new, context.emit(R.astype(first, "int64")), axis)

    def kernel(cache: te.Tensor, update: te.Tensor, *start: te.Tensor) -> te.Tensor:
        def element(*indices: Expr) -> Expr:
            first = limited(start[0](indices[0]), 0, cache.shape[axis]) if start else tirx.const(0, "int64")
            step = indices[axis] - first
            if mode == "circular":
                step = tirx.floormod(step, cache.shape[axis])
            inside = tirx.all(step >= 0, step < update.shape[axis])
            return tirx.if_then_else(inside, update(*indices[:axis], step, *indices[axis + 1 :]), cache(*indices))

        return te.compute(cache.shape, element, name="tensor_scatter")

    start = [context.input(2)] if context.has_input(2) else []
    return context.emit_te(kernel, context.input(0), context.input(1), *start, primfunc_name_hint="tensor_scatter")
