"""The amount of work of a kernel, and whether it is enough to start threads."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from schedules.ir.expression import buffers_loaded, index
from schedules.ir.inline import operations
from schedules.ir.stages import dtype_of, product, shape_of
from schedules.ir.tir import Expr, Index, Stmt
from schedules.machine import Machine, dtype_bits
from schedules.task_split import CORE_MEMORY_RATE, min_parallel_cycles

_STEP_CYCLES = 0.35  # in vectors
# Steps for which two threads pay off, and bytes of weights from memory, if a single row of data waits for them.
MIN_PARALLEL_WORK = round(min_parallel_cycles(2) / _STEP_CYCLES)
MIN_PARALLEL_BYTES = round(min_parallel_cycles(2) * CORE_MEMORY_RATE)
_EXPENSIVE_WEIGHT = 4  # cost of an exponential, in vectors
# A table of at least this many bytes fits no cache of a core, and reading a byte of it at a data-dependent index costs
# this many steps (1.3 bytes a cycle: 128 rows of 384 floats of 47 MB in 36 microseconds, Zen 4).
_FAR_TABLE, _STEPS_OF_FAR_BYTE = 1 << 21, 2


def work(extents: Sequence[Index], body: Stmt) -> Index:
    """Rough count of elementary steps of a body run over loops: a number, or an expression of symbolic extents."""
    cheap, expensive = operations(body)
    weight = max(1, round(1 + cheap / 4 + _EXPENSIVE_WEIGHT * expensive)) + _STEPS_OF_FAR_BYTE * _far_bytes(body)
    return prod((weight, *extents))


def _far_bytes(body: Stmt) -> int:
    """Bytes that a step of a body reads from large tables, at data-dependent positions."""
    total = 0
    for load in buffers_loaded(body):
        if any(buffers_loaded(position) for position in load.indices):
            size, elements = dtype_bits(dtype_of(load.source)) // 8, product(shape_of(load.source))
            total += size if elements is not None and elements * size >= _FAR_TABLE else 0
    return total


def step_cycles(amount: Index) -> float:
    """Cycles of a number of steps on one core; 0 for a symbolic amount."""
    return amount * _STEP_CYCLES if isinstance(amount, int | float) else 0.0


def pays_off(amount: Index, machine: Machine, minimum: int = MIN_PARALLEL_WORK) -> bool | Expr:
    """True if an amount of work is worth starting threads; a condition if the amount is symbolic. `least`: the least
    amount for two threads; the more threads, the longer it takes to start them."""
    if machine.cores <= 1:
        return False
    minimum = round(minimum * min_parallel_cycles(machine.cores) / min_parallel_cycles(2))
    return amount >= minimum if isinstance(amount, int | float) else amount >= index(minimum, str(amount.ty))
