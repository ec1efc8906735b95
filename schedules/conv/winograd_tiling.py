"""Task and register tiling of a Winograd convolution, and its cost.

Each task transforms the input of its tiles, repeated for each part of the output channels; or all of the input is
transformed first, in separate tasks, if repeating it would take longer than starting the threads a second time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from schedules.conv.direct_nest import split_direct
from schedules.conv.tiling import (
    block_choices,
    direct_default,
    max_pixels,
    multiplies_by_lane,
    open_row_cost,
    row_cost,
    tile_for,
)
from schedules.conv.winograd_transforms import KERNEL, bounds, edge_of
from schedules.conv.workload import ConvWorkload, DotWorkload, WinogradWorkload
from schedules.ir.numbers import ceil_div
from schedules.ir.tir import Index
from schedules.machine import Machine
from schedules.task_split import (
    CORE_MEMORY_RATE,
    EXPOSED,
    FEW,
    FREE,
    SplitAxis,
    TaskSplit,
    Work,
    split_tasks,
    weighted_cycles,
)

_IN_STEP = 2  # cores that read the same weights from memory at about the same time
WINOGRAD_MAX_TASK_TILES = 64
IMAGES, TILES, CHANNELS = "images", "tiles", "channels"
PLACES, INPUTS = "places", "inputs"  # parts of the tiles of all images; blocks of input channels
# Consecutive tasks share the weights, within each half of the tiles or all of them, or they share the input.
_ORDERS = ((IMAGES, TILES, CHANNELS, TILES), (IMAGES, CHANNELS, TILES), (IMAGES, TILES, CHANNELS))
# Separate transforms are chosen below this fraction of the time of transforms in each task. Their tiles come from other
# cores' caches: on two threads, 512 channels at 7 x 7 were estimated at 0.985 of the time and took 1.05 (Zen 4).
_APART = 0.97
# Cycles for each byte of transformed weights from memory. With pages of 4 KiB a core waits longer for them than the
# bandwidth requires: for 256 channels at 14 x 14 (F(4,3), two threads, Zen 4) a layer takes 0.53 ms, and 0.44 if it
# transforms the filters itself; for 512 at 7 x 7 (F(2,3)) 0.85 and 0.76. In huge pages it takes 0.38 and 0.64, but
# transformed filters need up to four times the memory and load time, and with many cores bandwidth is the limit.
_STALLS = 0.07
_LARGE = 56  # side of an image with many tiles
_FEW_TILES = (4, 9, 16, 25)  # tile counts of images of 7 to 20 pixels


@dataclass(frozen=True)
class Tiles:
    """Tiles of a task, starting at `first` within an image; `live` of them are valid, or fewer for static sizes. Those
    before `start` belong to other tasks."""

    image: Index
    first: Index
    live: Index
    start: Index = 0


@dataclass(frozen=True)
class WinogradPlan:
    """The rule's knobs, and the estimated cycles of one image on all cores and on few threads."""

    tiles: int
    pixels: int
    blocks: int
    cycles: float
    few_cycles: float

    @property
    def weighted(self) -> float:
        return weighted_cycles(self.cycles, self.few_cycles)


def tile_counts(work: WinogradWorkload) -> tuple[int, int]:
    """Number of tiles in an image, vertically and horizontally."""
    height, width = work.out_spatial
    return ceil_div(height, work.tile), ceil_div(width, work.tile)


def transform_cycles(edge: int, others: int) -> float:
    """Cycles of the two transform passes over one tile and channel block: `edge` x `edge` frequencies, `others`^2
    values."""
    arithmetic = (edge + others) * edge * 2.5
    return arithmetic + edge * edge + others * others + 2 * edge * others


def filter_cycles(edge: int) -> float:
    """Cycles of the two transform passes over the taps of one input channel and a block of filters, measured on Zen 4:
    some 65 for tiles of 2, 160 for tiles of 4."""
    return 1.5 * (edge + KERNEL) * edge + 2.0 * edge * edge


