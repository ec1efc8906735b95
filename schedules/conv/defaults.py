"""Default configs of direct convolutions, computed from the machine, for static and dynamic sizes."""

from __future__ import annotations

from collections.abc import Sequence
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
    split_for_cores,
)
from schedules.conv.workload import ConvWorkload
from schedules.ir.numbers import ceil_div
from schedules.machine import Machine

_SMALL_TILE = 16  # registers; in larger ones four channels at a time cost registers, where addresses are many
OPEN_ROWS, OPEN_COLUMNS = 64, 1024  # the most that a task computes of sizes that are not known


def direct_default(work: ConvWorkload, machine: Machine, pixels: int, blocks: int) -> Config:
    """What a register tile of `pixels` x `blocks` goes with."""
    if work.is_open:
        return open_default(work, machine, pixels, blocks)
    rows, columns = spatial_block(work, machine, pixels)
    height = work.out_spatial[-2] if work.rank > 1 else 1
    images = max(work.batch, 1)
    for size in work.out_spatial[:-2]:
        images *= size
    blocks_now = images * ceil_div(height, rows) * ceil_div(work.out_spatial[-1], columns)
    splits = chunk_choices(work) if work.groups > 1 else _chunks_of_tiles(work.out_blocks, blocks)
    chunks = 1
    if blocks_now < 4 * machine.cores:
        rows, chunks = _balance(work, machine, images, rows, columns, splits)
    unroll = channel_unroll(work, machine, pixels, blocks)
    if pixels * blocks <= _SMALL_TILE and rows * ceil_div(columns, pixels) < work.in_block * blocks:
        unroll = 4  # few and short tiles have many weights to ask for: in several places of a channel block
    return Config.of(pixels=pixels, blocks=blocks, rows=rows, columns=columns, chunks=chunks, unroll=unroll)


def _chunks_of_tiles(out_blocks: int, blocks: int) -> tuple[int, ...]:
    """Into how many equal tasks output blocks may be cut: at whole register tiles where these divide them."""
    even = out_blocks % blocks == 0
    each = {count: out_blocks // count for count in divisors(out_blocks)}
    return tuple(count for count, size in each.items() if (size % blocks == 0 if even else size >= blocks))


def _balance(
    work: ConvWorkload, machine: Machine, images: int, rows: int, columns: int, splits: Sequence[int]
) -> tuple[int, int]:
    """Rows and chunks that give every core its share: by channels where weights outweigh the input, or by rows."""
    height = work.out_spatial[-2] if work.rank > 1 else 1
    column_blocks = ceil_div(work.out_spatial[-1], columns)
    weights = work.filters * work.group_channels
    for size in work.kernel:
        weights *= size
    image = work.channels
    for size in work.spatial:
        image *= size
    if weights < image or splits == (1,):
        for count in range(ceil_div(height, rows), height + 1):
            even = ceil_div(height, count)
            tasks = images * column_blocks * ceil_div(height, even)
            padded = ceil_div(height, even) * even
            share = ceil_div(tasks, machine.cores) * machine.cores / tasks * padded / height
            if share <= 1.07 and tasks >= machine.cores:
                return even, 1
    return rows, split_for_cores(images * column_blocks * ceil_div(height, rows), splits, machine)


def tile_for(work: ConvWorkload, machine: Machine, load_cycles: float = 0.5) -> tuple[int, int]:
    """(pixels, channel blocks) of the register tile."""
    width, by_lane = work.out_spatial[-1], multiplies_by_lane(work, machine)
    if width == 0:
        return open_register_tile(even_blocks(work), machine, load_cycles, by_lane=by_lane)
    return register_tile(width, even_blocks(work), machine, load_cycles, by_lane=by_lane)


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
    unroll = channel_unroll(work, machine, pixels, blocks)
    return Config.of(pixels=pixels, blocks=blocks, rows=rows, columns=columns, chunks=chunks, unroll=unroll)


def even_blocks(work: ConvWorkload) -> int:
    """A number of output blocks that every group is a multiple of."""
    return gcd(work.group_out_blocks, work.last_group_out_blocks)


def chunk_choices(work: ConvWorkload) -> tuple[int, ...]:
    """Into how many tasks the output channels may be cut: at groups where there are several."""
    return divisors(work.groups if work.groups > 1 else work.out_blocks)
