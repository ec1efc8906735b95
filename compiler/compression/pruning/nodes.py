"""Positions of axes that must go together: a union-find over numbered nodes, in arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]
Axis = Labels | None  # a node for each position; None where the axis must stay as it is

FIXED = 0  # the node of what must stay


class Nodes:
    """Nodes are made by `fresh` and joined by `unite`; node 0 is what must stay."""

    def __init__(self) -> None:
        self._count = 1
        self._pairs: list[tuple[Labels, Labels]] = []
        self._roots: Labels = np.zeros(1, np.int64)

    def fresh(self, size: int) -> Labels:
        """New nodes."""
        self._count += size
        return np.arange(self._count - size, self._count, dtype=np.int64)

    def unite(self, left: Axis, right: Axis) -> Axis:
        """Join two axes of equal size position by position; the axis that both are now."""
        if left is None or right is None:
            self.fix(left)
            self.fix(right)
            return None
        if left is not right:
            self._pairs.append((left, right))
        return left

    def fix(self, axis: Axis) -> None:
        """Mark these positions as not prunable."""
        if axis is not None and axis.size:
            self._pairs.append((axis, np.zeros_like(axis)))

    def roots(self) -> Labels:
        """For each node the smallest node that it is joined with."""
        roots = np.arange(self._count, dtype=np.int64)
        roots[: len(self._roots)] = self._roots
        if self._pairs:
            left = np.concatenate([pair[0].ravel() for pair in self._pairs])
            right = np.concatenate([pair[1].ravel() for pair in self._pairs])
            self._pairs = []
            roots = _joined(roots, left, right)
        self._roots = roots
        return roots


def _joined(roots: Labels, left: Labels, right: Labels) -> Labels:
    """Hook the larger root of each pair under the smaller one and shorten the paths, until nothing changes."""
    while True:
        a, b = roots[left], roots[right]
        open_pairs = a != b
        if not open_pairs.any():
            return roots
        left, right, a, b = left[open_pairs], right[open_pairs], a[open_pairs], b[open_pairs]
        np.minimum.at(roots, np.maximum(a, b), np.minimum(a, b))
        while True:
            shorter = roots[roots]
            if np.array_equal(shorter, roots):
                break
            roots = shorter
