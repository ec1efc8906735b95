"""Layers that stay in float because the model is faster so: a minimum cut between floats and integers.

A layer costs the time of its kernel in float or in integers. Where a layer reads integers of what a float one made, the
tensor is converted: a float layer between two in integers must gain more than that. What lies between layers moves."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence

import numpy as np

from compiler.compression.quantization.layer_times import LayerTime
from compiler.compression.quantization.layers import Layer, LayerGraph
from compiler.passes.rewriting.graph import Var
from compiler.passes.rewriting.matching import static_shape

_NEVER = float("inf")


def faster_in_float(
    graph: LayerGraph,
    layers: Sequence[Layer],
    times: Mapping[str, LayerTime],
    conversion: Callable[[int], float],
    margin: float = 1.0,
) -> list[Layer]:
    """The layers to leave in float.

    Args:
        layers: all that are quantized otherwise. One without a time stays among them.
        times: by the layer's name.
        conversion: seconds to quantize that number of floats.
        margin: how many times faster than integers floats are taken to be, beside what was measured.
    """
    cut = CutGraph()
    by_variable = {layer.variable: layer for layer in layers}
    for layer in layers:
        time = times.get(layer.name, LayerTime(_NEVER, 0.0))
        cut.edge(cut.SOURCE, layer.variable, time.floats)
        cut.edge(layer.variable, cut.SINK, time.integers * margin)
    for site, readers in _sites(layers).items():
        made_by = _products(graph, site, by_variable)
        cost = conversion(int(np.prod(static_shape(site) or ()))) * margin
        copy = ("integers of", site)
        for reader in readers:
            cut.edge(reader, copy, _NEVER)
        for producer in made_by or [cut.SINK]:
            cut.edge(copy, producer, cost / max(len(made_by), 1))
    kept = cut.source_side()
    return [layer for layer in layers if layer.variable not in kept]


def _sites(layers: Collection[Layer]) -> dict[Var, list[Var]]:
    """The readers of each tensor that layers read."""
    found: dict[Var, list[Var]] = {}
    for layer in layers:
        found.setdefault(layer.data, []).append(layer.variable)
    return found


def _products(graph: LayerGraph, site: Var, layers: Collection[Var]) -> list[Var]:
    """The layers whose results a tensor is made of by movers and elementwise operators; none where anything else is."""
    movers = {mover.variable: mover for mover in graph.movers}
    found: dict[Var, None] = {}
    waiting = [graph.root(site)]
    seen = set()
    while waiting:
        variable = waiting.pop()
        if variable in seen:
            continue
        seen.add(variable)
        if variable in layers:
            found[variable] = None
        elif variable in movers:
            waiting += [graph.root(each) for each in movers[variable].data]
        else:
            return []
    return list(found)


# The cheapest split of a graph in two: its minimum cut, by augmenting paths (Edmonds and Karp).

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
        """Nodes that can be reached from the source, each with the node before it."""
        found: dict[Node, Node] = {self.SOURCE: self.SOURCE}
        waiting: deque[Node] = deque([self.SOURCE])
        while waiting and self.SINK not in found:
            node = waiting.popleft()
            for neighbour, left in self._left[node].items():
                if left > least and neighbour not in found:
                    found[neighbour] = node
                    waiting.append(neighbour)
        return found
