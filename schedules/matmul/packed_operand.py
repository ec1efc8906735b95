"""Shared code of the matmul rules whose constant operand has a special packed format.

Constant weights are stored in panels a few vectors wide, each row by row:
`packed[panel, k, lane] = weight[k, panel * width + lane]`; columns past the last are zero and never stored.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from schedules.codegen.register_tile import RegisterTile
from schedules.config import Config, ConfigSpace
from schedules.errors import NotScheduledError
from schedules.instructions.dot_products.amx import STEPS, WIDTHS
from schedules.instructions.dot_products.operation import Instruction, Operation
from schedules.instructions.dot_products.table import tile_instruction
from schedules.instructions.rounding import bfloat16_bits
from schedules.ir.expression import index, number, substitute
from schedules.ir.reduction import COMBINERS, Reduction
from schedules.ir.stages import Axis, Kernel, Stage, shape_of
from schedules.ir.tir import Expr, PrimFunc, Stmt, Tensor, te, tirx
from schedules.machine import Machine
from schedules.matmul.form import Group, MatmulForm
from schedules.matmul.tiling import MatmulWorkload, best_tile, fits, tile_choices
from schedules.matmul.writer import MatmulWriter
from schedules.rule import CpuRule, Priority, WorkloadT
from schedules.stages.fused_kernel import FusedKernel


def panel_form(stage: Stage, depth: Axis, data: Expr, values: Expr, dtype: str = "float32") -> MatmulForm:
    """The form of a matmul of a given dtype whose B is `values`, in panels as wide as its last axis.

    Such a matmul needs neither the strides of A nor a start value.
    """
    store = stage.body
    column = next((axis for axis in stage.axes if axis.var.same_as(store.indices[-1])), None)
    rows = tuple(axis for axis in stage.spatial if axis is not column and axis.extent != 1)
    ones = [axis for axis in stage.axes if axis.extent == 1 and axis is not column]
    trivial = {axis.var: index(0) for axis in ones}
    zero = tirx.const(0, dtype)
    reduction = Reduction(COMBINERS[tirx.Add], zero, zero, substitute(store, trivial))
    data, width = substitute(data, trivial), shape_of(values.source)[-1]
    return MatmulForm(stage, reduction, (), Group(rows), column, depth, data, values, data, values, width, 0, 1, None)


def by_rows(form: MatmulForm, few: MatmulWriter, many: MatmulWriter, maximum: int) -> Stmt:
    """Dispatch at run time on the number of rows: one writer up to `maximum` rows, another above."""
    rows = form.rows.extent
    if isinstance(rows, int):
        return (few if rows <= maximum else many).statement()
    return tirx.IfThenElse(rows <= maximum, few.statement(), many.statement())


def panel_fields(form: MatmulForm, b_dtype: str, dtype: str = "float32") -> dict[str, Any]:
    """The fields of `MatmulWorkload` for a form with B in panels."""
    rows, columns, depth = form.known_extents
    return vars(MatmulWorkload(1, rows, columns, depth, "panels", form.width, dtype, b_dtype, 0, depth))


class HasForm(Protocol):
    """Operands of a matmul that include its form."""

    @property
    def form(self) -> MatmulForm: ...


PartsType = TypeVar("PartsType", bound=HasForm)
MatmulWorkloadT = TypeVar("MatmulWorkloadT", bound=MatmulWorkload)


class WriterOfParts(MatmulWriter, Generic[PartsType]):
    """Writes a matmul of operands in a special format: the common loops, with its own tile over the whole depth."""

    splits_depth: ClassVar[bool] = False

    def __init__(self, parts: PartsType, fused: FusedKernel, machine: Machine, *, rows: int) -> None:
        super().__init__(parts.form, fused, machine, rows=rows, vectors=1, pack=False)
        self.parts = parts


class MatmulOfParts(CpuRule[WorkloadT], Generic[WorkloadT, PartsType]):
    """A matmul recognized by its operands, with its own writer. The knob is the number of rows of the tile."""

    priority: ClassVar[int] = Priority.PACKED
    few_rows: ClassVar[int] = 0
    """Largest number of rows that `writer` serves if a kernel also has a writer of many rows."""

    @abstractmethod
    def parts(self, kernel: Kernel) -> PartsType | None:
        """The operands, including the `MatmulForm` as `form`; None for other kernels."""

    @abstractmethod
    def workload(self, parts: PartsType, machine: Machine) -> WorkloadT | None:
        """The workload; None if the machine does not serve it."""

    @abstractmethod
    def writer(self, parts: PartsType, fused: FusedKernel, machine: Machine, rows: int) -> MatmulWriter:
        """Create the writer of the loops."""

    def many(self, parts: PartsType, fused: FusedKernel, workload: WorkloadT, machine: Machine) -> MatmulWriter | None:
        """The writer of more than `few_rows` rows; None if `writer` serves any number."""
        return None

    def fused(self, kernel: Kernel, parts: PartsType) -> FusedKernel:
        """The kernel around the stages of the matmul."""
        return FusedKernel(kernel, [parts.form.stage])

    def match(self, kernel: Kernel, machine: Machine) -> WorkloadT | None:
        parts = self.parts(kernel)
        return None if parts is None else self.workload(parts, machine)

    def apply(self, kernel: Kernel, workload: WorkloadT, config: Config, machine: Machine) -> PrimFunc:
        parts = self.parts(kernel)
        if parts is None:
            raise NotScheduledError("stages of the matmul are missing")
        fused = self.fused(kernel, parts)
        few = self.writer(parts, fused, machine, config.integer("rows"))
        many = self.many(parts, fused, workload, machine)
        code = few.statement() if many is None else by_rows(parts.form, few, many, self.few_rows)
        return fused.function(code, machine)


class PanelRule(MatmulOfParts[MatmulWorkloadT, PartsType]):
    """A matmul of this kind whose tile spans the columns of a panel, with rows chosen as for any other matmul."""

    operation: ClassVar[Operation | None] = None
    """The operation that sums products of words, if there is one."""

    def tiles(self, workload: MatmulWorkloadT, machine: Machine) -> Instruction | None:
        """The instruction with tile accumulators, if the machine has one and the weights are packed for it."""
        whole = workload.width in WIDTHS and workload.depth % STEPS == 0
        return tile_instruction(machine, self.operation) if whole and self.operation is not None else None

    def space(self, workload: MatmulWorkloadT, machine: Machine) -> ConfigSpace:
        vectors = max(1, workload.width // machine.lanes("float32"))
        rows = {row for row, _ in tile_choices(machine, vectors) if row == 1 or fits(row, vectors, machine)}
        return ConfigSpace({"rows": tuple(sorted(rows))})

    def default(self, workload: MatmulWorkloadT, machine: Machine) -> Config:
        return Config.of(rows=best_tile(workload, machine)[0])


# Shared code of matmuls with an index along the depth: the form, and interleaved accumulators.


def looked_up(stages: tuple[Stage, ...] | None) -> tuple[MatmulForm, Any] | None:
    """(the form, the index) of a kernel with one stage `data[..., some of index] * values[...]`, the index in int32.

    The depth of the form is that of the data; its B is the values.
    """
    if stages is None:
        return None
    stage = stages[0]
    loads = [load for load in stage.loads if not load.source.same_as(stage.body.buffer)]
    rows = next(load.source for load in loads if str(load.source.dtype) == "int32")
    data, values = (load for load in loads if not load.source.same_as(rows))
    depth = Axis(tirx.Var("row", "int64"), shape_of(data.source)[-1], reduce=True)
    position = tirx.BufferLoad(data.source, [*data.indices[:-1], depth.var])
    return panel_form(stage, depth, position, values), rows


def independent_sums(vectors: int, machine: Machine) -> int:
    """Number of accumulators per result, for tiles of so few vectors that a single one would be bound by addition
    latency."""
    wanted = -(-machine.fma_latency * machine.fma_ports // vectors)
    return max(1, min(wanted, machine.vector_registers // 2 // vectors))


def joined(sums: RegisterTile, other: RegisterTile) -> list[Stmt]:
    """Statements that add another tile's sums to those of one."""
    return sums.stores(lambda i, position, lane: sums.sum(i, position) + other.sum(i, position))