def max_tiles(work: WinogradWorkload) -> int:
    """Maximum number of tiles per task."""
    rows, columns = tile_counts(work)
    return WINOGRAD_MAX_TASK_TILES if work.is_open else min(rows * columns, WINOGRAD_MAX_TASK_TILES)


@lru_cache(maxsize=1024)
def winograd_plan(work: WinogradWorkload, machine: Machine) -> WinogradPlan:
    """The cheapest plan for all cores and for a few; cycles are unknown for dynamic sizes."""
    if work.is_open:
        return _open_plan(work, machine)
    by_lane = multiplies_by_lane(work, machine)
    plans = []
    for blocks in block_choices(work.out_blocks, machine):
        split = split_winograd(work, Register(blocks), machine, free=1.0 if machine.cores <= FEW else FREE)
        tiles = split.products.sizes[TILES]
        _, pixels = _cheapest_pixels(tiles, blocks, machine, by_lane)
        images = max(work.batch, 1)
        plans.append(WinogradPlan(tiles, pixels, blocks, split.cycles / images, split.few_cycles / images))
    return min(plans, key=lambda each: each.weighted)


def _open_plan(work: WinogradWorkload, machine: Machine) -> WinogradPlan:
    """Plan for dynamic sizes: as many tiles per task as for a large image, in register tiles that also suit fewer."""
    tiles = winograd_plan(replace(work, spatial=(_LARGE, _LARGE)), machine).tiles

    def cost(pixels: int, blocks: int) -> float:
        return sum(open_row_cost(machine, count, pixels, blocks) / count for count in (*_FEW_TILES, tiles))

    by_lane = multiplies_by_lane(work, machine)
    _, _, pixels, blocks = min(
        (cost(pixels, blocks), -pixels * blocks, pixels, blocks)
        for blocks in block_choices(work.out_blocks, machine)
        for pixels in range(1, min(tiles, max_pixels(blocks, machine, by_lane=by_lane)) + 1)
    )
    return WinogradPlan(ceil_div(tiles, pixels) * pixels, pixels, blocks, 0.0, 0.0)


@dataclass(frozen=True)
class Register:
    """Register tile of the matmuls: `pixels` Winograd tiles (0: chosen by the task) by `blocks` of output channels, the
    maximum tiles of a task and the minimum number of parts of the output channels."""

    blocks: int
    pixels: int = 0
    tiles: int = WINOGRAD_MAX_TASK_TILES
    chunks: int = 1


@dataclass(frozen=True)
class WinogradSplit:
    """Tasks over images, tiles and output channels (in register tiles), and those of the input transforms.

    Attributes:
        products: the tasks that multiply and transform back.
        transforms: the tasks that transform the input before them, over `PLACES`, `INPUTS` and tiles of a slot. None if
            each matmul task transforms its own.
    """

    products: TaskSplit
    transforms: TaskSplit | None = None

    @property
    def parallel(self) -> bool:
        return self.products.parallel

    @property
    def cycles(self) -> float:
        return self.products.cycles + (self.transforms.cycles if self.transforms else 0.0)

    @property
    def few_cycles(self) -> float:
        return self.products.few_cycles + (self.transforms.few_cycles if self.transforms else 0.0)

    @property
    def weighted(self) -> float:
        return weighted_cycles(self.cycles, self.few_cycles)


