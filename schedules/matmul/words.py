"""Matmuls of narrow operands packed into words of neighbours along the depth: pairs of floats, or four bytes.

The data is made words once, which costs one pass over it; the weights are packed when compiling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from schedules.annotations import KIND
from schedules.codegen.nest import Extent, lanes_of, parallel_grid, repeat, sequence, splat, split_repeat, store
from schedules.codegen.parallel import pays_off, work
from schedules.codegen.tile_sums import with_room
from schedules.config import Config, ConfigSpace
from schedules.errors import NotScheduledError
from schedules.instructions.products.operation import DOT_BF16, DOT_F16, DOT_S8S8, DOT_U8S8, Operation, Product
from schedules.instructions.products.table import partial_operation
from schedules.instructions.rounding import rounded_pair, rounded_run
from schedules.ir.expression import substitute
from schedules.ir.stages import Kernel, Stage, dtype_of, shape_of
from schedules.ir.tir import Expr, Index, PrimFunc, Stmt, Tensor, Var, te, tirx
from schedules.machine import Machine
from schedules.matmul.form import MatmulForm
from schedules.matmul.packed_operand import PanelRule, panel_fields, panel_form
from schedules.matmul.tiling import TILE_ROWS, MatmulWorkload, block_rows
from schedules.matmul.writer import MatmulWriter
from schedules.stages.code import stage_code
from schedules.stages.fused_kernel import FusedKernel, anchor_stages

KINDS = {DOT_BF16: "matmul-bf16", DOT_F16: "matmul-f16", DOT_U8S8: "matmul-int8", DOT_S8S8: "matmul-int8-signed"}
"""Annotations of the kernels, and names of their rules, by what sums the products."""
_SIGN_BITS = 0x80808080 - (1 << 32)


def matmul_words(data: Tensor, packed: Tensor, columns: int, operation: Operation) -> Tensor:
    """Matmul of data (..., depth) and weights packed by `pack.pack_words` in the operation's groups: (..., columns).

    float32 data is rounded to the operation's type. To bytes `operation.shift(their type)` is added: the caller
    subtracts that times the sums of the weights' columns.
    """
    steps, width = packed.shape[1], int(packed.shape[2])
    depth, group = data.shape[-1], operation.group
    attrs = {KIND: KINDS[operation]}
    known = int(depth.value) if isinstance(depth, tirx.IntImm) else 0
    last = (int(steps) - 1) * group  # start of the last word
    shift = tirx.const(operation.shift(str(data.dtype)), "int32")
    halves = operation.total == "float32"

    def element(at: tuple[Expr, ...], number: int) -> Expr:
        """A number of a word, 0 beyond the depth."""
        place = at[-1] * group + number
        value = data(*at[:-1], place)
        value = value if halves else (tirx.Cast("int32", value) + shift) & 0xFF
        zero = tirx.const(0, str(value.ty))
        value = value if last + number < known else tirx.if_then_else(place < depth, value, zero)
        return value + zero if halves else value

    def word(*at: Expr) -> Expr:
        values = [element(at, number) for number in range(group)]
        return rounded_pair(values[0], values[1], operation) if halves else word_of_bytes(values)

    words = te.compute([*data.shape[:-1], steps], word, name="words", attrs=attrs)
    k = te.reduce_axis((tirx.IntImm("int64", 0), steps), name="k")

    def point(*at: Expr) -> Expr:
        a, b = words(*at[:-1], k), packed(tirx.floordiv(at[-1], width), k, tirx.floormod(at[-1], width))
        return te.sum(operation.expression(a, b), axis=k)

    return te.compute([*data.shape[:-1], tirx.IntImm("int64", columns)], point, name="matmul", attrs=attrs)


def word_of_bytes(values: Sequence[Expr]) -> Expr:
    """Pack four int32 below 256 into the bytes of a word, the first lowest."""
    total: Expr = tirx.const(0, "int32")
    for byte, value in enumerate(values):
        total = total | value << 8 * byte
    return total


@dataclass(frozen=True, eq=False)
class Parts:
    """The stages of a matmul of words: packing of the data into words along the depth, and the matmul."""

    words: Stage
    product: Stage
    form: MatmulForm


class MatmulBf16(PanelRule[MatmulWorkload, Parts]):
    """Serves bfloat16 `matmul_words` kernels."""

    name: ClassVar[str] = KINDS[DOT_BF16]
    operation: ClassVar[Operation] = DOT_BF16

    def workload(self, parts: Parts, machine: Machine) -> MatmulWorkload | None:
        return MatmulWorkload(**panel_fields(parts.form, self.operation.b, self.operation.total))

    def parts(self, kernel: Kernel) -> Parts | None:
        return parts_of(kernel, self.name)

    def words(self, parts: Parts, machine: Machine) -> Stmt:
        """The statement that packs the data into words."""
        return _words(parts, self.operation, machine)

    def space(self, workload: MatmulWorkload, machine: Machine) -> ConfigSpace:
        in_tiles = self.tiles(workload, machine) is not None
        return ConfigSpace({"rows": TILE_ROWS}) if in_tiles else super().space(workload, machine)

    def default(self, workload: MatmulWorkload, machine: Machine) -> Config:
        in_tiles = self.tiles(workload, machine) is not None
        return Config.of(rows=block_rows(workload.rows)) if in_tiles else super().default(workload, machine)

    def writer(
        self, parts: Parts, fused: FusedKernel, machine: Machine, rows: int, tiles: Product | None = None
    ) -> MatmulWriter:
        partial = partial_operation(machine, self.operation) if tiles is None else None
        how: dict[str, Any] = {"rows": rows, "vectors": 1, "pack": False, "tiles": tiles}
        return MatmulWriter(parts.form, fused, machine, combine=self.operation, partial=partial, **how)

    def apply(self, kernel: Kernel, workload: MatmulWorkload, config: Config, machine: Machine) -> PrimFunc:
        parts = self.parts(kernel)
        if parts is None:
            raise NotScheduledError("stages of the product are missing")
        fused = FusedKernel(kernel, [parts.words, parts.product])
        tiles = self.tiles(workload, machine)
        writer = self.writer(parts, fused, machine, config.integer("rows"), tiles)
        words = parts.form.a.source
        code = sequence(self.words(parts, machine), writer.statement())
        room = words if tiles is None else with_room(words)
        return fused.function(sequence(tirx.AllocBuffer(room), substitute(code, {words: room})), machine)


class MatmulF16(MatmulBf16):
    """Serves float16 `matmul_words` kernels."""

    name: ClassVar[str] = KINDS[DOT_F16]
    operation: ClassVar[Operation] = DOT_F16


class MatmulInt8(MatmulBf16):
    """Serves `matmul_words` kernels of unsigned by signed bytes."""

    name: ClassVar[str] = KINDS[DOT_U8S8]
    operation: ClassVar[Operation] = DOT_U8S8


class MatmulSigned(MatmulBf16):
    """Serves `matmul_words` kernels of signed bytes."""

    name: ClassVar[str] = KINDS[DOT_S8S8]
    operation: ClassVar[Operation] = DOT_S8S8


def _words(parts: Parts, operation: Operation, machine: Machine) -> Stmt:
    """Statement that packs the data into words, vectorized if rows are long enough."""
    stage, group, lanes = parts.words, operation.group, machine.lanes("int32")
    depth = shape_of(stage.loads[0].source)[-1]
    halves = operation.total == "float32"
    whole_words = halves or (isinstance(depth, int) and depth % group == 0)
    if not isinstance(depth, int) or not whole_words or depth < group * lanes:
        return stage_code(stage, machine)
    assert stage.store is not None
    row = _rounded_row if halves else _copied_row
    step = stage.store.indices[-1]
    axes = [axis for axis in stage.axes if not axis.var.same_as(step)]
    lead = axes if halves else [axis for axis in axes if axis.extent != 1]
    ones = {axis.var: tirx.IntImm("int64", 0) for axis in axes if axis not in lead}
    threads = pays_off(work([axis.extent for axis in stage.axes], stage.body), machine)

    def body(values: list[Expr]) -> Stmt:
        place = {**ones, **{axis.var: value for axis, value in zip(lead, values, strict=True)}}
        return row(parts, operation, place, lanes)

    return parallel_grid([Extent(axis.name, axis.extent) for axis in lead], body, machine, parallel=threads)


def _rounded_row(parts: Parts, operation: Operation, place: dict[Var, Expr], lanes: int) -> Stmt:
    """Round a row to pairs: full vectors, then the remainder pair by pair."""
    stage = parts.words
    assert stage.store is not None
    data, words, step = stage.loads[0].source, stage.store.buffer, stage.store.indices[-1]
    outer = [substitute(point, place) for point in list(stage.store.indices)[:-1]]
    whole = shape_of(data)[-1] // (2 * lanes)

    def vector(run: Expr, lane: Expr) -> Stmt:
        first = run * (2 * lanes) + lane
        halves = [tirx.BufferLoad(data, [*outer, each]) for each in (first, first + lanes)]
        return tirx.BufferStore(words, rounded_run(halves[0], halves[1], operation), [*outer, run * lanes + lane])

    def runs(run: Expr) -> Stmt:
        return repeat("lane", lanes, lambda lane: vector(run, lane), tirx.ForKind.VECTORIZED)

    def single(rest: Expr) -> Stmt:
        return substitute(stage.body, {**place, step: rest + whole * lanes})

    left = shape_of(words)[-1] - whole * lanes
    return sequence([repeat("run", whole, runs), *([repeat("rest", left, single)] if left else [])])


def _copied_row(parts: Parts, operation: Operation, place: dict[Var, Expr], lanes: int) -> Stmt:
    """Copy a row of bytes as words; bytes of the other signedness are shifted."""
    stage, group = parts.words, operation.group
    assert stage.store is not None
    data, words = stage.loads[0].source, stage.store.buffer
    outer = [substitute(point, place) for point in list(stage.store.indices)[:-1]]
    shifted = operation.shift(dtype_of(data)) != 0

    def copied(first: Index, count: int) -> Stmt:
        bytes_ = tirx.BufferLoad(data, [*outer, lanes_of(first * group, count * group)])
        value = tirx.reinterpret(f"int32x{count}" if count > 1 else "int32", bytes_)
        if shifted:
            value = value ^ splat(_SIGN_BITS, "int32", count)
        return tirx.BufferStore(words, value, [*outer, lanes_of(first, count)])

    count = shape_of(data)[-1] // group
    behind = shape_of(words)[-1] - count
    zeros = store(words, splat(0, "int32", behind), *outer, lanes_of(count, behind)) if behind else None
    return sequence(split_repeat("run", count, lanes, copied), zeros)


def parts_of(kernel: Kernel, kind: str) -> Parts | None:
    """The stages of a matmul annotated with `kind`."""
    stages = anchor_stages(kernel, kind)
    if len(stages) != 2 or not kernel.is_plain or any(stage.store is None for stage in stages):
        return None
    words, product = stages
    stored, summed = words.store, product.store
    assert stored is not None
    assert summed is not None
    data = next((load for load in product.loads if load.source.same_as(stored.buffer)), None)
    own = (stored.buffer, summed.buffer)
    packed = next((load for load in product.loads if not any(load.source.same_as(each) for each in own)), None)
    if packed is None or data is None:
        return None
    depth = next((axis for axis in product.axes if axis.reduce), None)
    column = next((axis for axis in product.axes if axis.var.same_as(summed.indices[-1])), None)
    if depth is None or column is None:
        return None
    return Parts(words, product, panel_form(product, depth, data, packed, str(summed.buffer.dtype)))
