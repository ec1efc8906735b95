"""Layers that are slower in integers go back to float, and the whole is never slower than in float."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import compiler
from compiler.compression.quantization import speed
from compiler.compression.quantization.layer_times import LayerTime, LayerTimes
from compiler.compression.quantization.layers import find_layers
from compiler.compression.quantization.min_cut import CutGraph
from compiler.compression.quantization.regions import faster_in_float
from compiler.frontends.source import import_model
from compiler.passes.pipeline import run_pipeline
from tests.compiler.compression.quantization.networks import chain_net, samples


@pytest.mark.parametrize("seed", range(8))
def test_the_minimum_cut_is_the_cheapest_of_all(seed: int) -> None:
    generator = np.random.default_rng(seed)
    nodes = [CutGraph.SOURCE, CutGraph.SINK, *range(6)]
    pairs = [pair for pair in itertools.permutations(nodes, 2) if generator.random() < 0.5]
    edges = [(start, end, float(generator.integers(1, 20))) for start, end in pairs]
    graph = CutGraph()
    for edge in edges:
        graph.edge(*edge)

    def cost(side: set[Any]) -> float:
        return sum(capacity for start, end, capacity in edges if start in side and end not in side)

    subsets = [{CutGraph.SOURCE, *chosen} for size in range(7) for chosen in itertools.combinations(range(6), size)]
    assert cost(graph.source_side()) == min(map(cost, subsets))


@pytest.mark.parametrize(
    ("times", "conversion", "in_float"),
    [
        ([(9, 3), (9, 3), (9, 3)], 1.0, []),
        ([(9, 3), (3, 4), (9, 3)], 2.0, []),  # in float its result would be converted for the next
        ([(9, 3), (3, 8), (9, 3)], 2.0, [1]),
        ([(3, 4), (9, 3), (9, 3)], 2.0, [0]),  # the input is converted in any case, here or there
        ([(9, 3), (3, 4), (3, 4)], 2.0, [1, 2]),  # nothing behind them reads integers
        ([(3, 4), (3, 4), (9, 8)], 2.0, [0, 1, 2]),
        ([(3, 4), (3, 4), (9, 6)], 2.0, [0, 1]),
    ],
)
def test_regions(times: list[tuple[float, float]], conversion: float, in_float: list[int]) -> None:
    graph = find_layers(run_pipeline(import_model(chain_net(3)).mod, until="canonicalize").mod)
    measured = {layer.name: LayerTime(*pair) for layer, pair in zip(graph.layers, times, strict=True)}
    found = faster_in_float(graph, graph.layers, measured, lambda _: conversion)
    assert [graph.layers.index(layer) for layer in found] == in_float


def test_a_layer_whose_zeros_floats_skip_stays_in_float() -> None:
    net = chain_net(3, 512)
    weight = net.graph.initializer[1]
    values = np.zeros((512, 512), np.float32)
    values[:16, :16] = 1
    weight.raw_data = values.tobytes()
    report = compiler.quantize(net, samples((128, 512), 2), shapes={"x": (128, 512)}, threads=1, max_drop=0.5).report
    (left,) = report.in_float
    assert left.name == report.layers[1].name
    assert left.reason.startswith("slower in integers")
    kept = compiler.quantize(
        net, samples((128, 512), 2), shapes={"x": (128, 512)}, threads=1, max_drop=0.5, keep_slower=True
    )
    assert not kept.report.in_float


def test_a_model_that_is_slower_in_integers_stays_in_float(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "seconds_in_turns", lambda *_, **__: [1.0, 2.0])
    data = samples((4, 16), 1)
    model = compiler.quantize(chain_net(2), data, method="min-max", threads=1)
    assert len(model.report.in_float) == len(model.report.layers) == 2
    assert all("float" in layer.reason for layer in model.report.in_float)
    got, wanted = (compiler.compile(each, threads=1).run(data[0])["y"] for each in (model, chain_net(2)))
    np.testing.assert_array_equal(got, wanted)


def test_equal_layers_are_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[Any] = []
    # So wide that a kernel's time is more than what the instrument's own varies by.
    graph = find_layers(run_pipeline(import_model(chain_net(3, width=512)).mod, until="canonicalize").mod)
    from compiler.compression.quantization.affine import quantize_weight

    def build(mod: Any) -> Any:
        built.append(mod)
        return compiler.compile(mod, threads=1)

    times = LayerTimes(build, "uint8").measure(
        graph.layers, lambda layer: quantize_weight(layer.weight, 1, per_channel=True)
    )
    assert [len(mod["main"].params) for mod in built] == [1, 1]
    assert len(times) == 3
    assert len(set(times.values())) == 1
    assert all(time.floats > 0 and time.integers > 0 for time in times.values())
