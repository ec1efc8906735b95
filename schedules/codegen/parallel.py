"""Whether several threads pay off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from schedules.ir.expression import index
from schedules.ir.inline import operations
from schedules.ir.tir import Expr, Stmt
from schedules.machine import Machine

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Index

# Some 7 microseconds of work on one core in vectors, more without. Sharing it among spinning threads was measured to
# take 3 (Zen 4, two cores), and what another core wrote has to come over as well.
MIN_PARALLEL_WORK = 98304
# Some 6 microseconds of reading weights from memory on one core, which is what a single row of data waits for.
MIN_PARALLEL_BYTES = 262144
_EXPENSIVE_WEIGHT = 4  # of an exponential, in vectors


def work(extents: Sequence[Index], body: Stmt) -> Index:
    """A rough count of elementary steps of a body run over loops: a number, or an expression of symbolic extents."""
    cheap, expensive = operations(body)
    weight = max(1, round(1 + cheap / 4 + _EXPENSIVE_WEIGHT * expensive))
    total: Index = weight
    for extent in extents:
        total = total * extent
    return total


def pays_off(amount: Index, machine: Machine, least: int = MIN_PARALLEL_WORK) -> bool | Expr:
    """Whether to use several threads for an amount of work; a condition when the amount is symbolic."""
    if machine.cores <= 1:
        return False
    return amount >= least if isinstance(amount, int | float) else amount >= index(least, str(amount.ty))
