"""Register tiles and cache blocks of convolutions, computed from the machine.

Dynamic spatial sizes: their variables, and their tiling.

Sizes and positions are Python ints if known, otherwise expressions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from math import gcd, prod

from schedules.codegen.nest import both, name_opaque, repeat, sequence, when
from schedules.config import Config
from schedules.conv.workload import ConvWorkload, DotWorkload, WindowWorkload
from schedules.ir.expression import maximum, minimum
from schedules.ir.numbers import ceil_div, falling_halves
from schedules.ir.stages import shape_of
from schedules.ir.tir import Expr, Index, Stmt
from schedules.machine import Machine, dtype_bits

MAX_PIXELS = 30
_MANY_REGISTERS = 32
# For fewer registers. Measured on Zen 3 (tiles of 7 x 1, 4 x 2, 5 x 2, 6 x 2 and 4 x 3, rows of 7 to 112 pixels).
_FEW_LOADS, _FEW_SUMS = 1.2, 0.06


def accumulators(machine: Machine) -> int:
    """Number of vector registers available as accumulators; the rest hold weights and broadcast values.

    With 16 registers, 12 hold sums: rows of 14 pixels take 1.16 ms in tiles of 5 x 2 instead of 1.37 in 7 x 1, rows of
    7 pixels 1.10 ms in 4 x 3 instead of 1.31 (1x1 convolutions of 1024 to 256 and 512 to 2048 channels, Zen 3).
    """
    if machine.register_sums is not None:
        return machine.register_sums
    registers = machine.vector_registers
    return registers - 4 if registers >= _MANY_REGISTERS else max(4, registers * 3 // 4)


def multiplies_by_lane(work: ConvWorkload, machine: Machine) -> bool:
    """True if vectors of an output block are multiplied by single lanes of an input block."""
    floats = work.dtype == work.source_dtype == "float32"
    return machine.lane_products and floats and work.block == work.in_block == machine.lanes("float32")


def max_pixels(blocks: int, machine: Machine, *, by_lane: bool = False) -> int:
    """Maximum pixels of a register tile, given its channel blocks. With `by_lane`, each pixel's inputs occupy a
    register."""
    if by_lane:
        return max(1, (machine.vector_registers - 1 - blocks) // (blocks + 1))
    return max(1, accumulators(machine) // blocks)


_UNEVEN = 1.05  # minimum gain of tiles of two widths, which double the code


def channel_unroll(work: ConvWorkload, machine: Machine, pixels: int, blocks: int) -> int:
    """Input channels unrolled in the innermost loop: a vector's worth, or one, which hides the loop overhead if the
    tile is not small."""
    if multiplies_by_lane(work, machine):
        return work.in_block
    return 1 if pixels * blocks >= 7 else 4


def tile_cost(machine: Machine, pixels: int, blocks: int, load_cycles: float = 0.5) -> float:
    """Cycles of a tile for one input channel: the maximum of multiply-adds, loads and the latency of the dependency
    chain.

    Tiles larger than needed to hide the latency cost more: the next tile cannot begin while all registers are in use
    (measured on Zen 4: 118 GFLOP/s with 14 accumulators, 113 with 28). The default `load_cycles` is for two load ports.
    """
    sums = pixels * blocks
    few = machine.vector_registers < _MANY_REGISTERS and machine.register_sums is None
    enough, beyond = (1, _FEW_SUMS) if few else (4, 0.006)
    arithmetic = sums / machine.fma_ports
    arithmetic *= 1 + beyond * max(0, sums - enough * machine.fma_ports * machine.fma_latency)
    loads = (pixels + blocks + 1) * load_cycles * 2 / machine.load_ports  # one is a prefetch
    return max(arithmetic, loads * _FEW_LOADS if few else loads, machine.fma_latency)


def row_cost(machine: Machine, width: int, pixels: int, blocks: int, load_cycles: float = 0.5) -> float:
    """Cycles for a row of `width` pixels in tiles of `pixels`, for one input channel and one block of channels."""
    full_tiles, rest = divmod(width, pixels)
    cost = full_tiles * tile_cost(machine, pixels, blocks, load_cycles)
    if rest:
        cost += tile_cost(machine, rest, blocks, load_cycles) + 2  # for twice the code
    # Each tile reads all weights of its channels: nearly as expensive as a load from the L2 cache.
    weights = (full_tiles + bool(rest)) * blocks
    return (cost + weights / 2) / blocks


def product_cycles(work: ConvWorkload, config: Config, machine: Machine) -> float:
    """Arithmetic cycles on one core of a direct convolution of one image."""
    pixels, blocks, columns = (config.integer(name) for name in ("pixels", "blocks", "columns"))
    width = work.out_spatial[-1]
    row = row_cost(machine, columns, pixels, blocks) * width / columns
    row += width * copied_scalars(work, config, machine) / blocks
    cycles = row * prod(work.out_spatial[:-1]) * work.out_blocks * work.group_channels * prod(work.kernel)
    return cycles / work.group if isinstance(work, DotWorkload) else cycles


def copied_scalars(work: ConvWorkload, config: Config, machine: Machine) -> float:
    """Cycles to broadcast scalars, if a broadcast uses an issue slot of a multiply-add."""
    by_lane = min(config.integer("unroll"), work.in_block) % work.in_block == 0
    return 1 / machine.fma_ports if multiplies_by_lane(work, machine) and not by_lane else 0.0


def block_choices(out_blocks: int, machine: Machine) -> tuple[int, ...]:
    """Candidate numbers of channel blocks of a register tile: divisors, so that all tiles are equal."""
    limit = accumulators(machine)
    return tuple(size for size in range(1, min(out_blocks, limit, 8) + 1) if out_blocks % size == 0)


def uneven_block_choices(out_blocks: int, machine: Machine) -> tuple[int, ...]:
    """`block_choices`, and numbers that leave a smaller last tile."""
    return tuple(range(1, min(out_blocks, accumulators(machine), 8) + 1))


def register_tile(
    width: int, out_blocks: int, machine: Machine, load_cycles: float = 0.5, *, by_lane: bool = False
) -> tuple[int, int]:
    """(pixels, channel blocks) of lowest cost for rows of `width` pixels; `by_lane` as in `multiplies_by_lane`."""

    def cost(pixels: int, blocks: int) -> float:
        full_cost = row_cost(machine, width, pixels, blocks, load_cycles)
        rest = out_blocks % blocks
        if not rest:
            return full_cost
        last = row_cost(machine, width, pixels, rest, load_cycles)
        return _UNEVEN * (full_cost * (out_blocks - rest) + last * rest) / out_blocks

    maximum = min(width, MAX_PIXELS)
    return _cheapest_tile(cost, uneven_block_choices(out_blocks, machine), maximum, machine, by_lane=by_lane)


def _cheapest_tile(
    cost: Callable[[int, int], float], blocks: Sequence[int], maximum: int, machine: Machine, *, by_lane: bool
) -> tuple[int, int]:
    """(pixels, channel blocks) of lowest cost that fit the registers, with at most `maximum` pixels."""
    _, _, *tile = min(
        (cost(pixels, each), -pixels * each, pixels, each)
        for each in blocks
        for pixels in range(1, min(maximum, max_pixels(each, machine, by_lane=by_lane)) + 1)
        if pixels * each + each + 1 <= machine.vector_registers or pixels == 1
    )
    return tile[0], tile[1]


def input_bytes(work: WindowWorkload, channels: int, rows: int, width: int) -> int:
    """Input bytes read for `rows` x `width` outputs (one output along other spatial dimensions)."""
    sizes = [1] * work.rank
    sizes[-1] = width
    if work.rank > 1:
        sizes[-2] = rows
    total = channels * dtype_bits(work.source_dtype) // 8
    for size, window, stride, dilation in zip(sizes, work.kernel, work.strides, work.dilations, strict=True):
        total *= (size - 1) * stride + (window - 1) * dilation + 1
    return total


def divisors(number: int) -> tuple[int, ...]:
    """All divisors in ascending order."""
    return tuple(each for each in range(1, number + 1) if number % each == 0)


def spatial_block(work: ConvWorkload, machine: Machine, pixels: int) -> tuple[int, int]:
    """(rows, columns) of a task's output such that its input fits half of the L2 cache.

    Rows are as even as possible; columns are split, at whole register tiles, only when one row is too large.
    """
    budget = machine.l2_bytes // 2
    width = work.out_spatial[-1]
    height = work.height
    channels = work.group_channels
    columns = width
    while columns > pixels and input_bytes(work, channels, 1, columns) > budget:
        columns = ceil_div(ceil_div(columns, 2), pixels) * pixels
        if columns >= width:
            break
    rows = height
    while rows > 1 and input_bytes(work, channels, rows, columns) > budget:
        rows -= 1
    return ceil_div(height, ceil_div(height, rows)), columns


@dataclass(frozen=True)
class Task:
    """Position of a task: an image, the first output position of its block, the valid output extent along each
    dimension, and one group's input as its first channel block and number of channels. `part` is the index of its
    output block within the image."""

    image: Index
    corner: tuple[Index, ...]
    source: Index
    channels: int
    live: tuple[Index, ...] = ()
    part: Index = 0


# Copies a line of the input with padding: existing elements are copied, others cleared.


def padded_line(
    start: Index,
    extent: Index,
    size: Index,
    padding: int,
    copy: Callable[[Index, Index, int], Stmt],
    clear: Callable[[Index], Stmt],
    lanes: int = 1,
) -> Stmt:
    """`copy(x, start + x, 1)` for each x below `extent` that is inside the line of `size` elements, otherwise
    `clear(x)`.
    `padding` is the most elements before the first. If all of these are known, `lanes` elements are copied at a
    time."""
    if not isinstance(size, int):
        first = minimum(maximum(0 - start, 0), extent)
        end = maximum(minimum(extent, size - start), first)
        return sequence(
            repeat("x", first, clear) if padding > 0 else None,
            repeat("x", end - first, lambda x: copy(x + first, x + first + start, 1)),
            repeat("x", extent - end, lambda x: clear(x + end)),
        )
    if not isinstance(start, int):
        return repeat(
            "x",
            extent,
            lambda x: sequence(when(both(start + x >= 0, start + x < size), copy(x, start + x, 1), clear(x))),
        )
    leading = max(0, -start)
    middle = max(0, min(extent, size - start) - leading)
    parts = [clear(x) for x in range(min(leading, extent))]

    def run(first: int, count: int, step: int) -> Stmt:
        return repeat("x", count, lambda x: copy(x * step + first, x * step + first + start, step))

    vectors = middle // lanes if lanes > 1 else 0
    parts += [run(leading, vectors, lanes)] if vectors else []
    rest = middle - vectors * lanes
    parts += [run(leading + vectors * lanes, rest, 1)] if rest else []
    return sequence(parts, [clear(x) for x in range(leading + middle, extent)])


_INDEX = "int64"
# Typical image widths in networks, used to choose a register tile for dynamic widths.
_WIDTHS = (7, 10, 14, 20, 28, 40, 56, 75, 112)
_ROOM = 128  # columns of a task, and the size of its scratch buffer
_LINE_ROOM = 1024  # the same if there are no rows
_ROWS = 16


@dataclass(frozen=True)
class Sizes:
    """A window kernel's input and output sizes of each spatial dimension, the padding before the input, and the
    statements that name them."""

    spatial: tuple[Index, ...]
    out: tuple[Index, ...]
    before: tuple[Index, ...]
    bindings: tuple[Stmt, ...] = ()

    @classmethod
    def of(cls, work: WindowWorkload, data: Expr, outer: Sequence[Index]) -> Sizes:
        """Take sizes from the workload if static, otherwise from the buffer of the input and the output's `outer`."""
        bindings: list[Stmt] = []

        def named(name: str, known: int, size: Index) -> Index:
            if known or isinstance(size, int):
                return known or size
            return name_opaque(name, size, bindings)

        inner = shape_of(data)[2:]
        spatial = [named(f"size{i}", known, inner[i]) for i, known in enumerate(work.spatial)]
        out = [named(f"out{i}", work.out_spatial[i], outer[i]) for i in range(work.rank)]
        padding = padding_before(work, spatial, out)
        before = [name_opaque(f"before{i}", amount, bindings) for i, amount in enumerate(padding)]
        return cls(tuple(spatial), tuple(out), tuple(before), tuple(bindings))


