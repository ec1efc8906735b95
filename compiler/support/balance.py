"""Load balance of a kernel's parallel loops over threads, and the number of elements that it reads and writes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from compiler.support.formula import evaluate

UNKNOWN = "?"
"""The extent of a loop if only the kernel's code contains it."""


def task_counts(tasks: Sequence[str], sizes: Mapping[str, int]) -> tuple[int, ...] | None:
    """The extents as numbers; None if one is unknown."""
    try:
        return tuple(evaluate(each, sizes) for each in tasks if each != UNKNOWN) if UNKNOWN not in tasks else None
    except ValueError:
        return None  # an unknown size


def balance(counts: Sequence[int], threads: int) -> float:
    """Load balance: the fraction of time in which all threads work, for tasks of equal length, distributed by TVM in
    contiguous ranges. With several loops, it is the fraction for the least balanced one; without parallel loops, one
    thread works."""
    return min((count / (math.ceil(count / threads) * threads) for count in counts if count), default=1 / threads)


def tasks_text(counts: Sequence[int] | None, serial: str | None = None) -> str:
    """Text for tables: "56", "14, 56", "at run time" if unknown, and "1" with the reason `serial` if one thread does
    all the work."""
    if serial is not None:
        return f"1 ({serial})"
    return "at run time" if counts is None else ", ".join(map(str, counts)) or "1"


Shape = tuple[int, ...]


def elements_read(tensors: Mapping[int, Shape], gathered: frozenset[int], position: int) -> int:
    """Number of elements that a call reads from or writes to the tensor at a position; the last tensor is its result.
    `gathered`: positions of tensors that the kernel only gathers from: it reads as many of their elements as it writes,
    not the whole tensor."""
    count = _elements(tensors[position])
    return min(count, _elements(tensors[max(tensors)])) if position in gathered else count


def _elements(shape: Shape) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
