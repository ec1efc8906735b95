"""What the rules for products share: what they match, and, for those in tiles, which there are and the default."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeVar

from schedules.codegen.nest import build_function
from schedules.config import Config, ConfigSpace
from schedules.errors import NotScheduledError
from schedules.gpu.machine import GpuMachine
from schedules.gpu.parallel import bound_stage
from schedules.gpu.product_form import ProductForm, is_product, product_form
from schedules.gpu.rule import GpuRule
from schedules.ir.numbers import ceil_div
from schedules.ir.stages import Kernel
from schedules.machine import Machine, dtype_bits
from schedules.rule import Workload

if TYPE_CHECKING:
    from schedules.ir.tvm_types import PrimFunc, Stmt

UNKNOWN = 128  # the size assumed where it is not known


@dataclass(frozen=True)
class ProductWorkload(Workload):
    """The product of (samples, rows, depth) and (samples, columns, depth); 0 is a size that is not known."""

    samples: int
    rows: int
    columns: int
    depth: int
    dtype: str


ProductWorkloadT = TypeVar("ProductWorkloadT", bound=ProductWorkload)


class ProductRule(GpuRule[ProductWorkloadT]):
    """A product: what is in front of it is computed where it is read, what follows where it is stored."""

    @abstractmethod
    def workload(self, form: ProductForm) -> ProductWorkloadT:
        """What a config depends on."""

    @abstractmethod
    def serves(self, form: ProductForm, workload: ProductWorkloadT, machine: GpuMachine) -> bool:
        """Whether a product of these sizes is served; both operands have one element type."""

    @abstractmethod
    def launch(self, form: ProductForm, config: Config) -> Stmt:
        """The launch that computes a form's product."""

    def match(self, kernel: Kernel, machine: Machine) -> ProductWorkloadT | None:
        if not isinstance(machine, GpuMachine) or not any(is_product(each) for each in kernel.simple_stages):
            return None
        try:
            form = product_form(kernel)
        except NotScheduledError:
            return None
        workload = self.workload(form)
        same = form.a.dtype == form.b.dtype
        return workload if same and self.serves(form, workload, machine) else None

    def apply(self, kernel: Kernel, workload: ProductWorkloadT, config: Config, machine: Machine) -> PrimFunc:
        assert isinstance(machine, GpuMachine)
        form = product_form(kernel)
        launch = self.launch(form, config)
        if form.fused.is_joined:
            return build_function(kernel, [launch], [])
        # What follows is not elementwise on the result, and gets launches of its own.
        rest = form.fused.rest
        written = [form.fused.stored, *(buffer for stage in rest for buffer in stage.writes)]
        kept = [each for each in kernel.intermediates if any(each.same_as(buffer) for buffer in written)]
        return build_function(kernel, [launch, *(bound_stage(stage, machine) for stage in rest)], kept)


def product_workload(form: ProductForm) -> ProductWorkload:
    """The sizes of a product."""
    groups = (form.batch, form.a.rows, form.b.rows, form.depth)
    samples, rows, columns, depth = (each.extent if isinstance(each.extent, int) else 0 for each in groups)
    return ProductWorkload(samples, rows, columns, depth, form.a.dtype)


class Tiled(Protocol):
    """How a block is cut: rows and columns of the result, and a step of the depth."""

    @property
    def rows(self) -> int: ...
    @property
    def columns(self) -> int: ...
    @property
    def depth(self) -> int: ...
    def shared_bytes(self, bits: int) -> int: ...


class TiledProductRule(ProductRule[ProductWorkload]):
    """A product in tiles of shared memory."""

    knobs: ClassVar[dict[str, tuple[int, ...]]]
    load_cost: ClassVar[int]
    """Loading a row of a tile costs as much as multiplying it by so many columns."""

    def workload(self, form: ProductForm) -> ProductWorkload:
        return product_workload(form)

    @abstractmethod
    def multiplies(self, dtype: str, machine: GpuMachine) -> bool:
        """Whether operands of an element type are served."""

    @abstractmethod
    def tile(self, config: Config) -> Tiled:
        """The tile of a config."""

    def serves(self, form: ProductForm, workload: ProductWorkload, machine: GpuMachine) -> bool:
        # A vector by a matrix shares nothing that a tile could keep.
        sizes = (workload.rows, workload.columns, workload.depth)
        return 1 not in sizes and self.multiplies(workload.dtype, machine)

    def space(self, workload: ProductWorkload, machine: Machine) -> ConfigSpace:
        assert isinstance(machine, GpuMachine)
        limit, bits = machine.shared_bytes, dtype_bits(workload.dtype)
        return ConfigSpace(self.knobs, (lambda config: self.tile(config).shared_bytes(bits) <= limit,))

    def default(self, workload: ProductWorkload, machine: Machine) -> Config:
        def cost(config: Config) -> tuple[float, int]:
            # Of equals the one of fewer steps.
            return self.units(workload, config, machine), -self.tile(config).depth

        return min(self.space(workload, machine), key=cost)

    def units(self, workload: ProductWorkload, config: Config, machine: Machine) -> float:
        """Time in units of multiplying, the blocks of a wave side by side."""
        assert isinstance(machine, GpuMachine)
        tile = self.tile(config)
        rows, columns, steps = (each or UNKNOWN for each in (workload.rows, workload.columns, workload.depth))
        depth = ceil_div(steps, tile.depth) * tile.depth
        blocks = max(workload.samples, 1) * ceil_div(rows, tile.rows) * ceil_div(columns, tile.columns)
        work = tile.rows * tile.columns + self.load_cost * (tile.rows + tile.columns)
        return float(ceil_div(blocks, machine.multiprocessors) * work * depth)
