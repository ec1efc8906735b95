"""How to cut a Winograd convolution into tasks and register tiles, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from schedules.conv.dynamic_sizes import open_row_cost
from schedules.conv.tiling import (
    block_choices,
    divisors,
    most_pixels,
    multiplies_by_lane,
    row_cost,
    split_for_cores,
)
from schedules.conv.winograd_transforms import KERNEL, bounds, edge_of
from schedules.conv.workload import ConvWorkload, DotWorkload
from schedules.ir.numbers import ceil_div
from schedules.machine import Machine

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Index

SHARED_CACHE_RATE = (
    16.0  # bytes per cycle of a core from the level-2 cache: 26 (Zen 4), 25 (Zen 5) where it does nothing else
)
_EXPOSED = 0.15  # of the time that memory takes, when it takes less than the arithmetic (or the other way round)

WINOGRAD_MAX_TASK_TILES = 64
_LARGE = 56  # the side of an image with many tiles
_FEW_TILES = (4, 9, 16, 25)  # those of images of 7 to 20 pixels


@dataclass(frozen=True)
class Tiles:
    """Tiles of a task: those of an image from `first` on; `live` of them, or where sizes are known perhaps fewer."""

    image: Index
    first: Index
    live: Index


@dataclass(frozen=True)
class WinogradPlan:
    """The knobs of the rule and the estimated cycles of a core for one image."""

    tiles: int
    pixels: int
    blocks: int
    chunks: int
    cycles: float


def tile_counts(work: ConvWorkload, tile: int) -> tuple[int, int]:
    """Tiles down and across one image."""
    height, width = work.out_spatial
    return ceil_div(height, tile), ceil_div(width, tile)


def transform_cycles(edge: int, others: int) -> float:
    """Cycles for the two passes over one tile and block of channels: `edge` x `edge` frequencies, `others`^2 values."""
    arithmetic = (edge + others) * edge * 2.5
    return arithmetic + edge * edge + others * others + 2 * edge * others


def most_tiles(work: ConvWorkload, tile: int) -> int:
    """How many tiles a task may take."""
    rows, columns = tile_counts(work, tile)
    return WINOGRAD_MAX_TASK_TILES if work.is_open else min(rows * columns, WINOGRAD_MAX_TASK_TILES)


@lru_cache(maxsize=1024)
def winograd_plan(work: ConvWorkload, tile: int, machine: Machine) -> WinogradPlan:
    """The cheapest plan; its cycles are unknown for dynamic sizes."""
    if work.is_open:
        return _open_plan(work, tile, machine)
    rows, columns = tile_counts(work, tile)
    total = rows * columns * max(work.batch, 1)
    per_image = rows * columns
    plans = []
    for count in _task_counts(per_image):
        tiles = ceil_div(per_image, count)
        for blocks in block_choices(work.out_blocks, machine):
            for chunks in divisors(work.out_blocks // blocks):
                if count * max(work.batch, 1) * chunks > max(8 * machine.cores, total) and chunks > 1:
                    break
                plans.append(_plan(work, tile, machine, count, tiles, blocks, chunks))
    return min(plans, key=lambda plan: plan.cycles)


def _task_counts(tiles: int) -> list[int]:
    """Into how many tasks the tiles of an image may be cut."""
    counts = {ceil_div(tiles, size) for size in range(1, min(tiles, WINOGRAD_MAX_TASK_TILES) + 1)}
    return sorted(count for count in counts if ceil_div(tiles, count) >= min(4, tiles))


def _open_plan(work: ConvWorkload, tile: int, machine: Machine) -> WinogradPlan:
    """What serves a large image: tasks of as many tiles as it would have, in register tiles that suit fewer as well.
    There are chunks of output channels for every core, for images too small for a task each."""
    tiles = winograd_plan(replace(work, spatial=(_LARGE, _LARGE)), tile, machine).tiles

    def cost(pixels: int, blocks: int) -> float:
        return sum(open_row_cost(machine, count, pixels, blocks) / count for count in (*_FEW_TILES, tiles))

    by_lane = multiplies_by_lane(work, machine)
    _, _, pixels, blocks = min(
        (cost(pixels, blocks), -pixels * blocks, pixels, blocks)
        for blocks in block_choices(work.out_blocks, machine)
        for pixels in range(1, min(tiles, most_pixels(blocks, machine, by_lane=by_lane)) + 1)
    )
    chunks = split_for_cores(1, divisors(work.out_blocks // blocks), machine)
    return WinogradPlan(ceil_div(tiles, pixels) * pixels, pixels, blocks, chunks, 0.0)


def _plan(
    work: ConvWorkload, tile: int, machine: Machine, count: int, tiles: int, blocks: int, chunks: int
) -> WinogradPlan:
    edge = edge_of(tile, work.strides[0])
    frequencies = edge * edge
    in_blocks, out_blocks = work.in_blocks, work.out_blocks // chunks
    product, pixels = _cheapest_pixels(tiles, blocks, machine, multiplies_by_lane(work, machine))
    weight_bytes = frequencies * work.channels * out_blocks * work.block * 4
    scratch = frequencies * tiles * (in_blocks + blocks) * work.block * 4
    stream = _stream(weight_bytes, scratch, out_blocks // blocks, machine)
    arithmetic = frequencies * work.channels * out_blocks * product
    cycles = tiles * in_blocks * transform_cycles(edge, edge) + tiles * out_blocks * transform_cycles(edge, tile)
    cycles += max(arithmetic, stream) + 0.25 * min(arithmetic, stream)
    images = max(work.batch, 1)
    rounds = ceil_div(images * count * chunks, machine.cores)
    return WinogradPlan(tiles, pixels, blocks, chunks, rounds * cycles / images)


def _stream(weights: int, scratch: int, steps: int, machine: Machine) -> float:
    """Cycles of a task to move what its second cache does not hold. `steps`: over blocks of output channels."""
    passes, weights_rate, scratch_rate = 2, SHARED_CACHE_RATE, SHARED_CACHE_RATE
    if not machine.l3_bytes:
        # All cores share the memory's rate: weights, which they all read, come once, and each step reads the scratch.
        passes, weights_rate, scratch_rate = 1 + steps, machine.memory_rate, machine.memory_rate / machine.cores
    stream = 0.0
    if scratch + weights > 0.8 * machine.l2_bytes:
        stream = weights / weights_rate
    if scratch > 0.75 * machine.l2_bytes:
        stream += scratch * passes / scratch_rate
    return stream


@lru_cache(maxsize=4096)
def _cheapest_pixels(tiles: int, blocks: int, machine: Machine, by_lane: bool) -> tuple[float, int]:
    """The cost of a row of so many tiles at the register tile that suits it best, and how many tiles that takes."""
    limit = min(most_pixels(blocks, machine, by_lane=by_lane), tiles)
    cost, pixels = min((row_cost(machine, tiles, size, blocks), -size) for size in range(max(1, limit // 2), limit + 1))
    return cost, -pixels


def winograd_cycles(work: ConvWorkload, tile: int, machine: Machine) -> float:
    """Cycles of a core for one image, weights coming from memory."""
    frequencies = edge_of(tile, work.strides[0]) ** 2
    arithmetic = winograd_plan(work, tile, machine).cycles
    return _with_weights(arithmetic, frequencies * work.channels * work.out_blocks * work.block * 4, work, machine)


def direct_cycles(work: ConvWorkload, machine: Machine) -> float:
    """Cycles of a core for one image of a direct convolution, weights coming from memory."""
    points = work.out_blocks * work.group_channels
    for size in (*work.kernel, *work.out_spatial):
        points *= size
    arithmetic = points / machine.fma_ports / machine.cores * 1.03
    bytes_each = 4.0
    if isinstance(work, DotWorkload):
        # One instruction per cycle like float32: measured on Zen 4, 118 GFLOP/s, 210 in bfloat16, 420 in int8.
        arithmetic *= 1.1 / work.group
        bytes_each /= work.group
    weights = int(work.out_blocks * work.block * work.group_channels * bytes_each)
    for size in work.kernel:
        weights *= size
    return _with_weights(arithmetic, weights, work, machine)


def _with_weights(arithmetic: float, weights: int, work: ConvWorkload, machine: Machine) -> float:
    """The cycles with the weights read once for the whole batch; most of that hides behind the arithmetic."""
    stream = weights / machine.memory_rate / max(work.batch, 1)
    return max(arithmetic, stream) + _EXPOSED * min(arithmetic, stream)


def winograd_tile(
    work: ConvWorkload,
    machine: Machine,
    error_bound: float,
    direct: ConvWorkload | None = None,
    images: Sequence[tuple[int, ...]] = (),
) -> int | None:
    """The tile that is cheaper than the direct convolution (that of `direct` if given, perhaps of narrow operands), or
    None. Only tiles whose error is within the bound. `images` are spatial sizes to judge by, each as much as the
    others, where those of the convolution are open."""
    if not serves(work):
        return None
    cases = [(replace(work, spatial=size), replace(direct or work, spatial=size)) for size in images or [work.spatial]]
    cases = [case for case in cases if serves(case[0]) and not case[0].is_open]
    best, best_share = None, 0.97 * len(cases)
    for tile, error in bounds(work.strides[0]).items():
        if error > error_bound:
            continue
        share = sum(winograd_cycles(each, tile, machine) / direct_cycles(rival, machine) for each, rival in cases)
        if share < best_share:
            best, best_share = tile, share
    return best


def serves(work: ConvWorkload) -> bool:
    """Whether Winograd's method computes this convolution."""
    return has_window(work) and work.dtype == "float32"


def has_window(work: ConvWorkload) -> bool:
    """Whether Winograd's method has the window of this convolution, its layout, and images that are not too small."""
    return (
        work.rank == 2
        and work.kernel == (KERNEL, KERNEL)
        and work.strides in ((1, 1), (2, 2))
        and work.dilations == (1, 1)
        and work.groups == 1
        and work.in_block == work.block
        and all(before >= 0 and after >= 0 for before, after in work.pad)
        and all(size >= 2 or size == 0 for size in work.out_spatial)
    )
