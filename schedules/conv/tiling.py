"""Register tiles and cache blocks of convolutions, computed from the machine."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from schedules.config import Config
from schedules.conv.workload import ConvWorkload, DotWorkload, WindowWorkload
from schedules.ir.numbers import ceil_div
from schedules.ir.tir import Index
from schedules.machine import Machine, dtype_bits

MAX_PIXELS = 30


def accumulators(machine: Machine) -> int:
    """Number of vector registers available as accumulators; the rest hold weights and broadcast values.

    With 16 registers LLVM spills from 10 accumulators on: 107 GFLOP/s with 4 x 2, 75 with 6 x 2 (Zen 4, AVX2).
    """
    if machine.register_sums is not None:
        return machine.register_sums
    registers = machine.vector_registers
    return registers - 4 if registers >= 32 else max(4, registers // 2)


def multiplies_by_lane(work: ConvWorkload, machine: Machine) -> bool:
    """True if vectors of an output block are multiplied by single lanes of an input block."""
    floats = work.dtype == work.source_dtype == "float32"
    return machine.lane_products and floats and work.block == work.in_block == machine.lanes("float32")


def most_pixels(blocks: int, machine: Machine, *, by_lane: bool = False) -> int:
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

    Tiles far beyond what hides the latency cost more: the next tile cannot begin while all registers are taken
    (measured on Zen 4: 118 GFLOP/s with 14 accumulators, 113 with 28). `load_cycles` is that of two load ports.
    """
    sums = pixels * blocks
    enough = 4 * machine.fma_ports * machine.fma_latency
    arithmetic = sums / machine.fma_ports * (1 + 0.006 * max(0, sums - enough))
    loads = (pixels + blocks + 1) * load_cycles * 2 / machine.load_ports  # one load prefetches
    return max(arithmetic, loads, machine.fma_latency)


def row_cost(machine: Machine, width: int, pixels: int, blocks: int, load_cycles: float = 0.5) -> float:
    """Cycles for a row of `width` pixels in tiles of `pixels`, for one input channel and one block of channels."""
    whole, rest = divmod(width, pixels)
    cost = whole * tile_cost(machine, pixels, blocks, load_cycles)
    if rest:
        cost += tile_cost(machine, rest, blocks, load_cycles) + 2  # and twice the code
    # Each tile reads all weights of its channels: nearly as expensive as a load from the level-2 cache.
    weights = (whole + bool(rest)) * blocks
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
    """Cycles to broadcast scalars, where a broadcast takes an issue slot from a multiply-add."""
    by_lane = min(config.integer("unroll"), work.in_block) % work.in_block == 0
    return 1 / machine.fma_ports if multiplies_by_lane(work, machine) and not by_lane else 0.0


def tails(tile: int) -> list[int]:
    """Decreasing powers of two below a tile size; the remainder of a dynamic width is split into these."""
    return [1 << power for power in reversed(range((tile - 1).bit_length()))]


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
        whole = row_cost(machine, width, pixels, blocks, load_cycles)
        rest = out_blocks % blocks
        if not rest:
            return whole
        last = row_cost(machine, width, pixels, rest, load_cycles)
        return _UNEVEN * (whole * (out_blocks - rest) + last * rest) / out_blocks

    choices = [
        (cost(pixels, blocks), -pixels * blocks, pixels, blocks)
        for blocks in uneven_block_choices(out_blocks, machine)
        for pixels in range(1, min(width, most_pixels(blocks, machine, by_lane=by_lane), MAX_PIXELS) + 1)
        if pixels * blocks + blocks + 1 < machine.vector_registers or pixels == 1
    ]
    _, _, pixels, blocks = min(choices)
    return pixels, blocks


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

    Rows are as even as can be; columns are cut, at whole register tiles, only when one row is too large.
    """
    budget = machine.l2_bytes // 2
    width = work.out_spatial[-1]
    height = work.out_spatial[-2] if work.rank > 1 else 1
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
class Place:
    """Position of a task: an image, the first output position of its block, the valid output extent along each
    dimension, and one group's input as its first channel block and number of channels. `part` is the index of its
    output block within the image."""

    image: Index
    corner: tuple[Index, ...]
    source: Index
    channels: int
    live: tuple[Index, ...] = ()
    part: Index = 0
