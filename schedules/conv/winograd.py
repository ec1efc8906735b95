"""Winograd's convolution F(m x m, 3 x 3), with stride 1 or 2, one task at a time so that intermediates stay in the L2
cache.

A task takes some tiles of an image and some output channels: it transforms the tiles of all input channels, multiplies
each frequency by its weights (a small matrix product with the register tile of `conv_direct`), and transforms back a
few channel blocks at a time, with the epilogue applied to each result. Vectors run over the lanes of a channel block.
"""

from __future__ import annotations

from typing import ClassVar

from schedules.config import Config, ConfigSpace
from schedules.conv.compute import WINOGRAD
from schedules.conv.estimates import winograd_estimate
from schedules.conv.rule import BlockedRule
from schedules.conv.tiling import accumulators, block_choices, channel_unroll, divisors
from schedules.conv.winograd_nest import WinogradNest
from schedules.conv.winograd_tiling import most_tiles, tile_counts, winograd_plan
from schedules.conv.winograd_transforms import edge_of
from schedules.conv.workload import WinogradWorkload
from schedules.estimate import Estimate
from schedules.machine import Machine
from schedules.stages.fused_kernel import FusedKernel


class Winograd(BlockedRule[WinogradWorkload]):
    """Knobs: `tiles` in a task, `pixels` x `blocks` the register tile of the products, `chunks` into how many tasks the
    output channels are cut, `unroll` how many input channels the innermost loop holds."""

    name: ClassVar[str] = WINOGRAD
    cut_knobs: ClassVar[frozenset[str]] = frozenset({"tiles", "chunks"})
    anchors: ClassVar[int] = 3
    keeps_loops: ClassVar[bool] = True

    def space(self, workload: WinogradWorkload, machine: Machine) -> ConfigSpace:
        most = most_tiles(workload, workload.tile)
        limit = accumulators(machine)
        return ConfigSpace(
            {
                "tiles": tuple(range(1, most + 1)),
                "pixels": tuple(range(1, limit + 1)),
                "blocks": block_choices(workload.out_blocks, machine),
                "chunks": divisors(workload.out_blocks),
                "unroll": (1, 2, 4, 8, 16),
            },
            (
                lambda config: config.integer("pixels") * config.integer("blocks") <= limit,
                lambda config: workload.out_blocks % (config.integer("chunks") * config.integer("blocks")) == 0,
            ),
        )

    def default(self, workload: WinogradWorkload, machine: Machine) -> Config:
        plan = winograd_plan(workload, workload.tile, machine)
        unroll = channel_unroll(workload, machine, plan.pixels, plan.blocks)
        return Config.of(tiles=plan.tiles, pixels=plan.pixels, blocks=plan.blocks, chunks=1, unroll=unroll)

    def estimate(self, workload: WinogradWorkload, config: Config, machine: Machine) -> Estimate | None:
        return winograd_estimate(workload, config, machine)

    def least_operations(self, workload: WinogradWorkload) -> int:
        """Operations of the matmuls only; those of the transforms depend on their implementation."""
        down, across = tile_counts(workload, workload.tile)
        edge = edge_of(workload.tile, workload.strides[0])
        return 2 * max(workload.batch, 1) * edge**2 * down * across * workload.channels * workload.filters

    def nest(self, fused: FusedKernel, workload: WinogradWorkload, config: Config, machine: Machine) -> WinogradNest:
        return WinogradNest(fused, workload, config)
