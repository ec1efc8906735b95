"""Estimated costs of configs of the convolution rules."""

from __future__ import annotations

from math import prod

from schedules.config import Config
from schedules.conv.tiling import copied_scalars, input_bytes, product_cycles, row_cost
from schedules.conv.winograd_tiling import tile_counts, transform_cycles
from schedules.conv.winograd_transforms import edge_of
from schedules.conv.workload import ConvWorkload, WindowWorkload, WinogradWorkload
from schedules.estimate import Estimate, tail
from schedules.ir.numbers import ceil_div
from schedules.machine import Machine


def direct_estimate(work: ConvWorkload, config: Config, machine: Machine) -> Estimate:
    """Estimated cost of a direct convolution."""
    pixels, blocks, rows = (config.integer(name) for name in ("pixels", "blocks", "rows"))
    columns, chunks = config.integer("columns"), config.integer("chunks")
    width = work.out_spatial[-1]
    height = work.out_spatial[-2] if work.rank > 1 else 1
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


def winograd_estimate(work: WinogradWorkload, config: Config, machine: Machine) -> Estimate:
    """Estimated cost of a Winograd convolution."""
    tiles, blocks, chunks = (config.integer(name) for name in ("tiles", "blocks", "chunks"))
    pixels = min(config.integer("pixels"), tiles)
    down, across = tile_counts(work, work.tile)
    images, total = max(work.batch, 1), down * across
    cuts = ceil_div(total, tiles)
    edge = edge_of(work.tile, work.strides[0])
    frequencies = edge * edge
    row = row_cost(machine, tiles, pixels, blocks) + tiles * copied_scalars(work, config, machine) / blocks
    product = row * frequencies * work.channels * work.out_blocks
    spread = tiles * work.in_blocks * transform_cycles(edge, edge) * chunks
    collect = tiles * work.out_blocks * transform_cycles(edge, work.tile)
    cycles = images * total / tiles * (product + spread + collect)
    weights = frequencies * work.channels * work.out_blocks * work.block * 4
    scratch = frequencies * tiles * (work.in_blocks + blocks) * work.block * 4
    stream = weights if scratch + weights / chunks > 0.8 * machine.l2_bytes else 0.2 * weights
    moved = images * cuts * (stream + (2 * scratch * chunks if scratch > 0.75 * machine.l2_bytes else 0))
    code = pixels * blocks * config.integer("unroll")
    return Estimate(
        cycles, moved, images * cuts * chunks, scratch + weights / chunks, pixels * blocks, code, tail(tiles, pixels)
    )


def window_cycles(work: WindowWorkload, rows: int, width: int, pixels: int, machine: Machine) -> float:
    """Arithmetic cycles on one core of a depthwise convolution or pooling, for `rows` x `width` outputs of each channel
    (and one output along dimensions of dynamic size)."""
    outputs = max(work.batch, 1) * work.out_blocks * rows * width * prod(size or 1 for size in work.out_spatial[:-2])
    taps, last = prod(work.kernel), work.kernel[-1]
    loads = ((pixels - 1) * work.strides[-1] + last) / pixels + last / pixels
    step = max(last / machine.fma_ports, loads / 2, machine.fma_latency / pixels)
    return outputs * (taps / last) * step + outputs


def window_estimate(work: WindowWorkload, config: Config, machine: Machine) -> Estimate:
    """Estimated cost of a depthwise convolution or pooling."""
    pixels, splits = config.integer("pixels"), config.integer("splits")
    rows, width = work.out_spatial[-2] if work.rank > 1 else 1, work.out_spatial[-1]
    cycles = window_cycles(work, rows, width, pixels, machine)
    read = input_bytes(work, work.block, ceil_div(rows, splits), width)
    tasks = max(work.batch, 1) * work.out_blocks * splits
    return Estimate(cycles, read * tasks, tasks, read, pixels, pixels * work.kernel[-1], tail(width, pixels))
