"""Never slower than in float: slower layers return to float, alone or with their neighbors.

By default times are predicted from the target's description. Measured times are optional; the whole model is then also
compared with the float model.

The layers that stay in float because the model is then faster are found by a minimum cut between floats and integers.

A layer costs the time of its kernel in float or in integers. If an integer layer reads the result of a float one, the
tensor is converted: a float layer between two integer ones must gain more than that. Movers between layers follow.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from functools import partial

import numpy as np
from tvm.ir import IRModule

import targets
from compiler.compression.predicted_times import KernelTime, PredictedClock, is_calibrated
from compiler.compression.quantization.calibration import Array
from compiler.compression.quantization.layer_choice import MEASURED
from compiler.compression.quantization.layer_times import LayerTime, LayerTimes
from compiler.compression.quantization.layers import Layer, LayerGraph
from compiler.compression.quantization.session import Candidate, Session
from compiler.compression.report import time_text
from compiler.passes.rewriting.graph import Var
from compiler.passes.rewriting.matching import static_shape
from compiler.profiling.profile import profile
from compiler.profiling.timing import interleaved_seconds
from compiler.runtime import Module

# Slowdown within the measurement noise: relative, and in seconds.
_NOISE, _NOISE_SECONDS = 1.03, 2e-6
# Assumed factors in favor of float if the whole model is still slower in integers.
_MARGINS = (1.25, 1.6, 2.5, float("inf"))


def speed_limit(
    session: Session, decide: str, target: targets.Target, build: Build, report: Callable[[str], None]
) -> SpeedLimit | None:
    """Limit that keeps a session from being slower than the float model; None if no times are available.

    That is the case for a target that this machine cannot run, with measured times, and for one without predictions.

    Args:
        decide: `precisions.PREDICTED` or `precisions.MEASURED`.
        build: compiles a module for the target.
    """
    if target.quantized_everywhere:
        return None
    if decide == MEASURED:
        return SpeedLimit(session, MeasuredClock(build), True, report) if target.fits_this_machine() else None
    return SpeedLimit(session, PredictedClock(target), False, report) if is_calibrated(target) else None


class SpeedLimit:
    """Holds a session's candidates to the time of the float model. `times`: times of the layers, by name."""

    def __init__(
        self, session: Session, clock: PredictedClock | MeasuredClock, measured: bool, report: Callable[[str], None]
    ) -> None:
        report("time layers" if measured else "predict times of layers")
        self._session, self._measured = session, measured
        self._timer = LayerTimes(clock, session.scheme.activations)
        layers = [layer for layer in session.quantizable if not layer.is_look_up]
        self.times: dict[str, LayerTime] = self._timer.measure(layers, session.rounded_weight)
        session.times = self.times
        self._margins = iter(_MARGINS if measured else ())
        self._leave(1.0)

    def tightened(self, found: Candidate, sample: Mapping[str, Array]) -> bool:
        """True if the candidate was measured to be slower than the float model, and layers returned to float."""
        if not self._measured:
            return False
        modules = (self._session.float_module, found.module)
        runs = [partial(module.run, sample) for module in modules]
        floats, integers = interleaved_seconds(runs, threads=modules[0].threads)
        if integers <= floats * _NOISE + _NOISE_SECONDS:
            return False
        return any(self._leave(margin) for margin in self._margins)

    def _leave(self, margin: float) -> bool:
        """Return layers to float; True if there were any."""
        layers = [layer for layer in self._session.quantizable if not layer.is_look_up]
        if margin == float("inf"):
            slower = layers
        else:
            times = self._within_noise() if self._measured else self.times
            slower = faster_in_float(self._session.graph, layers, times, self._timer.conversion, margin)
        for layer in slower:
            self._session.in_float[layer.name] = self._reason(layer.name)
        self._session.slower.update(layer.name for layer in slower)
        return bool(slower)

    def _within_noise(self) -> dict[str, LayerTime]:
        """The times, adjusted in favor of integers."""
        return {
            name: LayerTime(time.floats * _NOISE + _NOISE_SECONDS, time.integers) for name, time in self.times.items()
        }

    def _reason(self, name: str) -> str:
        time = self.times.get(name)
        if time is None or time.floats >= time.integers:
            return "faster in float with its neighbors: conversions cost more than integers gain"
        how = "measured on this machine" if self._measured else "predicted for the target"
        return f"slower in integers: {time_text(time.floats, time.integers)} ({how})"


