"""Matmuls of float32 data and an N:M sparse weight: N of every M neighbours along the depth are nonzero.

    C[i, j] = sum over groups g and their choices c of A[i, M g + which(g, c, j)] * values[g, c, j]

A register of data holds the M numbers of a group, and a permutation gives each column its own: a multiply-add and a
permutation for each number that is left.

The layout of N:M sparse constant weights: N of every M neighbours along the depth are nonzero.

A weight is a matrix (depth, columns) cut into panels of `width` columns, a vector of the machine. Each group of M rows
is stored as N rows of values and, for each of these and each column, which of the M it is:

    values: float32 (panels, depth / M * N, width)
    words: int32 (panels, ceil(depth / M / groups of a word), width), the choices of several groups in the bits of one
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from schedules.annotations import KIND, SPEC
from schedules.codegen.nest import bind, lanes_of, load, prefetch, repeat, sequence, split_steps
from schedules.codegen.register_tile import RegisterTile
from schedules.config import Config, ConfigSpace
from schedules.instructions.select_lanes import choices_of, selected
from schedules.ir.expression import expression
from schedules.ir.expression import index as constant
from schedules.ir.stages import Kernel, shape_of
from schedules.ir.tir import Expr, Index, Stmt, Tensor, te, tirx
from schedules.machine import Machine
from schedules.matmul.form import MatmulForm
from schedules.matmul.packed_operand import PanelRule, WriterOfParts, independent_sums, joined, looked_up, panel_fields
from schedules.matmul.tiling import MatmulWorkload, best_tile
from schedules.matmul.writer import Batch, MatmulWriter, Tile
from schedules.stages.fused_kernel import FusedKernel, only_anchors

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


def most_kept(weight: np.ndarray, of: int) -> int:
    """Maximum number of nonzeros among `of` neighbours along the depth of a (depth, columns) weight."""
    depth, columns = weight.shape
    counts = np.count_nonzero(weight.reshape(depth // of, of, columns), axis=1)
    return int(counts.max(initial=0))


def pack_groups_of(panels: np.ndarray, groups: Groups) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """(values, words) of a weight given as (panels, depth, width)."""
    count, depth, width = panels.shape
    total = depth // groups.of
    grouped = panels.reshape(count, total, groups.of, width)
    # What is not zero first, in order; a zero fills up.
    order = np.argsort(grouped == 0, axis=2, kind="stable")[:, :, : groups.keep]
    values = np.take_along_axis(grouped, order, axis=2).reshape(count, total * groups.keep, width)
    words = np.zeros((count, -(-total // groups.per_word), width), np.uint32)
    for group in range(total):
        for choice in range(groups.keep):
            shift = np.uint32(groups.shift(group % groups.per_word, choice))
            words[:, group // groups.per_word] |= order[:, group, choice].astype(np.uint32) << shift
    return np.ascontiguousarray(values, np.float32), words.view(np.int32)


MATMUL_N_OF_M = "matmul-n-of-m"
_VALUES_AHEAD = 32  # rows of values that are asked for ahead
_PRODUCTS = 16  # in the innermost loop


def matmul_n_of_m(data: Tensor, values: Tensor, words: Tensor, *, columns: int, keep: int, of: int) -> Tensor:
    """Matmul of float32 data (..., depth) and a weight in the layout of `sparse_groups`: float32 (..., columns)."""
    groups = Groups(keep, of)
    width = int(values.shape[2])
    slot = te.reduce_axis((constant(0), constant(int(values.shape[1]))), name="slot")

    def point(*at: Expr) -> Expr:
        panel, lane = tirx.floordiv(at[-1], width), tirx.floormod(at[-1], width)
        group, choice = tirx.floordiv(slot, groups.keep), tirx.floormod(slot, groups.keep)
        place = tirx.floormod(group, groups.per_word) * groups.keep + choice
        word = words(panel, tirx.floordiv(group, groups.per_word), lane)
        which = (word >> tirx.Cast("int32", place * groups.bits)) & tirx.IntImm("int32", groups.of - 1)
        row = group * groups.of + tirx.Cast("int64", which)
        return te.sum(data(*at[:-1], row) * values(panel, slot, lane), axis=slot)

    attrs = {KIND: MATMUL_N_OF_M, SPEC: json.dumps({"keep": groups.keep, "of": groups.of})}
    return te.compute([*data.shape[:-1], constant(columns)], point, name="matmul", attrs=attrs)


@dataclass(frozen=True, eq=False)
class Parts:
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


class MatmulNOfM(PanelRule[NOfMWorkload, Parts]):
    """Serves `matmul_n_of_m` kernels on machines whose vector permutations select among M numbers per lane."""

    name: ClassVar[str] = MATMUL_N_OF_M

    def workload(self, parts: Parts, machine: Machine) -> NOfMWorkload | None:
        if parts.groups.of not in choices_of(machine) or parts.form.width != machine.lanes("float32"):
            return None
        return NOfMWorkload(**panel_fields(parts.form, "float32"), keep=parts.groups.keep, of=parts.groups.of)

    def space(self, workload: NOfMWorkload, machine: Machine) -> ConfigSpace:
        return ConfigSpace({"rows": tuple(range(1, self._most_rows(workload, machine) + 1))})

    def default(self, workload: NOfMWorkload, machine: Machine) -> Config:
        return Config.of(rows=min(best_tile(workload, machine)[0], self._most_rows(workload, machine)))

    @staticmethod
    def _most_rows(workload: NOfMWorkload, machine: Machine) -> int:
        """Maximum rows whose accumulators leave registers for the values and words of a group, and for two rows of data
        in flight."""
        return max(1, machine.vector_registers - 2 * workload.keep - 4)

    def parts(self, kernel: Kernel) -> Parts | None:
        found = looked_up(only_anchors(kernel, MATMUL_N_OF_M))
        if found is None:
            return None
        form, words = found
        return Parts(form, form.b.source, words, Groups(**json.loads(str(form.stage.annotations[SPEC]))))

    def writer(self, parts: Parts, fused: FusedKernel, machine: Machine, rows: int) -> MatmulWriter:
        return NOfMWriter(parts, fused, machine, rows=rows)


class NOfMWriter(WriterOfParts[Parts]):
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
        (batch, row, panel), kept, every = at, self.parts.groups, lanes_of(0, self.lanes)
        slot = (first + number) * kept.keep
        result = [prefetch(self.parts.values, panel, slot + _VALUES_AHEAD, 0)]
        for choice in range(kept.keep):
            value, bound = bind("value", load(self.parts.values, panel, slot + choice, every), "float32", self.lanes)
            shift = tirx.Cast("int32", (number * kept.keep + choice) * kept.bits)
            result.append(bound)
            tile = tiles[choice % len(tiles)]
            for i in range(tile.rows):
                element = self.form.a_at(batch, row + i, (first + number) * kept.of)
                *outer, start = element.indices
                data = load(element.source, *outer, lanes_of(start, kept.of))
                result.append(tile.put(i, every, tile.sum(i, every) + selected(data, words, shift) * value))
        return result


def _together(count: int, sums: int, keep: int) -> int:
    """Number of a word's groups in the innermost loop, such that it is neither too short nor too long."""
    return next((each for each in range(1, count) if count % each == 0 and each * sums * keep >= _PRODUCTS), count)
