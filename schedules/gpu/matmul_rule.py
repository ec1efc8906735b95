"""Common parts of the matmul rules: matching, and for tiled rules the tiles and their default."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from schedules.codegen.nest import build_function
from schedules.config import Config, ConfigSpace
from schedules.errors import NotScheduledError
from schedules.gpu.machine import GpuMachine
from schedules.gpu.matmul_form import DepthSplit, GpuMatmulForm, Launches, is_matmul, matmul_form, splits_depth
from schedules.gpu.parallel import bound_stage
from schedules.gpu.rule import GpuRule
from schedules.gpu.tile_code import BlockTile, TileWriter
from schedules.ir.numbers import ceil_div
from schedules.ir.stages import Kernel
from schedules.ir.tir import PrimFunc
from schedules.machine import Machine, dtype_bits
from schedules.rule import Workload

UNKNOWN = 128  # size assumed for dynamic dimensions
_SPLITS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
_MIN_STEPS = 2  # per part of the depth
_MAX_THREADS = 2048  # per multiprocessor
_GAIN_OF_SPLITS = 1.25  # minimum estimated gain for splitting the depth by default
_PARTS_OF_A_LAUNCH = 10_000  # partial sums that a multiprocessor stores and adds in the time of a launch


@dataclass(frozen=True)
class ProductWorkload(Workload):
    """The matmul of (samples, rows, depth) and (samples, columns, depth); 0 is an unknown size."""

    samples: int
    rows: int
    columns: int
    depth: int
    dtype: str


ProductWorkloadT = TypeVar("ProductWorkloadT", bound=ProductWorkload)


class GpuMatmulRule(GpuRule[ProductWorkloadT]):
    """A matmul: stages before it are computed where it reads them, stages after it where it stores."""

    @abstractmethod
    def workload(self, form: GpuMatmulForm) -> ProductWorkloadT:
        """Workload that a config depends on."""

    @abstractmethod
    def serves(self, form: GpuMatmulForm, workload: ProductWorkloadT, machine: GpuMachine) -> bool:
        """True if a matmul of these sizes is served; both operands have one element type."""

    @abstractmethod
    def launches(self, form: GpuMatmulForm, config: Config) -> Launches:
        """Launches that compute a form's matmul."""

    def match(self, kernel: Kernel, machine: Machine) -> ProductWorkloadT | None:
        if not isinstance(machine, GpuMachine) or not any(is_matmul(each) for each in kernel.simple_stages):
            return None
        try:
            form = matmul_form(kernel)
        except NotScheduledError:
            return None
        workload = self.workload(form)
        same = form.a.dtype == form.b.dtype
        return workload if same and self.serves(form, workload, machine) else None

    def apply(self, kernel: Kernel, workload: ProductWorkloadT, config: Config, machine: Machine) -> PrimFunc:
        assert isinstance(machine, GpuMachine)
        form = matmul_form(kernel)
        launches, workspaces = self.launches(form, config)
        if form.fused.is_joined:
            return build_function(kernel, launches, workspaces)
        # The remaining stages are not elementwise on the result, and get their own launches.
        rest = form.fused.rest
        written = [form.fused.stored, *(buffer for stage in rest for buffer in stage.writes)]
        intermediates = [each for each in kernel.intermediates if any(each.same_as(buffer) for buffer in written)]
        others = [bound_stage(stage, machine) for stage in rest]
        return build_function(kernel, [*launches, *others], [*intermediates, *workspaces])


def matmul_workload(form: GpuMatmulForm) -> ProductWorkload:
    """The sizes of a matmul."""
    groups = (form.batch, form.a.rows, form.b.rows, form.depth)
    samples, rows, columns, depth = (each.extent if isinstance(each.extent, int) else 0 for each in groups)
    return ProductWorkload(samples, rows, columns, depth, form.a.dtype)


