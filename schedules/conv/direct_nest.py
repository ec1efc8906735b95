"""The loops of a direct convolution: tiles of pixels and filters in registers; padded input is copied.

Parallel tasks of a direct convolution: images, groups, output channels and each spatial dimension.

The rule's knobs are bounds given by the caches: a task has at most `rows` x `columns` of output, and at least `chunks`
tasks share the output channels. Within these, `schedules.task_split` divides the work among the machine's cores.

Prefetching the weights of later tiles while those of the current ones are in use.

Weights in memory are read on first use, in a burst that waits for memory, and memory is idle while later tiles reuse
the same weights. So each tile prefetches its share of the weights that follow, spread over its sum: prefetched at
once, lines delay the loads behind them (Zen 5: a convolution of 7 x 7 with weights in memory reaches 99 % of the peak,
90 % when each share is prefetched once per channel block, 80 % when row by row). Small shares are prefetched less
often, since the prefetches cost as much as they save.

Images of dynamic size are flattened to one long row: pointwise convolutions may process pixels across row ends.

The remainder of a register tile then occurs once per image, not once per row, and rows may be short.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from functools import lru_cache
from itertools import product
from math import prod
from typing import Self

from schedules.codegen.nest import (
    allocate,
    allocate_tile,
    both,
    broadcast,
    grid,
    lanes_of,
    load,
    name_opaque,
    prefetch,
    repeat,
    sequence,
    splat,
    split_repeat,
    static_grid,
    store,
    tasks_loop,
    vectorized,
    when,
)
from schedules.codegen.register_tile import in_parts, lanes_repeated, steps_of_part
from schedules.config import Config
from schedules.conv.tiling import (
    Sizes,
    Task,
    divisors,
    input_bytes,
    multiplies_by_lane,
    open_repeat,
    padded_line,
    position,
    product_cycles,
)
from schedules.conv.workload import ConvWorkload, WindowWorkload
from schedules.ir.expression import maximum, minimum
from schedules.ir.numbers import ceil_div
from schedules.ir.stages import shape_of
from schedules.ir.tir import Buffer, Expr, Index, Stmt
from schedules.machine import Machine, dtype_bits
from schedules.stages.fused_kernel import FusedKernel
from schedules.task_split import (
    SplitAxis,
    TaskSplit,
    Work,
    chunks_at_run_time,
    other_parts,
    part_numbers,
    parts_of_two_at_run_time,
    pays_at_run_time,
    split_tasks,
)


def flat_sizes(work: WindowWorkload, fused: FusedKernel, sizes: Sizes) -> Sizes | None:
    """Sizes of images flattened into the last dimension; None if the window is larger than one pixel, sizes are static,
    or the epilogue uses a pixel's row."""
    ones = (1,) * work.rank
    plain = work.kernel == work.strides == ones and not work.reaches_outside and not any(map(any, work.pad))
    if work.rank == 1 or not work.is_open or not plain or not fused.ignores_rows(2, work.rank):
        return None
    bindings: list[Stmt] = [*sizes.bindings]
    pixels = name_opaque("image_pixels", prod(sizes.out), bindings)
    flat = (*ones[:-1], pixels)
    return Sizes(flat, flat, (0,) * work.rank, tuple(bindings))


IMAGES, GROUPS, CHANNELS = "images", "groups", "channels"


COPY_CYCLES = 2  # per input vector, read and written


# For input without an innermost channel dimension: whole lines are copied in vectors, parts of a line by element.
_ELEMENT_CYCLES = 1.5


_WIDEN_CYCLES = 4  # per weight vector, which becomes two
_LATENCY = 1024  # cycles of memory latency, with some margin


_MULTIPLY_ADDS = 2  # per cycle, at most


_LINE_BITS = 512


_UNROLLED = 8


_AT_ONCE = 2  # cache lines that can be prefetched at once without delaying loads


