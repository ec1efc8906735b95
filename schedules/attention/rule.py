"""Attention in one kernel, by blocks of queries; `schedules.attention.writer` says how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from schedules.attention.compute import ATTENTION
from schedules.attention.operands import AttentionParts, attention_stages
from schedules.attention.writer import AttentionWriter, bfloat16_tiles
from schedules.codegen.nest import build_function
from schedules.config import Config, ConfigSpace
from schedules.errors import NotScheduledError
from schedules.estimate import Estimate, tail
from schedules.instructions.products.amx import BLOCK_ROWS
from schedules.ir.numbers import ceil_div
from schedules.ir.stages import Kernel, dtype_of
from schedules.ir.tir import PrimFunc
from schedules.machine import Machine
from schedules.matmul.tiling import tile_cost
from schedules.rule import CpuRule, Priority, Workload

# Estimated costs of configs of the attention rule.


def attention_estimate(work: AttentionWorkload, config: Config, machine: Machine) -> Estimate:
    """Estimate of attention."""
    rows = config.integer("rows")
    batch, queries, keys = (max(each, 1) for each in (work.batch, work.queries, work.keys))
    lanes = machine.lanes(work.dtype)
    blocks = ceil_div(queries, rows)
    cycles = batch * (
        work.depth * tile_cost(queries, keys, (rows, 2), machine, lanes)
        + keys * tile_cost(queries, work.columns, (rows, 2), machine, lanes)
        + queries * keys / lanes * 12
    )
    moved = float(batch * blocks * keys * (work.depth + work.columns) * 4)
    return Estimate(cycles, moved, batch * blocks, rows * keys * 4.0, rows * 2, rows * 2, tail(queries, rows))


@dataclass(frozen=True)
class AttentionWorkload(Workload):
    """Extents are 0 when symbolic; `batch` counts all leading dimensions together."""

    batch: int
    queries: int
    keys: int
    depth: int
    columns: int
    dtype: str


class Attention(CpuRule[AttentionWorkload]):
    """Serves the kernels of `attention_compute.attention` in float32."""

    name: ClassVar[str] = "attention"
    version: ClassVar[int] = 1
    priority: ClassVar[int] = Priority.PACKED

    kind: ClassVar[str] = ATTENTION
    dtypes: ClassVar[tuple[str, ...]] = ("float32",)
    writer: ClassVar[type[AttentionWriter]] = AttentionWriter

    def match(self, kernel: Kernel, machine: Machine) -> AttentionWorkload | None:
        stages = attention_stages(kernel, self.kind)
        parts = None if stages is None else AttentionParts.of(stages)
        if parts is None or dtype_of(parts.query.buffer) not in self.dtypes:
            return None
        *lead, queries, depth = (size if isinstance(size, int) else 0 for size in parts.query.shape)
        keys, columns = (size if isinstance(size, int) else 0 for size in parts.value.shape[-2:])
        batch = 1
        for size in lead:
            batch *= size
        dtype = "bfloat16" if parts.narrow else dtype_of(parts.query.buffer)
        return AttentionWorkload(batch, queries, keys, depth, columns, dtype)

    def space(self, workload: AttentionWorkload, machine: Machine) -> ConfigSpace:
        return ConfigSpace({"rows": tuple(range(1, self._most_rows(workload, machine) + 1))})

    def default(self, workload: AttentionWorkload, machine: Machine) -> Config:
        """Blocks of nearly equal size, as large as fit."""
        most = self._most_rows(workload, machine)
        if not workload.queries:
            return Config.of(rows=min(8, most))
        blocks = -(-workload.queries // most)
        return Config.of(rows=-(-workload.queries // blocks))

    def estimate(self, workload: AttentionWorkload, config: Config, machine: Machine) -> Estimate | None:
        return attention_estimate(workload, config, machine)

    def apply(self, kernel: Kernel, workload: AttentionWorkload, config: Config, machine: Machine) -> PrimFunc:
        stages = attention_stages(kernel, self.kind)
        if stages is None:
            raise NotScheduledError("stages of attention are missing")
        body = self.writer(AttentionParts.of(stages), machine, config.integer("rows")).code()
        return build_function(kernel, [body], [])

    def _most_rows(self, workload: AttentionWorkload, machine: Machine) -> int:
        """Rows of two vectors of sums that fit the registers, or of a block of tiles."""
        if workload.dtype == "bfloat16" and bfloat16_tiles(machine) is not None:
            return BLOCK_ROWS
        return max(1, (machine.vector_registers - 3) // 2)
