"""Which units go: the least salient ones of each cell, or of all, in steps that suit the machine's vectors."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from compiler.compression.pruning.dependencies import Cell
from compiler.passes.rewriting.matching import Array

SCOPES = ("layer", "global")
_LEAST_KEPT = 0.1  # of a cell, when all cells share one budget: removing a whole layer breaks the network


def select_units(
    cells: Sequence[Cell], scores: Array, amount: float, scope: str, lanes: int, gone: Collection[int] = ()
) -> NDArray[np.bool_]:
    """For each unit (entry 0 is none) whether it goes.

    Args:
        scores: of each unit; the smallest go first.
        amount: the share of the units, of each cell (`scope` "layer") or of all together ("global", where the scores
            of a cell are divided by their mean first, since layers differ in scale).
        lanes: how many numbers a vector of the machine holds: more than those are kept in multiples of them.
        gone: units that went in an earlier step.
    """
    scores = scores.copy()
    scores[list(gone)] = -np.inf
    removed = np.zeros(len(scores), np.bool_)
    counts = (
        _global_counts(cells, scores, amount)
        if scope == "global"
        else [round(amount * len(cell.units)) for cell in cells]
    )
    for cell, count in zip(cells, counts, strict=True):
        count = rounded_count(count, len(cell.units), cell.width, lanes)
        order = np.argsort(scores[cell.units], kind="stable")
        removed[cell.units[order[:count]]] = True
    return removed


def _global_counts(cells: Sequence[Cell], scores: Array, amount: float) -> list[int]:
    relative, owners = [], []
    for index, cell in enumerate(cells):
        own = scores[cell.units]
        known = own[np.isfinite(own)]
        mean = float(known.mean()) if known.size else 1.0
        ordered = np.sort(own / (mean or 1.0))
        ordered = ordered[: int(len(ordered) * (1 - _LEAST_KEPT))]
        relative.append(ordered)
        owners.append(np.full(len(ordered), index))
    if not relative:
        return []
    total = sum(len(cell.units) for cell in cells)
    order = np.argsort(np.concatenate(relative), kind="stable")[: round(amount * total)]
    counts: list[int] = np.bincount(np.concatenate(owners)[order], minlength=len(cells)).tolist()
    return counts


def rounded_count(count: int, size: int, width: int, lanes: int) -> int:
    """How many of `size` units go so that what is left fills vectors, and is not nothing."""
    step = max(1, lanes // np.gcd(width, lanes))
    left = size - count
    if left > step:
        left = -(-left // step) * step
    elif size > step and left > step // 2:
        left = step
    return size - max(1, min(left, size))