@lru_cache(maxsize=4096)
def split_winograd(work: WinogradWorkload, register: Register, machine: Machine, free: float = FREE) -> WinogradSplit:
    """Tasks of a convolution of static sizes."""
    rows, columns = tile_counts(work)
    total, steps, images = rows * columns, work.out_blocks // register.blocks, max(work.batch, 1)
    maximum = min(total, register.tiles)
    axes = [
        SplitAxis(IMAGES, images, max_steps=1),
        SplitAxis(TILES, total, max_steps=maximum),
        SplitAxis(CHANNELS, steps, max_steps=ceil_div(steps, register.chunks)),
    ]

    def found(apart: bool) -> TaskSplit:
        return split_tasks(
            axes, _works(work, register, maximum, images * total, machine, apart), machine, free, _ORDERS
        )

    together = WinogradSplit(found(apart=False))
    if together.products.parts[CHANNELS] == 1 or work.batch == 0:
        return together
    products = found(apart=True)
    slots = SplitAxis(PLACES, images * products.parts[TILES], max_steps=1)
    inputs = [slots, SplitAxis(INPUTS, work.in_blocks), SplitAxis(TILES, products.sizes[TILES])]
    written = images * total * edge_of(work.tile, work.strides[0]) ** 2 * work.channels * 4
    spread = Work(
        {each.name: 0.0 for each in inputs},
        cycles=float(images * total * _spread_cycles(work)),
        bytes=2.0 * written,  # a line is read before it is written
    )
    apart = WinogradSplit(products, split_tasks(inputs, [spread], machine))
    return apart if apart.weighted < _APART * together.weighted else together


def _spread_cycles(work: WinogradWorkload) -> float:
    """Cycles to transform the input of one tile."""
    edge = edge_of(work.tile, work.strides[0])
    return work.in_blocks * transform_cycles(edge, edge)


def _works(
    work: WinogradWorkload, register: Register, maximum: int, total: int, machine: Machine, apart: bool
) -> list[Work]:
    """Work of the matmuls of `total` tiles, of their transforms, and of the weights; tasks have up to `maximum` tiles.
    If the input is transformed in a separate pass (`apart`), it is read from the shared cache."""
    tile, edge, pixels = work.tile, edge_of(work.tile, work.strides[0]), register.pixels
    frequencies, by_lane = edge * edge, multiplies_by_lane(work, machine)
    sizes = range(1, maximum + 1)
    products = [
        row_cost(machine, tiles, min(pixels, tiles), register.blocks)
        if pixels
        else _cheapest_pixels(tiles, register.blocks, machine, by_lane)[0]
        for tiles in sizes
    ]
    scratch = frequencies * (work.in_blocks + register.blocks) * work.block * 4
    # The part of a task's scratch that exceeds the L2 cache is written and read: again for each register tile of
    # channels if there is no L3 cache.
    reads = 1 if machine.l3_bytes else work.out_blocks // register.blocks
    far = [float(tiles if scratch * tiles > 0.75 * machine.l2_bytes else 0) for tiles in sizes]
    read = total * frequencies * work.channels * 4
    # Transformed before, or untransformed: tiles overlap, and a core already has the rest by then.
    passed = read if apart else total * (tile * work.strides[0]) ** 2 * work.channels * 4
    spread = [] if apart else [Work({IMAGES: 0.0, TILES: 0.0}, cycles=total * _spread_cycles(work))]
    rows = work.channels * work.out_blocks
    weights = _weight_bytes(work)
    filters = rows * filter_cycles(edge) if work.transforms_filters else 0.0
    streamed = not work.transforms_filters and machine.l3_bytes > 0 and weights > machine.l2_bytes
    every = {IMAGES: 0.0, TILES: 0.0, CHANNELS: 0.0}
    return [
        Work({**every, TILES: products}, cycles=float(total * frequencies * rows)),
        Work(every, cycles=total * work.out_blocks * transform_cycles(edge, tile) + _STALLS * weights * streamed),
        *spread,
        Work({IMAGES: 0.0, TILES: far}, bytes=float(total * scratch)),
        Work({**every, TILES: far}, bytes=float(total * scratch * reads)),
        Work({IMAGES: 0.0, TILES: 0.0}, bytes=float(read), passed=float(passed)),
        Work({CHANNELS: 0.0}, filters, weights / (1 if machine.l3_bytes else _IN_STEP), from_memory=True),
    ]


