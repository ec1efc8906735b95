"""ai.onnx.ml and text operators on numbers against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.helper
import pytest

import compiler
from compiler.errors import UnsupportedModelError
from compiler.frontends.onnx import import_onnx
from tests.compiler.frontends.onnx.operators.onnxruntime_check import (
    assert_equal_to_onnxruntime,
    node_model,
    run_reference,
)

_X = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)


def _model(operator: str, inputs: dict[str, Any], outputs: int = 1, **attributes: Any) -> onnx.ModelProto:
    model = node_model(operator, inputs, outputs, domain="ai.onnx.ml", **attributes)
    model.opset_import[1].version = 3
    return model


@pytest.mark.parametrize(
    ("operator", "attributes"),
    [
        ("Scaler", {"offset": [0.1, 0.2, 0.3], "scale": [2.0, 3.0, 4.0]}),
        ("Normalizer", {"norm": "L1"}),
        ("Normalizer", {"norm": "L2"}),
        ("Binarizer", {"threshold": 0.3}),
        ("LinearRegressor", {"targets": 2, "coefficients": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], "intercepts": [1.0, 2.0]}),
        ("LabelEncoder", {"keys_floats": [float(_X[0, 0]), 2.0], "values_floats": [5.0, 6.0], "default_float": -1.5}),
    ],
)
def test_small_operators(operator: str, attributes: dict[str, Any]) -> None:
    assert_equal_to_onnxruntime(_model(operator, {"x": _X}, **attributes), {"x": _X})


def test_imputer_and_categories() -> None:
    x = _X.copy()
    x[0, 1] = x[3, 2] = np.nan
    attributes: dict[str, Any] = {"imputed_value_floats": [1.0, 2.0, 3.0], "replaced_value_float": float("nan")}
    assert_equal_to_onnxruntime(_model("Imputer", {"x": x}, **attributes), {"x": x})
    codes = np.array([[3, 5, 9]], np.int64)
    assert_equal_to_onnxruntime(_model("OneHotEncoder", {"x": codes}, cats_int64s=[9, 3]), {"x": codes})
    labels: dict[str, Any] = {"keys_int64s": [3, 9], "values_int64s": [30, 90], "default_int64": -7}
    assert_equal_to_onnxruntime(_model("LabelEncoder", {"x": codes}, **labels), {"x": codes})


@pytest.mark.parametrize("keys", [[3, 1, 3, -7], [1, 10**9], [2**63 - 1, 5]], ids=["near", "far", "greatest"])
def test_label_encoder_of_integers(keys: list[int]) -> None:
    codes = np.array([*keys, 0, 2, 4, -8, 2**63 - 1, -(2**63)])
    labels: dict[str, Any] = {"keys_int64s": keys, "values_int64s": list(range(5, 5 + len(keys)))}
    assert_equal_to_onnxruntime(_model("LabelEncoder", {"x": codes}, **labels), {"x": codes})


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("transform", ["NONE", "LOGISTIC"])
def test_linear_classifier(classes: int, transform: str) -> None:
    attributes = {
        "coefficients": np.linspace(-1, 1, 3 * classes).tolist(),
        "intercepts": [0.1] * classes,
        "classlabels_ints": [10, 20] if classes == 1 else [10, 20, 30],
        "post_transform": transform,
    }
    assert_equal_to_onnxruntime(_model("LinearClassifier", {"x": _X}, 2, **attributes), {"x": _X})


def _trees(generator: np.random.Generator, prefix: str, outputs: int, modes: list[str]) -> dict[str, Any]:
    """Three random trees of three levels."""
    nodes: dict[str, list[Any]] = {
        name: [] for name in ("treeids", "nodeids", "featureids", "values", "modes", "truenodeids", "falsenodeids")
    }
    leaves: dict[str, list[Any]] = {name: [] for name in ("treeids", "nodeids", "ids", "weights")}
    for tree in range(3):
        for node in range(7):
            leaf = node >= 3
            nodes["treeids"].append(tree)
            nodes["nodeids"].append(node)
            nodes["featureids"].append(int(generator.integers(3)))
            nodes["values"].append(float(generator.standard_normal() * 0.5))
            nodes["modes"].append("LEAF" if leaf else str(generator.choice(modes)))
            nodes["truenodeids"].append(0 if leaf else 2 * node + 1)
            nodes["falsenodeids"].append(0 if leaf else 2 * node + 2)
            for output in range(outputs if leaf else 0):
                leaves["treeids"].append(tree)
                leaves["nodeids"].append(node)
                leaves["ids"].append(output)
                leaves["weights"].append(float(generator.standard_normal()))
    return {f"nodes_{k}": v for k, v in nodes.items()} | {f"{prefix}_{k}": v for k, v in leaves.items()}


@pytest.mark.parametrize("aggregate", ["SUM", "AVERAGE", "MIN", "MAX"])
def test_tree_regressor(aggregate: str) -> None:
    modes = ["BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT"]
    attributes = _trees(np.random.default_rng(1), "target", 2, modes)
    attributes |= {"n_targets": 2, "aggregate_function": aggregate, "base_values": [0.5, -0.25]}
    assert_equal_to_onnxruntime(_model("TreeEnsembleRegressor", {"x": _X}, **attributes), {"x": _X})


@pytest.mark.parametrize("classes", [2, 3])
def test_tree_classifier(classes: int) -> None:
    attributes = _trees(np.random.default_rng(2), "class", 1 if classes == 2 else classes, ["BRANCH_LEQ"])
    attributes["classlabels_int64s"] = [10, 20, 30][:classes]
    assert_equal_to_onnxruntime(_model("TreeEnsembleClassifier", {"x": _X}, 2, **attributes), {"x": _X})


@pytest.mark.parametrize("mode", ["TF", "IDF", "TFIDF"])
def test_ngrams(mode: str) -> None:
    tokens = np.array([[1, 1, 3, 3, 3, 7], [8, 6, 7, 5, 6, 8]], np.int32)
    attributes: dict[str, Any] = {
        "mode": mode,
        "min_gram_length": 1,
        "max_gram_length": 2,
        "max_skip_count": 3,
        "ngram_counts": [0, 4],
        "ngram_indexes": [0, 2, 1, 3, 4, 6, 5],
        "pool_int64s": [2, 3, 5, 4, 5, 6, 7, 8, 6, 7],
        "weights": [0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
    }
    model = node_model("TfIdfVectorizer", {"x": tokens}, **attributes)
    assert_equal_to_onnxruntime(model, {"x": tokens})


def test_string_labels_are_refused() -> None:
    model = _model("LabelEncoder", {"x": np.array([1])}, keys_int64s=[1], values_strings=["a"])
    with pytest.raises(UnsupportedModelError, match="string labels"):
        import_onnx(model)


_KERNELS = ["LINEAR", "POLY", "RBF", "SIGMOID"]


@pytest.mark.parametrize("kernel", _KERNELS)
@pytest.mark.parametrize("one_class", [0, 1])
def test_svm_regressor(kernel: str, one_class: int) -> None:
    random = np.random.default_rng(1)
    attributes = {
        "kernel_type": kernel,
        "kernel_params": [0.3, 0.2, 3.0],
        "n_supports": 5,
        "support_vectors": random.standard_normal(15).tolist(),
        "coefficients": random.standard_normal(5).tolist(),
        "rho": [0.1],
        "one_class": one_class,
    }
    assert_equal_to_onnxruntime(_model("SVMRegressor", {"x": _X}, **attributes), {"x": _X})


@pytest.mark.parametrize("kernel", _KERNELS)
@pytest.mark.parametrize("vectors", [[2, 3], [2, 1, 3], [1, 2, 3, 2]], ids=str)
@pytest.mark.parametrize("probabilities", [False, True], ids=["scores", "probabilities"])
def test_svm_classifier(kernel: str, vectors: list[int], probabilities: bool) -> None:
    random = np.random.default_rng(2)
    classes, count = len(vectors), sum(vectors)
    attributes = {
        "kernel_type": kernel,
        "kernel_params": [0.3, 0.2, 2.0],
        "vectors_per_class": vectors,
        "support_vectors": random.standard_normal(3 * count).tolist(),
        "coefficients": random.standard_normal((classes - 1) * count).tolist(),
        "rho": random.standard_normal(classes * (classes - 1) // 2).tolist(),
        "classlabels_ints": list(range(10, 10 + classes)),
    }
    if probabilities:
        attributes |= {name: random.standard_normal(len(attributes["rho"])).tolist() for name in ("prob_a", "prob_b")}
    assert_equal_to_onnxruntime(_model("SVMClassifier", {"x": _X}, 2, **attributes), {"x": _X})


def test_svm_classifier_without_support_vectors() -> None:
    attributes = {
        "kernel_type": "LINEAR",
        "kernel_params": [0.0, 0.0, 3.0],
        "coefficients": np.linspace(-1, 1, 9).tolist(),
        "rho": [0.1],
        "classlabels_ints": [1, 2, 3],
        "post_transform": "SOFTMAX",
    }
    assert_equal_to_onnxruntime(_model("SVMClassifier", {"x": _X}, 2, **attributes), {"x": _X})


_COEFFICIENTS = {"coefficients": list(np.linspace(-1, 1, 9)), "intercepts": [0.1, 0.2, 0.3]}


def _classifier(**labels: Any) -> onnx.ModelProto:
    """A linear classifier of three classes, its scores in dictionaries as skl2onnx writes them."""
    model = _model("LinearClassifier", {"x": _X}, 2, **_COEFFICIENTS, **labels)
    label, scores = (each.name for each in model.graph.output)
    keys = {name.replace("_ints", "_int64s"): value for name, value in labels.items()}
    zipped = onnx.helper.make_node("ZipMap", [scores], ["zipped"], domain="ai.onnx.ml", **keys)
    model.graph.node.append(zipped)
    del model.graph.output[1]
    model.graph.output.append(onnx.ValueInfoProto(name="zipped"))
    assert label == model.graph.output[0].name
    return model


def test_scores_in_place_of_dictionaries() -> None:
    model = _classifier(classlabels_ints=[3, 4, 9])
    with pytest.warns(UserWarning, match=r"'zipped': a tensor of scores .* the classes 3, 4, 9"):
        module = compiler.compile(model, threads=1)
    label, scores = module.run([_X]).values()
    unzipped = _model("LinearClassifier", {"x": _X}, 2, **_COEFFICIENTS, classlabels_ints=[3, 4, 9])
    for found, wanted in zip((label, scores), run_reference(unzipped, {"x": _X}), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_labels_that_are_strings_are_refused_where_they_are_read_alone() -> None:
    model = _classifier(classlabels_strings=["a", "b", "c"])
    with pytest.raises(UnsupportedModelError, match="outputs="):
        import_onnx(model)
    imported = import_onnx(model, outputs=["zipped"])
    assert [each.name for each in imported.outputs] == ["zipped"]
    assert "the classes a, b, c" in imported.notes[0]
