"""Products of 8-bit integers with int32 sums: four neighbours along the depth at a time.

The data is copied into words of four bytes once, which costs one pass over it; the weights are packed when compiling.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from schedules.annotations import KIND
from schedules.codegen.nest import Extent, lanes_of, parallel_grid, repeat, sequence, splat
from schedules.codegen.parallel import pays_off, work
from schedules.instructions.int8_dot import dot
from schedules.instructions.int8_neon import dot_signed, shift_of
from schedules.ir.expression import substitute
from schedules.ir.stages import dtype_of, shape_of
from schedules.ir.tir import Expr, tirx
from schedules.machine import Machine
from schedules.matmul.bf16 import MatmulBf16, Parts
from schedules.rule import Priority
from schedules.stages.code import stage_code

from tvm import te  # isort: skip

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Stmt, Tensor

MATMUL_INT8 = "matmul-int8"
MATMUL_SIGNED = "matmul-int8-signed"
_GROUP = 4
_BYTE = 0xFF


def pack_quads(weight: np.ndarray, width: int) -> NDArray[np.int32]:
    """An int8 (depth, columns) weight as int32 (panels, ceil(depth / 4), width), four of its rows per word."""
    depth, columns = weight.shape
    panels, steps = -(-columns // width), -(-depth // _GROUP)
    padded = np.zeros((_GROUP * steps, panels * width), np.int8)
    padded[:depth, :columns] = weight
    quads = padded.reshape(steps, _GROUP, panels, width).transpose(2, 0, 3, 1)
    return np.ascontiguousarray(quads).view(np.int32)[..., 0]


def matmul_int8(data: Tensor, packed: Tensor, columns: int, *, signed: bool = False) -> Tensor:
    """The int32 product of 8-bit data (..., depth) and weights packed by `pack_quads`: (..., columns).

    To the data `shift_of(its type, signed)` is added: the caller subtracts that times the sums of the weights' columns.
    """
    steps, width = packed.shape[1], int(packed.shape[2])
    depth = data.shape[-1]
    attrs = {KIND: MATMUL_SIGNED if signed else MATMUL_INT8}
    shift = tirx.const(shift_of(str(data.dtype), signed), "int32")
    zero = tirx.const(0, "int32")
    whole = isinstance(depth, tirx.IntImm) and int(depth.value) % _GROUP == 0

    def word(*at: Expr) -> Expr:
        total = zero
        for byte in range(_GROUP):
            place = at[-1] * _GROUP + byte
            value = (tirx.Cast("int32", data(*at[:-1], place)) + shift) & _BYTE
            value = value if whole else tirx.if_then_else(place < depth, value, zero)
            total = total | value << 8 * byte
        return total

    words = te.compute([*data.shape[:-1], steps], word, name="words", attrs=attrs)
    k = te.reduce_axis((tirx.IntImm("int64", 0), steps), name="k")

    def point(*at: Expr) -> Expr:
        a, b = words(*at[:-1], k), packed(tirx.floordiv(at[-1], width), k, tirx.floormod(at[-1], width))
        products = [
            ((a << (24 - 8 * byte)) >> 24 if signed else (a >> 8 * byte) & _BYTE) * ((b << (24 - 8 * byte)) >> 24)
            for byte in range(_GROUP)
        ]
        return te.sum(products[0] + products[1] + products[2] + products[3], axis=k)

    shape = [*data.shape[:-1], tirx.IntImm("int64", columns)]
    return te.compute(shape, point, name="matmul", attrs=attrs)


class MatmulInt8(MatmulBf16):
    """Serves the kernels of `matmul_int8`."""

    name: ClassVar[str] = "matmul-int8"
    version: ClassVar[int] = 1
    priority: ClassVar[int] = Priority.PACKED

    kind: ClassVar[str] = MATMUL_INT8
    dtypes: ClassVar[tuple[str, str]] = ("int32", "int8")

    def combine(self, total: Expr, a: Expr, b: Expr) -> Expr:
        return dot(total, a, b)

    def words(self, parts: Parts, machine: Machine) -> Stmt:
        shifted = shift_of(dtype_of(parts.pairs.loads[0].source), self.kind == MATMUL_SIGNED) != 0
        return _copy(parts, machine, shifted=shifted)


class MatmulSigned(MatmulInt8):
    """Serves those whose sums are of signed numbers."""

    name: ClassVar[str] = MATMUL_SIGNED
    kind: ClassVar[str] = MATMUL_SIGNED

    def combine(self, total: Expr, a: Expr, b: Expr) -> Expr:
        return dot_signed(total, a, b)


def _copy(parts: Parts, machine: Machine, *, shifted: bool) -> Stmt:
    """The data as words: its bytes as they lie in memory, where rows are whole words."""
    stage = parts.pairs
    store, lanes = stage.store, machine.lanes("int32")
    assert store is not None
    data = stage.loads[0].source
    depth = shape_of(data)[-1]
    if not isinstance(depth, int) or depth % _GROUP or depth < _GROUP * lanes:
        return stage_code(stage, machine)
    step = store.indices[-1]
    lead = [axis for axis in stage.axes if not axis.var.same_as(step) and axis.extent != 1]
    ones = {axis.var: tirx.IntImm("int64", 0) for axis in stage.axes if axis.extent == 1}
    threads = pays_off(work([axis.extent for axis in stage.axes], stage.body), machine)

    def row(values: list[Expr]) -> Stmt:
        place = {**ones, **{axis.var: value for axis, value in zip(lead, values, strict=True)}}
        outer = [substitute(point, place) for point in list(store.indices)[:-1]]

        def words(first: Expr, count: int) -> Stmt:
            bytes_ = tirx.BufferLoad(data, [*outer, lanes_of(first * _GROUP, count * _GROUP)])
            value = tirx.reinterpret(f"int32x{count}" if count > 1 else "int32", bytes_)
            if shifted:
                value = value ^ splat(0x80808080 - (1 << 32), "int32", count)
            return tirx.BufferStore(store.buffer, value, [*outer, lanes_of(first, count)])

        whole, rest = divmod(depth // _GROUP, lanes)
        parts = [repeat("run", whole, lambda run: words(run * lanes, lanes))]
        parts += [words(tirx.IntImm("int64", whole * lanes), rest)] if rest else []
        return sequence(parts)

    return parallel_grid([Extent(axis.name, axis.extent) for axis in lead], row, machine, parallel=threads)
