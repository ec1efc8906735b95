"""The cheapest split of a graph in two: its minimum cut, by augmenting paths (Edmonds and Karp)."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable

Node = Hashable
_LEAST = 1e-12  # of the largest capacity: what is left of an edge below that is rounding


class CutGraph:
    """Edges with capacities between a source and a sink."""

    SOURCE, SINK = "source", "sink"

    def __init__(self) -> None:
        self._left: dict[Node, dict[Node, float]] = {self.SOURCE: {}, self.SINK: {}}

    def edge(self, start: Node, end: Node, capacity: float) -> None:
        """Add what it costs when `start` is on the source's side and `end` on the sink's."""
        for one, other, amount in ((start, end, capacity), (end, start, 0.0)):
            edges = self._left.setdefault(one, {})
            edges[other] = edges.get(other, 0.0) + amount

    def source_side(self) -> set[Node]:
        """The nodes on the source's side of the cheapest cut."""
        finite = [each for edges in self._left.values() for each in edges.values() if each != float("inf")]
        least = max(finite, default=0.0) * _LEAST
        while True:
            reached = self._reached(least)
            if self.SINK not in reached:
                return set(reached)
            path: list[Node] = [self.SINK]
            while path[-1] != self.SOURCE:
                path.append(reached[path[-1]])
            steps = list(zip(path[1:], path[:-1], strict=True))
            amount = min(self._left[start][end] for start, end in steps)
            for start, end in steps:
                self._left[start][end] -= amount
                self._left[end][start] += amount

    def _reached(self, least: float) -> dict[Node, Node]:
        """What can be reached from the source, each with the node before it."""
        found: dict[Node, Node] = {self.SOURCE: self.SOURCE}
        waiting: deque[Node] = deque([self.SOURCE])
        while waiting and self.SINK not in found:
            node = waiting.popleft()
            for neighbour, left in self._left[node].items():
                if left > least and neighbour not in found:
                    found[neighbour] = node
                    waiting.append(neighbour)
        return found
