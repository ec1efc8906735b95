"""Dynamic spatial sizes: their variables, and their tiling.

Sizes and positions are Python ints where they are known and expressions where they are not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from schedules.codegen.nest import both, name_opaque, repeat, sequence, when
from schedules.conv.tiling import block_choices, most_pixels, tails, tile_cost
from schedules.conv.workload import WindowWorkload
from schedules.ir.numbers import ceil_div
from schedules.ir.stages import shape_of
from schedules.ir.tir import Expr, Index, Stmt, tirx
from schedules.machine import Machine

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
    """`copy(x, start + x, 1)` for each x below `extent` where the line, of `size` elements, has such an element; else
    `clear(x)`. `padding` is how many elements may lie before the first. Where all of these are known, `lanes` elements
    are copied at a time."""
    if not isinstance(size, int):
        first = least(most(0 - start, 0), extent)
        end = most(least(extent, size - start), first)
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
    before = max(0, -start)
    middle = max(0, min(extent, size - start) - before)
    parts = [clear(x) for x in range(min(before, extent))]

    def run(first: int, count: int, step: int) -> Stmt:
        return repeat("x", count, lambda x: copy(x * step + first, x * step + first + start, step))

    whole = middle // lanes if lanes > 1 else 0
    parts += [run(before, whole, lanes)] if whole else []
    rest = middle - whole * lanes
    parts += [run(before + whole * lanes, rest, 1)] if rest else []
    return sequence(parts, [clear(x) for x in range(before + middle, extent)])


_INDEX = "int64"
# Widths of images on their way through networks: what a register tile for any width is chosen by.
_WIDTHS = (7, 10, 14, 20, 28, 40, 56, 75, 112)
_ROOM = 128  # columns of a task, and what its scratch buffer has room for
_LINE_ROOM = 1024  # the same when there are no rows
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
    def of(cls, work: WindowWorkload, data: Expr, result: Expr) -> Sizes:
        """Take sizes from the workload if static, else from the buffers of the input and of the anchor's result."""
        bindings: list[Stmt] = []

        def named(name: str, known: int, size: Index) -> Index:
            if known or isinstance(size, int):
                return known or size
            return name_opaque(name, size, bindings)

        inner, outer = shape_of(data)[2:], shape_of(result)[2:]
        spatial = [named(f"size{i}", known, inner[i]) for i, known in enumerate(work.spatial)]
        out = [named(f"out{i}", work.out_spatial[i], outer[i]) for i in range(work.rank)]
        padding = padding_before(work, spatial, out)
        before = [name_opaque(f"before{i}", amount, bindings) for i, amount in enumerate(padding)]
        return cls(tuple(spatial), tuple(out), tuple(before), tuple(bindings))


def padding_before(work: WindowWorkload, spatial: Sequence[Index], out: Sequence[Index]) -> list[Index]:
    """Padding before the input along each spatial dimension, from the input and output sizes."""
    result: list[Index] = []
    for dim, (before, _) in enumerate(work.pad):
        if not work.same or work.spatial[dim]:
            result.append(before)
            continue
        reach = (out[dim] - 1) * work.strides[dim] + (work.kernel[dim] - 1) * work.dilations[dim] + 1
        total = most(reach - spatial[dim], 0)
        result.append((total + (1 if work.same == "lower" else 0)) // 2)
    return result


def least(left: Index, right: Index) -> Expr:
    """Minimum of two, folded if both are constant."""
    return min(left, right) if isinstance(left, int) and isinstance(right, int) else tirx.min(left, right)


def most(left: Expr, right: Index) -> Expr:
    """Maximum of two, folded if both are constant."""
    return max(left, right) if isinstance(left, int) and isinstance(right, int) else tirx.max(left, right)


def parts_of(size: Index, part: Index) -> Index:
    """ceil(size / part)."""
    return ceil_div(size, part) if isinstance(size, int) and isinstance(part, int) else (size + part - 1) // part


def open_repeat(name: str, extent: Expr, tile: int, body: Callable[[Index, int], Stmt]) -> Stmt:
    """Call `body(start, size)` over [0, extent) for a dynamic extent: a loop of full tiles, then the remainder in tiles
    of decreasing powers of two."""
    rest = extent % tile
    whole = extent - rest
    parts = [repeat(name, extent // tile, lambda i: body(i * tile, tile))]
    for size in tails(tile):
        start = whole + rest // (2 * size) * (2 * size)
        parts.append(when(rest % (2 * size) >= size, body(start, size)))
    return sequence(parts)


@lru_cache(maxsize=256)  # a network has few numbers of channels, and asks for each convolution more than once
def open_register_tile(
    out_blocks: int, machine: Machine, load_cycles: float = 0.5, *, by_lane: bool = False
) -> tuple[int, int]:
    """(pixels, channel blocks) of lowest cost for rows of any width, with remainders tiled as in `open_repeat`."""

    def cost(pixels: int, blocks: int) -> float:
        return sum(open_row_cost(machine, width, pixels, blocks, load_cycles) / width for width in _WIDTHS)

    choices = [
        (cost(pixels, blocks), -pixels * blocks, pixels, blocks)
        for blocks in block_choices(out_blocks, machine)
        for pixels in range(1, min(_WIDTHS[2], most_pixels(blocks, machine, by_lane=by_lane)) + 1)
        if pixels * blocks + blocks + 1 < machine.vector_registers or pixels == 1
    ]
    _, _, pixels, blocks = min(choices)
    return pixels, blocks


def open_row_cost(machine: Machine, width: int, pixels: int, blocks: int, load_cycles: float = 0.5) -> float:
    """`conv_tiling.row_cost` of the tiles that `open_repeat` generates."""
    whole, rest = divmod(width, pixels)
    sizes = [size for size in tails(pixels) if rest & size]
    cost = whole * tile_cost(machine, pixels, blocks, load_cycles)
    cost += sum(tile_cost(machine, size, blocks, load_cycles) + 2 for size in sizes)
    return (cost + (whole + len(sizes)) * blocks / 2) / blocks


def open_block(rank: int, bytes_of: Callable[[int, int], int], budget: int, pixels: int) -> tuple[int, int]:
    """Maximum (rows, columns) of a task's output such that its input, `bytes_of(rows, columns)`, fits.

    Columns are whole register tiles. Rows suit images half as wide as the widest that is not cut.
    """
    columns = max(1, (_ROOM if rank > 1 else _LINE_ROOM) // pixels) * pixels
    while columns > pixels and bytes_of(1, columns) > budget:
        columns = ceil_div(columns // pixels, 2) * pixels
    rows = _ROWS if rank > 1 else 1
    while rows > 1 and bytes_of(rows, ceil_div(columns, 2)) > budget:
        rows -= 1
    return rows, columns


def edges(work: WindowWorkload, sizes: Sizes) -> tuple[Index, Index]:
    """Range [first, end) of outputs along the last dimension whose window lies entirely inside the input."""
    (most_before, after), stride = work.pad[-1], work.strides[-1]
    size, out, before = sizes.spatial[-1], sizes.out[-1], sizes.before[-1]
    if most_before <= 0 and after <= 0:
        return 0, out
    first = least(parts_of(most(before, 0), stride), out)
    reach = (work.kernel[-1] - 1) * work.dilations[-1] + 1
    end = (size - reach + before) // stride + 1
    return first, most(least(end, out), first)
