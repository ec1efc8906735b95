"""The table of kernel times: filled once, summed, compared with whole runs, and loaded again."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import targets
from compiler.errors import StorageError
from compiler.frontends.imported_model import ImportedModel
from compiler.frontends.source import import_model
from compiler.searching.layer_table import LayerTable, LoweredModel, Measured, Run


class MadeUpTimes:
    """A kernel takes one microsecond, and a run three more."""

    name = "made up"

    def __init__(self) -> None:
        self.asked = 0

    def some(self, candidates: Sequence[LoweredModel], wanted: AbstractSet[str]) -> Measured:
        return self.whole(candidates[0])

    def whole(self, lowered: LoweredModel) -> Measured:
        self.asked += 1
        run = Run(lowered, 1e-6 * lowered.count + 3e-6, 1e-6 * lowered.count)
        return Measured(dict.fromkeys(lowered.calls, 1e-6), run)

    def close(self) -> None:
        self.asked += 100


def products(*widths: int) -> ImportedModel:
    """`model_proto`, imported."""
    return import_model(model_proto(*widths))


def model_proto(*widths: int) -> ModelProto:
    """A chain of matrix products, each followed by a ReLU."""
    random = np.random.default_rng(0)
    nodes, weights, name = [], [], "x"
    for index, (rows, columns) in enumerate(itertools.pairwise(widths)):
        weights.append(numpy_helper.from_array(random.standard_normal((rows, columns)).astype(np.float32), f"w{index}"))
        nodes.append(helper.make_node("MatMul", [name, f"w{index}"], [f"h{index}"]))
        nodes.append(helper.make_node("Relu", [f"h{index}"], [f"r{index}"]))
        name = f"r{index}"
    graph = helper.make_graph(
        nodes,
        "products",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, widths[0]])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, widths[-1]])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def test_kernels_are_measured_once_and_whole_runs_check_the_sum(tmp_path: Path) -> None:
    path, times = tmp_path / "layers.json", MadeUpTimes()
    table = LayerTable(targets.get("host"), times, path)
    large, small = products(16, 32, 32, 8), products(16, 32, 8)
    lowered = table.lowered(large), table.lowered(small)
    assert sum(lowered[0].calls.values()) == 3
    assert set(table.lowered(products(16, 32, 32, 8)).calls) == set(lowered[0].calls)
    table.fill(lowered)
    assert times.asked == 1  # the small one has no kernel that the large one lacks
    assert table.errors() == []
    assert table.seconds(lowered[0]) == pytest.approx(6e-6)
    assert table.whole(lowered[1]) == pytest.approx(5e-6)
    per_call = (3e-6 / 3 + 3e-6 / 2) / 2
    assert table.errors() == pytest.approx([abs(2e-6 + 2 * per_call - 5e-6) / 5e-6])
    again = LayerTable(targets.get("host"), times, path)
    assert again.seconds(lowered[0]) == table.seconds(lowered[0])
    assert times.asked == 2


def test_a_table_of_another_measure_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "layers.json"
    path.write_text('{"measure": "timed on 4 thread(s)", "kernels": {}, "whole": []}')
    with pytest.raises(StorageError, match="this search needs 'made up'"):
        LayerTable(targets.get("host"), MadeUpTimes(), path)
    path.write_text("{")
    with pytest.raises(StorageError, match="is not a table of layers"):
        LayerTable(targets.get("host"), MadeUpTimes(), path)
