"""The loop nest of Winograd's convolution: transforms a task's tiles, multiplies each frequency, transforms back.

If separate tasks transform the input before the matmuls, the transformed tiles of a slot (a part of an image) are
stored one after another in a buffer that all threads share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from schedules.codegen.nest import (
    Body,
    allocate,
    allocate_tile,
    bind,
    both,
    broadcast,
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
from schedules.conv.direct_nest import ahead
from schedules.conv.tiling import Sizes, divisors, multiplies_by_lane, open_repeat, position
from schedules.conv.winograd_tiling import (
    CHANNELS,
    IMAGES,
    INPUTS,
    PLACES,
    TILES,
    Register,
    Tiles,
    split_winograd,
    transform_cycles,
)
from schedules.conv.winograd_transforms import KERNEL, Matrix, edge_of, transforms
from schedules.conv.workload import WinogradWorkload
from schedules.errors import NotScheduledError
from schedules.ir.expression import index, maximum, minimum, number
from schedules.ir.numbers import ceil_div
from schedules.ir.stages import shape_of
from schedules.ir.tir import Buffer, Expr, Index, Stmt, tirx
from schedules.machine import Machine
from schedules.stages.fused_kernel import FusedKernel
from schedules.task_split import TaskSplit, other_parts, part_numbers, parts_of_two_at_run_time, pays_at_run_time

# Distribution of Winograd tiles over tasks, computed at run time for dynamic sizes.

_STEP = 4  # tiles needed to hide the latency of a multiply-add


@dataclass(frozen=True)
class TileSplit:
    """Each image's `total` tiles in `columns` are split into `parts` of `tiles`, and the output channels into `chunks`
    of `steps` register tiles. Expressions for dynamic sizes.

    Attributes:
        order: order of the loop over tasks, as in `TaskSplit`.
        parallel: whether threads share the tasks.
        transforms: the tasks that transform the input before the matmuls, or None if each task transforms its own.
    """

    columns: Index
    total: Index
    parts: Index
    tiles: Index
    chunks: Index
    steps: Index
    order: Sequence[str]
    parallel: bool | Expr
    bindings: tuple[Stmt, ...] = ()
    transforms: TaskSplit | None = None


def split_tiles(
    work: WinogradWorkload, counts: Sequence[Index], config: Config, batch: Index, machine: Machine
) -> TileSplit:
    """Split images of `counts` tiles (vertically, horizontally) into tasks; `config` is that of the rule."""
    rows, columns = counts
    if work.is_open:
        return _split_open(work, rows, columns, config, batch, machine)
    register = Register(*(config.integer(name) for name in ("blocks", "pixels", "tiles", "chunks")))
    plan = split_winograd(work, register, machine)
    split = plan.products
    tiles, channels = (split.parts[TILES], split.sizes[TILES]), (split.parts[CHANNELS], split.sizes[CHANNELS])
    parallel = split.shared(batch, machine)
    return TileSplit(columns, rows * columns, *tiles, *channels, split.order, parallel, transforms=plan.transforms)


def _split_open(
    work: WinogradWorkload, rows: Index, columns: Index, config: Config, batch: Index, machine: Machine
) -> TileSplit:
    bindings: list[Stmt] = []

    def named(name: str, value: Index) -> Index:
        return name_opaque(name, value, bindings)

    columns, total = named("columns", columns), named("total", rows * columns)
    steps = work.out_blocks // config.integer("blocks")
    edge = edge_of(work.tile, work.strides[0])
    spread = work.in_blocks * transform_cycles(edge, edge)
    products = work.out_blocks * (edge * edge * work.channels / machine.fma_ports + transform_cycles(edge, work.tile))
    choices = other_parts(steps, machine.cores, products, spread)
    maximum = config.integer("tiles")
    step = min(maximum, _STEP)
    extent = named("tile_steps", ceil_div(total, step))
    parts, chunks = parts_of_two_at_run_time(extent, maximum // step, batch, machine.cores, choices, named=named)
    parts, chunks = named("parts", parts), named("chunks", chunks)
    tiles = named("tiles_each", ceil_div(extent, parts) * step)
    steps_each = named("steps_each", ceil_div(steps, chunks))
    parallel = pays_at_run_time(named("all_tiles", batch * total), products + spread, machine)
    order = (IMAGES, TILES, CHANNELS)
    return TileSplit(columns, total, parts, tiles, chunks, steps_each, order, parallel, tuple(bindings))


# Code for one Winograd transform: a constant matrix times a vector of SIMD vectors.


class Transform:
    """Writes products of matrices with vectors of `lanes` lanes; binds intermediate values to names."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        self.names = 0

    def apply(self, matrix: Matrix, values: Sequence[Expr], put: Callable[[int, Expr], Stmt], dtype: str) -> list[Stmt]:
        """`put(i, row i of matrix @ values)`. Rows that differ only in the signs of their odd columns (points come as p
        and -p) share both halves."""
        statements: list[Stmt] = []
        done: set[int] = set()
        for i, row in enumerate(matrix):
            if i in done:
                continue
            mate = _mirrored(matrix, i)
            if mate is None:
                statements.append(put(i, self._combine(row, values, dtype)))
                continue
            j, sign = mate
            even, bind_even = self._named(self._combine(_every_other(row, 0), values, dtype), dtype)
            odd, bind_odd = self._named(self._combine(_every_other(row, 1), values, dtype), dtype)
            statements += [bind_even, bind_odd, put(i, even + odd)]
            statements.append(put(j, even - odd if sign > 0 else odd - even))
            done.add(j)
        return statements

    def _combine(self, coefficients: Sequence[float], values: Sequence[Expr], dtype: str) -> Expr:
        total: Expr = None
        for coefficient, value in zip(coefficients, values, strict=True):
            if coefficient == 0:
                continue
            if abs(coefficient) == 1 and total is not None:
                total = total + value if coefficient == 1 else total - value
                continue
            term = value if coefficient == 1 else value * splat(coefficient, dtype, self.lanes)
            total = term if total is None else total + term
        return total

    def _named(self, value: Expr, dtype: str) -> tuple[Expr, Stmt]:
        self.names += 1
        return bind(f"part{self.names}", value, dtype, self.lanes)


