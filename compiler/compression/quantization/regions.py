"""Which layers are left in float because the model is faster so: a minimum cut between floats and integers.

A layer costs the time of its kernel in float or in integers. Where a layer reads integers of what a float one made, the
tensor is converted: a float layer between two in integers must gain more than that. What lies between layers moves.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from compiler.compression.quantization.layer_times import LayerTime
from compiler.compression.quantization.layers import Layer, LayerGraph
from compiler.compression.quantization.min_cut import CutGraph
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
        conversion: seconds that it takes to make integers of so many floats.
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
