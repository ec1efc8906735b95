"""Keys and values of a cache as the products of many queries read them: made once, in parallel, for all queries.

Keys stand in panels of two vectors of keys, so that a step along the size of a head is a load of each. Values stay
rows, and where they are float32 in their place. Where products take pairs of bfloat16, a word holds two neighbours
along what is summed: of a key's elements, and of the values of two rows.
"""

from __future__ import annotations

from dataclasses import dataclass

from schedules.attention.cache.description import KEY, SEQUENCES, VALUE, CacheOperands
from schedules.attention.pairs import in_vectors
from schedules.codegen.nest import (
    Extent,
    allocate,
    expression,
    load,
    parallel_grid,
    repeat,
    sequence,
    store,
    vectorized,
)
from schedules.instructions.products.amx import COLUMNS, STEPS
from schedules.instructions.rounding import rounded_pair, rounded_run
from schedules.ir.numbers import ceil_div
from schedules.ir.stages import Axis, Stage
from schedules.ir.tir import Expr, Stmt, tirx
from schedules.machine import Machine
from schedules.stages.code import stage_code

_ZERO = tirx.FloatImm("float32", 0.0)


@dataclass(frozen=True, eq=False)
class PackedRows:
    """`keys` (batch, key heads, panels, steps, panel) and `values` (batch, key heads, steps, columns), None where these
    are read in their place. Both have room for the whole capacity, of which only the rows there are are touched.

    With `whole_tiles` there are whole tiles of steps and columns, and zeros behind the last step of a panel."""

    operands: CacheOperands
    machine: Machine
    narrow: bool
    whole_tiles: bool
    keys: Expr
    values: Expr | None

    @classmethod
    def of(cls, operands: CacheOperands, machine: Machine, *, narrow: bool, whole_tiles: bool = False) -> PackedRows:
        panel, dtype = 2 * machine.lanes("float32"), "int32" if narrow else "float32"
        panels = tirx.floordiv(expression(operands.capacity) + (panel - 1), expression(panel))
        lead = [expression(operands.batch), expression(operands.key_heads)]
        steps, columns = ceil_div(operands.size, 2) if narrow else operands.size, operands.value_size
        if whole_tiles:
            steps, columns = ceil_div(steps, STEPS) * STEPS, ceil_div(columns, COLUMNS) * COLUMNS
        keys = tirx.decl_buffer(
            [*lead, panels, expression(steps), expression(panel)], dtype, "packed_keys", layout=None
        )
        values = None
        if narrow or not operands.is_exact(VALUE):
            depth = panels * (panel // 2 if narrow else panel)
            shape = [*lead, depth, expression(columns)]
            values = tirx.decl_buffer(shape, dtype, "packed_values", layout=None)
        return cls(operands, machine, narrow, whole_tiles, keys, values)

    @property
    def panel(self) -> int:
        """Keys of a panel."""
        return 2 * self.machine.lanes("float32")

    @property
    def steps(self) -> int:
        """Steps of the sum of a score."""
        return int(self.keys.ty.shape[3])

    def key(self, sample: Expr, head: Expr, panel: Expr, step: Expr, column: Expr) -> Expr:
        """Factor of a step of the query, of key `panel * self.panel + column`."""
        return load(self.keys, sample, head, panel, step, column)

    def value(self, sample: Expr, slot: Expr, head: Expr, step: Expr, column: Expr) -> Expr:
        """Factor of a step of the weights."""
        if self.values is None:
            return self.operands.row(VALUE, slot, head, step, column)
        return load(self.values, sample, head, step, column)

    def made(self, rows: Expr) -> list[Stmt]:
        """The statements that allocate and fill both; `rows`: how many a sample has at most."""
        own = self.operands
        panels = tirx.floordiv(rows + (self.panel - 1), expression(self.panel))
        extents = [Extent("sample", own.batch), Extent("key_head", own.key_heads), Extent("panel", panels)]
        allocations = [tirx.AllocBuffer(each) for each in (self.keys, self.values) if each is not None]
        return [
            *allocations,
            parallel_grid(extents, lambda at: self._panel(*at), self.machine, parallel=self.machine.cores > 1),
        ]

    def _panel(self, sample: Expr, head: Expr, panel: Expr) -> Stmt:
        first, end = tirx.Var("first", "int64"), tirx.Var("end", "int64")
        slot = tirx.Var("slot", "int64")
        at = (sample, slot)
        filled = sequence(
            self._keys_of(at, head, panel, first, end),
            None if self.values is None else self._values_of(at, head, panel, first, end),
        )
        return sequence(
            tirx.Bind(first, panel * self.panel),
            tirx.Bind(end, prompt_rows(self.operands, sample)),
            tirx.Bind(slot, self.operands.slot_of(sample)),
            tirx.IfThenElse(first < end, filled, None),
        )

    def _keys_of(self, at: tuple[Expr, Expr], head: Expr, panel: Expr, first: Expr, end: Expr) -> Stmt:
        """Keys of a panel, then these transposed; behind the last one, that again. `at`: sample and slot."""
        sample, slot = at
        own, lanes = self.operands, self.machine.lanes("float32")
        width = 2 * self.steps if self.narrow else self.steps
        copied, copied_made = allocate("own_keys", [self.panel, width], "float32")

        def key(j: Expr) -> Stmt:
            row = tirx.min(first + j, end - 1)
            made = in_vectors("d", own.size, lanes, lambda d: store(copied, own.row(KEY, slot, head, row, d), j, d))
            behind = repeat("d", width - own.size, lambda d: store(copied, _ZERO, j, own.size + d))
            return sequence(made, behind if width > own.size else None)

        parts = [copied_made, repeat("j", self.panel, key)]
        source = copied
        if self.narrow:
            source, words_made = allocate("own_words", [self.panel, self.steps], "int32")
            parts += [words_made, repeat("j", self.panel, lambda j: self._words(copied, source, j))]
        d, j = tirx.Var("step", "int64"), tirx.Var("j", "int64")
        turned = store(self.keys, load(source, j, d), sample, head, panel, d, j)
        stage = Stage("turn", (Axis(d, self.steps), Axis(j, self.panel)), turned)
        return sequence(*parts, stage_code(stage, self.machine, parallel=False))

    def _words(self, copied: Expr, words: Expr, j: Expr) -> Stmt:
        """A copied key rounded to pairs."""
        lanes = self.machine.lanes("float32")
        whole, rest = divmod(self.steps, lanes)

        def run(at: Expr, lane: Expr) -> Stmt:
            first = at * (2 * lanes) + lane
            halves = [load(copied, j, each) for each in (first, first + lanes)]
            return store(words, rounded_run(*halves), j, at * lanes + lane)

        def single(at: Expr) -> Stmt:
            pair = [load(copied, j, 2 * (at + whole * lanes) + i) for i in range(2)]
            return store(words, rounded_pair(*pair), j, at + whole * lanes)

        return sequence(
            repeat("run", whole, lambda at: vectorized("lane", lanes, lambda lane: run(at, lane))) if whole else None,
            repeat("single", rest, single) if rest else None,
        )

    def _values_of(self, at: tuple[Expr, Expr], head: Expr, panel: Expr, first: Expr, end: Expr) -> Stmt:
        """Values of a panel's rows; 0 behind the last one."""
        sample, slot = at
        own, lanes = self.operands, self.machine.lanes("float32")

        def value(row: Expr, d: Expr) -> Expr:
            return own.row(VALUE, slot, head, tirx.min(row, end - 1), d)

        def row(j: Expr) -> Stmt:
            at = panel * self.panel + j
            return in_vectors(
                "d", own.value_size, lanes, lambda d: store(self.values, value(at, d), sample, head, at, d)
            )

        def nothing(j: Expr) -> Stmt | None:
            if not self.whole_tiles:
                return None
            place, zero = panel * (self.panel // 2) + j, tirx.IntImm("int32", 0)
            return in_vectors("d", own.value_size, lanes, lambda d: store(self.values, zero, sample, head, place, d))

        def pair(j: Expr) -> Stmt:
            at = first + j * 2
            is_whole = at + 1 < end

            def word(d: Expr, *, whole: bool) -> Stmt:
                made = rounded_pair(value(at, d), value(at + 1, d) if whole else _ZERO)
                return store(self.values, made, sample, head, panel * (self.panel // 2) + j, d)

            both, one = (
                in_vectors("d", own.value_size, lanes, lambda d, whole=whole: word(d, whole=whole))  # type: ignore[misc]
                for whole in (True, False)
            )
            return tirx.IfThenElse(at < end, tirx.IfThenElse(is_whole, both, one), nothing(j))

        return repeat("j", self.panel // 2, pair) if self.narrow else repeat("j", self.panel, row)


def prompt_rows(operands: CacheOperands, sample: Expr) -> Expr:
    """Number of packed rows of a sample: none where it has no queries for the way of many."""
    rows = operands.rows_of(sample)
    if SEQUENCES not in operands:
        return rows
    return tirx.Select(operands.few_of(sample, few=False) > 0, rows, expression(0))