def _every_other(row: Sequence[float], start: int) -> list[float]:
    return [entry if column % 2 == start else 0.0 for column, entry in enumerate(row)]


def _mirrored(matrix: Matrix, i: int) -> tuple[int, int] | None:
    """A later row that equals row i except for the sign of its odd columns (+1) or of its even columns (-1)."""
    even, odd = _every_other(matrix[i], 0), _every_other(matrix[i], 1)
    if not any(even) or not any(odd):
        return None
    for j in range(i + 1, len(matrix)):
        if list(matrix[j]) == [e - o for e, o in zip(even, odd, strict=True)]:
            return j, 1
        if list(matrix[j]) == [o - e for e, o in zip(even, odd, strict=True)]:
            return j, -1
    return None


CHANNELS_OF_PART = 64
"""Input channels summed at a time: of 256 channels, all at once double the error."""


@dataclass(frozen=True)
class Spread:
    """Transformed tiles of a task: (frequencies, input blocks * tiles, elements), at an offset in a shared buffer."""

    buffer: Expr
    slot: tuple[Index, ...] = ()

    def load(self, *at: Index) -> Expr:
        return load(self.buffer, *self.slot, *at)

    def store(self, value: Expr, *at: Index) -> Stmt:
        return store(self.buffer, value, *self.slot, *at)


@dataclass(frozen=True)
class Weights:
    """Transformed weights, starting at output block `block` and input channel `channel`. `then` are the filters (output
    block, channel) to be transformed next, if this buffer holds only a part."""

    buffer: Expr
    block: Index
    channel: Index = 0
    then: tuple[Index, Index] | None = None


@dataclass(frozen=True, eq=False)
class FrequencyTile:
    """A register tile of a frequency's matmul: Winograd tiles starting at `start` by channel blocks starting at
    `block`;
    `points` are its slots (number of the tile, number of the block)."""

    spread: Spread
    product: Expr
    weights: Weights
    frequency: Expr
    start: Index
    points: list[tuple[int, ...]]
    sums: Buffer

    @property
    def size(self) -> int:
        return self.points[-1][0] + 1