def pack_panels(weight: np.ndarray, width: int) -> np.ndarray:
    """A (depth, columns) weight as (panels, depth, width)."""
    depth, columns = weight.shape
    panels = -(-columns // width)
    padded = np.zeros((depth, panels * width), weight.dtype)
    padded[:, :columns] = weight
    return np.ascontiguousarray(padded.reshape(depth, panels, width).transpose(1, 0, 2))


def pack_words(weight: np.ndarray, width: int, group: int, depth_of: int = 0) -> NDArray[np.int32]:
    """A (depth, columns) weight as int32 (panels, steps, words): `group` consecutive rows side by side for each of a
    panel's `width` columns, with the depth zero-padded to a multiple of `depth_of`."""
    values = bfloat16_bits(weight) if weight.dtype == np.float32 else weight
    depth, columns = values.shape
    block = max(group, depth_of)
    panels, steps = -(-columns // width), -(-depth // block) * block // group
    padded = np.zeros((group * steps, panels * width), values.dtype)
    padded[:depth, :columns] = values
    groups = padded.reshape(steps, group, panels, width).transpose(2, 0, 3, 1)
    return np.ascontiguousarray(groups).view(np.int32).reshape(panels, steps, -1)


def packed_matmul(data: Tensor, packed: Tensor, columns: int) -> Tensor:
    """Matmul of data (..., depth) and a packed weight as a tensor expression: (..., columns), in the data's dtype.

    The weight may have a narrower type (int8, float16, or bfloat16 in uint16): it is converted as it is read.
    """
    depth, width = packed.shape[1], int(packed.shape[2])
    k = te.reduce_axis((tirx.IntImm("int64", 0), depth), name="k")

    def point(*at: Expr) -> Expr:
        weight = packed(tirx.floordiv(at[-1], width), k, tirx.floormod(at[-1], width))
        return te.sum(data(*at[:-1], k) * number(weight, str(data.dtype)), axis=k)

    shape = [*data.shape[:-1], tirx.IntImm("int64", columns)]
    return te.compute(shape, point, name="matmul")


__all__ = ["pack_panels", "pack_words", "packed_matmul"]