_ROUNDS, _RUNS = 7, 5
Build = Callable[[IRModule], Module]


class MeasuredClock:
    """Times modules alternately, so that a temporary slowdown of the machine affects all; the shortest time counts.
    `build`: compiles a module for the target, which this machine can run."""

    def __init__(self, build: Build) -> None:
        self._build = build

    def __call__(self, mods: Sequence[IRModule]) -> list[list[KernelTime]]:
        """Calls of a run of each module, in order. Raises UserError and InternalError if compiling or profiling
        fails."""
        modules = [self._build(mod) for mod in mods]
        rounds = [[profile(module, runs=_RUNS).calls for module in modules] for _ in range(_ROUNDS)]
        found = []
        for calls in zip(*rounds, strict=True):
            seconds = np.array([[call.duration for call in run] for run in calls])
            least, middle = seconds.min(axis=0), np.median(seconds, axis=0)
            found.append(
                [
                    KernelTime(
                        call.kind, float(least[index]), float((middle[index] - least[index]) / max(least[index], 1e-9))
                    )
                    for index, call in enumerate(calls[0])
                ]
            )
        return found


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
        layers: all layers that would be quantized. A layer without a time stays quantized.
        times: times by the layer's name.
        conversion: returns the seconds to quantize a number of floats.
        margin: assumed additional factor in favor of float.
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
    readers: dict[Var, list[Var]] = {}
    for layer in layers:
        readers.setdefault(layer.data, []).append(layer.variable)
    return readers


def _products(graph: LayerGraph, site: Var, layers: Collection[Var]) -> list[Var]:
    """The layers whose results make up a tensor, through opaque calls and elementwise operators; else empty."""
    opaque_calls = {opaque_call.variable: opaque_call for opaque_call in graph.opaque_calls}
    products: dict[Var, None] = {}
    waiting = [graph.root(site)]
    seen = set()
    while waiting:
        variable = waiting.pop()
        if variable in seen:
            continue
        seen.add(variable)
        if variable in layers:
            products[variable] = None
        elif variable in opaque_calls:
            waiting += [graph.root(each) for each in opaque_calls[variable].data]
        else:
            return []
    return list(products)


# The cheapest split of a graph in two: its minimum cut, by augmenting paths (Edmonds and Karp).

Node = Hashable
_MIN_RESIDUAL = 1e-12  # relative to the largest capacity: smaller residuals of an edge are rounding errors


class CutGraph:
    """Edges with capacities between a source and a sink."""

    SOURCE, SINK = "source", "sink"

    def __init__(self) -> None:
        self._left: dict[Node, dict[Node, float]] = {self.SOURCE: {}, self.SINK: {}}

    def edge(self, start: Node, end: Node, capacity: float) -> None:
        """Add the cost if `start` is on the source's side and `end` on the sink's."""
        for one, other, amount in ((start, end, capacity), (end, start, 0.0)):
            edges = self._left.setdefault(one, {})
            edges[other] = edges.get(other, 0.0) + amount

    def source_side(self) -> set[Node]:
        """The nodes on the source's side of the minimum cut."""
        finite = [each for edges in self._left.values() for each in edges.values() if each != float("inf")]
        least = max(finite, default=0.0) * _MIN_RESIDUAL
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
        """Nodes reachable from the source, each with its predecessor."""
        parents: dict[Node, Node] = {self.SOURCE: self.SOURCE}
        waiting: deque[Node] = deque([self.SOURCE])
        while waiting and self.SINK not in parents:
            node = waiting.popleft()
            for neighbour, left in self._left[node].items():
                if left > least and neighbour not in parents:
                    parents[neighbour] = node
                    waiting.append(neighbour)
        return parents
