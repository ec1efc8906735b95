"""The configs of direct convolutions that are computed from the machine, sizes known or not."""

from __future__ import annotations

from math import gcd

from schedules.config import Config
from schedules.conv_tiling import channel_unroll, divisors, input_bytes, register_tile, split_for_cores
from schedules.conv_workload import ConvWorkload
from schedules.machine import Machine
from schedules.open_sizes import open_block, open_register_tile

OPEN_ROWS, OPEN_COLUMNS = 64, 1024  # the most that a task computes of sizes that are not known


def tile_for(work: ConvWorkload, machine: Machine, load_cycles: float = 0.5) -> tuple[int, int]:
    """(pixels, channel blocks) of the register tile."""
    width = work.out_spatial[-1]
    if width == 0:
        return open_register_tile(even_blocks(work), machine, load_cycles)
    return register_tile(width, even_blocks(work), machine, load_cycles)


def open_default(work: ConvWorkload, machine: Machine, pixels: int, blocks: int) -> Config:
    """For sizes that are known when the kernel runs: cores share the channels, or where those are few the rows."""
    rows, columns = open_block(
        work.rank,
        lambda height, width: input_bytes(work, work.group_channels, height, width),
        machine.l2_bytes // 2,
        pixels,
    )
    splits = chunk_choices(work) if work.groups > 1 else divisors(work.out_blocks // blocks)
    chunks = split_for_cores(max(work.batch, 1), splits, machine)
    if work.rank > 1:
        rows = min(rows, work.out_spatial[-2] or rows)
    columns = min(columns, work.out_spatial[-1] or columns)
    unroll = channel_unroll(pixels, blocks)
    return Config.of(pixels=pixels, blocks=blocks, rows=rows, columns=columns, chunks=chunks, unroll=unroll)


def even_blocks(work: ConvWorkload) -> int:
    """A number of output blocks that every group is a multiple of."""
    return gcd(work.group_out_blocks, work.last_group_out_blocks)


def chunk_choices(work: ConvWorkload) -> tuple[int, ...]:
    """Into how many tasks the output channels may be cut: at groups where there are several."""
    return divisors(work.groups if work.groups > 1 else work.out_blocks)
