"""Shared code of the rules for products whose constant operand is packed in a special form."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, Generic, Protocol, TypeVar

from schedules.config import Config, ConfigSpace
from schedules.errors import NotScheduledError
from schedules.instructions.products.amx import STEPS, WIDTHS
from schedules.instructions.products.operation import Operation
from schedules.instructions.products.table import tile_product
from schedules.ir.expression import index, substitute
from schedules.ir.reduction import COMBINERS, Reduction
from schedules.ir.stages import Axis, Kernel, Stage, shape_of
from schedules.ir.tir import tirx
from schedules.machine import Machine
from schedules.matmul.form import Group, MatmulForm
from schedules.matmul.tiling import MatmulWorkload, best_tile, fits, tile_choices
from schedules.matmul.writer import MatmulWriter
from schedules.rule import CpuRule, Priority, WorkloadT
from schedules.stages.fused_kernel import FusedKernel

if TYPE_CHECKING:
    from schedules.instructions.products.product import Product
    from schedules.ir.tvm_types import Expr, PrimFunc, Stmt


def panel_form(stage: Stage, depth: Axis, data: Expr, values: Expr, dtype: str = "float32") -> MatmulForm:
    """The form of a product of a type whose B is `values`, in panels as wide as its last axis.

    Neither the strides of A nor a start is of use to such a product.
    """
    store = stage.store
    assert store is not None
    column = next((axis for axis in stage.axes if axis.var.same_as(store.indices[-1])), None)
    rows = tuple(axis for axis in stage.spatial if axis is not column and axis.extent != 1)
    ones = [axis for axis in stage.axes if axis.extent == 1 and axis is not column]
    trivial = {axis.var: index(0) for axis in ones}
    zero = tirx.const(0, dtype)
    reduction = Reduction(COMBINERS[tirx.Add], zero, zero, substitute(store, trivial))
    data, width = substitute(data, trivial), shape_of(values.source)[-1]
    return MatmulForm(
        stage, reduction, (), Group(rows), column, depth, data, values, data, values, width, 0, 1, 1, None
    )


def by_rows(form: MatmulForm, few: MatmulWriter, many: MatmulWriter, most: int) -> Stmt:
    """The product of at most `most` rows by one writer, of more by another."""
    rows = form.rows.extent
    if isinstance(rows, int):
        return (few if rows <= most else many).statement()
    return tirx.IfThenElse(rows <= most, few.statement(), many.statement())


class HasForm(Protocol):
    """The operands of a product, whatever else they are."""

    @property
    def form(self) -> MatmulForm: ...


PartsType = TypeVar("PartsType", bound=HasForm)
MatmulWorkloadT = TypeVar("MatmulWorkloadT", bound=MatmulWorkload)


class WriterOfParts(MatmulWriter, Generic[PartsType]):
    """Writes such a product: the loops of any other, and a tile of its own."""

    def __init__(self, parts: PartsType, fused: FusedKernel, machine: Machine, *, rows: int) -> None:
        super().__init__(parts.form, fused, machine, rows=rows, vectors=1, pack=False)
        self.parts = parts


class MatmulOfParts(CpuRule[WorkloadT], Generic[WorkloadT, PartsType]):
    """A product that is found by its operands and written by a writer of its own. The knob: the rows of the tile."""

    priority: ClassVar[int] = Priority.PACKED

    @abstractmethod
    def parts(self, kernel: Kernel) -> PartsType | None:
        """The operands, with the `MatmulForm` as `form`; None for kernels of others."""

    @abstractmethod
    def writer(self, parts: PartsType, fused: FusedKernel, machine: Machine, rows: int) -> MatmulWriter:
        """Writer of the loops."""

    def apply(self, kernel: Kernel, workload: WorkloadT, config: Config, machine: Machine) -> PrimFunc:
        parts = self.parts(kernel)
        if parts is None:
            raise NotScheduledError("the stage of the product is missing")
        fused = FusedKernel(kernel, [parts.form.stage])
        return self.writer(parts, fused, machine, config.integer("rows")).function()


class PanelRule(MatmulOfParts[MatmulWorkloadT, PartsType]):
    """Such a product whose tile has the columns of a panel, and rows as those of any other product."""

    operation: ClassVar[Operation | None] = None
    """What sums products of words, where it does."""

    def tiles(self, workload: MatmulWorkloadT, machine: Machine) -> Product | None:
        """The instruction that sums in tiles, where the machine has one and weights are packed for it."""
        whole = workload.width in WIDTHS and workload.depth % STEPS == 0
        return tile_product(machine, self.operation) if whole and self.operation is not None else None

    def space(self, workload: MatmulWorkloadT, machine: Machine) -> ConfigSpace:
        vectors = max(1, workload.width // machine.lanes("float32"))
        rows = {row for row, _ in tile_choices(machine, vectors) if row == 1 or fits(row, vectors, machine)}
        return ConfigSpace({"rows": tuple(sorted(rows))})

    def default(self, workload: MatmulWorkloadT, machine: Machine) -> Config:
        return Config.of(rows=best_tile(workload, machine)[0])
