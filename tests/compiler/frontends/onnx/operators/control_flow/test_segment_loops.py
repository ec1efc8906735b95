"""Embedding bags as PyTorch's exporter writes them: loops over bags, compiled to one kernel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import compiler
from compiler.frontends.onnx.loading.loader import all_nodes

TABLE, COLUMNS = 23, 70  # columns of a vector, and a rest


class Bags(torch.nn.Module):
    def __init__(self, mode: str, last: bool, padding: int | None) -> None:
        super().__init__()
        self.bags = torch.nn.EmbeddingBag(TABLE, COLUMNS, mode=mode, include_last_offset=last, padding_idx=padding)

    def forward(self, indices: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        return self.bags(indices, offsets)


def exported(path: Path, mode: str, last: bool, padding: int | None, *, dynamic: bool) -> Path:
    torch.manual_seed(0)
    arguments = torch.arange(12), torch.tensor([0, 3, 3, 7, 12])
    shapes = ({0: torch.export.Dim.DYNAMIC}, {0: torch.export.Dim.DYNAMIC}) if dynamic else None
    model = Bags(mode, last, padding).eval()
    torch.onnx.export(model, arguments, path, dynamo=True, verbose=False, dynamic_shapes=shapes)
    return path


def sample(count: int, bags: int, *, last: bool) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(count)
    offsets = np.sort(rng.integers(0, count + 1, bags))
    offsets[0] = 0
    if last:
        offsets[-1] = count
    return {"indices": rng.integers(0, TABLE, count), "offsets": offsets}


def check(path: Path, samples: list[dict[str, np.ndarray]], *, kernels: int) -> None:
    module = compiler.compile(path, threads=1)
    session = onnxruntime.InferenceSession(path)
    for feeds in samples:
        (expected,) = session.run(None, feeds)
        (found,) = module.run(feeds).values()
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert sum("segment" in each.kernel for each in module.manifest.kernels) == kernels


CASES: list[tuple[str, bool, int | None]] = [
    *(("sum", True, None), ("mean", False, None), ("max", True, None)),
    *(("sum", False, 3), ("mean", True, 3), ("max", False, -1)),
]


@pytest.mark.parametrize(("mode", "last", "padding"), CASES)
def test_bags_of_any_number_of_rows(tmp_path: Path, mode: str, last: bool, padding: int | None) -> None:
    path = exported(tmp_path / "bags.onnx", mode, last, padding, dynamic=True)
    sizes = (12, 5), (1, 2), (40, 9), (90, 3)
    check(path, [sample(*each, last=last) for each in sizes], kernels=1)


def test_bags_of_a_known_number_of_rows(tmp_path: Path) -> None:
    path = exported(tmp_path / "bags.onnx", "mean", False, None, dynamic=False)
    check(path, [sample(12, 5, last=False)], kernels=1)


def _product(loop: onnx.NodeProto) -> None:
    (reduction,) = (node for node in all_nodes([loop]) if node.op_type == "ReduceSum")
    reduction.op_type = "ReduceProd"


def _rounded_rows(loop: onnx.NodeProto) -> None:
    """Round the rows to integers before they are added."""
    graph = _branch(loop, "else_branch")
    part, reduction = graph.node
    rounded = [
        onnx.helper.make_node("Cast", [part.output[0]], ["whole"], to=onnx.TensorProto.INT32),
        onnx.helper.make_node("Cast", ["whole"], ["rounded"], to=onnx.TensorProto.FLOAT),
    ]
    reduction.input[0] = "rounded"
    nodes = [part, *rounded, reduction]
    del graph.node[:]
    graph.node.extend(nodes)


def _ones_of_empty_bags(loop: onnx.NodeProto) -> None:
    (row,) = _branch(loop, "then_branch").initializer
    row.CopyFrom(onnx.numpy_helper.from_array(np.ones((1, COLUMNS), np.float32), row.name))


def _branch(loop: onnx.NodeProto, name: str) -> onnx.GraphProto:
    (condition,) = (node for node in all_nodes([loop]) if node.op_type == "If")
    return next(each.g for each in condition.attribute if each.name == name)


@pytest.mark.parametrize("change", [_product, _rounded_rows, _ones_of_empty_bags])
def test_other_loops_over_segments_stay_loops(tmp_path: Path, change: Callable[[onnx.NodeProto], None]) -> None:
    path = exported(tmp_path / "bags.onnx", "sum", False, None, dynamic=True)
    model = onnx.load(path)
    (loop,) = (node for node in model.graph.node if node.op_type == "Loop")
    change(loop)
    onnx.save(model, path)
    check(path, [sample(12, 5, last=False)], kernels=0)
