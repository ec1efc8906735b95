"""Balance of the tasks of a kernel's parallel loops over threads, and the elements that it reads and writes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from compiler.support.formula import evaluate

UNKNOWN = "?"
"""The extent of a loop that only the kernel's code knows."""


def task_counts(tasks: Sequence[str], sizes: Mapping[str, int]) -> tuple[int, ...] | None:
    """The extents as numbers; None where one is not known."""
    try:
        return tuple(evaluate(each, sizes) for each in tasks if each != UNKNOWN) if UNKNOWN not in tasks else None
    except ValueError:
        return None  # a size that is not known


def balance(counts: Sequence[int], threads: int) -> float:
    """Load balance: the fraction of the time in which all threads work, for tasks of equal length, of which TVM gives
    each thread a contiguous range. For several loops, that of the least balanced one; without parallel loops one thread
    works."""
    return min((count / (math.ceil(count / threads) * threads) for count in counts if count), default=1 / threads)


def tasks_text(counts: Sequence[int] | None, serial: str | None = None) -> str:
    """For tables: "56", "14, 56", "at run time" where not known, "1" where one thread computes all and `serial`, why
    that is so."""
    if serial is not None:
        return f"1 ({serial})"
    return "at run time" if counts is None else ", ".join(map(str, counts)) or "1"


Shape = tuple[int, ...]


def elements_read(tensors: Mapping[int, Shape], gathered: frozenset[int], position: int) -> int:
    """Elements of the tensor at a position that a call reads or writes; the last tensor is its result.

    Args:
        gathered: positions of tensors that the kernel only gathers from: it reads as many of their elements as it
            writes, not the whole tensor.
    """
    count = _elements(tensors[position])
    return min(count, _elements(tensors[max(tensors)])) if position in gathered else count


def _elements(shape: Shape) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