class WinogradNest:
    """Builds the loop nest of one convolution.

    Subclasses override how numbers are stored between the transform and the matmuls, how two of them are multiplied,
    and the final step on a result.
    """

    fill: float = 0.0  # padding value

    def __init__(self, fused: FusedKernel, work: WinogradWorkload, config: Config) -> None:
        self.fused, self.work = fused, work
        self.data = fused.operand(fused.anchors[0], 5)
        self.weight = weight_of(fused)
        self.tile = work.tile
        self.edge = edge_of(work.tile, work.strides[0])
        self.frequencies = self.edge**2
        self.matrices = transforms(work.tile, work.strides[0])
        self.tiles = config.integer("tiles")
        self.pixels = min(config.integer("pixels"), self.tiles)
        self.blocks, self.config = config.integer("blocks"), config
        self.unroll = config.integer("unroll")
        self.lanes = work.block
        self.all_lanes = lanes_of(0, self.lanes)
        self.spread_dtype = work.dtype  # dtype of the transformed input
        self.steps = self.lanes  # reduction steps of a block of channels
        self.sizes = Sizes.of(work, self.data, shape_of(fused.result)[2:])
        self.transform = Transform(self.lanes)
        self.by_lane = False

    def build(self, machine: Machine) -> Stmt:
        self.by_lane = multiplies_by_lane(self.work, machine)
        work = self.work
        self.images = batch = self.data.ty.shape[0] if work.batch == 0 else work.batch
        counts = [ceil_div(size, self.tile) for size in self.sizes.out]
        self.split = split_tiles(self.work, counts, self.config, batch, machine)
        if isinstance(self.split.tiles, int):
            self.tiles = self.split.tiles
            self.pixels = min(self.pixels, self.tiles)
        transforming: Stmt | None = None
        if self.split.transforms is not None:
            shape = (self.split.transforms.parts[PLACES], *self._scratch_shape(work.in_blocks, self.steps))
            self.shared, allocation = allocate("shared", shape, work.dtype)
            transforming = sequence(allocation, self._transforms(self.split.transforms))
        tasks = tasks_loop("task", batch * (self.split.parts * self.split.chunks), self._task, self.split.parallel)
        return sequence(self.sizes.bindings, self.split.bindings, transforming, tasks)

    def _transforms(self, split: TaskSplit) -> Stmt:
        """Transform the input of all tasks."""
        sizes, parts, products = split.sizes, split.parts, self.split

        def task(number: Expr | int) -> Stmt:
            group, rest = number % parts[TILES], number // parts[TILES]
            block, slot = rest % parts[INPUTS] * sizes[INPUTS], rest // parts[INPUTS]
            start = group * sizes[TILES]
            first = slot % products.parts * products.tiles
            live = minimum(sizes[TILES], products.tiles - start)
            blocks = minimum(sizes[INPUTS], self.work.in_blocks - block)
            tiles = Tiles(slot // products.parts, first, live, start)
            spread = Spread(self.shared, (slot,))
            return sequence(repeat("cb", blocks, lambda c: self._spread_tiles(spread, tiles, block + c)))

        return tasks_loop("transform", split.tasks, task, split.parallel)

    def _task(self, task: Expr | int) -> Stmt:
        split, work = self.split, self.work
        names: list[Stmt] = []
        parts = {IMAGES: self.images, TILES: split.parts, CHANNELS: split.chunks}
        at = part_numbers(task, parts, split.order, lambda name, value: position(self.work, name, value, names))
        image, part = at[IMAGES], at[TILES]
        begin = position(self.work, "begin", at[CHANNELS] * split.steps, names)
        first = position(self.work, "first", part * split.tiles, names)
        steps = self.work.out_blocks // self.blocks
        even = isinstance(split.steps, int) and steps % split.steps == 0
        steps_here = (
            split.steps if even else position(self.work, "own", maximum(minimum(split.steps, steps - begin), 0), names)
        )
        left = maximum(minimum(split.tiles, split.total - first), 0) if work.is_open else self.tiles
        live = position(self.work, "live", left, names) if work.is_open else self.tiles
        tiles = Tiles(image, first, live)
        allocations: list[Stmt] = []
        transforming: Stmt | None = None
        if split.transforms is None:
            # Before the smaller buffer, so that the next kernel gets the pages of each that are in the caches.
            buffer, allocation = allocate("spread", self._scratch_shape(work.in_blocks, self.steps), work.dtype)
            spread = Spread(buffer)
            allocations.append(allocation)
            transforming = repeat("cb", work.in_blocks, lambda c: self._spread_tiles(spread, tiles, c))
        else:
            spread = Spread(self.shared, (image * split.parts + part,))
        product, allocate_product = allocate("product", self._scratch_shape(self.blocks, self.lanes), work.dtype)
        if work.transforms_filters:
            rows = self._part_blocks(work.in_blocks) * self.lanes + 1  # one more: see `_scratch_shape`
            self.filters, allocation = allocate(
                "filters", (self.blocks, self.frequencies, rows, self.lanes), work.dtype
            )
            allocations.append(allocation)

        def channels(step: Expr | int) -> Stmt:
            block = (begin + step) * self.blocks
            return sequence(
                self._multiply_all(spread, product, block, live),
                repeat("b", self.blocks, lambda part: self._collect_tiles(product, tiles, block, part)),
            )

        return sequence(names, allocations, allocate_product, transforming, repeat("co", steps_here, channels))

    def _scratch_shape(self, blocks: int, elements: int) -> tuple[int, int, int]:
        """Buffer shape (frequencies, blocks * tiles, elements).

        Frequencies are an odd number of vectors apart: otherwise the elements of one tile would share a few cache sets.
        """
        vectors = blocks * self.tiles
        return self.frequencies, vectors + 1 - vectors % 2, elements

    def _each_tile(self, tiles: Tiles, body: Callable[[Expr, Expr, Expr], Stmt]) -> Stmt:
        """Call `body(index in the task, row, column)` for each tile; the last task may have fewer."""
        total, columns = self.split.total, self.split.columns

        def one(i: Index) -> Stmt:
            names: list[Stmt] = []
            i = tiles.start + i
            tile = tiles.first + i
            row, column = (
                position(self.work, *each, names) for each in (("row", tile // columns), ("column", tile % columns))
            )
            whole = self.work.is_open or total % self.tiles == 0
            return sequence(names, when(True if whole else tile < total, body(i, row, column)))

        return repeat("t", tiles.live, one)

    # Into the frequencies.

    def _spread_tiles(self, spread: Spread, tiles: Tiles, block: Index) -> Stmt:
        return self._each_tile(tiles, lambda i, row, column: self._spread(spread, tiles.image, block, i, row, column))

    def _spread(self, spread: Spread, image: Index, block: Index, slot: Index, row: Index, column: Index) -> Stmt:
        work, edge, dtype = self.work, self.edge, self.spread_dtype
        top, left = self.sizes.before
        height, width = self.sizes.spatial
        step = self.tile * work.strides[0]
        y, x = row * step - top, column * step - left
        patch, allocate_patch = allocate("patch", (edge, edge, self.lanes), dtype, "local")
        half, allocate_half = allocate("half", (edge, edge, self.lanes), dtype, "local")

        def read(i: Index, j: Index) -> Stmt:
            value = number(load(self.data, image, block, y + i, x + j, self.all_lanes), dtype)
            return store(patch, value, i, j, self.all_lanes)

        def read_guarded(i: Expr, j: Expr) -> Stmt:
            inside = both(y + i >= 0, y + i < height, x + j >= 0, x + j < width)
            outside = store(patch, splat(self.fill, dtype, self.lanes), i, j, self.all_lanes)
            return sequence(when(inside, read(i, j), outside))

        def down(j: Index) -> Stmt:
            def keep(i: int, value: Expr) -> Stmt:
                return store(half, value, i, j, self.all_lanes)

            values = [load(patch, i, j, self.all_lanes) for i in range(edge)]
            return sequence(self.transform.apply(self.matrices.input, values, keep, dtype))

        def across(i: Index) -> Stmt:
            def give(j: int, value: Expr) -> Stmt:
                at = (i * edge + j, block * self.tiles + slot, lanes_of(0, self.steps))
                return spread.store(self._kept(value), *at)

            values = [load(half, i, j, self.all_lanes) for j in range(edge)]
            return sequence(self.transform.apply(self.matrices.input, values, give, dtype))

        inner = both(y >= 0, x >= 0, y + edge <= height, x + edge <= width)
        unguarded = self._each("i", edge, lambda i: sequence([read(i, j) for j in range(edge)]))
        guarded = repeat("i", edge, lambda i: repeat("j", edge, lambda j: read_guarded(i, j)))
        reading = sequence(when(inner, unguarded, guarded))
        transforming = self._each("j", edge, down), self._each("i", edge, across)
        return sequence(allocate_patch, allocate_half, reading, *transforming)

    def _each(self, name: str, extent: int, body: Body) -> Stmt:
        """Run `body` for 0 to `extent - 1`: as a loop for dynamic sizes, where kernels are many times longer, otherwise
        unrolled."""
        if self.work.is_open:
            return repeat(name, extent, body)
        return sequence([body(i) for i in range(extent)])

    def _kept(self, value: Expr) -> Expr:
        """Store a transformed vector of a channel block as `steps` elements of the accumulator type."""
        return value

    # The product of each frequency.

    def _multiply_all(self, spread: Spread, product: Expr, block: Index, live: Index) -> Stmt:
        """The matmuls of all frequencies; filters that are stored untransformed are transformed for one part of the
        input channels at a time."""

        def products(weights: Weights, sums_of: Callable[[FrequencyTile], Stmt]) -> Stmt:
            return repeat("f", self.frequencies, lambda f: self._multiply(spread, product, weights, f, live, sums_of))

        if not self.work.transforms_filters:
            return products(Weights(self.weight, block), self._sum)

        def part_of(first: Index, count: int) -> Stmt:
            channel, channels = first * self.lanes, count * self.lanes
            weights = Weights(self.filters, 0, channel, (block, channel + channels))
            return sequence(
                self._transform_filters(block, channel, channels),
                products(weights, lambda tile: self._sum_part(tile, first, count)),
            )

        return in_parts(self.work.in_blocks, self._part_blocks(self.work.in_blocks), part_of)

    def _transform_filters(self, block: Index, first: Index, count: int) -> Stmt:
        """Transform the filters of some input channels."""
        edge, matrix, dtype = self.edge, self.matrices.weight, self.work.dtype

        def channel(part: Expr, row: Expr) -> Stmt:
            half, allocation = allocate("half", (edge, KERNEL, self.lanes), dtype, "local")

            def down(j: int) -> list[Stmt]:
                taps = (i * KERNEL + j for i in range(KERNEL))
                values = [load(self.weight, block + part, first + row, tap, self.all_lanes) for tap in taps]

                def keep(i: int, value: Expr) -> Stmt:
                    return store(half, value, i, j, self.all_lanes)

                return self.transform.apply(matrix, values, keep, dtype)

            def across(i: int) -> list[Stmt]:
                values = [load(half, i, j, self.all_lanes) for j in range(KERNEL)]

                def put(j: int, value: Expr) -> Stmt:
                    return store(self.filters, value, part, i * edge + j, row, self.all_lanes)

                return self.transform.apply(matrix, values, put, dtype)

            return sequence(allocation, *(down(j) for j in range(KERNEL)), *(across(i) for i in range(edge)))

        return repeat("b", self.blocks, lambda part: repeat("ci", count, lambda row: channel(part, row)))

    def _multiply(
        self,
        spread: Spread,
        product: Expr,
        weights: Weights,
        frequency: Expr,
        live: Index,
        sums_of: Callable[[FrequencyTile], Stmt],
    ) -> Stmt:
        def tile(start: Index, size: int) -> Stmt:
            names: list[Stmt] = []
            start = position(self.work, "start", start, names)
            sums, allocation = allocate_tile("sums", (size, self.blocks, self.lanes), self.work.dtype)
            points = list(static_grid(size, self.blocks))
            part = FrequencyTile(spread, product, weights, frequency, start, points, sums)
            return sequence(names, sequence(allocation, sums_of(part)))

        if self.work.is_open:
            return open_repeat("p", live, self.pixels, tile)
        return split_repeat("p", self.tiles, self.pixels, tile)

    def _sum(self, tile: FrequencyTile) -> Stmt:
        """A tile's sums over all input channels, in parts if there are many."""
        full, rest = self._whole_and_rest()
        part = self._part_blocks(full)
        last = self._block(tile, full, rest) if rest else None
        if part >= full:
            return sequence(self._clear(tile), self._whole_blocks(tile, 0, full), last, self._put(tile, adds=False))
        over = sequence(self._clear(tile), last, self._put(tile, adds=True)) if rest else None
        return sequence(in_parts(full, part, partial(self._sum_part, tile)), over)

    def _sum_part(self, tile: FrequencyTile, first: Index, count: int) -> Stmt:
        """A tile's sums over some blocks of input channels, added to those of earlier blocks."""
        stored, added = (self._put(tile, adds=adds) for adds in (False, True))
        is_first = first == 0 if isinstance(first, int) else tirx.EQ(first, index(0))
        return sequence(self._clear(tile), self._whole_blocks(tile, first, count), when(is_first, stored, added))

    def _part_blocks(self, whole: int) -> int:
        """Number of blocks of input channels summed at a time, out of `whole`."""
        limited = self.work.dtype == "float32" and whole
        return steps_of_part(whole, self.steps, CHANNELS_OF_PART) if limited else whole

    def _clear(self, tile: FrequencyTile) -> list[Stmt]:
        zero = splat(0, self.work.dtype, self.lanes)
        return [store(tile.sums, zero, *at, self.all_lanes) for at in tile.points]

    def _whole_blocks(self, tile: FrequencyTile, first: Index, count: int) -> Stmt | None:
        """Sums over whole blocks of input channels."""
        return repeat("cb", count, lambda source: self._block(tile, first + source, self.steps)) if count else None

    def _block(self, tile: FrequencyTile, source: Index, channels: int) -> Stmt:
        """Sums over some channels of a block."""
        unroll = max(each for each in divisors(channels) if each <= self.unroll)
        return repeat("ci", channels // unroll, lambda i: sequence(self._steps(tile, source, i * unroll, unroll)))

    def _steps(self, tile: FrequencyTile, source: Index, first: Index, count: int) -> list[Stmt | None]:
        """A number of steps of a sum; by lanes of vectors of channels, or each channel broadcast."""
        lanes, row = self.lanes, source * self.steps + first

        def inputs(pixel: int, at: Index) -> Expr:
            return tile.spread.load(tile.frequency, source * self.tiles + tile.start + pixel, at)

        result: list[Stmt | None] = []
        if not self.by_lane or count % lanes:
            for lane in range(count):
                values = [broadcast(inputs(pixel, first + lane), lanes) for pixel in range(tile.size)]
                result += self._step(tile, row + lane, values)
            return result
        for begin in range(0, count, lanes):
            at = lanes_of(first + begin, lanes)
            named, repeated = lanes_repeated([inputs(pixel, at) for pixel in range(tile.size)], lanes)
            result += named
            for lane in range(lanes):
                values = [repeated(pixel, lane, lanes) for pixel in range(tile.size)]
                result += self._step(tile, row + begin + lane, values)
        return result

    def _step(self, tile: FrequencyTile, row: Index, values: Sequence[Expr]) -> list[Stmt | None]:
        """One channel: its values in the Winograd tiles times its weights."""
        result: list[Stmt | None] = self._weights_ahead(tile, row)
        row = row - tile.weights.channel
        for pixel, part in tile.points:
            here = (pixel, part, self.all_lanes)
            weighted = self._plus_product(load(tile.sums, *here), values[pixel], tile, part, row)
            result.append(store(tile.sums, weighted, *here))
        return result

    def _put(self, tile: FrequencyTile, *, adds: bool) -> Stmt:
        """Store the sums, or add them to those of earlier parts."""

        def put(pixel: int, part: int) -> Stmt:
            at = tile.frequency, part * self.tiles + tile.start + pixel, self.all_lanes
            value = load(tile.sums, pixel, part, self.all_lanes)
            return store(tile.product, load(tile.product, *at) + value if adds else value, *at)

        return sequence([put(*at) for at in tile.points])

    def _whole_and_rest(self) -> tuple[int, int]:
        """Number of full blocks of input channels, and of reduction steps in the last partial block."""
        return divmod(self.work.channels, self.lanes)

    def _plus_product(self, total: Expr, value: Expr, tile: FrequencyTile, part: int, row: Index) -> Expr:
        """`total` plus `value` times the weights of a block of output channels, for one reduction step."""
        weights = tile.weights
        return total + value * load(weights.buffer, weights.block + part, tile.frequency, row, self.all_lanes)

    def _weights_ahead(self, tile: FrequencyTile, channel: Index) -> list[Stmt | None]:
        """Prefetch, before a tile reads a channel's weights, that channel's weights for a later frequency, or a share
        of them if several tiles use the same. For filters that are transformed here, each of the first frequencies
        prefetches one tap for the next part of the channels."""
        block, frequency, start = tile.weights.block, tile.frequency, tile.start
        if tile.weights.then is not None:
            block, then = tile.weights.then
            row = then + channel - tile.weights.channel
            chosen = both(frequency < KERNEL**2, start + 0 == 0)
            return [when(chosen, prefetch(self.weight, block + part, row, frequency, 0)) for part in range(self.blocks)]
        tiles = ceil_div(self.tiles, self.pixels)
        if self.work.is_open:  # there may be only one
            then = frequency + ahead(self.pixels * self.blocks * self.work.channels)
            return [
                when(start + 0 == 0, prefetch(self.weight, block + part, then, channel, 0))
                for part in range(self.blocks)
            ]
        if tiles == 1:
            row = channel + ahead(self.tiles * self.blocks)
            return [prefetch(self.weight, block + part, frequency, row, 0) for part in range(self.blocks)]
        then = frequency + ahead(self.tiles * self.blocks * self.work.channels)
        each = ceil_div(self.blocks, tiles)
        parts = [start // self.pixels * each + i for i in range(each)]
        return [when(part < self.blocks, prefetch(self.weight, block + part, then, channel, 0)) for part in parts]

    # Back from the frequencies.

    def _collect_tiles(self, product: Expr, tiles: Tiles, block: Index, part: Index) -> Stmt:
        return self._each_tile(
            tiles, lambda i, row, column: self._collect(product, [tiles.image, block + part, row, column], part, i)
        )

    def _collect(self, product: Expr, at: Sequence[Index], part: Index, slot: Index) -> Stmt:
        """Gather the results of a tile; `at` is its image, channel block, row and column."""
        edge, size, dtype = self.edge, self.tile, self.work.dtype
        height, width = self.sizes.out
        image, block = at[:2]
        y, x = at[2] * size, at[3] * size
        half, allocate_half = allocate("half", (size, edge, self.lanes), dtype, "local")
        result, allocate_result = allocate("result", (size, size, self.lanes), dtype, "local")

        def down(j: Index) -> Stmt:
            def keep(i: int, value: Expr) -> Stmt:
                return store(half, value, i, j, self.all_lanes)

            values = [load(product, i * edge + j, part * self.tiles + slot, self.all_lanes) for i in range(edge)]
            return sequence(self.transform.apply(self.matrices.output, values, keep, dtype))

        def across(i: Index) -> Stmt:
            def give(j: int, value: Expr) -> Stmt:
                return store(result, self._scaled(value), i, j, self.all_lanes)

            values = [load(half, i, j, self.all_lanes) for j in range(edge)]
            return sequence(self.transform.apply(self.matrices.output, values, give, dtype))

        def finish(i: Index, j: Index) -> Stmt:
            return vectorized(
                "lane",
                self.lanes,
                lambda lane: self.fused.finish(load(result, i, j, lane), [image, block, y + i, x + j, lane]),
            )

        def guarded(i: Expr, j: Expr) -> Stmt:
            return sequence(when(both(y + i < height, x + j < width), finish(i, j)))

        transforming = self._each("j", edge, down), self._each("i", size, across)
        writing = self._each("i", size, lambda i: sequence([finish(i, j) for j in range(size)]))
        if self.work.is_open or height % size or width % size:
            partly = repeat("i", size, lambda i: repeat("j", size, lambda j: guarded(i, j)))
            writing = sequence(when(both(y + size <= height, x + size <= width), writing, partly))
        return sequence(allocate_half, allocate_result, *transforming, writing)

    def _scaled(self, value: Expr) -> Expr:
        """Scale a result of the output transform to a result of the convolution."""
        return value


def weight_of(fused: FusedKernel) -> Expr:
    """The transformed weights: the operand of the matmul other than the transformed input."""
    product = fused.anchors[1]
    written = (fused.anchors[0].writes[0], product.writes[0])
    for read in product.loads:
        if not any(read.source.same_as(buffer) for buffer in written):
            return read.source
    raise NotScheduledError("the product reads no weights")
