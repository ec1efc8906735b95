"""Products with bfloat16 operands and float32 sums: twice the multiply-adds of float32 where the processor has them.

The data is rounded to pairs once, which costs one pass over it; the weights are packed as pairs when compiling.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from schedules.annotations import KIND
from schedules.codegen.nest import Extent, parallel_grid, repeat, sequence
from schedules.codegen.parallel import pays_off, work
from schedules.config import Config, ConfigSpace
from schedules.errors import NotScheduledError
from schedules.instructions.bf16_dot import dot, rounded_pair, rounded_run
from schedules.ir.expression import substitute
from schedules.ir.reduction import COMBINERS, Reduction
from schedules.ir.stages import Axis, Kernel, Stage, shape_of
from schedules.ir.tir import Expr, tirx
from schedules.machine import Machine
from schedules.matmul.form import Group, MatmulForm
from schedules.matmul.tiling import MatmulWorkload, best_tile, fits, tile_choices
from schedules.matmul.writer import MatmulWriter
from schedules.rule import CpuRule, Priority
from schedules.stages.code import stage_code
from schedules.stages.fused_kernel import FusedKernel, anchor_stages

from tvm import te  # isort: skip

if TYPE_CHECKING:
    from schedules.ir.tvm_types import PrimFunc, Stmt, Tensor

MATMUL_BF16 = "matmul-bf16"


def matmul_bf16(data: Tensor, packed: Tensor, columns: int) -> Tensor:
    """The product of float32 data (..., depth) and weights packed by `bf16_dot.pack_pairs`: float32 (..., columns)."""
    steps, width = packed.shape[1], int(packed.shape[2])
    depth = data.shape[-1]
    attrs = {KIND: MATMUL_BF16}

    def pair(*at: Expr) -> Expr:
        zero = tirx.FloatImm("float32", 0.0)
        high = 2 * at[-1] + 1
        second = data[(*at[:-1], high)]
        if not (isinstance(depth, tirx.IntImm) and int(depth.value) % 2 == 0):
            second = tirx.if_then_else(high < depth, second, zero)
        return rounded_pair(data[(*at[:-1], 2 * at[-1])] + zero, second + zero)

    pairs = te.compute([*data.shape[:-1], steps], pair, name="pairs", attrs=attrs)
    k = te.reduce_axis((tirx.IntImm("int64", 0), steps), name="k")

    def halves(value: Expr) -> tuple[Expr, Expr]:
        low = tirx.reinterpret("float32", value << tirx.IntImm("int32", 16))
        return low, tirx.reinterpret("float32", value & tirx.IntImm("int32", -65536))

    def point(*at: Expr) -> Expr:
        a = halves(pairs[(*at[:-1], k)])
        b = halves(packed[tirx.floordiv(at[-1], width), k, tirx.floormod(at[-1], width)])
        return te.sum(a[0] * b[0] + a[1] * b[1], axis=k)

    shape = [*data.shape[:-1], tirx.IntImm("int64", columns)]
    return te.compute(shape, point, name="matmul", attrs=attrs)


@dataclass(frozen=True, eq=False)
class Parts:
    """The stages of a product of words: the data as words of neighbours along the depth, and their product."""

    pairs: Stage
    product: Stage
    form: MatmulForm


class MatmulBf16(CpuRule[MatmulWorkload]):
    """Serves the kernels of `matmul_bf16`."""

    name: ClassVar[str] = "matmul-bf16"
    version: ClassVar[int] = 1
    priority: ClassVar[int] = Priority.PACKED

    kind: ClassVar[str] = MATMUL_BF16
    dtypes: ClassVar[tuple[str, str]] = ("float32", "bfloat16")  # of the sums, of the operands

    def match(self, kernel: Kernel, machine: Machine) -> MatmulWorkload | None:
        parts = parts_of(kernel, self.kind)
        return None if parts is None else workload_of(parts, *self.dtypes)

    def space(self, workload: MatmulWorkload, machine: Machine) -> ConfigSpace:
        vectors = max(1, workload.width // machine.lanes("float32"))
        rows = tuple(
            sorted({row for row, _ in tile_choices(machine, vectors) if row == 1 or fits(row, vectors, machine)})
        )
        return ConfigSpace({"rows": rows})

    def default(self, workload: MatmulWorkload, machine: Machine) -> Config:
        return Config.of(rows=best_tile(workload, machine)[0])

    def apply(self, kernel: Kernel, workload: MatmulWorkload, config: Config, machine: Machine) -> PrimFunc:
        parts = parts_of(kernel, self.kind)
        if parts is None:
            raise NotScheduledError("stages of the product are missing")
        fused = FusedKernel(kernel, [parts.pairs, parts.product])
        writer = MatmulWriter(
            parts.form, fused, machine, rows=config.integer("rows"), vectors=1, pack=False, combine=self.combine
        )
        body = sequence([tirx.AllocBuffer(parts.form.a.source), self.words(parts, machine), writer.statement()])
        return fused.function(body, machine)

    def combine(self, total: Expr, a: Expr, b: Expr) -> Expr:
        """The sums and the products of two words."""
        return dot(total, a, b)

    def words(self, parts: Parts, machine: Machine) -> Stmt:
        """The statement that makes words of the data."""
        return _rounding(parts, machine)


def _rounding(parts: Parts, machine: Machine) -> Stmt:
    """The data as pairs: whole vectors of a row, then what is left of it pair by pair."""
    stage = parts.pairs
    store, lanes = stage.store, machine.lanes("float32")
    assert store is not None
    data = stage.loads[0].source
    depth, steps = shape_of(data)[-1], shape_of(store.buffer)[-1]
    if not isinstance(depth, int) or depth < 2 * lanes:
        return stage_code(stage, machine)
    whole = depth // (2 * lanes)
    step = store.indices[-1]
    lead = [axis for axis in stage.axes if not axis.var.same_as(step)]
    threads = pays_off(work([axis.extent for axis in stage.axes], stage.body), machine)

    def row(values: list[Expr]) -> Stmt:
        place = {axis.var: value for axis, value in zip(lead, values, strict=True)}
        outer = [substitute(point, place) for point in list(store.indices)[:-1]]

        def vector(run: Expr, lane: Expr) -> Stmt:
            first = run * (2 * lanes) + lane
            halves = [tirx.BufferLoad(data, [*outer, each]) for each in (first, first + lanes)]
            return tirx.BufferStore(store.buffer, rounded_run(*halves), [*outer, run * lanes + lane])

        def runs(run: Expr) -> Stmt:
            return repeat("lane", lanes, lambda lane: vector(run, lane), tirx.ForKind.VECTORIZED)

        def single(rest: Expr) -> Stmt:
            return substitute(stage.body, {**place, step: rest + whole * lanes})

        left = steps - whole * lanes
        return sequence([repeat("run", whole, runs), *([repeat("rest", left, single)] if left else [])])

    return parallel_grid([Extent(axis.name, axis.extent) for axis in lead], row, machine, parallel=threads)


def workload_of(parts: Parts, dtype: str, b_dtype: str) -> MatmulWorkload:
    """The numbers that decide how a product of words is computed."""
    form = parts.form
    rows, columns, depth = form.known_extents
    return MatmulWorkload(1, rows, columns, depth, "panels", form.width, dtype, b_dtype, 0, depth)


def parts_of(kernel: Kernel, kind: str) -> Parts | None:
    """The stages of a product whose stages carry the annotation `kind`."""
    stages = anchor_stages(kernel, kind)
    if len(stages) != 2 or not kernel.is_plain or any(stage.store is None for stage in stages):
        return None
    pairs, product = stages
    stored, summed = pairs.store, product.store
    assert stored is not None
    assert summed is not None
    packed = next((load for load in product.loads if load.source.same_as(kernel_weight(product, stored.buffer))), None)
    data = next((load for load in product.loads if load.source.same_as(stored.buffer)), None)
    if packed is None or data is None:
        return None
    axes = [axis for axis in product.axes if axis.extent != 1]
    depth = next((axis for axis in product.axes if axis.reduce), None)
    column = next((axis for axis in product.axes if axis.var.same_as(summed.indices[-1])), None)
    if depth is None or column is None:
        return None
    rows = tuple(axis for axis in axes if not axis.reduce and axis is not column)
    return Parts(pairs, product, _form(product, rows, column, depth, data, packed))


def kernel_weight(product: Stage, pairs: Expr) -> Expr:
    """The buffer that a product reads beside the pairs and its own sum."""
    assert product.store is not None
    own = product.store.buffer
    return next(
        load.source for load in product.loads if not load.source.same_as(pairs) and not load.source.same_as(own)
    )


def _form(product: Stage, rows: tuple[Axis, ...], column: Axis, depth: Axis, data: Expr, packed: Expr) -> MatmulForm:
    assert product.store is not None
    zero = tirx.const(0, str(product.store.buffer.dtype))
    ones = [axis for axis in product.axes if axis.extent == 1 and not axis.reduce and axis is not column]
    trivial = {axis.var: tirx.IntImm("int64", 0) for axis in ones}
    reduction = Reduction(COMBINERS[tirx.Add], zero, zero, substitute(product.store, trivial))
    data, packed = substitute(data, trivial), substitute(packed, trivial)
    steps = depth.extent
    width = shape_of(packed.source)[-1]
    return MatmulForm(
        product, reduction, (), Group(rows), column, depth, data, packed, data, packed, width, steps, 1, 1, None
    )
