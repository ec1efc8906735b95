"""Matmuls: plain, batched, transposed operands, packed weights, few rows; epilogues are fused into the tile."""

from __future__ import annotations

from typing import ClassVar

from schedules.config import Config, ConfigSpace
from schedules.errors import NotScheduledError
from schedules.estimate import Estimate, tail
from schedules.ir.inline import operations
from schedules.ir.numbers import ceil_div
from schedules.ir.stages import Kernel, product
from schedules.ir.tir import Index, PrimFunc
from schedules.machine import Machine, dtype_bits
from schedules.matmul.form import MatmulForm, find_matmul, operand_dtypes
from schedules.matmul.tiling import MatmulWorkload, best_tile, fits, rows_for_cores, tile_choices, tile_cost
from schedules.matmul.writer import MatmulWriter
from schedules.rule import CpuRule, Priority
from schedules.stages.fused_kernel import FusedKernel
from schedules.task_split import FEW

_DTYPES = ("float32", "float64", "int32")
# Packing a panel costs about as much as this many rows of the matmul.
_MIN_ROWS_TO_PACK = 24
_MIN_ROWS_TO_TRANSPOSE = 3
_DEPTHS = (256, 512, 1024)


def workload_of(form: MatmulForm, kernel: Kernel) -> MatmulWorkload:
    """The parameters that determine how a matmul is computed."""
    _, b_dtype, dtype = operand_dtypes(form)
    layout = "panels" if form.width else "rows" if form.b_column_stride in (0, 1) else "columns"
    epilogue = list(kernel.simple_stages)
    epilogue = epilogue[next(i for i, stage in enumerate(epilogue) if stage is form.stage) + 1 :]

    def static(extent: Index) -> int:
        return extent if isinstance(extent, int) else 0

    return MatmulWorkload(
        product(axis.extent for axis in form.batch) or 0,
        static(form.rows.extent),
        static(form.columns),
        static(form.depth.extent),
        layout,
        form.width,
        dtype,
        b_dtype,
        sum(operations(stage.body)[0] for stage in epilogue),
        form.a_row_stride if isinstance(form.a_row_stride, int) else 0,
    )


class Matmul(CpuRule[MatmulWorkload]):
    """Serves kernels with exactly one matmul that accumulates in float32, float64 or int32."""

    name: ClassVar[str] = "matmul"
    version: ClassVar[int] = 2
    priority: ClassVar[int] = Priority.MATMUL

    def match(self, kernel: Kernel, machine: Machine) -> MatmulWorkload | None:
        form = find_matmul(kernel)
        if form is None or form.reduction.dtype not in _DTYPES:
            return None
        work = workload_of(form, kernel)
        if form.column is None or (work.layout == "columns" and 0 < work.rows < _MIN_ROWS_TO_TRANSPOSE):
            return None  # dot products along contiguous memory: the rule "reduction" sums in lanes
        return work

    def space(self, workload: MatmulWorkload, machine: Machine) -> ConfigSpace:
        lanes = machine.lanes(workload.dtype)
        fixed = max(1, workload.width // lanes) if workload.layout == "panels" else None
        tiles = tile_choices(machine, fixed)
        rows = tuple(sorted({row for row, _ in tiles}))
        vectors = tuple(sorted({vector for _, vector in tiles}))

        def in_registers(config: Config) -> bool:
            row, vector = config.integer("rows"), config.integer("vectors")
            return row == 1 or fits(row, vector, machine)

        pack = (False,) if workload.layout == "panels" else (False, True)
        depths = (0, *(size for size in _DEPTHS if size < workload.depth))
        knobs = {"rows": rows, "vectors": vectors, "pack": pack, "depth": depths}
        return ConfigSpace(knobs, (in_registers,))

    def default(self, workload: MatmulWorkload, machine: Machine) -> Config:
        rows, vectors = best_tile(workload, machine)
        if workload.layout == "panels" and workload.batch == 1 and 1 < rows < workload.rows and machine.cores > FEW:
            rows = rows_for_cores(workload, (rows, vectors), machine)
        enough = _MIN_ROWS_TO_PACK if workload.layout == "rows" else _MIN_ROWS_TO_TRANSPOSE
        pack = workload.layout != "panels" and (workload.rows == 0 or workload.rows >= enough)
        return Config.of(rows=rows, vectors=vectors, pack=pack, depth=self._depth(workload, vectors, machine))

    def estimate(self, workload: MatmulWorkload, config: Config, machine: Machine) -> Estimate | None:
        lanes = machine.lanes(workload.dtype)
        rows, vectors = config.integer("rows"), config.integer("vectors")
        if workload.layout == "panels" and workload.width >= lanes:
            vectors = workload.width // lanes
        sizes = (workload.batch, workload.rows, workload.columns, workload.depth)
        batch, m, n, k = (max(each, 1) for each in sizes)
        cycles = batch * k * tile_cost(m, n, (rows, vectors), machine, lanes)
        panels = ceil_div(n, vectors * lanes)
        depth = int(config.get("depth", 0)) or k
        panel_bytes = depth * vectors * lanes * 4
        moved = float(batch * (k * n * 4 + m * k * 4 * (1 if m * k * 4 < machine.l2_bytes / 2 else panels)))
        if config.get("pack"):
            cycles += batch * k * panels * vectors * 4
        if depth < k:
            cycles += batch * m * panels * vectors * 2 * (k / depth)
        chunks = min(max(1, ceil_div(4 * machine.cores, panels * batch)), ceil_div(m, rows))
        code = rows * vectors
        return Estimate(cycles, moved, batch * panels * chunks, panel_bytes, code, code, tail(m, rows))

    def _depth(self, workload: MatmulWorkload, vectors: int, machine: Machine) -> int:
        """The largest depth block whose part of a panel leaves room in the L2 cache; 0 if the whole panel does."""
        columns = workload.width or vectors * machine.lanes(workload.dtype)
        row_bytes = columns * dtype_bits(workload.dtype) // 8
        if workload.depth * row_bytes <= machine.l2_bytes // 2 or 0 < workload.rows <= _MIN_ROWS_TO_PACK:
            return 0
        fitting = [size for size in _DEPTHS if size < workload.depth and size * row_bytes <= machine.l2_bytes // 4]
        return max(fitting, default=0)

    def apply(self, kernel: Kernel, workload: MatmulWorkload, config: Config, machine: Machine) -> PrimFunc:
        form = find_matmul(kernel)
        if form is None:
            raise NotScheduledError("not a single matmul")
        writer = MatmulWriter(
            form,
            FusedKernel(kernel, [form.stage]),
            machine,
            rows=config.integer("rows"),
            vectors=config.integer("vectors"),
            pack=bool(config["pack"]),
            depth=config.integer("depth"),
        )
        return writer.function()
