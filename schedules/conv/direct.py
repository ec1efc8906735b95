"""Direct convolution in blocked layouts: a register tile of pixels x channel blocks, summed over the window.

For each task: if there is padding, the input rows that it reads are copied once into a scratch buffer that stays in the
L2 cache and holds the zeros of the padding; then every register tile runs over all input channels and the window with
one vector multiply-add for each pixel and block, and its epilogue is applied as it is stored. 1x1
convolutions, strides, dilations, groups and any number of spatial dimensions are the same loop nest.
"""

from __future__ import annotations

from math import prod
from typing import ClassVar, TypeVar

from schedules.config import Config, ConfigSpace
from schedules.conv.compute import DIRECT
from schedules.conv.direct_nest import DirectNest
from schedules.conv.rule import BlockedRule
from schedules.conv.tiling import (
    MAX_PIXELS,
    OPEN_COLUMNS,
    OPEN_ROWS,
    accumulators,
    chunk_choices,
    direct_default,
    input_bytes,
    product_cycles,
    tile_for,
    uneven_block_choices,
)
from schedules.conv.workload import ConvWorkload
from schedules.estimate import Estimate, tail
from schedules.ir.numbers import ceil_div
from schedules.machine import Machine
from schedules.stages.fused_kernel import FusedKernel

ConvWorkloadT = TypeVar("ConvWorkloadT", bound=ConvWorkload)


class DirectRule(BlockedRule[ConvWorkloadT]):
    """Rules for convolutions by nested loops over the window. Knobs: `pixels` x `blocks` is the register tile, `rows` x
    `columns` the output of a task, `chunks` the number of tasks that the output channels are split into, `unroll` the
    number of input channels in the innermost loop."""

    cut_knobs: ClassVar[frozenset[str]] = frozenset({"rows", "columns", "chunks"})

    def space(self, workload: ConvWorkloadT, machine: Machine) -> ConfigSpace:
        width = workload.out_spatial[-1] or OPEN_COLUMNS
        height = (workload.out_spatial[-2] or OPEN_ROWS) if workload.rank > 1 else 1
        limit = accumulators(machine)
        return ConfigSpace(
            {
                "pixels": tuple(range(1, min(width, MAX_PIXELS) + 1)),
                "blocks": uneven_block_choices(workload.last_group_out_blocks, machine),
                "rows": tuple(range(1, height + 1)),
                "columns": tuple(range(1, width + 1)),
                "chunks": chunk_choices(workload),
                "unroll": (1, 2, 4, 8, 16),
            },
            (
                lambda config: config.integer("pixels") * config.integer("blocks") <= limit,
                lambda config: (
                    workload.groups > 1 or workload.out_blocks >= config.integer("chunks") * config.integer("blocks")
                ),
                lambda config: (
                    config["columns"] == workload.out_spatial[-1]
                    or config.integer("columns") % config.integer("pixels") == 0
                ),
            ),
        )

    def default(self, workload: ConvWorkloadT, machine: Machine) -> Config:
        pixels, blocks = self._register_tile(workload, machine)
        return direct_default(workload, machine, pixels, blocks)

    def _register_tile(self, workload: ConvWorkloadT, machine: Machine) -> tuple[int, int]:
        return tile_for(workload, machine)


class ConvDirect(DirectRule[ConvWorkload]):
    """Serves `conv_direct` kernels, in float32 and in integers without dot-product instructions."""

    name: ClassVar[str] = DIRECT
    keeps_loops: ClassVar[bool] = True

    def estimate(self, workload: ConvWorkload, config: Config, machine: Machine) -> Estimate | None:
        return direct_estimate(workload, config, machine)

    def nest(self, fused: FusedKernel, workload: ConvWorkload, config: Config, machine: Machine) -> DirectNest:
        return DirectNest(fused, workload, config)


def direct_estimate(work: ConvWorkload, config: Config, machine: Machine) -> Estimate:
    """Estimated cost of a direct convolution."""
    pixels, blocks, rows = (config.integer(name) for name in ("pixels", "blocks", "rows"))
    columns, chunks = config.integer("columns"), config.integer("chunks")
    width = work.out_spatial[-1]
    height = work.height
    images = max(work.batch, 1) * prod(work.out_spatial[:-2])
    cuts = ceil_div(height, rows) * ceil_div(width, columns)
    taps = prod(work.kernel)
    cycles = max(work.batch, 1) * product_cycles(work, config, machine)
    read = input_bytes(work, work.group_channels, rows, columns)
    weights = work.out_blocks * work.block * work.group_channels * taps * 4
    repeats = chunks if work.groups == 1 else 1
    copied = images * cuts * repeats * read * (2 if work.reaches_outside else 1)
    moved = copied + images * cuts * weights * (1 if weights / max(chunks, 1) > machine.l2_bytes / 2 else 0.3)
    code = pixels * blocks * config.integer("unroll")
    return Estimate(
        cycles, moved, images * cuts * chunks, read + weights / chunks, pixels * blocks, code, tail(columns, pixels)
    )
