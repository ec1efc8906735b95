"""ai.onnx.ml: support vector machines. Each pair of classes has a score, summed over the support vectors."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from compiler.frontends.onnx.bounds import require
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.composition import Composer, int64s
from compiler.frontends.onnx.operators.traditional_ml.machine_learning import (
    DOMAIN,
    class_labels,
    floats,
    transformed,
    vector,
)
from compiler.frontends.onnx.registry import converter
from compiler.frontends.onnx.values import TensorValue


@converter("SVMRegressor", domain=DOMAIN)
def svm_regressor(context: NodeContext) -> TensorValue:
    """The score of each row, or with `one_class` 1 for rows that belong to the class and -1 for others."""
    op = Composer(context)
    features = _kernel(context, op, int(context.attribute("n_supports", 0)))
    coefficients = vector(context, "coefficients").reshape(-1, 1)
    score = op("Add", op("MatMul", features, coefficients), vector(context, "rho")[:1])
    if context.attribute("one_class", 0):
        return op("Where", op("Greater", score, 0.0), np.float32(1), np.float32(-1))
    return transformed(context, op, score)


@converter("SVMClassifier", domain=DOMAIN)
def svm_classifier(context: NodeContext) -> list[TensorValue]:
    """The label that wins most pairs, and the scores of the pairs; without support vectors, of the classes."""
    if len(vector(context, "prob_a")):
        context.refuse("probabilities are not computed; export it without them (scikit-learn: probability=False)")
    op, labels = Composer(context), class_labels(context)
    counts = np.array(context.attribute("vectors_per_class", []), np.int64)
    features = _kernel(context, op, int(counts.sum()))
    if counts.sum() == 0:
        weights = vector(context, "coefficients").reshape(len(labels), -1).T
        scores = votes = op("Add", op("MatMul", features, np.ascontiguousarray(weights)), vector(context, "rho")[:1])
    else:
        scores = op("Add", op("MatMul", features, _pair_weights(context, counts)), vector(context, "rho"))
        votes = _votes(op, scores, len(counts))
    label = op("Gather", labels, op("ArgMax", votes, axis=-1, keepdims=0), axis=0)
    if len(labels) == 2 and scores.shape[-1] == 1:
        scores = op("Concat", op("Neg", scores), scores, axis=-1)
    return [label, transformed(context, op, scores)]


def _kernel(context: NodeContext, op: Composer, count: int) -> TensorValue:
    """(rows, count): how near each row is to each support vector; the rows themselves where there are none."""
    data, kind = floats(context, op), context.attribute("kernel_type", "LINEAR")
    if count == 0:
        return data
    vectors = vector(context, "support_vectors").reshape(count, -1)
    require(context, context.shape(0)[-1], "equal", vectors.shape[1])
    gamma, offset, degree = (float(each) for each in context.attribute("kernel_params", [0.0, 0.0, 3.0]))
    if kind == "RBF":
        apart = op("Sub", op("Unsqueeze", data, int64s(1)), vectors)
        return op("Exp", op("Mul", op("ReduceSumSquare", apart, int64s(2), keepdims=0), -gamma))
    products = op("MatMul", data, np.ascontiguousarray(vectors.T))
    if kind == "LINEAR":
        return products
    scaled = op("Add", op("Mul", products, gamma), offset)
    if kind == "SIGMOID":
        return op("Tanh", scaled)
    if kind != "POLY":
        context.invalid(f"the kernel {kind!r} does not exist")
    return op("Pow", scaled, degree)


def _pair_weights(context: NodeContext, counts: np.ndarray) -> np.ndarray:
    """(vectors, pairs): what each support vector gives to each pair of classes (as LIBSVM stores it)."""
    coefficients = vector(context, "coefficients").reshape(-1, int(counts.sum()))
    ends = np.cumsum(counts)
    places = [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]
    pairs = list(combinations(range(len(counts)), 2))
    result = np.zeros((int(counts.sum()), len(pairs)), np.float32)
    for pair, (first, second) in enumerate(pairs):
        result[places[first], pair] = coefficients[second - 1, places[first]]
        result[places[second], pair] = coefficients[first, places[second]]
    return result


def _votes(op: Composer, scores: TensorValue, classes: int) -> TensorValue:
    """(rows, classes): how many pairs a class wins; a positive score is a vote for the first of the pair."""
    pairs = list(combinations(range(classes), 2))
    change, start = np.zeros((len(pairs), classes), np.float32), np.zeros(classes, np.float32)
    for pair, (first, second) in enumerate(pairs):
        change[pair, first], change[pair, second] = 1, -1
        start[second] += 1
    won = op("Cast", op("Greater", scores, 0.0), to=1)
    return op("Add", op("MatMul", won, change), start)
