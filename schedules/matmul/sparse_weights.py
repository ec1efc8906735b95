"""The layout of block-sparse constant weights: only nonzero blocks are stored.

A weight is a matrix (depth, columns) cut into panels of `width` columns; a block is one row of a panel. Panel after
panel, the blocks that are not zero lie behind each other:

    values: float32 (blocks, width)
    index: int32 (panels + 1 + blocks,): where each panel begins in `values`, where the last one ends, and then for
        each block its row
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from schedules.ir.tir import Expr, Tensor, tirx


@dataclass(frozen=True, eq=False)
class SparseWeight:
    """A packed weight. `longest` is the maximum number of blocks in a panel."""

    values: NDArray[np.float32]
    index: NDArray[np.int32]
    longest: int


def in_panels(weight: np.ndarray, width: int) -> np.ndarray:
    """A (depth, columns) weight as (panels, depth, width), zero-padded in the last panel."""
    depth, columns = weight.shape
    panels = -(-columns // width)
    padded = np.zeros((depth, panels * width), weight.dtype)
    padded[:, :columns] = weight
    return padded.reshape(depth, panels, width).transpose(1, 0, 2)


def share_kept(panels: np.ndarray) -> float:
    """Fraction of nonzero blocks of (panels, depth, width)."""
    return float(np.any(panels, axis=-1).mean())


def pack_blocks(panels: np.ndarray, rows: NDArray[np.int32] | None = None) -> SparseWeight:
    """Pack a weight given as (panels, depth, width).

    Args:
        rows: index entry of each row of the depth; the row number if None.
    """
    kept = np.any(panels, axis=-1)
    counts = kept.sum(axis=1)
    panel, row = np.nonzero(kept)
    values = panels[panel, row]
    names = row if rows is None else rows[row]
    if not len(values):  # tensors without elements are not operands
        values, names = np.zeros((1, panels.shape[-1]), panels.dtype), np.zeros(1, np.int64)
    starts = np.concatenate([[0], np.cumsum(counts)])
    index = np.concatenate([starts, names]).astype(np.int32)
    return SparseWeight(np.ascontiguousarray(values, np.float32), index, max(1, int(counts.max())))


def entry(index: Tensor, at: Expr) -> Expr:
    """An index element, cast to the dtype of loop variables; `index` is a `te` tensor."""
    return tirx.Cast("int64", index(at))
