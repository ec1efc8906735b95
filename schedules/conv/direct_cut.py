"""Parallel tasks of a direct convolution: images, groups, output channels and each spatial dimension.

The knobs of the rule say what caches hold: a task has at most `rows` x `columns` of output, and at least `chunks` tasks
share the output channels. Within that, `schedules.cuts` cuts for the machine's cores.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod

from schedules.config import Config
from schedules.conv.tiling import input_bytes, product_cycles
from schedules.conv.workload import ConvWorkload
from schedules.cuts import Cut, CutAxis, Work, cut
from schedules.ir.numbers import ceil_div
from schedules.machine import Machine, dtype_bits

IMAGES, GROUPS, CHANNELS = "images", "groups", "channels"
COPY_CYCLES = 2  # per input vector, read and written
# Of input without a dimension of channels innermost: vectors of a whole line are copied, elements of a part of it.
_ELEMENT_CYCLES = 1.5
_WIDEN_CYCLES = 4  # per weight vector, which becomes two


def dimension(number: int) -> str:
    """Name of the axis of a spatial dimension. Its steps are outputs; of the last dimension, register tiles."""
    return f"d{number}"


def group_steps(work: ConvWorkload, blocks: int) -> int:
    """Register tiles over the output channels of a group: the steps of the axis `CHANNELS`."""
    return ceil_div(work.group_out_blocks, blocks)


@lru_cache(maxsize=1024)
def direct_cut(work: ConvWorkload, config: Config, machine: Machine, copies: bool, widens: bool = False) -> Cut:
    """Tasks of a convolution of static sizes. `copies`: each task copies its input to a scratch buffer; `widens`: each
    also converts its weights to a wider type.

    Where channels come last in the order of the tasks, those that follow one another share their input, else their
    weights. Where a spatial dimension is halved, each of two threads finds its input in its own cache, and reads all of
    the weights once.
    """
    dims = [dimension(dim) for dim in range(work.rank)]
    orders = [[IMAGES, dim, GROUPS, CHANNELS, *dims] for dim in dims]
    orders += [[IMAGES, GROUPS, CHANNELS, *dims], [IMAGES, GROUPS, *dims, CHANNELS]]
    return cut(_axes(work, config), _works(work, config, machine, copies, widens), machine, orders=orders)


def _axes(work: ConvWorkload, config: Config) -> list[CutAxis]:
    pixels, blocks, chunks = (config.integer(name) for name in ("pixels", "blocks", "chunks"))
    steps = group_steps(work, blocks)
    axes = [CutAxis(IMAGES, max(work.batch, 1), most=1)]
    if work.groups == 1:
        axes += [CutAxis(GROUPS, 1), CutAxis(CHANNELS, steps, most=ceil_div(steps, chunks))]
    else:
        axes += [CutAxis(GROUPS, work.groups, most=ceil_div(work.groups, chunks)), CutAxis(CHANNELS, steps)]
    axes += [CutAxis(dimension(dim), size, most=1) for dim, size in enumerate(work.out_spatial[:-2])]
    if work.rank > 1:
        axes.append(CutAxis(dimension(work.rank - 2), work.out_spatial[-2], most=config.integer("rows")))
    tiles = ceil_div(work.out_spatial[-1], pixels)
    axes.append(CutAxis(dimension(work.rank - 1), tiles, most=ceil_div(config.integer("columns"), pixels)))
    return axes


def _works(work: ConvWorkload, config: Config, machine: Machine, copies: bool, widens: bool) -> Sequence[Work]:
    """Work of the multiply-adds, of the input with its halo, and of the weights."""
    halos = [
        max(0.0, ((window - 1) * dilation + 1) / stride - 1)
        for window, dilation, stride in zip(work.kernel, work.dilations, work.strides, strict=True)
    ]
    halos[-1] /= config.integer("pixels")
    spatial = {dimension(dim): halo for dim, halo in enumerate(halos)}
    every = {IMAGES: 0.0, GROUPS: 0.0, CHANNELS: 0.0, **dict.fromkeys(spatial, 0.0)}
    images, groups = max(work.batch, 1), work.groups
    read = images * groups * input_bytes(work, work.group_channels, *_extent(work))
    read *= prod(work.out_spatial[:-2])
    vector = machine.vector_bits / 8
    copied = COPY_CYCLES * read / vector if copies else 0.0
    lines: dict[str, float | Sequence[float]] = {**spatial}
    if work.in_block == 1 and copies:
        slower = _ELEMENT_CYCLES / COPY_CYCLES * machine.vector_bits / dtype_bits(work.source_dtype)
        tiles = ceil_div(work.out_spatial[-1], config.integer("pixels"))
        lines[dimension(work.rank - 1)] = [*((size + halos[-1]) * slower for size in range(1, tiles)), tiles]
    stored = work.group_channels * prod(work.kernel) * dtype_bits(work.source_dtype) // 8
    weights = work.out_blocks * work.block * stored
    widened = _WIDEN_CYCLES * weights / vector if widens else 0.0
    return (
        Work(every, cycles=images * product_cycles(work, config, machine)),
        Work({IMAGES: 0.0, GROUPS: 0.0, **lines}, cycles=copied),
        Work({IMAGES: 0.0, GROUPS: 0.0, **spatial}, bytes=float(read), passed=float(read)),
        Work({GROUPS: 0.0, CHANNELS: 0.0}, cycles=widened, bytes=float(weights), from_memory=True),
    )


def _extent(work: ConvWorkload) -> tuple[int, int]:
    """Rows and columns of the output."""
    return (work.out_spatial[-2] if work.rank > 1 else 1), work.out_spatial[-1]
