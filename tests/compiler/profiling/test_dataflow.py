from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import compiler
from compiler.profiling.instrument import Call, TensorArgument
from compiler.profiling.measured import Profile
from compiler.profiling.profile import dataflow

A, B, C, INPUT, WEIGHT = 0x1000, 0x2000, 0x3000, 0x4000, 0x5000


def _call(name: str, *tensors: tuple[int, int]) -> Call:
    arguments = {at: TensorArgument((size,), "uint8", size, address) for at, (address, size) in enumerate(tensors)}
    return Call(name, arguments, {}, (), 0, None)


def test_memory_that_tensors_share_is_told_apart_by_time() -> None:
    calls = [
        _call("first", (INPUT, 64), (A, 100)),
        _call("second", (A, 100), (WEIGHT, 640), (B, 64)),
        _call("third", (B, 64), (A, 64)),  # where the result of the first was
        _call("fourth", (A, 64), (B, 64), (C, 64)),
    ]
    flow = dataflow(calls, [1] * 4)
    assert flow.reads == ((), (0,), (1,), (1, 2))
    assert flow.live == (128, 128 + 64, 128, 192)


def test_tensors_written_in_place_are_counted_once() -> None:
    calls = [_call("first", (INPUT, 64), (A, 64)), _call("over", (A, 64), (A, 64)), _call("last", (A, 64), (B, 64))]
    assert dataflow(calls, [1] * 3).reads == ((), (0,), (1,))
    assert dataflow(calls, [1] * 3).live == (64, 64, 128)
    # A kernel whose result has the memory of an operand that it updates gets it once.
    calls[1] = _call("update_in_place", (INPUT, 64), (A, 64))
    assert dataflow(calls, [1] * 3).reads == ((), (0,), (1,))
    assert dataflow(calls, [1] * 3).live == (64, 64, 128)


def test_kernels_with_several_results() -> None:
    calls = [
        _call("make", (INPUT, 64), (A, 64)),
        _call("split", (INPUT, 64), (A, 64), (B, 64)),  # the first result lies where the dead tensor was
        _call("vm.builtin.make_tuple", (A, 64), (B, 64)),
    ]
    flow = dataflow(calls, [1, 2, 0])
    assert flow.reads == ((), (), ())
    assert flow.live == (64, 128, 128)


@pytest.fixture(scope="module")
def branches() -> Profile:
    """Two products of one, the best three of their sum, and two products of these."""
    generator = np.random.default_rng(0)
    weights = [helper.make_tensor("k", TensorProto.INT64, [1], [8])]
    for name, shape in {"a": (32, 32), "b": (32, 32), "c": (32, 32), "d": (8, 16)}.items():
        value = generator.standard_normal(shape, np.float32)
        weights.append(helper.make_tensor(name, TensorProto.FLOAT, shape, value.tobytes(), raw=True))
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["xa"], "start"),
        helper.make_node("MatMul", ["xa", "b"], ["left"], "left"),
        helper.make_node("MatMul", ["xa", "c"], ["right"], "right"),
        helper.make_node("Softmax", ["left"], ["weighed"], "softmax"),
        helper.make_node("Add", ["weighed", "right"], ["sum"], "add"),
        helper.make_node("TopK", ["sum", "k"], ["values", "indices"], "best"),
        helper.make_node("MatMul", ["values", "d"], ["y"], "end"),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 32])]
    outputs = [
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 16]),
        helper.make_tensor_value_info("indices", TensorProto.INT64, [4, 8]),
    ]
    graph = helper.make_graph(nodes, "branches", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model)
    module = compiler.compile(model, threads=1)
    assert any(entry.outputs == 2 for entry in module.manifest.kernels)
    assert module.manifest.memory_plan is not None
    profile = compiler.profile(module, runs=2)
    assert max(call.live_bytes for call in profile.calls) == module.manifest.memory_plan.live_bytes
    assert profile.planned_bytes == module.manifest.memory_plan.peak_bytes
    return profile


def _charts(profile: Profile, folder: Path) -> list[dict[str, Any]]:
    page = profile.save(folder)["page"].read_text(encoding="utf-8")
    found = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])["charts"]


def test_the_graph_of_the_page_is_that_of_the_model(branches: Profile, tmp_path: Path) -> None:
    charts = _charts(branches, tmp_path)
    (graph,) = [each for each in charts if each["kind"] == "graph"]
    table = next(each for each in charts if each["kind"] == "table")
    rows = {row[table["id_key"]]: row for row in table["rows"]}
    names = {node["id"]: dict(rows[node["id"]]["details"])["computes"].split(", ") for node in graph["nodes"]}
    ahead: dict[int, set[int]] = {}
    for node in sorted(graph["nodes"], key=lambda node: node["level"]):
        sources = {source for source, target in graph["edges"] if target == node["id"]}
        ahead[node["id"]] = sources.union(*(ahead[source] for source in sources))
    before = {(a, b) for layer in names for source in ahead[layer] for a in names[source] for b in names[layer]}
    model = [
        ("start", "left"),
        ("start", "right"),
        ("left", "softmax"),
        ("right", "add"),
        ("add", "best"),
        ("best", "end"),
    ]
    assert before.issuperset(model)
    assert not before.intersection((b, a) for a, b in model)
    assert all(node["category"] == rows[node["id"]]["kind"] for node in graph["nodes"])


def test_the_memory_of_the_page_is_that_of_the_plan(branches: Profile, tmp_path: Path) -> None:
    (memory,) = [each for each in _charts(branches, tmp_path) if each.get("area")]
    alive, plan = (each["points"] for each in memory["series"])
    assert max(value for _, value in alive) <= branches.planned_bytes == plan[0][1]
    times = [time for time, _ in alive]
    assert times == sorted(times)
