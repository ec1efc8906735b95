"""What a config should cost by counting: cycles of arithmetic and of moving bytes, and how evenly tasks share out.

An estimate is registered for each rule; rules without one get none and are ranked by what was measured alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from schedules.config import Config
from schedules.conv.tiling import input_bytes, row_cost
from schedules.conv.winograd_tiling import tile_counts, transform_cycles
from schedules.conv.winograd_transforms import edge_of
from schedules.ir.numbers import ceil_div
from schedules.machine import Machine
from schedules.matmul.tiling import tile_cost

_CACHE_RATE = 16.0  # bytes a cycle of a core from the cache behind the second one
_TASK_CYCLES = 150.0  # to begin a task


@dataclass(frozen=True)
class Estimate:
    """Of one call of the kernel.

    Attributes:
        cycles: arithmetic of all tasks, by one core.
        moved: bytes that come from beyond the second cache, over all tasks.
        tasks: what the threads share.
        task_bytes: what a task holds on to.
        tile: independent sums in registers.
        code: multiply-adds in the innermost loop's body.
        tail: share of the arithmetic in tiles that are smaller than the tile.
    """

    cycles: float
    moved: float
    tasks: int
    task_bytes: float
    tile: int
    code: int
    tail: float = 0.0

    def share(self, machine: Machine) -> float:
        """How much of the work the busiest core has."""
        tasks = max(self.tasks, 1)
        return ceil_div(tasks, machine.cores) / tasks

    def total(self, machine: Machine) -> float:
        """Cycles until the kernel is done: arithmetic and movement overlap for the most part."""
        moved = self.moved / _CACHE_RATE
        if self.task_bytes > machine.l2_bytes:
            moved += self.cycles * 0.2
        both = max(self.cycles, moved) + 0.3 * min(self.cycles, moved)
        return both * self.share(machine) + _TASK_CYCLES * ceil_div(self.tasks, machine.cores)


Estimator = Callable[[Any, Config, Machine], Estimate]
_ESTIMATORS: dict[str, Estimator] = {}


def estimator(rule: str) -> Callable[[Estimator], Estimator]:
    """Register the estimate of a rule."""

    def add(function: Estimator) -> Estimator:
        _ESTIMATORS[rule] = function
        return function

    return add


def estimate(rule: str, workload: Any, config: Config, machine: Machine) -> Estimate | None:
    """The estimate for a config, None when there is none for the rule or the config lacks its knobs."""
    function = _ESTIMATORS.get(rule)
    if function is None:
        return None
    try:
        return function(workload, config, machine)
    except KeyError:
        return None


def _product(sizes: Any) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total


def _tail(extent: int, tile: int) -> float:
    return extent % tile / extent if extent else 0.0


@estimator("conv-direct")
@estimator("conv-folded")
def _conv_direct(work: Any, config: Config, machine: Machine) -> Estimate:
    pixels, blocks, rows = (config.integer(name) for name in ("pixels", "blocks", "rows"))
    columns, chunks = config.integer("columns"), config.integer("chunks")
    width = work.out_spatial[-1]
    height = work.out_spatial[-2] if work.rank > 1 else 1
    images = max(work.batch, 1) * _product(work.out_spatial[:-2])
    cuts = ceil_div(height, rows) * ceil_div(width, columns)
    taps = _product(work.kernel)
    row = row_cost(machine, columns, pixels, blocks) * width / columns
    cycles = row * height * images * work.out_blocks * work.group_channels * taps
    read = input_bytes(work, work.group_channels, rows, columns)
    weights = work.out_blocks * work.block * work.group_channels * taps * 4
    repeats = chunks if work.groups == 1 else 1
    copied = images * cuts * repeats * read * (2 if work.reaches_outside else 1)
    moved = copied + images * cuts * weights * (1 if weights / max(chunks, 1) > machine.l2_bytes / 2 else 0.3)
    code = pixels * blocks * config.integer("unroll")
    return Estimate(
        cycles, moved, images * cuts * chunks, read + weights / chunks, pixels * blocks, code, _tail(columns, pixels)
    )


@estimator("conv-winograd")
def _conv_winograd(work: Any, config: Config, machine: Machine) -> Estimate:
    tiles, blocks, chunks = (config.integer(name) for name in ("tiles", "blocks", "chunks"))
    pixels = min(config.integer("pixels"), tiles)
    down, across = tile_counts(work, work.tile)
    images, total = max(work.batch, 1), down * across
    cuts = ceil_div(total, tiles)
    edge = edge_of(work.tile, work.strides[0])
    frequencies = edge * edge
    product = row_cost(machine, tiles, pixels, blocks) * frequencies * work.channels * work.out_blocks
    spread = tiles * work.in_blocks * transform_cycles(edge, edge) * chunks
    collect = tiles * work.out_blocks * transform_cycles(edge, work.tile)
    cycles = images * total / tiles * (product + spread + collect)
    weights = frequencies * work.channels * work.out_blocks * work.block * 4
    scratch = frequencies * tiles * (work.in_blocks + blocks) * work.block * 4
    stream = weights if scratch + weights / chunks > 0.8 * machine.l2_bytes else 0.2 * weights
    moved = images * cuts * (stream + (2 * scratch * chunks if scratch > 0.75 * machine.l2_bytes else 0))
    code = pixels * blocks * config.integer("unroll")
    return Estimate(
        cycles, moved, images * cuts * chunks, scratch + weights / chunks, pixels * blocks, code, _tail(tiles, pixels)
    )


def _window(work: Any, config: Config, machine: Machine) -> Estimate:
    pixels, splits = config.integer("pixels"), config.integer("splits")
    rows = work.out_spatial[-2] if work.rank > 1 else 1
    outputs = max(work.batch, 1) * work.out_blocks * _product(work.out_spatial)
    taps, last = _product(work.kernel), work.kernel[-1]
    stride = work.strides[-1]
    loads = ((pixels - 1) * stride + last) / pixels + last / pixels
    step = max(last / machine.fma_ports, loads / 2, machine.fma_latency / pixels)
    cycles = outputs * (taps / last) * step + outputs
    read = input_bytes(work, work.block, ceil_div(rows, splits), work.out_spatial[-1])
    tasks = max(work.batch, 1) * work.out_blocks * splits
    width = work.out_spatial[-1]
    return Estimate(cycles, read * tasks, tasks, read, pixels, pixels * last, _tail(width, pixels))


estimator("conv-depthwise")(_window)
estimator("pool")(_window)


@estimator("matmul")
def _matmul(work: Any, config: Config, machine: Machine) -> Estimate:
    lanes = machine.lanes(work.dtype)
    rows = config.integer("rows")
    vectors = work.width // lanes if work.layout == "panels" and work.width >= lanes else config.integer("vectors")
    batch, m, n, k = (max(each, 1) for each in (work.batch, work.rows, work.columns, work.depth))
    cycles = batch * k * tile_cost(m, n, (rows, vectors), machine, lanes)
    panels = ceil_div(n, vectors * lanes)
    depth = int(config.get("depth", 0)) or k
    panel_bytes = depth * vectors * lanes * 4
    moved = float(batch * (k * n * 4 + m * k * 4 * (1 if m * k * 4 < machine.l2_bytes / 2 else panels)))
    if config.get("pack"):
        cycles += batch * k * panels * vectors * 4
    if depth < k:
        cycles += batch * m * panels * vectors * 2 * (k / depth)
    tiles = ceil_div(m, rows)
    wanted = max(1, ceil_div(4 * machine.cores, panels * batch))
    chunks = min(wanted, tiles)
    return Estimate(cycles, moved, batch * panels * chunks, panel_bytes, rows * vectors, rows * vectors, _tail(m, rows))


@estimator("attention")
def _attention(work: Any, config: Config, machine: Machine) -> Estimate:
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
    return Estimate(cycles, moved, batch * blocks, rows * keys * 4.0, rows * 2, rows * 2, _tail(queries, rows))


__all__ = ["Estimate", "estimate", "estimator"]
