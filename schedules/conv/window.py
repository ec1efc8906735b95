"""Loop nest of a window that slides over each channel separately: depthwise convolution and pooling.

Nothing is copied: along the last dimension, tiles that reach into the padding are written out without the taps that
are outside, and the others are one loop; along the other dimensions, branches skip taps that are outside.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import groupby
from math import prod
from typing import ClassVar

from schedules.codegen.nest import (
    allocate,
    bind,
    both,
    broadcast,
    grid,
    lanes_of,
    load,
    name_opaque,
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
from schedules.config import Config, ConfigSpace
from schedules.conv import compute as conv_compute
from schedules.conv.compute import DEPTHWISE, GLOBAL_POOL, POOL, share_of_image, window_count
from schedules.conv.rule import BlockedRule, W
from schedules.conv.tiling import Sizes, divisors, edges, input_bytes, open_repeat, position
from schedules.conv.workload import DepthwiseDotWorkload, PoolWorkload, WindowWorkload
from schedules.estimate import Estimate, tail
from schedules.instructions.dot_products.operation import DOT_WORDS
from schedules.ir.expression import low_halves, maximum, minimum, number
from schedules.ir.numbers import ceil_div
from schedules.ir.stages import Kernel, shape_of
from schedules.ir.tir import Expr, Index, PrimFunc, Stmt, tirx
from schedules.machine import Machine, dtype_bits
from schedules.rule import CpuRule, Priority
from schedules.stages.fused_kernel import FusedKernel, anchor_stages
from schedules.stages.windows import separates_windows
from schedules.task_split import (
    SplitAxis,
    TaskSplit,
    Work,
    part_numbers,
    parts_at_run_time,
    pays_at_run_time,
    split_tasks,
)

_ORDER = ("images", "blocks", "rows")
_OPEN_SPLITS = 16  # upper limit of the minimum number of tasks that dynamic rows are split into
_OPEN_WIDTH = 56  # assumed width of dynamic rows
_HALO = 2  # additional rows that each part of the rows reads
_MAX_PIXELS = 8  # more would save too few loads for the additional code


def _max_pixels(work: WindowWorkload, machine: Machine) -> int:
    """Registers left after a row of weights, one input and one temporary."""
    return max(2, min(_MAX_PIXELS, machine.vector_registers - min(work.kernel[-1], 8) - 2))


def split_window(work: WindowWorkload, rows: int, pixels: int, splits: int, machine: Machine) -> TaskSplit:
    """Tasks over images, channel blocks and a static number of output `rows`, which are split into at least `splits`
    parts."""
    halo = max(0.0, ((work.kernel[-2] - 1) * work.dilations[-2] + 1) / work.strides[-2] - 1) if work.rank > 1 else 0.0
    images, blocks = max(work.batch, 1), work.out_blocks
    width = work.out_spatial[-1] or _OPEN_WIDTH
    read = (
        images * blocks * input_bytes(work, work.block, rows, width) * prod(size or 1 for size in work.out_spatial[:-2])
    )
    axes = [SplitAxis("images", images, max_steps=1), SplitAxis("blocks", blocks, max_steps=1)]
    return split_tasks(
        [*axes, SplitAxis("rows", rows, max_steps=ceil_div(rows, splits))],
        [
            Work({"images": 0, "blocks": 0, "rows": 0}, cycles=window_cycles(work, rows, width, pixels, machine)),
            Work({"images": 0, "blocks": 0, "rows": halo}, bytes=float(read)),
            Work({"images": 0, "rows": halo}, passed=float(read)),  # convolutions before and after need all blocks
        ],
        machine,
        orders=[_ORDER, ["images", "rows", "blocks"]],
    )


class WindowNest(ABC):
    """Builds the loop nest; subclasses define the operation of a tap and the finish of the sum."""

    def __init__(self, fused: FusedKernel, work: WindowWorkload, config: Config) -> None:
        self.fused, self.work = fused, work
        self.data = fused.operand(fused.anchors[0], work.rank + 3)
        self.pixels, self.splits = config.integer("pixels"), config.integer("splits")
        self.lanes = work.block
        self.all_lanes = lanes_of(0, self.lanes)
        self.sizes = Sizes.of(work, self.data, shape_of(fused.result)[2:])
        self.rows = self.sizes.out[-2] if work.rank > 1 else 1
        self.rows_each: Index = 1
        self.parts: Index = 1
        self.order: Sequence[str] = _ORDER
        self.names = 0

    @abstractmethod
    def start_value(self) -> float:
        """Result of an empty window."""

    def row_operands(self, block: Expr, outer: Sequence[int]) -> tuple[list[Expr], list[Stmt]]:
        """Operand of each tap in a window row, and the statements that bind them."""
        return [None] * self.work.kernel[-1], []

    @abstractmethod
    def tap(self, total: Expr, value: Expr, operand: Expr) -> Expr:
        """The accumulator after one more tap."""

    def read(self, stored: Expr) -> Expr:
        """An input vector converted to the accumulator type."""
        return number(stored, self.work.dtype)

    def scale(self, point: Sequence[Expr | int]) -> Expr | None:
        """Factor for the sum at output position `point`; None for no scaling."""
        return None

    def build(self, machine: Machine) -> Stmt:
        work = self.work
        self.images = batch = self.data.ty.shape[0] if work.batch == 0 else work.batch
        bindings = list(self.sizes.bindings)
        if isinstance(self.rows, int):
            split = split_window(work, self.rows, self.pixels, self.splits, machine)
            self.parts, self.rows_each, self.order = split.parts["rows"], split.sizes["rows"], split.order
            shared = split.shared(batch, machine)
        else:
            min_parts = parts_at_run_time(self.rows, self.rows, batch * work.out_blocks, machine.cores, again=_HALO)
            parts = maximum(min_parts, minimum(self.splits, self.rows))
            self.rows_each = name_opaque("rows", maximum(ceil_div(self.rows, parts), 1), bindings)
            self.parts = name_opaque("parts", ceil_div(self.rows, self.rows_each), bindings)
            unknown = [size for size in self.sizes.out[:-2] if not isinstance(size, int)]
            unknown += [self.rows, self.sizes.out[-1], *([batch] if work.batch == 0 else [])]
            points = name_opaque("points", prod(unknown), bindings)
            shared = pays_at_run_time(points, window_cycles(work, 1, 1, self.pixels, machine), machine)
        return sequence(bindings, tasks_loop("task", batch * (work.out_blocks * self.parts), self._task, shared))

    def _task(self, task: Index) -> Stmt:
        parts = {"images": self.images, "blocks": self.work.out_blocks, "rows": self.parts}
        names: list[Stmt] = []
        at = part_numbers(task, parts, self.order, lambda name, index: position(self.work, name, index, names))
        image, block, first = at["images"], at["blocks"], position(self.work, "row", at["rows"] * self.rows_each, names)
        if self.work.rank == 1:
            return sequence(names, self._row(image, block, []))
        rows, part = self.rows, self.rows_each

        def row(point: list[Index]) -> Stmt:
            y = first + point[-1]
            inside = True if isinstance(rows, int) and isinstance(part, int) and rows % part == 0 else y < rows
            return sequence(when(inside, self._row(image, block, [*point[:-1], y])))

        axes = [f"oy{i}" for i in range(self.work.rank - 1)]
        return sequence(names, grid(axes, [*self.sizes.out[:-2], part], row))

    def _row(self, image: Index, block: Index, outer: Sequence[Index]) -> Stmt:
        """One row of output: tiles that reach outside the input one by one, runs of other tiles as loops."""
        width = self.sizes.out[-1]
        if not isinstance(width, int):
            return self._open_row(image, block, outer)
        tiles = [(start, min(self.pixels, width - start)) for start in range(0, width, self.pixels)]
        statements: list[Stmt] = []
        for (is_inner, size), group in groupby(tiles, lambda tile: (self._is_inner(*tile), tile[1])):
            run = list(group)

            def inner(i: Expr, start: int = run[0][0], size: int = size) -> Stmt:
                return self._tile(image, block, outer, i * size + start, size)

            if is_inner and len(run) > 1:
                statements.append(repeat("ox", len(run), inner))
            else:
                statements += [self._tile(image, block, outer, start, size) for start, _ in run]
        return sequence(statements)

    def _open_row(self, image: Expr, block: Expr, outer: Sequence[Expr]) -> Stmt:
        """One row of dynamic width: outputs whose window reaches outside the input one by one, the others in tiles."""
        width = self.sizes.out[-1]
        names: list[Stmt] = []
        begin, end = edges(self.work, self.sizes)
        first = name_opaque("first_inside", begin, names)
        inside = name_opaque("inside", end - first, names)

        def tile(start: Expr, size: int, *, guarded: bool = False) -> Stmt:
            bound: list[Stmt] = []
            first_of = name_opaque("start", start, bound)
            return sequence(bound, self._tile(image, block, outer, first_of, size, guarded=guarded))

        inner = open_repeat("ox", inside, self.pixels, lambda start, size: tile(first + start, size))
        if end is width:
            return sequence(names, inner)

        def edge(number: Expr) -> Stmt:
            return tile(number + tirx.Select(number < first, tirx.IntImm("int64", 0), inside), 1, guarded=True)

        return sequence(names, repeat("edge", width - inside, edge), inner)

    def _is_inner(self, start: int, size: int) -> bool:
        """True if all taps of a tile are inside the input."""
        work = self.work
        first = start * work.strides[-1] - work.pad[-1][0]
        last = first + (size - 1) * work.strides[-1] + (work.kernel[-1] - 1) * work.dilations[-1]
        return first >= 0 and last < work.spatial[-1]

    def _tile(
        self, image: Index, block: Index, outer: Sequence[Index], start: Index, size: int, *, guarded: bool = False
    ) -> Stmt:
        """`size` outputs; `guarded` means that taps may be outside the input, which is only known at run time."""
        work = self.work
        sums, allocation = allocate("sums", (size, self.lanes), work.dtype, "local")
        start_value = splat(self.start_value(), work.dtype, self.lanes)
        statements: list[Stmt] = [allocation]
        statements += [store(sums, start_value, pixel, self.all_lanes) for pixel in range(size)]
        for taps in static_grid(*work.kernel[:-1]):
            coordinates = [
                at * stride + tap * dilation - before
                for at, tap, stride, dilation, before in zip(
                    outer, taps, work.strides, work.dilations, self.sizes.before, strict=False
                )
            ]
            inside = both(*self._row_conditions(coordinates, taps))
            body = self._window_row(sums, image, block, coordinates, taps, start, size, guarded=guarded)
            if body:
                statements.append(when(inside, sequence(body)))
        point = [*outer, start]
        statements += [self._finish(sums, image, block, point, pixel) for pixel in range(size)]
        return sequence(statements)

    def _row_conditions(self, coordinates: Sequence[Expr], taps: Sequence[int]) -> list[Expr]:
        """Conditions for a window row to be inside the input, without those that always hold."""
        work = self.work
        conditions = []
        for dim, (coordinate, tap) in enumerate(zip(coordinates, taps, strict=True)):
            first = tap * work.dilations[dim] - work.pad[dim][0]
            last = first + (work.out_spatial[dim] - 1) * work.strides[dim]
            size = self.sizes.spatial[dim]
            if first < 0:
                conditions.append(coordinate >= 0)
            last_tap = (work.kernel[dim] - 1) * work.dilations[dim] - work.pad[dim][0]
            if last >= size if isinstance(size, int) else first + work.pad[dim][1] > last_tap:
                conditions.append(coordinate < size)
        return conditions

    def _window_row(
        self,
        sums: Expr,
        image: Expr,
        block: Expr,
        coordinates: Sequence[Expr],
        taps: Sequence[int],
        start: Index,
        size: int,
        *,
        guarded: bool = False,
    ) -> list[Stmt]:
        """All taps of one window row for a tile; each input vector is read once."""
        work = self.work
        stride, dilation = work.strides[-1], work.dilations[-1]
        uses: dict[int, list[tuple[int, int]]] = {}
        for pixel, tap in static_grid(size, work.kernel[-1]):
            uses.setdefault(pixel * stride + tap * dilation, []).append((pixel, tap))
        base = start * stride - self.sizes.before[-1]
        if isinstance(base, int) and work.spatial[-1]:
            uses = {offset: each for offset, each in uses.items() if 0 <= base + offset < work.spatial[-1]}
        if not uses:
            return []
        operands, statements = self.row_operands(block, taps)
        for offset in sorted(uses):
            source = load(self.data, image, block, *coordinates, base + offset, self.all_lanes)
            value, binding = self.named(self.read(source))
            steps = [binding]
            for pixel, tap in uses[offset]:
                total = load(sums, pixel, self.all_lanes)
                steps.append(store(sums, self.tap(total, value, operands[tap]), pixel, self.all_lanes))
            inside = both(base + offset >= 0, base + offset < self.sizes.spatial[-1]) if guarded else True
            statements.append(when(inside, sequence(steps)))
        return statements

    def _finish(self, sums: Expr, image: Expr, block: Expr, point: Sequence[Index], pixel: int) -> Stmt:
        point = [*point[:-1], point[-1] + pixel]
        factor = self.scale(point)

        def one(lane: Expr) -> Stmt:
            value = load(sums, pixel, lane)
            return self.fused.finish(value, [image, block, *point, lane])

        if factor is None:
            return vectorized("lane", self.lanes, one)
        scaled = vectorized("lane", self.lanes, lambda lane: store(sums, load(sums, pixel, lane) * factor, pixel, lane))
        return sequence(scaled, vectorized("lane", self.lanes, one))

    def named(self, value: Expr) -> tuple[Expr, Stmt]:
        """A fresh name for a vector."""
        self.names += 1
        return bind(f"vector{self.names}", value, self.work.dtype, self.lanes)


# Depthwise convolution in the blocked layout: a register tile of pixels, one channel block at a time.


class WindowRule(BlockedRule[W]):
    """Rules for windows that slide over each channel separately. Knobs: `pixels` of a register tile, and `splits`, the
    minimum number of tasks for the rows of a channel block."""

    cut_knobs: ClassVar[frozenset[str]] = frozenset({"splits"})

    def space(self, workload: W, machine: Machine) -> ConfigSpace:
        maximum = min(workload.out_spatial[-1] or _MAX_PIXELS, _max_pixels(workload, machine))
        rows = workload.height or _OPEN_SPLITS
        splits = tuple(each for each in range(1, rows + 1) if ceil_div(rows, ceil_div(rows, each)) == each)
        return ConfigSpace({"pixels": tuple(range(1, maximum + 1)), "splits": splits})

    def default(self, workload: W, machine: Machine) -> Config:
        """The largest and most even tiles that registers allow."""
        width = workload.out_spatial[-1] or _MAX_PIXELS
        maximum = min(width, _max_pixels(workload, machine))
        exact = [size for size in divisors(width) if maximum // 2 < size <= maximum]
        return Config.of(pixels=exact[-1] if exact else ceil_div(width, ceil_div(width, maximum)), splits=1)

    def estimate(self, workload: W, config: Config, machine: Machine) -> Estimate | None:
        pixels, splits = config.integer("pixels"), config.integer("splits")
        rows, width = workload.height, workload.out_spatial[-1]
        cycles = window_cycles(workload, rows, width, pixels, machine)
        read = input_bytes(workload, workload.block, ceil_div(rows, splits), width)
        tasks = max(workload.batch, 1) * workload.out_blocks * splits
        return Estimate(cycles, read * tasks, tasks, read, pixels, pixels * workload.kernel[-1], tail(width, pixels))


class Depthwise(WindowRule[WindowWorkload]):
    """Depthwise convolutions, of floats and of 8-bit integers."""

    name: ClassVar[str] = DEPTHWISE

    def nest(self, fused: FusedKernel, workload: WindowWorkload, config: Config, machine: Machine) -> DepthwiseNest:
        if isinstance(workload, DepthwiseDotWorkload):
            return DepthwiseDotNest(fused, workload, config)
        return DepthwiseNest(fused, workload, config)


class DepthwiseNest(WindowNest):
    """Multiply-adds with one weight vector per tap."""

    def __init__(self, fused: FusedKernel, work: WindowWorkload, config: Config) -> None:
        super().__init__(fused, work, config)
        self.weight = fused.operand(fused.anchors[0], work.rank + 2)

    def start_value(self) -> float:
        return 0.0

    def row_operands(self, block: Expr, outer: Sequence[int]) -> tuple[list[Expr], list[Stmt]]:
        named = [
            self.named(self.weight_of(load(self.weight, block, *outer, tap, self.all_lanes)))
            for tap in range(self.work.kernel[-1])
        ]
        return [var for var, _ in named], [binding for _, binding in named]

    def weight_of(self, stored: Expr) -> Expr:
        """A weight vector, in the type that the taps use."""
        return stored

    def tap(self, total: Expr, value: Expr, operand: Expr) -> Expr:
        return total + value * operand


class DepthwiseDotNest(DepthwiseNest):
    """Depthwise convolution of 8-bit integers: 16-bit products accumulated in int32."""

    work: DepthwiseDotWorkload

    def read(self, stored: Expr) -> Expr:
        value = super().read(stored)
        return value - splat(self.work.fill, self.work.dtype, self.lanes) if self.work.fill else value

    def weight_of(self, stored: Expr) -> Expr:
        return low_halves(stored)

    def tap(self, total: Expr, value: Expr, operand: Expr) -> Expr:
        return DOT_WORDS(total, value, operand)


def window_cycles(work: WindowWorkload, rows: int, width: int, pixels: int, machine: Machine) -> float:
    """Arithmetic cycles on one core of a depthwise convolution or pooling, for `rows` x `width` outputs of each channel
    (and one output along dimensions of dynamic size)."""
    outputs = max(work.batch, 1) * work.out_blocks * rows * width * prod(size or 1 for size in work.out_spatial[:-2])
    taps, last = prod(work.kernel), work.kernel[-1]
    loads = ((pixels - 1) * work.strides[-1] + last) / pixels + last / pixels
    step = max(last / machine.fma_ports, loads / 2, machine.fma_latency / pixels)
    return outputs * (taps / last) * step + outputs


# Maximum and average pooling in the blocked layout, over windows or whole images.

_OPEN_SIZE = 56  # assumed size of dynamic dimensions
_CHAINS = 8  # independent sums of a global pooling, to hide the latency of an addition


def _larger(total: Expr, value: Expr) -> Expr:
    """NaN-propagating maximum: a comparison with NaN selects the second operand, so only `value` needs checking."""
    larger = tirx.max(value, total)
    return tirx.Select(tirx.isnan(value), value, larger) if "float" in str(total.ty.dtype) else larger


def _match(kernel: Kernel, kind: str) -> PoolWorkload | None:
    stages = anchor_stages(kernel, kind)
    work = PoolWorkload.from_annotation(stages[0].annotations) if stages else None
    return work if work is not None and len(stages) == (1 if work.mode == "max" else 2) else None


class Pooling(WindowRule[PoolWorkload]):
    """Pooling over small windows: general rules reduce the columns of larger ones before the rows."""

    name: ClassVar[str] = POOL

    def match(self, kernel: Kernel, machine: Machine) -> PoolWorkload | None:
        return None if separates_windows(kernel) else _match(kernel, POOL)

    def nest(self, fused: FusedKernel, workload: PoolWorkload, config: Config, machine: Machine) -> PoolNest:
        return PoolNest(fused, workload, config)


class PoolNest(WindowNest):
    """Maxima, or sums divided by the window size."""

    work: PoolWorkload

    def start_value(self) -> float:
        return conv_compute.lowest(self.work.dtype) if self.work.mode == "max" else 0.0

    def tap(self, total: Expr, value: Expr, operand: Expr) -> Expr:
        return _larger(total, value) if self.work.mode == "max" else total + value

    def scale(self, point: Sequence[Expr | int]) -> Expr | None:
        if self.work.mode == "max":
            return None
        return tirx.const(1.0, self.work.dtype) / window_count(self.work, point, self.sizes.spatial, self.sizes.before)


class GlobalPooling(CpuRule[PoolWorkload]):
    """Global pooling without knobs: one pass over the image, several accumulators at a time."""

    name: ClassVar[str] = GLOBAL_POOL
    priority: ClassVar[int] = Priority.BLOCKED

    def match(self, kernel: Kernel, machine: Machine) -> PoolWorkload | None:
        return _match(kernel, GLOBAL_POOL)

    def apply(self, kernel: Kernel, workload: PoolWorkload, config: Config, machine: Machine) -> PrimFunc:
        fused = FusedKernel(kernel, anchor_stages(kernel, GLOBAL_POOL))
        data = fused.operand(fused.anchors[0], workload.rank + 3)
        return fused.function(_global_nest(fused, data, workload, machine), machine)


def _global_nest(fused: FusedKernel, data: Expr, work: PoolWorkload, machine: Machine) -> Stmt:
    lanes = work.block
    every = lanes_of(0, lanes)
    sizes = Sizes.of(work, data, shape_of(fused.result)[2:])
    width = sizes.spatial[-1]
    chains = min(width, _CHAINS) if isinstance(width, int) else _CHAINS
    is_max = work.mode == "max"
    start = conv_compute.lowest(work.dtype) if is_max else 0.0

    def join(total: Expr, value: Expr) -> Expr:
        return _larger(total, value) if is_max else total + value

    def task(flat: Index) -> Stmt:
        image, block = flat // work.out_blocks, flat % work.out_blocks
        sums, allocation = allocate("sums", (chains, lanes), work.dtype, "local")

        def add(outer: Sequence[Expr], first: Index, count: int) -> Stmt:
            values = [number(load(data, image, block, *outer, first + i, every), work.dtype) for i in range(count)]
            joined = [join(load(sums, i, every), value) for i, value in enumerate(values)]
            return sequence([store(sums, value, i, every) for i, value in enumerate(joined)])

        def row(outer: list[Expr]) -> Stmt:
            repeated = split_repeat if isinstance(width, int) else open_repeat
            return repeated("x", width, chains, lambda first, count: add(outer, first, count))

        clear = [store(sums, splat(start, work.dtype, lanes), i, every) for i in range(chains)]
        names = [f"y{i}" for i in range(work.rank - 1)]
        total = load(sums, 0, every)
        for i in range(1, chains):
            total = join(total, load(sums, i, every))
        if not is_max:
            total = total * broadcast(share_of_image(sizes.spatial, work.dtype), lanes)
        origin = [0] * work.rank
        return sequence(
            allocation,
            clear,
            grid(names, sizes.spatial[:-1], row),
            store(sums, total, 0, every),
            vectorized("lane", lanes, lambda lane: fused.finish(load(sums, 0, lane), [image, block, *origin, lane])),
        )

    batch = data.ty.shape[0] if work.batch == 0 else work.batch
    vectors = float(max(work.batch, 1) * work.out_blocks * prod(size or _OPEN_SIZE for size in work.spatial))
    read = vectors * lanes * dtype_bits(work.source_dtype) / 8
    axes = [SplitAxis("images", max(work.batch, 1), max_steps=1), SplitAxis("blocks", work.out_blocks, max_steps=1)]
    found = split_tasks(axes, [Work({"images": 0, "blocks": 0}, cycles=vectors, bytes=read)], machine)
    return sequence(sizes.bindings, tasks_loop("task", batch * work.out_blocks, task, found.shared(batch, machine)))
