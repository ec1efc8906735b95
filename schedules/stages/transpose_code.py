"""Code for elementwise stages that read along one axis and write along another: transposes, layout changes.

Square blocks are transposed in registers: rows are loaded along the axis that is contiguous in the source, exchanged
in log2(n) rounds of two-row shuffles, and the stage's body then reads them along the axis it stores to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from schedules.codegen.nest import Extent, parallel_grid, repeat
from schedules.ir.expression import expression, index, map_loads, substitute, uses
from schedules.ir.numbers import ceil_div
from schedules.ir.stages import Stage
from schedules.ir.tir import VECTORIZED, Buffer, Expr, Index, Stmt, Var, structural_equal, tirx
from schedules.machine import Machine
from schedules.stages.loops import Loop, LoopNest
from schedules.task_split import split_nest

_LARGEST_BLOCK = 16
_BLOCKS_OF_A_RUN = 4  # along an axis of unknown length, shared by threads
_SMALLEST_EXTENT = 4  # below this along either axis, single elements are as fast


@dataclass(frozen=True, eq=False)
class Transpose:
    """A stage that stores along `target`; its loads with the access indices `moved` run along `source`."""

    target: Loop
    source: Loop
    moved: tuple[int, ...]


def find_transpose(nest: LoopNest) -> Transpose | None:
    """The axes of a transposing stage; None if there are no two such axes."""
    if nest.stage.store is None or nest.stage.reduction:
        return None
    for target in reversed(nest.spatial):
        if any(target.strides[i] != 1 for i in nest.stores):
            continue
        moved = tuple(i for i, stride in enumerate(target.strides) if stride not in (0, 1))
        for source in nest.spatial:
            if source is not target and _serves(nest, source, target, moved):
                return Transpose(target, source, moved)
    return None


def _serves(nest: LoopNest, source: Loop, target: Loop, moved: Sequence[int]) -> bool:
    extents = (source.extent, target.extent)
    short = any(isinstance(each, int) and each < _SMALLEST_EXTENT for each in extents)
    ragged = any(not isinstance(each, int) and uses(each, loop.var) for each in extents for loop in nest.spatial)
    if not moved or short or ragged:
        return False
    return all(source.strides[i] == 1 and target.strides[i] is not None for i in moved)


def transpose_code(
    nest: LoopNest, found: Transpose, machine: Machine, lanes: int, *, threads: bool | Expr, cycles: float
) -> Stmt:
    """The stage as blocks of at most 16 x 16; the remainder at the edges in shorter vectors or, along axes of unknown
    length, element by element."""
    size = 1 << (min(lanes, _LARGEST_BLOCK).bit_length() - 1)
    writer = _BlockWriter(nest.stage, nest, found, size)
    outer_loops = [loop for loop in nest.spatial if loop is not found.source and loop is not found.target]

    height, width = found.source.extent, found.target.extent
    blocks = [_block_count(height, size), _block_count(width, size)]
    sizes = [each for each in blocks if isinstance(each, int)]
    longer = blocks.index(max(sizes)) if len(sizes) == len(blocks) else int(isinstance(blocks[0], int))
    run = blocks[longer]
    if not isinstance(run, int):
        run = _BLOCKS_OF_A_RUN
    elif threads is not False:
        run = split_nest([loop.extent for loop in outer_loops], machine, cycles, run).run
    is_cut = not isinstance(blocks[longer], int) or run < blocks[longer]

    def body(values: list[Expr]) -> Stmt:
        *outer, part = values
        mapping = {loop.var: value for loop, value in zip(outer_loops, outer, strict=True)}
        first: list[Index] = [0, 0]
        counts: list[Index] = list(blocks)
        if is_cut:
            first[longer] = part * run
            counts[longer] = tirx.Min(index(run), expression(blocks[longer]) - first[longer])

        def block(i: Index, j: Index) -> Stmt:
            row, column = expression(first[0] + i), expression(first[1] + j)
            if len(sizes) < len(blocks):
                return writer.at_open_edge(mapping, row * size, column * size, height, width)
            write = partial(writer.block, mapping, row * size, column * size)
            return _at_edge(
                row, height, size, lambda rows: _at_edge(column, width, size, lambda columns: write(rows, columns))
            )

        return repeat("row", counts[0], lambda i: repeat("column", counts[1], lambda j: block(i, j)))

    extents = [Extent(str(loop.var.name), loop.extent, str(loop.var.ty)) for loop in outer_loops]
    extents.append(Extent("part", _block_count(blocks[longer], run)))
    return parallel_grid(extents, body, machine, parallel=threads, cycles=cycles)


def _block_count(extent: Index, size: int) -> Index:
    """Number of blocks, the last of which may be shorter."""
    return ceil_div(extent, size) if isinstance(extent, int) else tirx.FloorDiv(extent + (size - 1), index(size))


def _at_edge(number: Expr, extent: int, size: int, code: Callable[[int], Stmt]) -> Stmt:
    """The code for a piece of an axis, given its length: `size`, except for the last one."""
    whole, rest = divmod(extent, size)
    if not whole or not rest:
        return code(size if whole else rest)
    return tirx.IfThenElse(number < whole, code(size), code(rest))


class _BlockWriter:
    """Writes blocks of `size` x `size`."""

    def __init__(self, stage: Stage, nest: LoopNest, found: Transpose, size: int) -> None:
        self.stage = stage
        self.found = found
        self.size = size
        self.loads = [(nest.accesses[i].buffer, list(nest.accesses[i].indices)) for i in found.moved]

    def block(self, outer: Mapping[Var, Expr], row: Expr, column: Expr, rows: int, columns: int) -> Stmt:
        """`rows` along the source axis from `row` on, `columns` along the target axis."""
        statements: list[Stmt] = []
        turned = [self._turned(load, outer, row, column, rows, columns, statements) for load in self.loads]
        for i in range(rows):
            statements.append(
                repeat("lane", columns, lambda lane, i=i: self._stored(turned, outer, row, column, i, lane), VECTORIZED)  # type: ignore[misc]
            )
        return tirx.SeqStmt(statements)

    def at_open_edge(self, outer: Mapping[Var, Expr], row: Expr, column: Expr, height: Index, width: Index) -> Stmt:
        """A block, or only its elements inside, if it reaches past axes of unknown length."""
        rows, columns = (
            tirx.Min(index(self.size), expression(extent) - at) for extent, at in ((height, row), (width, column))
        )

        def element(i: Index, j: Index) -> Stmt:
            position = {**outer, self.found.source.var: row + i, self.found.target.var: column + j}
            return substitute(self.stage.body, position)

        is_whole = tirx.all(rows == index(self.size), columns == index(self.size))
        rest = repeat("i", rows, lambda i: repeat("j", columns, lambda j: element(i, j)))
        return tirx.IfThenElse(is_whole, self.block(outer, row, column, self.size, self.size), rest)

    def _turned(
        self,
        load: tuple[Expr, list[Expr]],
        outer: Mapping[Var, Expr],
        row: Expr,
        column: Expr,
        rows: int,
        columns: int,
        statements: list[Stmt],
    ) -> Expr:
        """A buffer whose element [i * size + j] is the load at row + i, column + j; appends its stores."""
        buffer, indices = load
        current = self._registers(str(buffer.dtype), statements)
        for j in range(columns):

            def read(lane: Expr, j: int = j) -> Stmt:
                position = {**outer, self.found.source.var: row + lane, self.found.target.var: column + j}
                value = tirx.BufferLoad(buffer, [substitute(point, position) for point in indices])
                return tirx.BufferStore(current, value, [index(j * self.size) + lane])

            statements.append(repeat("lane", rows, read, VECTORIZED))
        step = self.size // 2
        while step:
            current = self._exchange(current, step, statements)
            step //= 2
        return current

    def _registers(self, dtype: str, statements: list[Stmt]) -> Expr:
        made = tirx.decl_buffer([self.size * self.size], dtype, "block", scope="local", layout=None)
        statements.append(tirx.AllocBuffer(made))
        return made

    def _exchange(self, source: Buffer, step: int, statements: list[Stmt]) -> Expr:
        """Swap the off-diagonal quarters of every 2 `step` x 2 `step` sub-block."""
        result = self._registers(str(source.dtype), statements)
        n = self.size
        low = [lane if not lane & step else n + lane - step for lane in range(n)]
        high = [lane + step if not lane & step else n + lane for lane in range(n)]

        def row(i: int) -> Expr:
            return tirx.Ramp(index(i * n), index(1), n)

        for i in range(n):
            if i & step:
                continue
            pair = [tirx.BufferLoad(source, [row(i)]), tirx.BufferLoad(source, [row(i | step)])]
            statements.append(tirx.BufferStore(result, tirx.Shuffle(pair, low), [row(i)]))
            statements.append(tirx.BufferStore(result, tirx.Shuffle(pair, high), [row(i | step)]))
        return result

    def _stored(
        self, turned: Sequence[Expr], outer: Mapping[Var, Expr], row: Expr, column: Expr, i: int, lane: Expr
    ) -> Stmt:
        """The stage's body at row + i, column + lane, reading the transposed blocks."""

        def replace(load: Expr) -> Expr:
            for (buffer, indices), block in zip(self.loads, turned, strict=True):
                if load.source.same_as(buffer) and structural_equal(list(load.indices), indices):
                    return tirx.BufferLoad(block, [index(i * self.size) + lane])
            return None

        store = self.stage.body
        value = map_loads(store.value, replace)
        position = {**outer, self.found.source.var: row + i, self.found.target.var: column + lane}
        return substitute(tirx.BufferStore(store.buffer, value, list(store.indices)), position)
