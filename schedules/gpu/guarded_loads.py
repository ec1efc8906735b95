"""Loads that some threads must not do, without branches: those threads load another element and drop it.

A condition around a load becomes a branch in machine code, for it must not be done elsewhere; then every element waits
for the tests of the one before. Loads that are done by all threads, and choices between what was loaded and something
else, lie side by side, so that many loads are under way at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from schedules.ir.inline import IF_THEN_ELSE, call_name
from schedules.ir.stages import shape_of
from schedules.ir.tir import Expr, tirx, tvm

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Buffer


@dataclass(frozen=True, eq=False)
class GuardedLoad:
    """An element at a place of a buffer; where `inside` does not hold, it is `otherwise` instead (None: zero).

    Attributes:
        offset: of the element in the buffer, where `inside` holds.
    """

    source: Buffer
    offset: Expr
    inside: Expr
    otherwise: Expr | None

    def safe(self, inside: Expr) -> Expr:
        """The load; of the first element where a variable of `inside`'s value is false."""
        zero = tirx.IntImm(str(self.offset.ty), 0)
        leading = [zero] * (len(self.source.shape) - 1)
        return tirx.BufferLoad(self.source, [*leading, tirx.Select(inside, self.offset, zero)])


def guarded_load(value: Expr, known: Expr | bool) -> GuardedLoad | None:
    """A value that is needed where `known` holds, and is zero elsewhere, as such a load.

    None where it is another expression than a load, or a choice between one and a constant, of memory of fixed size;
    or where nothing guards it.
    """
    conditions, otherwise = [] if known is True else [known], None
    if call_name(value) == IF_THEN_ELSE:
        condition, value, fill = value.args
        if not isinstance(fill, tirx.IntImm | tirx.FloatImm):
            return None
        if float(fill.value):
            if known is not True:
                return None
            otherwise = fill
        conditions.append(condition)
    if not conditions or not isinstance(value, tvm.ir.TensorLoad):
        return None
    offset = _offset(value)
    return None if offset is None else GuardedLoad(value.source, offset, _without_branches(conditions), otherwise)


def _offset(load: Expr) -> Expr | None:
    """Of an element in a compact buffer; None where it is not known that the buffer has an element."""
    sizes = [size if isinstance(size, int) else 0 for size in shape_of(load.source)]
    if not all(sizes):
        return None
    offset: Expr = tirx.IntImm("int64", 0)
    for size, place in zip(sizes, load.indices, strict=True):
        offset = offset * size + tirx.Cast("int64", place)
    return offset


def _without_branches(conditions: list[Expr]) -> Expr:
    """The conjunction in integers: each test of a chain of && is a branch of its own."""
    tests: list[Expr] = []
    while conditions:
        each = conditions.pop()
        if isinstance(each, tirx.And):
            conditions += [each.a, each.b]
        else:
            tests.append(tirx.Cast("int32", each))
    total = tests[0]
    for each in tests[1:]:
        total = tirx.bitwise_and(total, each)
    return tirx.NE(total, tirx.IntImm("int32", 0))
