"""Layers that are slower in integers go back to float, and the whole model is never slower than in float."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tvm.ir import IRModule

import compiler
import targets
from compiler.compression.predicted_times import KernelTime, PredictedClock
from compiler.compression.quantization import speed
from compiler.compression.quantization.affine import quantize_weight
from compiler.compression.quantization.layer_choice import check_decide
from compiler.compression.quantization.layer_times import LayerTime, LayerTimes
from compiler.compression.quantization.layers import find_layers
from compiler.compression.quantization.speed import CutGraph, MeasuredClock, faster_in_float
from compiler.errors import OptionError
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
    monkeypatch.setattr(speed, "interleaved_seconds", lambda *_, **__: [1.0, 2.0])
    data = samples((4, 16), 1)
    model = compiler.quantize(chain_net(2), data, method="min-max", decide="measured", threads=1)
    assert len(model.report.in_float) == len(model.report.layers) == 2
    assert all("integers" in layer.reason for layer in model.report.in_float)
    got, wanted = (compiler.compile(each, threads=1).run(data[0])["y"] for each in (model, chain_net(2)))
    np.testing.assert_array_equal(got, wanted)


def test_equal_layers_are_timed_once() -> None:
    timed: list[list[IRModule]] = []

    def clock(mods: Sequence[IRModule]) -> list[list[KernelTime]]:
        timed.append(list(mods))
        return [[KernelTime("matmul", 2.0, 0.1)], [KernelTime("elementwise", 5.0), KernelTime("matmul", 1.0, 0.2)]]

    graph = find_layers(run_pipeline(import_model(chain_net(3)).mod, until="canonicalize").mod)
    times = LayerTimes(clock, "uint8").measure(
        graph.layers, lambda layer: quantize_weight(layer.weight, 1, per_channel=True)
    )
    assert [len(mod["main"].params) for mods in timed for mod in mods] == [1, 1]
    assert list(times.values()) == [LayerTime(2.0, 1.0, 0.2)] * 3


def test_measured_times_are_of_the_kernels_in_their_order() -> None:
    """The times themselves do not matter: for kernels this small they can be 0 after subtracting the overhead."""
    mods = [run_pipeline(import_model(chain_net(count)).mod, until="canonicalize").mod for count in (1, 3)]
    found = MeasuredClock(lambda mod: compiler.compile(mod, threads=1))(mods)
    counts = [[kernel.kind for kernel in kernels].count("matmul") for kernels in found]
    assert counts == [1, 3]
    assert all(kernel.seconds >= 0 and kernel.spread >= 0 for kernels in found for kernel in kernels)


@pytest.mark.parametrize("target", ["x86-64-v3", "x86-64-v4", "cascadelake"])
def test_predictions_know_bytes_from_floats_and_large_from_small(target: str) -> None:
    machine = targets.get(target, cores=1)
    times = {width: _predicted(width, machine) for width in (64, 1024)}
    assert times[1024].floats > 100 * times[64].floats
    assert times[1024].integers < times[1024].floats
    assert _predicted(1024, machine) == times[1024]


def _predicted(width: int, target: targets.Target) -> LayerTime:
    graph = find_layers(
        run_pipeline(import_model(chain_net(1, width), shapes={"x": (128, width)}).mod, until="canonicalize").mod
    )
    times = LayerTimes(PredictedClock(target), "uint8").measure(
        graph.layers, lambda layer: quantize_weight(layer.weight, 1, per_channel=True)
    )
    return next(iter(times.values()))


def test_what_was_decided_is_repeated(tmp_path: Path) -> None:
    data = samples((4, 16), 2)
    first = compiler.quantize(chain_net(3), data, in_float=["m1"], keep_slower=True, threads=1)
    first.report.save_precisions(tmp_path / "layers.json")
    again = compiler.quantize(chain_net(3), data, decide=tmp_path / "layers.json", threads=1)
    assert again.report.precisions == first.report.precisions
    assert list(first.report.precisions.values()).count("float") == 1
    everything = dict.fromkeys(first.report.precisions, "float")
    assert compiler.quantize(chain_net(3), data, decide=everything, threads=1).report.precisions == everything
    with pytest.raises(OptionError, match="is not a layer"):
        compiler.quantize(chain_net(3), data, decide={"nowhere": "float"}, threads=1)


@pytest.mark.parametrize(
    ("decide", "match"),
    [("guess", "guess"), ({"a": "int4"}, "int4"), ("missing.json", "cannot be read"), (7, "decide=7")],
)
def test_other_decisions_are_refused(decide: Any, match: str) -> None:
    with pytest.raises(OptionError, match=match):
        check_decide(decide)
