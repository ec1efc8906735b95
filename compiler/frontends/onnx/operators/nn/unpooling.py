"""MaxUnpool and Col2Im: elements put back to where a window took them from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvm import relax, te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from compiler.frontends.onnx.bounds import require, require_multiple, require_shape, require_values
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.nn.spatial import integers_attribute, kernel_attribute, padded, spatial_rank
from compiler.frontends.onnx.operators.precision import compute_dtype
from compiler.frontends.onnx.operators.tensor.sort_kernels import shared_tasks
from compiler.frontends.onnx.operators.tensor.vector_loops import for_each, in_sequence, in_vectors
from compiler.frontends.onnx.registry import converter
from compiler.frontends.onnx.symbolic import Dim, expression

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Buffer, Expr, Stmt, Tensor


@converter("MaxUnpool", since=9)
def max_unpool(context: NodeContext) -> relax.Expr:
    """Zeros but for the elements at the flat indices of the second input; an output_shape that is larger adds zeros."""
    rank = spatial_rank(context)
    kernel = kernel_attribute(context, rank)
    strides = integers_attribute(context, "strides", rank, 1, 1)
    pads = integers_attribute(context, "pads", 2 * rank, 0, 0)
    arithmetic = context.arithmetic
    shape: list[Dim] = [*context.shape(0)[:2]]
    for axis, size in enumerate(context.shape(0)[2:]):
        moved = arithmetic.multiply(arithmetic.subtract(size, 1), strides[axis])
        shape.append(arithmetic.add(moved, kernel[axis] - pads[axis] - pads[axis + rank]))
    require_shape(context, context.shape(1), context.shape(0), "its indices")
    require_values(context, 1, 0, arithmetic.product(shape))
    sizes = [expression(size) for size in shape]
    result = context.emit_te(_scatter, context.input(0), context.input(1), *sizes, primfunc_name_hint="max_unpool")
    if not context.has_input(2):
        return result
    wanted = context.shape_values(2)
    if len(wanted) != rank + 2:
        context.invalid(f"output_shape has {len(wanted)} elements for data of rank {rank + 2}")
    added = [arithmetic.subtract(size, own) for size, own in zip(wanted[2:], shape[2:], strict=True)]
    return padded(context, result, [0] * rank, added, 0)


def _scatter(data: Tensor, indices: Tensor, *sizes: Expr) -> Tensor:
    """A tensor of those sizes: data[i] at the flat position indices[i], zero elsewhere."""

    def body(ins: Sequence[Expr], outs: Sequence[Expr]) -> Stmt:
        source, places, out = (T.buffer_proxy(buffer) for buffer in (ins[0], ins[1], outs[0]))
        zero = tirx.const(0, str(data.dtype))
        with IRBuilder() as builder:
            with T.seq_scope():
                for_each(_product(sizes), data.dtype, lambda i: out.__setitem__(i, zero))
                with in_sequence(_product(data.shape), "values of one place, in order") as element:
                    known = tirx.all(places[element] >= 0, places[element] < _product(sizes))
                    with T.If(known), T.Then():
                        out[places[element]] = source[element]
            return builder.get().body

    return te.extern([list(sizes)], [data, indices], body, dtype=str(data.dtype), name="max_unpool")


def _product(sizes: Sequence[Expr]) -> Expr:
    result: Expr = tirx.const(1, "int64")
    for size in sizes:
        result = result * size
    return result


@converter("Col2Im", since=18)
def col2im(context: NodeContext) -> relax.Expr:
    """Blocks (N, C * taps, blocks) added up to images (N, C, D1...), each at the place it was taken from."""
    image, block = context.shape_values(1), context.integers(2)
    rank = len(block)
    if len(image) != rank or context.rank(0) != 3 or any(size < 1 for size in block):
        context.invalid(f"blocks of shape {block} for images of rank {len(image)}")
    pads = integers_attribute(context, "pads", 2 * rank, 0, 0)
    strides = integers_attribute(context, "strides", rank, 1, 1)
    dilations = integers_attribute(context, "dilations", rank, 1, 1)
    taps = math.prod(block)
    arithmetic = context.arithmetic
    counts = []
    for axis, size in enumerate(image):
        free = arithmetic.add(size, pads[axis] + pads[axis + rank] - dilations[axis] * (block[axis] - 1) - 1)
        counts.append(arithmetic.add(arithmetic.floor_divide(free, strides[axis]), 1))
        require(context, counts[-1], "at least", 0)
    require_multiple(context, context.shape(0)[1], taps)
    require(context, context.shape(0)[2], "equal", arithmetic.product(counts))

    window = _Window(block, pads[:rank], strides, dilations)

    def compute(data: Tensor, *operands: Expr) -> Tensor:
        sizes, counts = list(operands[:rank]), list(operands[rank:])
        shape = [data.shape[0], tirx.floordiv(data.shape[1], taps), *sizes]
        wide = compute_dtype(data.dtype)

        def body(ins: Sequence[Buffer], outs: Sequence[Buffer]) -> Stmt:
            with IRBuilder() as builder:
                images = shape[0] * shape[1]
                with shared_tasks(images, _product(data.shape), _WORTH_THREADS) as image:
                    _add_blocks(window, T.buffer_proxy(ins[0]), T.buffer_proxy(outs[0]), image, sizes, counts, wide)
                return builder.get()

        total = te.extern([shape], [data], body, dtype=wide, name="col2im")
        if wide == str(data.dtype):
            return total
        return te.compute(shape, lambda *i: total(*i).astype(data.dtype), name="cast")

    sizes = [expression(size) for size in (*image, *counts)]
    return context.emit_te(compute, context.input(0), *sizes, primfunc_name_hint="col2im")


_WORTH_THREADS = 1 << 15  # elements, some 10 microseconds


@dataclass(frozen=True)
class _Window:
    """The blocks of Col2Im, by axis."""

    block: Sequence[int]
    before: Sequence[int]
    strides: Sequence[int]
    dilations: Sequence[int]


def _add_blocks(
    window: _Window, source: Buffer, out: Buffer, image: Expr, sizes: list[Expr], counts: list[Expr], dtype: str
) -> None:
    """One channel of one sample: zeros, and each tap of all blocks added where it was taken from."""
    rank, area, blocks = len(sizes), _product(sizes), _product(counts)

    def tap(axis: int, taken: list[Expr]) -> None:
        if axis == rank:
            number = tirx.const(0, "int64")
            for extent, each in zip(window.block, taken, strict=True):
                number = number * extent + each
            first = (image * math.prod(window.block) + number) * blocks
            line(0, taken, first, image * area)
            return
        with T.serial(0, tirx.const(window.block[axis], "int64")) as each:
            tap(axis + 1, [*taken, each])

    def line(axis: int, taken: list[Expr], first: Expr, to: Expr) -> None:
        """Blocks along an axis whose tap lies in the image: the last axis in vectors."""
        stride, moved = window.strides[axis], taken[axis] * window.dilations[axis] - window.before[axis]
        low = tirx.max(tirx.floordiv(stride - 1 - moved, tirx.const(stride, "int64")), tirx.const(0, "int64"))
        high = tirx.min(tirx.floordiv(sizes[axis] - 1 - moved, tirx.const(stride, "int64")) + 1, counts[axis])
        extent = tirx.max(high - low, tirx.const(0, "int64"))
        if axis == rank - 1:
            begin, place = first + low, to + low * stride + moved

            def add(i: Expr) -> None:
                out[place + i * stride] = out[place + i * stride] + source[begin + i].astype(dtype)

            in_vectors(extent, dtype if stride == 1 else None, add)
            return
        inner, lines = _product(sizes[axis + 1 :]), _product(counts[axis + 1 :])
        with T.serial(0, extent) as i:
            line(axis + 1, taken, first + (low + i) * lines, to + ((low + i) * stride + moved) * inner)

    with T.seq_scope():
        in_vectors(area, dtype, lambda i: out.__setitem__(image * area + i, tirx.const(0, dtype)))
        tap(0, [])
