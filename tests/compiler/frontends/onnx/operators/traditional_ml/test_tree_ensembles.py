"""Tree ensembles in both encodings against a numpy traversal of the model's node lists."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
import onnx.helper
import pytest

import compiler
from compiler.errors import InvalidModelError
from compiler.frontends.onnx.operators.traditional_ml import tree_ensembles
from compiler.frontends.onnx.operators.traditional_ml.tree_tables import GT, GTE, LEAF, LEQ, LT, Ensemble, tree_table
from tests.compiler.frontends.onnx.operators.onnxruntime_check import node_model

Array = np.ndarray[Any, Any]
FEATURES, TREES = 4, 19
MODES = ["LEQ", "LT", "GTE", "GT", "EQ", "NEQ"]
# Values that thresholds have too, so that comparisons meet equal numbers, infinities, both zeros and NaN.
NUMBERS = np.array([-np.inf, -1.5, -0.1, -0.0, 0.0, 1e-45, 0.1, 1.5, np.inf, np.nan])


def _holds(mode: str, value: Any, threshold: float, missing: bool) -> Any:
    if missing and np.isnan(value):
        return True
    return {
        "LEQ": value <= threshold,
        "LT": value < threshold,
        "GTE": value >= threshold,
        "GT": value > threshold,
        "EQ": value == threshold,
        "NEQ": value != threshold,
    }[mode]


def _random_trees(random: np.random.Generator, outputs: int, modes: list[str], per_leaf: int) -> dict[str, list[Any]]:
    """Trees of different depths; a leaf has `per_leaf` weights."""
    lists: dict[str, list[Any]] = {
        f"nodes_{name}": []
        for name in ("treeids", "nodeids", "featureids", "values", "modes", "truenodeids", "falsenodeids")
    }
    lists |= {"nodes_missing_value_tracks_true": []}
    lists |= {f"target_{name}": [] for name in ("treeids", "nodeids", "ids", "weights")}
    for tree in range(TREES):
        waiting, count = [(0, 0)], 1
        while waiting:
            node, depth = waiting.pop(int(random.integers(len(waiting))))
            leaf = depth == 6 or (depth > 0 and random.random() < 0.25)
            children = (0, 0) if leaf else (count, count + 1)
            mode = "LEAF" if leaf else f"BRANCH_{random.choice(modes)}"
            fields = (tree, node, int(random.integers(FEATURES)), float(random.choice(NUMBERS)), mode, *children)
            for name, value in zip(list(lists)[:7], fields, strict=True):
                lists[name].append(value)
            lists["nodes_missing_value_tracks_true"].append(int(random.integers(2)))
            if not leaf:
                waiting += [(child, depth + 1) for child in children]
                count += 2
            for target in random.permutation(outputs)[:per_leaf] if leaf else ():
                for name, value in zip(
                    ("treeids", "nodeids", "ids", "weights"), (tree, node, int(target), random.normal()), strict=True
                ):
                    lists[f"target_{name}"].append(value)
    return lists


def _expected(lists: dict[str, list[Any]], x: Array, outputs: int, aggregate: str) -> Array:
    keys = list(zip(lists["nodes_treeids"], lists["nodes_nodeids"], strict=True))
    place = {key: i for i, key in enumerate(keys)}
    weights: dict[tuple[int, int], list[tuple[int, float]]] = {}
    for *key, target, weight in zip(
        *(lists[f"target_{n}"] for n in ("treeids", "nodeids", "ids", "weights")), strict=True
    ):
        weights.setdefault((key[0], key[1]), []).append((target, float(np.float32(weight))))
    result = np.zeros((len(x), outputs))
    thresholds = np.array(lists["nodes_values"], np.float32)
    for row, values in enumerate(x):
        given: list[list[float]] = [[] for _ in range(outputs)]
        for tree in range(TREES):
            node = place[tree, 0]
            while lists["nodes_modes"][node] != "LEAF":
                mode = lists["nodes_modes"][node].removeprefix("BRANCH_")
                missing = bool(lists["nodes_missing_value_tracks_true"][node])
                holds = _holds(mode, values[lists["nodes_featureids"][node]], thresholds[node], missing)
                node = place[tree, lists["nodes_truenodeids" if holds else "nodes_falsenodeids"][node]]
            for target, weight in weights.get(keys[node], []):
                given[target].append(weight)
        extreme = max if aggregate == "MAX" else min
        scale = TREES if aggregate == "AVERAGE" else 1
        sums = [sum(each) / scale for each in given]
        result[row] = [extreme(each, default=0) for each in given] if aggregate in ("MIN", "MAX") else sums
    return result


def _data(rows: int) -> Array:
    return np.random.default_rng(rows).choice(NUMBERS, (rows, FEATURES)).astype(np.float32)


@pytest.mark.parametrize(
    ("modes", "aggregate", "per_leaf", "dtype"),
    [
        (["LEQ"], "SUM", 1, np.float32),
        (MODES, "SUM", 2, np.float32),
        (MODES[:4], "MAX", 1, np.float64),
        (MODES[4:], "MIN", 3, np.float32),
        (MODES, "AVERAGE", 0, np.float32),
    ],
    ids=str,
)
def test_modes_and_aggregates(
    modes: list[str], aggregate: str, per_leaf: int, dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows by ones and by lanes, parts of tasks and of strips, several blocks of trees."""
    monkeypatch.setattr(tree_ensembles, "_MIN_SLOTS", 1)
    monkeypatch.setattr(tree_ensembles, "_STRIP_ROWS", 64)
    outputs = 3
    lists = _random_trees(np.random.default_rng(len(modes)), outputs, modes, per_leaf)
    attributes: dict[str, Any] = lists | {"n_targets": outputs, "aggregate_function": aggregate}
    if not per_leaf:
        attributes = {name: value for name, value in attributes.items() if value or not name.startswith("target_")}
        attributes |= {f"target_{name}": [0] for name in ("treeids", "ids")}
        attributes |= {"target_nodeids": [lists["nodes_nodeids"][lists["nodes_modes"].index("LEAF")]]}
        attributes |= {"target_weights": [2.0]}
        attributes["target_treeids"] = [lists["nodes_treeids"][lists["nodes_modes"].index("LEAF")]]
        lists = attributes
    model = node_model("TreeEnsembleRegressor", {"x": _data(1).astype(dtype)}, domain="ai.onnx.ml", **attributes)
    model.opset_import[1].version = 3
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "rows"
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    module = compiler.compile(model)
    for rows in (1, 3, 8, 75, 150):
        x = _data(rows)
        (got,) = module.run([x.astype(dtype)]).values()
        np.testing.assert_allclose(got, _expected(lists, x, outputs, aggregate), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("threshold", [np.float32(0.1), np.float64(0.1)], ids=["float32", "float64"])
def test_thresholds_of_either_type_and_sets(threshold: Any) -> None:
    """Thresholds and data in both float types, and a branch on set membership."""
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.asarray(threshold).dtype)

    def tensor(name: str, values: list[float], dtype: int = kind) -> onnx.TensorProto:
        return onnx.helper.make_tensor(name, dtype, [len(values)], values)

    below = np.nextafter(np.float32(0.1), np.float32(0))
    x = np.array([[0.1, 2], [0.0999, 7], [below, 3], [np.nan, 5], [1, -3], [1, 2], [1, 0], [1, -0.5]], np.float32)
    x = x.astype(threshold.dtype)
    attributes: dict[str, Any] = {
        "n_targets": 1,
        "tree_roots": [0],
        "nodes_modes": tensor("m", [0, 6], onnx.TensorProto.UINT8),
        "nodes_featureids": [0, 1],
        "nodes_splits": tensor("s", [float(threshold), 0.0]),
        "nodes_truenodeids": [0, 1],
        "nodes_trueleafs": [1, 1],
        "nodes_falsenodeids": [1, 2],
        "nodes_falseleafs": [0, 1],
        "leaf_targetids": [0, 0, 0],
        "leaf_weights": tensor("w", [1.0, 2.0, 4.0]),
        "membership_values": tensor("v", [2.0, 5.0, float("nan")]),
    }
    model = node_model("TreeEnsemble", {"x": x}, domain="ai.onnx.ml", **attributes)
    model.opset_import[1].version = 5
    model.graph.output[0].type.tensor_type.elem_type = kind
    (got,) = compiler.compile(model).run([x]).values()
    others = np.where(np.isin(x[:, 1], (2, 5)), 2, 4)
    np.testing.assert_array_equal(got[:, 0], np.where(x[:, 0] <= threshold, 1, others))