@lru_cache(maxsize=4096)
def _cheapest_pixels(tiles: int, blocks: int, machine: Machine, by_lane: bool) -> tuple[float, int]:
    """The lowest cost of a row of tiles over all register tiles, and the size of that register tile."""
    limit = min(max_pixels(blocks, machine, by_lane=by_lane), tiles)
    cost, pixels = min((row_cost(machine, tiles, size, blocks), -size) for size in range(max(1, limit // 2), limit + 1))
    return cost, -pixels


def _direct_cycles(work: ConvWorkload, machine: Machine) -> float:
    """Weighted cycles of a direct convolution of one image."""
    images = max(work.batch, 1)
    if isinstance(work, DotWorkload):
        points = work.out_blocks * work.group_channels * math.prod((*work.kernel, *work.out_spatial))
        # One instruction per cycle, like float32: measured on Zen 4, 118 GFLOP/s, 210 in bfloat16, 420 in int8.
        arithmetic = 1.13 / work.group * points / machine.fma_ports
        weights = work.out_blocks * work.block * work.group_channels * math.prod(work.kernel) * 4 / work.group
        times = []
        for cores in (machine.cores, min(FEW, machine.cores)):
            stream = weights / min(machine.memory_rate, cores * CORE_MEMORY_RATE) / images
            times.append(max(arithmetic / cores, stream) + EXPOSED * min(arithmetic / cores, stream))
        return weighted_cycles(*times)
    config = direct_default(work, machine, *tile_for(work, machine))
    found = split_direct(work, config, machine, copies=work.reaches_outside)
    return found.weighted / images


def relative_cycles(work: WinogradWorkload, direct: ConvWorkload, machine: Machine) -> float:
    """Ratio of Winograd to direct cycles.

    With many cores the memory traffic for weights decides, and Winograd's method has more weights; on a few cores the
    arithmetic decides, and it has less of that.
    """
    return winograd_plan(work, machine).weighted / _direct_cycles(direct, machine)


def winograd_forms(work: ConvWorkload, machine: Machine, error_bound: float) -> list[WinogradWorkload]:
    """Winograd convolutions whose error is within the bound; [] if the rule does not support the convolution. With
    static sizes, tasks may transform the filters themselves if the transformed ones exceed the L2 cache."""
    if not serves(work):
        return []
    forms = [
        WinogradWorkload(**vars(work), tile=tile)
        for tile, error in bounds(work.strides[0]).items()
        if error <= error_bound
    ]
    if work.is_open or work.batch == 0 or work.channels % work.block:
        return forms
    large = [form for form in forms if _weight_bytes(form) > machine.l2_bytes]
    return [*forms, *(replace(form, transforms_filters=True) for form in large)]


def _weight_bytes(work: WinogradWorkload) -> int:
    """Bytes of the stored weights."""
    numbers = KERNEL**2 if work.transforms_filters else edge_of(work.tile, work.strides[0]) ** 2
    return numbers * work.channels * work.out_blocks * work.block * 4


def winograd_form(
    work: ConvWorkload,
    machine: Machine,
    error_bound: float,
    direct: ConvWorkload | None = None,
    images: Sequence[tuple[int, ...]] = (),
) -> WinogradWorkload | None:
    """The form that is cheaper than the direct convolution (`direct` if given, possibly with narrow operands), or None.
    `images` are equally weighted spatial sizes to estimate with if the convolution's sizes are dynamic."""
    sizes = [size for size in images or [work.spatial] if 0 not in size and serves(replace(work, spatial=size))]
    rivals = [replace(direct or work, spatial=size) for size in sizes]
    best, best_share = None, 0.97 * len(sizes)
    for form in winograd_forms(work, machine, error_bound):
        cases = [replace(form, spatial=size) for size in sizes]
        share = sum(relative_cycles(each, rival, machine) for each, rival in zip(cases, rivals, strict=True))
        if share < best_share:
            best, best_share = form, share
    return best


def serves(work: ConvWorkload) -> bool:
    """True if the Winograd rule supports this convolution."""
    return has_window(work) and work.dtype == "float32"


def has_window(work: ConvWorkload) -> bool:
    """True if the window, layout and image size of this convolution suit Winograd's method."""
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