class DirectNest:
    """Builds the loop nest of one convolution."""

    fill: float = 0.0  # padding value
    weight_rank: int | None = None  # if it differs from packed filters
    converts = False  # True if a task also converts its weights to a wider type

    def __init__(self, fused: FusedKernel, work: ConvWorkload, config: Config) -> None:
        stage = fused.anchors[0]
        self.fused, self.work = fused, work
        self.data = fused.operand(stage, work.rank + (3 if self.has_lanes(work) else 2))
        self.weight = fused.operand(stage, self.weight_rank or work.rank + 4)
        self.pixels, self.blocks = config.integer("pixels"), config.integer("blocks")
        self.unroll = min(config.integer("unroll"), work.in_block)
        self.config = config
        self.copies = work.reaches_outside  # whether a task copies its input to the scratch buffer
        self.lanes = work.block
        self.zero = splat(0.0, work.dtype, self.lanes)
        self.scratch_dtype = work.source_dtype
        self.scratch_lanes = work.in_block if self.has_lanes(work) else 1
        sizes = self._sizes_of(fused)
        flat = flat_sizes(work, fused, sizes)
        self.sizes, self.is_flat = (sizes, False) if flat is None else (flat, True)
        self.bindings = list(self.sizes.bindings)
        # Largest output of one task in each spatial dimension; sizes the scratch buffer.
        self.room = [1] * work.rank
        self.room[-1] = config.integer("columns")
        if work.rank > 1:
            self.room[-2] = config.integer("rows")
        if self.is_flat:
            self.room[-2:] = [1, ceil_div(self.room[-2] * self.room[-1], self.pixels) * self.pixels]
        self.split: list[Index] = list(self.room)
        self.axes: dict[str, Index] = {}  # number of parts of each axis
        self.order: Sequence[str] = ()  # of the task loop, as in `TaskSplit`; if empty, that of `axes`
        self.groups_each = self.steps_each = 1  # groups of a task, and register tiles of their output channels
        self.scratch: Buffer | None = None
        self.by_lane = False

    @staticmethod
    def has_lanes(work: ConvWorkload) -> bool:
        """True if the innermost input dimension is channels."""
        return work.in_block > 1

    def _sizes_of(self, fused: FusedKernel) -> Sizes:
        return Sizes.of(self.work, self.data, shape_of(fused.result)[2:])

    def build(self, machine: Machine) -> Stmt:
        self.by_lane = multiplies_by_lane(self.work, machine)
        shared = self._split_open(machine) if self.work.is_open else self._split_known(machine)
        return sequence(self.bindings, tasks_loop("task", prod(self.axes.values()), self._task, shared))

    @property
    def _images(self) -> Index:
        return self.data.ty.shape[0] if self.work.batch == 0 else self.work.batch

    def _split_known(self, machine: Machine) -> bool | Expr:
        """Split static sizes into tasks. Returns True if they run in parallel."""
        split = split_direct(self.work, self.config, machine, copies=self.copies, converts=self.converts)
        sizes = [split.sizes[dimension(dim)] for dim in range(self.work.rank)]
        whole = split.parts[dimension(self.work.rank - 1)] == 1
        sizes[-1] = self.work.out_spatial[-1] if whole else sizes[-1] * self.pixels
        self.room, self.split = sizes, list(sizes)
        self.axes, self.order = {**split.parts, IMAGES: self._images}, split.order
        self.groups_each, self.steps_each = split.sizes[GROUPS], split.sizes[CHANNELS]
        return split.shared(self._images, machine)

    def _split_open(self, machine: Machine) -> bool | Expr:
        """Split dynamic sizes into tasks: rows, or pixels if there are no rows, and also the output channels if those
        are few. Returns True if the tasks run in parallel."""
        work, cores = self.work, machine.cores
        last = self.is_flat or work.rank == 1
        shared, step = (work.rank - 1, self.pixels) if last else (work.rank - 2, 1)
        dims = {
            dim: ceil_div(size, part)
            for dim, (size, part) in enumerate(zip(self.sizes.out, self.room, strict=True))
            if dim != shared
        }
        self.groups_each = ceil_div(work.groups, min(work.groups, chunks_at_run_time(machine)))
        groups = ceil_div(work.groups, self.groups_each)
        other_tasks = position(self.work, "others", prod([self._images, groups, *dims.values()]), self.bindings)
        extent = position(self.work, "steps", ceil_div(self.sizes.out[shared], step), self.bindings)
        steps = group_steps(work, self.blocks)
        products = work.group_out_blocks * work.group_channels * prod(work.kernel) / machine.fma_ports
        copied = COPY_CYCLES * work.in_blocks * prod(work.strides) if self.copies else 0
        parts, channels = parts_of_two_at_run_time(
            extent,
            max(1, self.room[shared] // step),
            other_tasks,
            cores,
            other_parts(steps, cores, products, copied),
            named=lambda name, value: position(self.work, name, value, self.bindings),
        )
        channels = position(self.work, "chunks", channels, self.bindings)
        self.steps_each = ceil_div(steps, channels)
        dims[shared] = position(self.work, "parts", parts, self.bindings)
        self.split[shared] = position(
            self.work, "part", maximum(ceil_div(extent, dims[shared]), 1) * step, self.bindings
        )
        ordered = {dimension(dim): dims[dim] for dim in range(work.rank)}
        self.axes = {IMAGES: self._images, GROUPS: groups, CHANNELS: channels, **ordered}
        points = position(self.work, "points", prod([self._images, *self.sizes.out]), self.bindings)
        return pays_at_run_time(points, work.groups * (products + copied), machine)

    def _live(self, task: Task, dim: int) -> Index:
        """Valid extent of a task's output along a dimension."""
        size, part = self.sizes.out[dim], self.split[dim]
        known = isinstance(size, int) and isinstance(part, int)
        return part if known else maximum(minimum(part, size - task.corner[dim]), 0)

    def _task(self, number: Index) -> Stmt:
        """Position along each axis of a task, from the task number."""
        names: list[Stmt] = []
        at = part_numbers(number, self.axes, self.order, lambda name, value: position(self.work, name, value, names))
        corner = tuple(
            position(self.work, f"corner{dim}", at[dimension(dim)] * part, names) for dim, part in enumerate(self.split)
        )
        part: Index = 0
        for dim in range(self.work.rank):
            part = part * self.axes[dimension(dim)] + at[dimension(dim)]
        task = Task(at[IMAGES], corner, 0, self.work.channels, part=part)
        live = tuple(position(self.work, f"live{d}", self._live(task, d), names) for d in range(self.work.rank))
        return sequence(names, self._channels(replace(task, live=live), at[GROUPS], at[CHANNELS]))

    def _channels(self, task: Task, part: Index, chunk: Index) -> Stmt:
        """A chunk of output channels, for each group in a range of groups."""
        work = self.work
        if work.groups == 1:
            return self._group(task, 0, work.out_blocks, chunk)
        full, short = work.group_out_blocks, work.last_group_out_blocks

        def group(step: Index) -> Stmt:
            number = part * self.groups_each + step
            group_task = replace(task, source=number * work.in_blocks, channels=work.group_channels)
            every = self._group(group_task, number * full, full, chunk)
            if work.last_group_channels == work.group_channels and short == full:
                return every
            last = replace(group_task, channels=work.last_group_channels)
            return sequence(when(number < work.groups - 1, every, self._group(last, number * full, short, chunk)))

        count: Index = self.groups_each
        if work.groups % self.groups_each:
            count = minimum(count, work.groups - part * self.groups_each)
        return repeat("group", count, group)

    def _group(self, task: Task, first: Index, count: int, chunk: Index) -> Stmt:
        """A chunk of `count` output blocks starting at `first`, all in one group."""
        self.scratch = None
        copied = self._fill_scratch(task) if self.copies else []
        return sequence(copied, self._all_blocks(first, count, chunk, lambda nest, block: nest._rows(task, block)))

    def _all_blocks(self, first: Index, count: int, chunk: Index, body: Callable[[Self, Index], Stmt]) -> Stmt:
        """Call `body(nest, block)` with the first block of each register tile in a chunk of `count` output blocks: full
        tiles, then one smaller tile for the remainder."""
        steps, rest = divmod(count, self.blocks)
        begin = chunk * self.steps_each
        extent: Index = self.steps_each
        single = isinstance(extent, int) and extent >= steps + bool(rest)
        if single:
            begin, extent = 0, steps
        elif not isinstance(extent, int) or rest or steps % extent:  # the last chunk may hold only the remainder
            extent = maximum(minimum(extent, steps - begin), 0)
        loop = repeat("co", extent, lambda step: body(self, first + (begin + step) * self.blocks)) if steps else None
        if not rest:
            return sequence(loop)
        last = copy(self)
        last.blocks = rest
        tail = body(last, first + steps * self.blocks)
        return sequence(loop, tail if single else when(both(begin <= steps, steps < begin + self.steps_each), tail))

    # The scratch buffer: (channel blocks of a group, input of each spatial dimension, lanes).

    def _fill_scratch(self, task: Task) -> list[Stmt]:
        work = self.work
        extents = work.reach(task.live)
        blocks = ceil_div(task.channels, work.in_block)
        self.scratch, allocation = allocate("scratch", self._scratch_shape(blocks), self.scratch_dtype)
        starts = [
            at * stride - before
            for at, stride, before in zip(task.corner, work.strides, self.sizes.before, strict=True)
        ]

        def line(point: list[Index]) -> Stmt:
            block, outer = point[0], point[1:]
            rows = [start + offset for start, offset in zip(starts[:-1], outer, strict=True)]
            bounds = zip(rows, self.sizes.spatial, strict=False)
            inside = both(*(condition for row, size in bounds for condition in (row >= 0, row < size)))
            full = self._copy_line(task, block, outer, rows, starts[-1], extents[-1])
            clear = repeat("x", extents[-1], lambda x: self._clear([block, *outer, x]))
            return sequence(when(inside, full, clear))

        names = ["cb", *(f"y{i}" for i in range(work.rank - 1))]
        return [allocation, grid(names, [blocks, *extents[:-1]], line)]

    def _scratch_shape(self, blocks: int) -> tuple[int, ...]:
        return (blocks, *self.work.reach(self.room), self.scratch_lanes)

    def _copy_line(
        self, task: Task, block: Index, outer: Sequence[Index], rows: Sequence[Index], start: Index, extent: Index
    ) -> Stmt:
        size = self.sizes.spatial[-1]

        def copy(x: Index, source: Index, count: int) -> Stmt:
            line, to_line = [task.image, task.source + block, *rows], [block, *outer]
            return vectorized("lane", count, lambda lane: self._copy([*line, source + lane], [*to_line, x + lane]))

        def clear(x: Index) -> Stmt:
            return self._clear([block, *outer, x])

        lanes = self.lanes if self.scratch_lanes == 1 else 1
        return padded_line(start, extent, size, self.work.pad[-1][0], copy, clear, lanes)

    def _copy(self, source: Sequence[Index], target: Sequence[Index]) -> Stmt:
        """Copy one input position to the scratch buffer."""
        every = lanes_of(0, self.scratch_lanes)
        return store(self.scratch, self._read(source, every), *target, every)

    def _clear(self, point: Sequence[Index]) -> Stmt:
        lanes = self.scratch_lanes
        return store(self.scratch, splat(self.fill, self.scratch_dtype, lanes), *point, lanes_of(0, lanes))

    # The register tile.

    def _rows(self, task: Task, block: Index) -> Stmt:
        def row(point: list[Index]) -> Stmt:
            inside = both(
                *(
                    (start + offset < size)
                    for start, offset, size, part in zip(task.corner, point, self.sizes.out, self.split, strict=False)
                    if isinstance(size, int) and isinstance(part, int) and size % part
                )
            )
            return sequence(when(inside, self._columns(task, block, point)))

        names = [f"oy{i}" for i in range(self.work.rank - 1)]
        return grid(names, task.live[:-1], row)

    def _columns(self, task: Task, block: Index, outer: Sequence[Index]) -> Stmt:
        width, part = self.sizes.out[-1], self.split[-1]

        def tile(start: Index, size: int) -> Stmt:
            return self._tile(task, block, [*outer, start], size)

        if not isinstance(width, int):
            return open_repeat("ox", task.live[-1], self.pixels, tile)
        if width % part == 0:
            return split_repeat("ox", part, self.pixels, tile)

        def guarded(start: Index, size: int) -> Stmt:
            at = task.corner[-1] + start
            rest = width % self.pixels
            tail = when(at < width, tile(start, rest)) if rest else None
            return sequence(when(at + size <= width, tile(start, size), tail))

        return split_repeat("ox", part, self.pixels, guarded)

    def _tile(self, task: Task, block: Index, start: Sequence[Index], pixels: int) -> Stmt:
        work, lanes, every = self.work, self.lanes, lanes_of(0, self.lanes)
        sums, allocation = allocate_tile("sums", (pixels, self.blocks, lanes), work.dtype)
        points = list(static_grid(pixels, self.blocks))
        full_blocks, rest = divmod(task.channels, work.in_block)

        def added(at: tuple[int, ...], value: Expr, source: Index, window: Sequence[Index], lane: Index) -> Stmt:
            weight = load(self.weight, block + at[1], source, *window, lane, every)
            return store(sums, load(sums, *at, every) + value * weight, *at, every)

        def steps(source: Index, window: Sequence[Index], first: Index, count: int) -> list[Stmt]:
            def value(pixel: int, lane: Index) -> Expr:
                return self._input(task, source, start, pixel, window, lane)

            if not self.by_lane or count % lanes:
                each = product((first + lane for lane in range(count)), points)
                return [added(at, broadcast(value(at[0], lane), lanes), source, window, lane) for lane, at in each]
            result = []
            for begin in range(0, count, lanes):
                inputs = [value(pixel, lanes_of(first + begin, lanes)) for pixel in range(pixels)]
                named, repeated = lanes_repeated(inputs, lanes)
                result += named
                for lane, at in product(range(lanes), points):
                    result.append(added(at, repeated(at[0], lane, lanes), source, window, first + begin + lane))
            return result

        def window_loop(source: Index, channels: int) -> Stmt:
            unroll = max(size for size in divisors(channels) if size <= self.unroll)

            count = channels // unroll
            parts = count if unroll > 1 else 1  # one channel at a time leaves registers only for its sums

            def body(window: list[Index]) -> Stmt:
                def some(i: Index) -> Stmt:
                    prefetches = (
                        self._weights_ahead(task, block, start, [source, *window, i], parts) if parts > 1 else None
                    )
                    return sequence(prefetches, steps(source, window, i * unroll, unroll))

                return sequence(
                    self._weights_ahead(task, block, start, [source, *window], parts), repeat("ci", count, some)
                )

            taps = self._taps(body, steps=count)
            return sequence(self._weights_ahead(task, block, start, [source], parts), taps)

        clear = [store(sums, self.zero, *at, every) for at in points]

        def blocks(first: Index, count: int) -> Stmt:
            return repeat("cb", count, lambda source: window_loop(first + source, work.in_block))

        finish = self._finish_tile(sums, task, block, start, pixels)
        last = window_loop(full_blocks, rest) if rest else None
        terms = work.in_block * prod(work.kernel)
        part = steps_of_part(full_blocks, terms) if work.dtype == "float32" and full_blocks else full_blocks
        if part >= full_blocks:
            return sequence(allocation, clear, blocks(0, full_blocks) if full_blocks else None, last, finish)
        totals, allocate_totals = allocate_tile("totals", (pixels, self.blocks, lanes), work.dtype)
        begin = [store(totals, self.zero, *at, every) for at in points]
        add = [store(totals, load(totals, *at, every) + load(sums, *at, every), *at, every) for at in points]
        take = [store(sums, load(totals, *at, every), *at, every) for at in points]
        main = in_parts(full_blocks, part, lambda first, count: sequence(clear, blocks(first, count), add))
        rest_of = sequence(clear, last, add) if rest else None
        return sequence(allocation, allocate_totals, begin, main, rest_of, take, finish)

    def _taps(self, body: Callable[[list[Index]], Stmt], *, steps: int) -> Stmt:
        """Call `body(position in the window)` for each tap of a given number of steps.

        If a tap is one step, LLVM unrolls the loop over the innermost dimension of taps. Taps of a row read the same
        elements, which it would keep in registers; taps of a column do not.
        """
        order = list(range(self.work.rank))[:: -1 if steps == 1 else 1]
        names, sizes = [f"k{i}" for i in order], [self.work.kernel[i] for i in order]
        return grid(names, sizes, lambda window: body(window[:: -1 if steps == 1 else 1]))

    def _weights_ahead(
        self, task: Task, block: Index, start: Sequence[Index], at: Sequence[Index], parts: int
    ) -> Stmt | None:
        """Prefetch a share of the weights of later output blocks, from the tile at `start`.

        `at` holds the channel block of the input and possibly the tap of the window and which of `parts` of the block;
        only one of these coordinates issues the prefetch.
        """
        steps = group_steps(self.work, self.blocks)
        output = [*self.room[:-1], ceil_div(self.room[-1], self.pixels)]
        coordinates = [*start[:-1], start[-1] // self.pixels, *at]
        if self._parts_between_steps > 1 and self.steps_each == 1:  # tasks of the same weights follow one another
            between = self._parts_between_steps
            output, coordinates = [between, *output], [task.part % between, *coordinates]
        elif self._parts_between_steps > 1:
            steps = self.steps_each
        extents = [*output, self.work.in_blocks, *self.work.kernel]
        extents += [parts] if parts > 1 else []
        shape = [int(size) for size in self.weight.ty.shape[1:]]
        elements = self.blocks * prod(shape)
        distance = ahead(prod(output) * self.pixels * elements // shape[-1])
        depth = prefetch_depth(lines_of(self.weight, elements), extents, len(output))
        if distance >= steps or len(coordinates) != depth:
            return None
        iteration: Index = 0
        for number, size in zip(coordinates, extents, strict=False):
            iteration = iteration * size + number
        begin = [block + distance * self.blocks, *(0,) * (self.work.rank + 3)]
        return prefetch_share(self.weight, begin, elements, iteration, prod(extents[:depth]))

    @property
    def _parts_between_steps(self) -> int:
        """Number of consecutive tasks that share their output channels; 1 if unknown."""
        if self.work.is_open:
            return 1
        order = self.order or list(self.axes)
        inner = order[order.index(CHANNELS) + 1 :]
        return prod(int(self.axes[name]) // (2 if order.count(name) > 1 else 1) for name in inner)

    def _input(
        self, task: Task, source: Index, start: Sequence[Index], pixel: int, window: Sequence[Index], lane: Index
    ) -> Expr:
        """The input element read for a pixel of the tile, from the scratch buffer or directly from the input."""
        work = self.work
        inner = list(start)
        inner[-1] = inner[-1] + pixel
        offsets = [
            at * stride + tap * dilation
            for at, tap, stride, dilation in zip(inner, window, work.strides, work.dilations, strict=True)
        ]
        if self.scratch is not None:
            return load(self.scratch, source, *offsets, lane)
        coordinates = [
            first * stride + offset - before
            for first, offset, stride, before in zip(task.corner, offsets, work.strides, self.sizes.before, strict=True)
        ]
        return self._read([task.image, task.source + source, *coordinates], lane)

    def _read(self, point: Sequence[Index], lane: Index) -> Expr:
        """An element (or vector) of the input; the plain layout has no lanes."""
        return load(self.data, *point, lane) if self.work.in_block > 1 else load(self.data, *point)

    def _finish_tile(
        self, sums: list[Buffer], task: Task, block: Index, start: Sequence[Index], pixels: int
    ) -> list[Stmt]:
        """Apply the epilogue to each sum; for dynamic sizes, whose address computations are long, in a loop over
        pixels."""
        if not self.work.is_open:
            return [self._finish(sums, task, block, start, *at) for at in static_grid(pixels, self.blocks)]
        result: list[Stmt] = []
        every = lanes_of(0, self.lanes)
        for part in range(self.blocks):
            done, allocation = allocate("done", (pixels, 1, self.lanes), self.work.dtype, "local")
            result.append(allocation)
            result += [store(done, load(sums, pixel, part, every), pixel, 0, every) for pixel in range(pixels)]

            def finish(pixel: Index, done: Expr = done, part: int = part) -> Stmt:
                return self._finish(done, task, block + part, start, pixel, 0)

            result.append(repeat("pixel", pixels, finish))
        return result

    def _finish(
        self, sums: Buffer | list[Buffer], task: Task, block: Index, start: Sequence[Index], pixel: Index, part: int
    ) -> Stmt:
        coordinates = [first + inner for first, inner in zip(task.corner, start, strict=True)]
        coordinates[-1] = coordinates[-1] + pixel
        return vectorized(
            "lane",
            self.lanes,
            lambda lane: self.fused.finish(
                load(sums, pixel, part, lane), [task.image, block + part, *coordinates, lane]
            ),
        )


def dimension(number: int) -> str:
    """Name of the axis of a spatial dimension. Its steps are outputs; of the last dimension, register tiles."""
    return f"d{number}"


def group_steps(work: ConvWorkload, blocks: int) -> int:
    """Register tiles over the output channels of a group: the steps of the axis `CHANNELS`."""
    return ceil_div(work.group_out_blocks, blocks)


@lru_cache(maxsize=1024)
def split_direct(
    work: ConvWorkload, config: Config, machine: Machine, copies: bool, converts: bool = False
) -> TaskSplit:
    """Tasks of a convolution of static sizes. `copies`: each task copies its input to a scratch buffer; `converts`:
    each also converts its weights to a wider type.

    If channels are last in the order of the tasks, consecutive tasks share their input, otherwise their weights. If a
    spatial dimension is halved, each of two threads has its input in its own cache, and reads all of the weights once.
    """
    dims = [dimension(dim) for dim in range(work.rank)]
    orders = [[IMAGES, dim, GROUPS, CHANNELS, *dims] for dim in dims]
    orders += [[IMAGES, GROUPS, CHANNELS, *dims], [IMAGES, GROUPS, *dims, CHANNELS]]
    return split_tasks(_axes(work, config), _works(work, config, machine, copies, converts), machine, orders=orders)


def _axes(work: ConvWorkload, config: Config) -> list[SplitAxis]:
    pixels, blocks, chunks = (config.integer(name) for name in ("pixels", "blocks", "chunks"))
    steps = group_steps(work, blocks)
    axes = [SplitAxis(IMAGES, max(work.batch, 1), max_steps=1)]
    if work.groups == 1:
        axes += [SplitAxis(GROUPS, 1), SplitAxis(CHANNELS, steps, max_steps=ceil_div(steps, chunks))]
    else:
        axes += [SplitAxis(GROUPS, work.groups, max_steps=ceil_div(work.groups, chunks)), SplitAxis(CHANNELS, steps)]
    axes += [SplitAxis(dimension(dim), size, max_steps=1) for dim, size in enumerate(work.out_spatial[:-2])]
    if work.rank > 1:
        axes.append(SplitAxis(dimension(work.rank - 2), work.out_spatial[-2], max_steps=config.integer("rows")))
    tiles = ceil_div(work.out_spatial[-1], pixels)
    axes.append(SplitAxis(dimension(work.rank - 1), tiles, max_steps=ceil_div(config.integer("columns"), pixels)))
    return axes


def _works(work: ConvWorkload, config: Config, machine: Machine, copies: bool, converts: bool) -> Sequence[Work]:
    """Work of the multiply-adds, of the input with its halo, and of the weights."""
    halos = [
        max(0.0, ((window - 1) * dilation + 1) / stride - 1)
        for window, dilation, stride in zip(work.kernel, work.dilations, work.strides, strict=True)
    ]
    halos[-1] /= config.integer("pixels")
    spatial = {dimension(dim): halo for dim, halo in enumerate(halos)}
    every = {IMAGES: 0.0, GROUPS: 0.0, CHANNELS: 0.0, **dict.fromkeys(spatial, 0.0)}
    images, groups = max(work.batch, 1), work.groups
    read = images * groups * input_bytes(work, work.group_channels, work.height, work.out_spatial[-1])
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
    widened = _WIDEN_CYCLES * weights / vector if converts else 0.0
    return (
        Work(every, cycles=images * product_cycles(work, config, machine)),
        Work({IMAGES: 0.0, GROUPS: 0.0, **lines}, cycles=copied),
        Work({IMAGES: 0.0, GROUPS: 0.0, **spatial}, bytes=float(read), passed=float(read)),
        Work({GROUPS: 0.0, CHANNELS: 0.0}, cycles=widened, bytes=float(weights), from_memory=True),
    )


def ahead(multiply_adds: int) -> int:
    """Prefetch distance, in parts of a given number of multiply-adds, that covers memory latency."""
    return max(1, ceil_div(_LATENCY * _MULTIPLY_ADDS, multiply_adds))


def lines_of(buffer: Buffer, elements: int) -> int:
    """Number of cache lines occupied by a number of elements of a buffer."""
    return ceil_div(elements, _LINE_BITS // dtype_bits(str(buffer.ty.dtype)))


def prefetch_depth(lines: int, extents: Sequence[int], minimum: int) -> int:
    """Loop depth at which to prefetch a share of `lines`, counting from the outermost of the nested loops and at least
    `minimum`: the smallest that keeps shares small."""
    return next(
        (depth for depth in range(minimum, len(extents)) if lines <= _AT_ONCE * prod(extents[:depth])), len(extents)
    )


def prefetch_share(
    buffer: Buffer, start: Sequence[Index], elements: int, iteration: Expr | int, iterations: int
) -> Stmt | None:
    """Prefetch an iteration's share of the `elements` that follow `start` in memory.

    `iterations` may be an estimate: those beyond it do nothing.
    """
    line = _LINE_BITS // dtype_bits(str(buffer.ty.dtype))
    lines = lines_of(buffer, elements)
    share = ceil_div(lines, iterations)
    first = iteration * share
    *outer, inner = start

    def ask(i: Index) -> Stmt:
        return prefetch(buffer, *outer, inner + (first + i) * line)

    prefetches = sequence([ask(i) for i in range(share)]) if share <= _UNROLLED else repeat("ahead", share, ask)
    return when(first < lines, prefetches)
