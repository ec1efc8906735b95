"""Matmuls of float32 data and a block-sparse or N:M sparse weight. For block-sparse weights, only nonzero blocks are
multiplied:

    C[i, j] = sum over the blocks b of the panel of j of A[i, row of b] * values[b, j % width]

A block is as wide as the register tile, so the innermost step is that of a dense matmul with the row of the weight
looked up; with few rows, blocks are added to two or more sums alternately, so that additions do not wait for each
other.

The layout of block-sparse constant weights: only nonzero blocks are stored.

A weight is a matrix (depth, columns) split into panels of `width` columns; a block is one row of a panel. The nonzero
blocks are stored consecutively, panel by panel:

    values: float32 (blocks, width)
    index: int32 (panels + 1 + blocks,): the start of each panel in `values`, the end of the last one, and then the row
        of each block

Chooses between sparse and dense matmul kernels, from the machine and the positions of the zeros.

Dense and sparse kernels do the same for each stored number, so the choice depends on the stored fraction times the
additional cost of a number in a sparse kernel. `python -m benchmarks.sparsity` measures both and prints the break-even.

Matmuls of float32 data and an N:M sparse weight: N of every M neighbors along the depth are nonzero.

    C[i, j] = sum over groups g and their choices c of A[i, M g + which(g, c, j)] * values[g, c, j]

A register of data holds the M numbers of a group, and a permutation selects the one for each column: a multiply-add
and a permutation for each stored number.

The layout of N:M sparse constant weights: N of every M neighbors along the depth are nonzero.

A weight is a matrix (depth, columns) split into panels of `width` columns, a vector of the machine. Each group of M
rows is stored as N rows of values and, for each of these and each column, its index within the M:

    values: float32 (panels, depth / M * N, width)
    words: int32 (panels, ceil(depth / M / groups per word), width), the indices of several groups packed in a word
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from schedules.annotations import KIND, SPEC
from schedules.codegen.nest import ROWS_AHEAD, bind, lanes_of, load, name_value, prefetch, repeat, sequence, split_steps
from schedules.codegen.register_tile import RegisterTile
from schedules.config import Config, ConfigSpace
from schedules.instructions.select_lanes import choices_of, selected
from schedules.ir.expression import expression
from schedules.ir.expression import index as constant
from schedules.ir.stages import Kernel, shape_of
from schedules.ir.tir import Expr, Index, Stmt, Tensor, te, tirx
from schedules.machine import Machine
from schedules.matmul.form import MatmulForm
from schedules.matmul.packed_operand import (
    PanelRule,
    WriterOfParts,
    independent_sums,
    joined,
    looked_up,
    pack_panels,
    panel_fields,
)
from schedules.matmul.tiling import MatmulWorkload, best_tile, panel_width, tile_cost
from schedules.matmul.writer import Batch, MatmulWriter, Tile
from schedules.stages.fused_kernel import FusedKernel, only_anchors


@dataclass(frozen=True, eq=False)
class SparseWeight:
    """A packed weight. `longest` is the maximum number of blocks in a panel."""

    values: NDArray[np.float32]
    index: NDArray[np.int32]
    longest: int


def share_kept(panels: np.ndarray) -> float:
    """Fraction of nonzero blocks of (panels, depth, width)."""
    return float(np.any(panels, axis=-1).mean())


def pack_blocks(panels: np.ndarray, rows: NDArray[np.int32] | None = None) -> SparseWeight:
    """Pack a weight given as (panels, depth, width). `rows`: index entry of each row of the depth; the row number if
    None."""
    nonzero = np.any(panels, axis=-1)
    counts = nonzero.sum(axis=1)
    panel, row = np.nonzero(nonzero)
    values = panels[panel, row]
    names = row if rows is None else rows[row]
    if not len(values):  # operands must not be empty tensors
        values, names = np.zeros((1, panels.shape[-1]), panels.dtype), np.zeros(1, np.int64)
    starts = np.concatenate([[0], np.cumsum(counts)])
    index = np.concatenate([starts, names]).astype(np.int32)
    return SparseWeight(np.ascontiguousarray(values, np.float32), index, max(1, int(counts.max())))


def entry(index: Tensor, at: Expr) -> Expr:
    """An index element, cast to the dtype of loop variables; `index` is a `te` tensor."""
    return tirx.Cast("int64", index(at))


MATMUL_SPARSE = "matmul-sparse"


def matmul_sparse(data: Tensor, values: Tensor, index: Tensor, *, columns: int, longest: int) -> Tensor:
    """Matmul of float32 data (..., depth) and a weight in the layout of `sparse_weights`: float32 (..., columns)."""
    width = int(values.shape[1])
    panels = -(-columns // width)
    block = te.reduce_axis((constant(0), constant(longest)), name="block")
    zero = tirx.const(0.0, "float32")

    def point(*at: Expr) -> Expr:
        panel, lane = tirx.floordiv(at[-1], width), tirx.floormod(at[-1], width)
        first = entry(index, panel)
        row = entry(index, panels + 1 + first + block)
        product = data(*at[:-1], row) * values(first + block, lane)
        return te.sum(tirx.if_then_else(block < entry(index, panel + 1) - first, product, zero), axis=block)

    shape = [*data.shape[:-1], constant(columns)]
    return te.compute(shape, point, name="matmul", attrs={KIND: MATMUL_SPARSE})


@dataclass(frozen=True, eq=False)
class Parts:
    """The stage of the matmul and its operands."""

    form: MatmulForm
    values: Expr
    index: Expr
    panels: int

    @property
    def blocks(self) -> int:
        return int(shape_of(self.values)[0])


@dataclass(frozen=True)
class SparseWorkload(MatmulWorkload):
    """A matmul with `blocks` nonzero blocks of `width` columns."""

    blocks: int = 0


class MatmulSparse(PanelRule[SparseWorkload, Parts]):
    """Serves the kernels of `matmul_sparse`."""

    name: ClassVar[str] = MATMUL_SPARSE

    def workload(self, parts: Parts, machine: Machine) -> SparseWorkload:
        return SparseWorkload(**panel_fields(parts.form, "float32"), blocks=parts.blocks)

    def parts(self, kernel: Kernel) -> Parts | None:
        found = looked_up(only_anchors(kernel, MATMUL_SPARSE))
        if found is None:
            return None
        form, index = found
        return Parts(form, form.b.source, index, -(-int(form.columns) // form.width))

    def writer(self, parts: Parts, fused: FusedKernel, machine: Machine, rows: int) -> MatmulWriter:
        return SparseWriter(parts, fused, machine, rows=rows)


class SparseWriter(WriterOfParts[Parts]):
    """Writes a matmul: the common loops, with its own tile."""

    def _multiplications(self) -> Index:
        return self.form.rows.extent * (self.parts.blocks * self.form.width)

    def _tile(self, at: Tile) -> Stmt:
        """`rows x width` results: a loop over the panel's blocks, each added to the tiles in turn."""
        rows, width = int(at.rows), at.width
        tiles = [
            RegisterTile(rows, width, self.lanes, "float32")
            for _ in range(independent_sums(rows * -(-width // self.lanes), self.machine))
        ]
        count_of_tiles, (sums, *more_sums) = len(tiles), tiles
        panel = tirx.FloorDiv(at.column, constant(self.form.width))
        parts: list[Stmt] = []
        first = name_value("first", self._entry(panel), parts)
        count = name_value("count", self._entry(panel + 1) - first, parts)

        def step(tile: RegisterTile, slot: Expr) -> list[Stmt]:
            code: list[Stmt] = []
            step_row = name_value("row", self._entry(slot + (self.parts.panels + 1)), code)

            def add(i: int, position: Expr, lane: Expr) -> Expr:
                value = tirx.BufferLoad(self.parts.values, [slot, lane])
                return tile.sum(i, position) + self.form.a_at(at.batch, at.row + i, step_row) * value

            return [*code, *tile.stores(add)]

        def round_of(number: Expr) -> Stmt:
            slot = first + number * count_of_tiles
            code: list[Stmt] = []
            for i, tile in enumerate(tiles):
                ahead = slot + i + ROWS_AHEAD
                code += [prefetch(self.parts.values, ahead, lane) for lane in range(0, width, self.lanes)]
                code += step(tile, slot + i)
            return sequence(code)

        rounds = tirx.FloorDiv(count, constant(count_of_tiles))
        done = rounds * count_of_tiles
        parts += [each for tile in tiles for each in tile.cleared()]
        parts.append(repeat("round", rounds, round_of))
        if more_sums:
            parts.append(repeat("left", count - done, lambda n: sequence(step(sums, first + done + n))))
        for other in more_sums:
            parts += joined(sums, other)
        return sequence([*parts, *self._finish(sums, at)])

    def _entry(self, at: Expr) -> Expr:
        return tirx.Cast("int64", tirx.BufferLoad(self.parts.index, [at]))


# All measured on Zen 4 with AVX-512. Cost of a block in a sparse matmul relative to one in a dense matmul, without any
# zeros: its row is looked up, and a tile one vector wide loads an element of the data for each multiply-add.
_LOOKED_UP = 1.28
# Cost of a number in N:M relative to a dense matmul: a permutation next to the multiply-add, half as many per cycle.
_PERMUTED = 2.5
# Bytes of weights that a core reads per cycle from its L2 cache or the shared one.
_WEIGHTS_RATE = 26.0
_MANY_ROWS = 960


@dataclass(frozen=True)
class SparseForm:
    """Sparse format of a weight: without its zero blocks of `width` columns, or N:M sparse as described by `groups`."""

    width: int
    groups: Groups | None = None


def sparse_form(weight: np.ndarray, rows: int, machine: Machine) -> SparseForm | None:
    """The fastest sparse format for a matmul of `rows` rows (0: any number) and a (depth, columns) weight; None if the
    dense kernel is faster."""
    columns = weight.shape[1]
    lanes = machine.lanes("float32")
    dense = dense_cycles(rows, columns, machine)
    forms: list[tuple[float, SparseForm]] = []
    # At most the tile width of dense matmuls.
    widest = lanes * (2 if machine.vector_bits >= 512 or machine.vector_registers < 32 else 4)
    for width in (lanes, 2 * lanes, 4 * lanes):
        if width <= min(columns, widest):
            kept = share_kept(pack_panels(weight, width))
            forms.append((block_cycles(kept, rows, columns, width, machine), SparseForm(width)))
    for of in choices_of(machine):
        if len(weight) % of == 0 and 0 < (keep := max_kept(weight, of)) <= of // 2:
            form = SparseForm(lanes, Groups(keep, of))
            forms.append((group_cycles(form.groups, rows, columns, machine), form))  # type: ignore[arg-type]
    cycles, best = min(forms, key=lambda each: each[0])
    return best if cycles < dense else None


def dense_cycles(rows: int, columns: int, machine: Machine) -> float:
    """Cycles per step along the depth of a dense matmul."""
    width = panel_width(columns, machine)
    work = MatmulWorkload(1, rows, columns, 0, "panels", width, "float32", "float32", 0)
    lanes = machine.lanes("float32")
    arithmetic = tile_cost(rows or _MANY_ROWS, columns, best_tile(work, machine), machine, lanes)
    return max(arithmetic, columns * 4 / _WEIGHTS_RATE)


def block_cycles(kept: float, rows: int, columns: int, width: int, machine: Machine) -> float:
    """Cycles per step along the depth of a block-sparse matmul that keeps this fraction of its blocks."""
    return kept * _LOOKED_UP * max(_sums(rows, columns, width, machine), dense_cycles(rows, columns, machine))


def group_cycles(groups: Groups, rows: int, columns: int, machine: Machine) -> float:
    """Cycles per step along the depth of an N:M sparse matmul."""
    arithmetic = _PERMUTED * _sums(rows, columns, machine.lanes("float32"), machine)
    word = 4 / groups.per_word / groups.keep
    return groups.keep / groups.of * max(arithmetic, columns * (4 + word) / _WEIGHTS_RATE)


def _sums(rows: int, columns: int, width: int, machine: Machine) -> float:
    """Cycles of a depth step's multiply-adds or loads; accumulators alternate, so latency is hidden."""
    rows = rows or _MANY_ROWS
    vectors = -(-columns // machine.lanes("float32"))
    loads = rows / (width / machine.lanes("float32")) + 1
    return vectors * max(rows / machine.fma_ports, loads / 2)


def share_that_pays(machine: Machine, rows: int) -> float:
    """The fraction of zero blocks, one vector wide, above which skipping them pays off in a matmul of `rows` rows (0:
    many)."""
    columns = 64 * machine.lanes("float32")
    whole = block_cycles(1.0, rows, columns, machine.lanes("float32"), machine)
    return float(np.clip(1 - dense_cycles(rows, columns, machine) / whole, 0, 1))


_WORD_BITS = 32


@dataclass(frozen=True)
class Groups:
    """N of M: `keep` of every `of`, where `of` is a power of two."""

    keep: int
    of: int

    @property
    def bits(self) -> int:
        """Bits per index."""
        return (self.of - 1).bit_length()

    @property
    def per_word(self) -> int:
        """Number of groups whose indices share a word."""
        return _WORD_BITS // self.bits // self.keep

    def shift(self, group: int, choice: int) -> int:
        """The lowest bit of an index within its word; `group` counts within the word."""
        return (group * self.keep + choice) * self.bits


def max_kept(weight: np.ndarray, of: int) -> int:
    """Maximum number of nonzeros among `of` neighbors along the depth of a (depth, columns) weight."""
    depth, columns = weight.shape
    counts = np.count_nonzero(weight.reshape(depth // of, of, columns), axis=1)
    return int(counts.max(initial=0))


def pack_groups_of(panels: np.ndarray, groups: Groups) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """(values, words) of a weight given as (panels, depth, width)."""
    count, depth, width = panels.shape
    total = depth // groups.of
    grouped = panels.reshape(count, total, groups.of, width)
    # Nonzeros first, in order; zeros fill the rest.
    order = np.argsort(grouped == 0, axis=2, kind="stable")[:, :, : groups.keep]
    values = np.take_along_axis(grouped, order, axis=2).reshape(count, total * groups.keep, width)
    words = np.zeros((count, -(-total // groups.per_word), width), np.uint32)
    for group in range(total):
        for choice in range(groups.keep):
            shift = np.uint32(groups.shift(group % groups.per_word, choice))
            words[:, group // groups.per_word] |= order[:, group, choice].astype(np.uint32) << shift
    return np.ascontiguousarray(values, np.float32), words.view(np.int32)


MATMUL_N_OF_M = "matmul-n-of-m"
_VALUES_AHEAD = 32  # rows of values prefetched
_PRODUCTS = 16  # multiply-adds in the innermost loop


def matmul_n_of_m(data: Tensor, values: Tensor, words: Tensor, *, columns: int, keep: int, of: int) -> Tensor:
    """Matmul of float32 data (..., depth) and a weight in the layout of `sparse_groups`: float32 (..., columns)."""
    groups = Groups(keep, of)
    width = int(values.shape[2])
    slot = te.reduce_axis((constant(0), constant(int(values.shape[1]))), name="slot")

    def point(*at: Expr) -> Expr:
        panel, lane = tirx.floordiv(at[-1], width), tirx.floormod(at[-1], width)
        group, choice = tirx.floordiv(slot, groups.keep), tirx.floormod(slot, groups.keep)
        position = tirx.floormod(group, groups.per_word) * groups.keep + choice
        word = words(panel, tirx.floordiv(group, groups.per_word), lane)
        which = (word >> tirx.Cast("int32", position * groups.bits)) & tirx.IntImm("int32", groups.of - 1)
        row = group * groups.of + tirx.Cast("int64", which)
        return te.sum(data(*at[:-1], row) * values(panel, slot, lane), axis=slot)

    attrs = {KIND: MATMUL_N_OF_M, SPEC: json.dumps({"keep": groups.keep, "of": groups.of})}
    return te.compute([*data.shape[:-1], constant(columns)], point, name="matmul", attrs=attrs)


@dataclass(frozen=True, eq=False)
class GroupParts:
    """The stage of the matmul and its operands."""

    form: MatmulForm
    values: Expr
    words: Expr
    groups: Groups


@dataclass(frozen=True)
class NOfMWorkload(MatmulWorkload):
    """A matmul in which `keep` of every `of` elements of a column are nonzero."""

    keep: int = 0
    of: int = 0


class MatmulNOfM(PanelRule[NOfMWorkload, GroupParts]):
    """Serves `matmul_n_of_m` kernels on machines whose vector permutations select among M numbers per lane."""

    name: ClassVar[str] = MATMUL_N_OF_M

    def workload(self, parts: GroupParts, machine: Machine) -> NOfMWorkload | None:
        if parts.groups.of not in choices_of(machine) or parts.form.width != machine.lanes("float32"):
            return None
        return NOfMWorkload(**panel_fields(parts.form, "float32"), keep=parts.groups.keep, of=parts.groups.of)

    def space(self, workload: NOfMWorkload, machine: Machine) -> ConfigSpace:
        return ConfigSpace({"rows": tuple(range(1, self._max_rows(workload, machine) + 1))})

    def default(self, workload: NOfMWorkload, machine: Machine) -> Config:
        return Config.of(rows=min(best_tile(workload, machine)[0], self._max_rows(workload, machine)))

    @staticmethod
    def _max_rows(workload: NOfMWorkload, machine: Machine) -> int:
        """Maximum rows whose accumulators leave registers for the values and words of a group, and for two rows of data
        in flight."""
        return max(1, machine.vector_registers - 2 * workload.keep - 4)

    def parts(self, kernel: Kernel) -> GroupParts | None:
        found = looked_up(only_anchors(kernel, MATMUL_N_OF_M))
        if found is None:
            return None
        form, words = found
        return GroupParts(form, form.b.source, words, Groups(**json.loads(str(form.stage.annotations[SPEC]))))

    def writer(self, parts: GroupParts, fused: FusedKernel, machine: Machine, rows: int) -> MatmulWriter:
        return NOfMWriter(parts, fused, machine, rows=rows)


class NOfMWriter(WriterOfParts[GroupParts]):
    """Writes a matmul: the common loops, with its own tile."""

    def _multiplications(self) -> Index:
        slots = int(shape_of(self.parts.values)[1])
        return self.form.rows.extent * self.form.columns * slots

    def _tile(self, at: Tile) -> Stmt:
        """`rows x lanes` results, `width` of which are stored: a loop over the panel's words."""
        per_word = self.parts.groups.per_word
        groups = int(self.form.depth.extent) // self.parts.groups.of
        rows = int(at.rows)
        tiles = [
            RegisterTile(rows, self.lanes, self.lanes, "float32") for _ in range(independent_sums(rows, self.machine))
        ]
        panel = tirx.FloorDiv(at.column, constant(self.form.width))

        def word(number: Expr, count: int) -> Stmt:
            return sequence(self._word(tiles, (at.batch, at.row, panel), number, count))

        parts = [each for tile in tiles for each in tile.cleared()] + split_steps("word", groups, per_word, word)
        sums, *others = tiles
        for other in others:
            parts += joined(sums, other)
        return sequence([*parts, *self._finish(sums.narrowed(at.width), at)])

    def _word(self, tiles: list[RegisterTile], at: tuple[Batch, Expr, Expr], number: Expr, count: int) -> list[Stmt]:
        """Multiply-adds of `count` groups whose indices share a word."""
        words, named = bind(
            "words", load(self.parts.words, at[2], number, lanes_of(0, self.lanes)), "int32", self.lanes
        )
        first = number * self.parts.groups.per_word
        together = _together(count, len(tiles) * tiles[0].rows, self.parts.groups.keep)

        def groups(step: Expr) -> Stmt:
            parts = [self._group(tiles, at, words, first, step * together + i) for i in range(together)]
            return sequence([each for part in parts for each in part])

        return [named, repeat("group", count // together, lambda step: groups(expression(step)))]

    def _group(
        self, tiles: list[RegisterTile], at: tuple[Batch, Expr, Expr], words: Expr, first: Expr, number: Expr
    ) -> list[Stmt]:
        """Multiply-adds of group `number` of the word, added to the tiles in turn."""
        (batch, row, panel), pattern, every = at, self.parts.groups, lanes_of(0, self.lanes)
        slot = (first + number) * pattern.keep
        result = [prefetch(self.parts.values, panel, slot + _VALUES_AHEAD, 0)]
        for choice in range(pattern.keep):
            value, bound = bind("value", load(self.parts.values, panel, slot + choice, every), "float32", self.lanes)
            shift = tirx.Cast("int32", (number * pattern.keep + choice) * pattern.bits)
            result.append(bound)
            tile = tiles[choice % len(tiles)]
            for i in range(tile.rows):
                element = self.form.a_at(batch, row + i, (first + number) * pattern.of)
                *outer, start = element.indices
                data = load(element.source, *outer, lanes_of(start, pattern.of))
                result.append(tile.put(i, every, tile.sum(i, every) + selected(data, words, shift) * value))
        return result


def _together(count: int, sums: int, keep: int) -> int:
    """Number of a word's groups in the innermost loop, such that it is neither too short nor too long."""
    return next((each for each in range(1, count) if count % each == 0 and each * sums * keep >= _PRODUCTS), count)
