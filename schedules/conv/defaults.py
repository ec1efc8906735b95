"""Default configs of direct convolutions, computed from the machine, for static and dynamic sizes."""

from __future__ import annotations

from math import gcd

from schedules.config import Config
from schedules.conv.dynamic_sizes import open_block, open_register_tile
from schedules.conv.tiling import (
    channel_unroll,
    divisors,
    input_bytes,
    multiplies_by_lane,
    register_tile,
    spatial_block,
)
from schedules.conv.workload import ConvWorkload
from schedules.ir.numbers import ceil_div
from schedules.machine import Machine

_SMALL_TILE = 16  # registers; in larger ones four channels at a time cost registers, where addresses are many
OPEN_ROWS, OPEN_COLUMNS = 64, 1024  # the most that a task computes of sizes that are not known


def direct_default(work: ConvWorkload, machine: Machine, pixels: int, blocks: int) -> Config:
    """Default config for a register tile of `pixels` x `blocks`."""
    if work.is_open:
        return open_default(work, machine, pixels, blocks)
    rows, columns = spatial_block(work, machine, pixels)
    unroll = channel_unroll(work, machine, pixels, blocks)
    if pixels * blocks <= _SMALL_TILE and rows * ceil_div(columns, pixels) < work.in_block * blocks:
        unroll = 4  # few and short tiles have many weights to ask for: in several places of a channel block
    return Config.of(pixels=pixels, blocks=blocks, rows=rows, columns=columns, chunks=1, unroll=unroll)


def tile_for(work: ConvWorkload, machine: Machine, load_cycles: float = 0.5) -> tuple[int, int]:
    """(pixels, channel blocks) of the register tile."""
    width, by_lane = work.out_spatial[-1], multiplies_by_lane(work, machine)
    if width == 0:
        return open_register_tile(even_blocks(work), machine, load_cycles, by_lane=by_lane)
    return register_tile(width, even_blocks(work), machine, load_cycles, by_lane=by_lane)


def open_default(work: ConvWorkload, machine: Machine, pixels: int, blocks: int) -> Config:
    """Default config for dynamic sizes."""
    rows, columns = open_block(
        work.rank,
        lambda height, width: input_bytes(work, work.group_channels, height, width),
        machine.l2_bytes // 2,
        pixels,
    )
    if work.rank > 1:
        rows = min(rows, work.out_spatial[-2] or rows)
    columns = min(columns, work.out_spatial[-1] or columns)
    unroll = channel_unroll(work, machine, pixels, blocks)
    return Config.of(pixels=pixels, blocks=blocks, rows=rows, columns=columns, chunks=1, unroll=unroll)


def even_blocks(work: ConvWorkload) -> int:
    """A number of output blocks that divides every group."""
    return gcd(work.group_out_blocks, work.last_group_out_blocks)


def chunk_choices(work: ConvWorkload) -> tuple[int, ...]:
    """Candidate numbers of tasks to split the output channels into; group boundaries are respected."""
    return divisors(work.groups if work.groups > 1 else work.out_blocks)