def test_float64_thresholds_of_float32_data() -> None:
    """Thresholds are rounded in the direction that keeps comparisons exact."""
    below, above = np.float32(0.1), np.nextafter(np.float32(0.1), np.float32(1))
    x = np.array([[np.nextafter(below, np.float32(0))], [below], [above]], np.float32)
    thresholds = [(float(below) + float(above)) / 2, float(below), 1e300]
    modes = [LEQ, LT, GTE, GT]
    for mode, threshold in itertools.product(modes, thresholds):
        ensemble = Ensemble(
            features=np.zeros(3, np.int64),
            modes=np.array([mode, LEAF, LEAF]),
            thresholds=np.array([threshold, 0, 0], np.float64),
            branches=np.array([[1, 2], [0, 0], [0, 0]]),
            missing=np.zeros(3, bool),
            leaf_weights=np.array([[0, 0], [0, 1], [1, 2]]),
            sets=None,
            members=np.zeros(1),
            roots=np.array([0]),
            targets=np.array([0, 0]),
            weights=np.array([1, 2], np.float32),
            outputs=1,
            aggregate="SUM",
        )
        table = tree_table(ensemble, "float32")
        words = table.words.view(np.int32).reshape(-1, 2)[:, 0].view(np.float32)
        expected = np.where(_holds(MODES[mode], x[:, 0].astype(np.float64), threshold, False), 1, 2)
        assert table.value_type == "float32"
        np.testing.assert_array_equal(np.where(x[:, 0] <= words[0], words[1], words[2]), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nodes_featureids": [FEATURES, 0, 0]}, "reads feature 4"),
        ({"nodes_truenodeids": [7, 0, 0]}, "does not exist"),
        (
            {
                "nodes_modes": ["BRANCH_LEQ", "BRANCH_LEQ", "LEAF"],
                "nodes_truenodeids": [1, 1, 0],
                "nodes_falsenodeids": [2, 2, 0],
                "target_nodeids": [2, 2],
            },
            "do not form trees",
        ),
        ({"target_ids": [0, 1]}, "outputs"),
        ({"nodes_values": [0.0]}, "nodes_values"),
        ({"nodes_modes": ["BRANCH_LEQ", "LEAF", "BRANCH"]}, "BRANCH_MEMBER"),
        ({"nodes_nodeids": [0, 1, 1]}, "same tree"),
    ],
    ids=str,
)
def test_lists_that_form_no_trees_are_refused(changes: dict[str, Any], message: str) -> None:
    attributes: dict[str, Any] = {
        "n_targets": 1,
        "nodes_treeids": [0, 0, 0],
        "nodes_nodeids": [0, 1, 2],
        "nodes_featureids": [0, 0, 0],
        "nodes_values": [0.0, 0.0, 0.0],
        "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF"],
        "nodes_truenodeids": [1, 0, 0],
        "nodes_falsenodeids": [2, 0, 0],
        "target_treeids": [0, 0],
        "target_nodeids": [1, 2],
        "target_ids": [0, 0],
        "target_weights": [1.0, 2.0],
    }
    model = node_model("TreeEnsembleRegressor", {"x": _data(2)}, domain="ai.onnx.ml", **attributes | changes)
    model.opset_import[1].version = 3
    with pytest.raises(InvalidModelError, match=message):
        compiler.compile(model)
