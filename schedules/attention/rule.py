"""Attention in one kernel, by blocks of queries; `schedules.attention.writer` says how."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import ClassVar

from schedules.attention.compute import ATTENTION
from schedules.attention.operands import LEAST_QUERIES, AttentionParts, attention_stages
from schedules.attention.writer import AttentionWriter, attention_tiles
from schedules.codegen.nest import build_function
from schedules.config import Config, ConfigSpace
from schedules.errors import NotScheduledError
from schedules.estimate import Estimate, tail
from schedules.instructions.products.amx import BLOCK_ROWS, STEPS
from schedules.instructions.products.operation import Product
from schedules.ir.numbers import ceil_div
from schedules.ir.stages import Kernel, dtype_of
from schedules.ir.tir import PrimFunc
from schedules.machine import Machine
from schedules.matmul.tiling import tile_cost
from schedules.rule import CpuRule, Priority, Workload


@dataclass(frozen=True)
class AttentionWorkload(Workload):
    """Extents are 0 when symbolic; `batch` counts all leading dimensions together."""

    batch: int
    queries: int
    keys: int
    depth: int
    columns: int
    dtype: str

    @property
    def operations(self) -> int:
        """Multiplications and additions of both products."""
        return 2 * self.batch * self.queries * self.keys * (self.depth + self.columns)


SOFTMAX_CYCLES = 12.0  # of a vector of scores


def cycles_in_tiles(work: AttentionWorkload, product: Product, machine: Machine) -> float:
    """Single-core cycles of attention whose sums stay in tiles: products filled up to whole tiles, and the softmax."""
    step, lanes = STEPS * product.group, machine.lanes("float32")
    depth, keys = (ceil_div(each, step) * step for each in (work.depth, work.keys))
    terms = work.batch * work.queries * (work.keys * depth + work.columns * keys)
    scores = work.batch * work.queries * work.keys
    return terms / (lanes * machine.fma_ports * product.rate_on(machine)) + scores / lanes * SOFTMAX_CYCLES


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
        dtype = "bfloat16" if parts.narrow else dtype_of(parts.query.buffer)
        return AttentionWorkload(prod(lead), queries, keys, depth, columns, dtype)

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
        rows = config.integer("rows")
        batch, queries, keys = (max(each, 1) for each in (workload.batch, workload.queries, workload.keys))
        lanes = machine.lanes(workload.dtype)
        blocks = ceil_div(queries, rows)
        cycles = batch * (
            workload.depth * tile_cost(queries, keys, (rows, 2), machine, lanes)
            + keys * tile_cost(queries, workload.columns, (rows, 2), machine, lanes)
            + queries * keys / lanes * SOFTMAX_CYCLES
        )
        moved = float(batch * blocks * keys * (workload.depth + workload.columns) * 4)
        return Estimate(cycles, moved, batch * blocks, rows * keys * 4.0, rows * 2, rows * 2, tail(queries, rows))

    def apply(self, kernel: Kernel, workload: AttentionWorkload, config: Config, machine: Machine) -> PrimFunc:
        stages = attention_stages(kernel, self.kind)
        if stages is None:
            raise NotScheduledError("stages of attention are missing")
        body = self.writer(AttentionParts.of(stages), machine, config.integer("rows")).code()
        return build_function(kernel, [body], [])

    def tiles(self, workload: AttentionWorkload, machine: Machine) -> Product | None:
        """The instruction with sums in tiles that multiplies the operands, where there is one."""
        in_words = workload.queries >= LEAST_QUERIES and workload.dtype != "float32"
        known = workload.keys and workload.depth and workload.columns
        return attention_tiles(machine, self.writer.operation) if in_words and known else None

    def _most_rows(self, workload: AttentionWorkload, machine: Machine) -> int:
        """Rows of two vectors of sums that fit the registers, or of a block of tiles."""
        if self.tiles(workload, machine) is not None:
            return BLOCK_ROWS
        return max(1, (machine.vector_registers - 3) // 2)