def position(work: WindowWorkload, name: str, value: Index, names: list[Stmt]) -> Index:
    """A position in an image; bound to a variable if its size is dynamic, so that its divisions are not repeated in
    every index."""
    return name_opaque(name, value, names) if work.is_open else value


def padding_before(work: WindowWorkload, spatial: Sequence[Index], out: Sequence[Index]) -> list[Index]:
    """Padding before the input along each spatial dimension, from the input and output sizes."""
    result: list[Index] = []
    for dim, (before, _) in enumerate(work.pad):
        if not work.same or work.spatial[dim]:
            result.append(before)
            continue
        reach = (out[dim] - 1) * work.strides[dim] + (work.kernel[dim] - 1) * work.dilations[dim] + 1
        total = maximum(reach - spatial[dim], 0)
        result.append((total + (1 if work.same == "lower" else 0)) // 2)
    return result


def open_repeat(name: str, extent: Expr, tile: int, body: Callable[[Index, int], Stmt]) -> Stmt:
    """Call `body(start, size)` over [0, extent) for a dynamic extent: a loop of full tiles, then the remainder in tiles
    of decreasing powers of two."""
    rest = extent % tile
    full = extent - rest
    parts = [repeat(name, extent // tile, lambda i: body(i * tile, tile))]
    for size in falling_halves(tile):
        start = full + rest // (2 * size) * (2 * size)
        parts.append(when(rest % (2 * size) >= size, body(start, size)))
    return sequence(parts)


@lru_cache(maxsize=256)  # networks have few distinct channel counts and query each convolution more than once
def open_register_tile(
    out_blocks: int, machine: Machine, load_cycles: float = 0.5, *, by_lane: bool = False
) -> tuple[int, int]:
    """(pixels, channel blocks) of lowest cost for rows of any width, with remainders tiled as in `open_repeat`."""

    def cost(pixels: int, blocks: int) -> float:
        return sum(open_row_cost(machine, width, pixels, blocks, load_cycles) / width for width in _WIDTHS)

    return _cheapest_tile(cost, block_choices(out_blocks, machine), _WIDTHS[2], machine, by_lane=by_lane)


def open_row_cost(machine: Machine, width: int, pixels: int, blocks: int, load_cycles: float = 0.5) -> float:
    """`conv_tiling.row_cost` of the tiles that `open_repeat` generates."""
    full_tiles, rest = divmod(width, pixels)
    sizes = [size for size in falling_halves(pixels) if rest & size]
    cost = full_tiles * tile_cost(machine, pixels, blocks, load_cycles)
    cost += sum(tile_cost(machine, size, blocks, load_cycles) + 2 for size in sizes)
    return (cost + (full_tiles + len(sizes)) * blocks / 2) / blocks


def open_block(rank: int, bytes_of: Callable[[int, int], int], budget: int, pixels: int) -> tuple[int, int]:
    """Maximum (rows, columns) of a task's output such that its input, `bytes_of(rows, columns)`, fits.

    Columns are whole register tiles. Rows suit images half as wide as the widest that is not split.
    """
    columns = max(1, (_ROOM if rank > 1 else _LINE_ROOM) // pixels) * pixels
    while columns > pixels and bytes_of(1, columns) > budget:
        columns = ceil_div(columns // pixels, 2) * pixels
    rows = _ROWS if rank > 1 else 1
    while rows > 1 and bytes_of(rows, ceil_div(columns, 2)) > budget:
        rows -= 1
    return rows, columns


def edges(work: WindowWorkload, sizes: Sizes) -> tuple[Index, Index]:
    """Range [first, end) of outputs along the last dimension whose window is entirely inside the input."""
    (max_before, max_after), stride = work.pad[-1], work.strides[-1]
    size, out, before = sizes.spatial[-1], sizes.out[-1], sizes.before[-1]
    if max_before <= 0 and max_after <= 0:
        return 0, out
    first = minimum(ceil_div(maximum(before, 0), stride), out)
    reach = (work.kernel[-1] - 1) * work.dilations[-1] + 1
    end = (size - reach + before) // stride + 1
    return first, maximum(minimum(end, out), first)


# Default configs of direct convolutions, computed from the machine, for static and dynamic sizes.

_SMALL_TILE = 16  # registers; in larger tiles unrolling four channels needs registers for addresses
OPEN_ROWS, OPEN_COLUMNS = 64, 1024  # the most dynamic rows and columns per task


def direct_default(work: ConvWorkload, machine: Machine, pixels: int, blocks: int) -> Config:
    """Default config for a register tile of `pixels` x `blocks`."""
    unroll = channel_unroll(work, machine, pixels, blocks)
    if work.is_open:
        bytes_of = partial(input_bytes, work, work.group_channels)
        rows, columns = open_block(work.rank, bytes_of, machine.l2_bytes // 2, pixels)
        rows = min(rows, work.out_spatial[-2] or rows) if work.rank > 1 else rows
        columns = min(columns, work.out_spatial[-1] or columns)
    else:
        rows, columns = spatial_block(work, machine, pixels)
        if pixels * blocks <= _SMALL_TILE and rows * ceil_div(columns, pixels) < work.in_block * blocks:
            unroll = 4  # few, short tiles prefetch many weights: split into parts of a channel block
    return Config.of(pixels=pixels, blocks=blocks, rows=rows, columns=columns, chunks=1, unroll=unroll)


def tile_for(work: ConvWorkload, machine: Machine, load_cycles: float = 0.5) -> tuple[int, int]:
    """(pixels, channel blocks) of the register tile."""
    width, by_lane = work.out_spatial[-1], multiplies_by_lane(work, machine)
    if width == 0:
        return open_register_tile(even_blocks(work), machine, load_cycles, by_lane=by_lane)
    return register_tile(width, even_blocks(work), machine, load_cycles, by_lane=by_lane)


def even_blocks(work: ConvWorkload) -> int:
    """A number of output blocks that divides every group."""
    return gcd(work.group_out_blocks, work.last_group_out_blocks)


def chunk_choices(work: ConvWorkload) -> tuple[int, ...]:
    """Candidate numbers of tasks to split the output channels into; group boundaries are respected."""
    return divisors(work.groups if work.groups > 1 else work.out_blocks)