class TiledMatmulRule(GpuMatmulRule[ProductWorkload]):
    """A matmul in tiles of shared memory, its depth shared among `splits` blocks."""

    knobs: ClassVar[dict[str, tuple[int, ...]]]
    tiles: ClassVar[type[BlockTile]]
    writer: ClassVar[type[TileWriter]]
    """The writer of the launch with a block for each tile, or for each tile and part of the depth."""
    load_cost: ClassVar[int]
    """Loading a row of a tile costs as much as multiplying it by this number of columns."""
    full_warps: ClassVar[int]
    """Warps per multiprocessor needed to hide latency."""
    launch_cost: ClassVar[int]
    """A launch costs this many multiplications of a multiprocessor."""

    def workload(self, form: GpuMatmulForm) -> ProductWorkload:
        return matmul_workload(form)

    @abstractmethod
    def multiplies(self, dtype: str, machine: GpuMachine) -> bool:
        """True if operands of an element type are served."""

    def tile(self, config: Config) -> BlockTile:
        """The tile of a config."""
        return self.tiles(*(config.integer(name) for name in ("rows", "columns", "depth")))

    def serves(self, form: GpuMatmulForm, workload: ProductWorkload, machine: GpuMachine) -> bool:
        # A vector-matrix product reuses no data that a tile could hold.
        sizes = (workload.rows, workload.columns, workload.depth)
        return 1 not in sizes and self.multiplies(workload.dtype, machine)

    def launches(self, form: GpuMatmulForm, config: Config) -> Launches:
        tile, splits = self.tile(config), config.integer("splits")
        if splits == 1:
            return [self.writer(form, tile, None).launch()], []
        split = DepthSplit(form, splits)
        return [self.writer(form, tile, split).launch(), split.joined()], [split.sums]

    def space(self, workload: ProductWorkload, machine: Machine) -> ConfigSpace:
        assert isinstance(machine, GpuMachine)
        limit, bits = machine.shared_bytes, dtype_bits(workload.dtype)

        def can_split(config: Config) -> bool:
            splits = config.integer("splits")
            steps = ceil_div(workload.depth, config.integer("depth"))
            return splits == 1 or (splits <= steps // _MIN_STEPS and splits_depth(steps, splits))

        known = 0 not in (workload.samples, workload.rows, workload.columns, workload.depth)
        splits = _SPLITS if known else (1,)
        return ConfigSpace(
            {**self.knobs, "splits": splits}, (lambda config: self.tile(config).shared_bytes(bits) <= limit, can_split)
        )

    def default(self, workload: ProductWorkload, machine: Machine) -> Config:
        def cost(config: Config) -> tuple[float, int]:
            # Ties go to the config with fewer steps.
            units = self.units(workload, config, machine)
            return units * (1.0 if config.integer("splits") == 1 else _GAIN_OF_SPLITS), -self.tile(config).depth

        return min(self.space(workload, machine), key=cost)

    def units(self, workload: ProductWorkload, config: Config, machine: Machine) -> float:
        """Time, in units of a multiplication, of the multiprocessor with the most blocks, which multiplies at its full
        rate if enough warps are resident to hide their latencies."""
        assert isinstance(machine, GpuMachine)
        tile, splits, samples = self.tile(config), config.integer("splits"), max(workload.samples, 1)
        rows, columns, steps = (each or UNKNOWN for each in (workload.rows, workload.columns, workload.depth))
        depth = ceil_div(ceil_div(steps, tile.depth), splits) * tile.depth
        blocks = samples * ceil_div(rows, tile.rows) * ceil_div(columns, tile.columns) * splits
        work = tile.rows * tile.columns + self.load_cost * (tile.rows + tile.columns)
        blocks_each = ceil_div(blocks, machine.multiprocessors)
        resident = min(blocks_each, max(1, _MAX_THREADS // tile.threads))
        useful = tile.threads * self._share("rows", rows, tile.rows) * self._share("columns", columns, tile.columns)
        rate = min(1.0, resident * useful / (machine.warp * self.full_warps))
        product = blocks_each * work * depth / rate
        if splits == 1:
            return product
        parts = samples * rows * columns * splits / machine.multiprocessors
        return product + self.launch_cost * (1 + parts / _PARTS_OF_A_LAUNCH)

    def _share(self, knob: str, size: int, own: int) -> float:
        """Used fraction of a tile at a size: warps that compute only padding hide no latencies."""
        return min(1.0, next((each for each in self.knobs[knob] if each >= size), own) / own)
