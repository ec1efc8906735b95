"""ai.onnx.ml: operators of classical models, on numbers. String labels are refused if read.

Class probabilities from pairwise ones: T.-F. Wu, C.-J. Lin, R. Weng, "Probability estimates for multi-class
classification by pairwise coupling", JMLR 5 (2004), algorithm 2, with LIBSVM's limits on steps and error.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from compiler.frontends.flat_buffer import FlatBuffer
from compiler.frontends.onnx import dtypes
from compiler.frontends.onnx.bounds import require, require_values
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.evaluation.reference import fold_strings
from compiler.frontends.onnx.operators.composition import Composer, composed, int64s
from compiler.frontends.onnx.operators.tensor.sort_kernels import in_sequence, int64, shared_tasks
from compiler.frontends.onnx.operators.traditional_ml import tree_ensembles
from compiler.frontends.onnx.operators.traditional_ml.post_transforms import transformed
from compiler.frontends.onnx.operators.traditional_ml.tree_tables import Ensemble
from compiler.frontends.onnx.registry import converter
from compiler.frontends.onnx.values import TensorValue, Value
from schedules.codegen.parallel import MIN_PARALLEL_WORK
from schedules.ir.tvm_types import Buffer, Expr, Stmt

DOMAIN = "ai.onnx.ml"
_SHOWN_KEYS = 10  # in a note
# A label table may have this many entries per key, and this many more.
_SPARSE, _SMALL_TABLE = 4, 4096
_MIN_PROBABILITY = 1e-7  # lower bound on the probability of one class of a pair, like LIBSVM's


def floats(context: NodeContext, op: Composer) -> TensorValue:
    """Return input 0 as float32."""
    value = context.tensor(0)
    return value if context.dtype(0) == "float32" else op("Cast", value, to=1)


def vector(context: NodeContext, name: str) -> np.ndarray:
    """Return an attribute as float32 numbers; empty if missing."""
    return np.array(context.attribute(name, []), np.float32)


def require_features(context: NodeContext, count: int, index: int = 0) -> None:
    """Check that an input's last axis has one entry per number; a single number applies to all."""
    if count > 1 and context.rank(index):
        require(context, context.shape(index)[-1], "equal", count)


@composed("ArrayFeatureExtractor", domain=DOMAIN)
def array_feature_extractor(op: Composer, data: TensorValue, positions: TensorValue) -> TensorValue:
    """Entries of the last axis at given positions."""
    require_values(op.context, 1, 0, data.shape[-1])
    if len(data.shape) == 1:
        data = op("Unsqueeze", data, int64s(0))
    return op("Gather", data, op("Reshape", positions, int64s(-1)), axis=-1)


@composed("Binarizer", domain=DOMAIN)
def binarizer(op: Composer, x: TensorValue, *, threshold: float = 0.0) -> TensorValue:
    """1 above the threshold, otherwise 0."""
    return op("Cast", op("Greater", x, threshold), to=op.number(x.dtype))


@converter("Scaler", domain=DOMAIN)
def scaler(context: NodeContext) -> TensorValue:
    """(x - offset) * scale."""
    op = Composer(context)
    for name in ("offset", "scale"):
        require_features(context, vector(context, name).size)
    shifted = op("Sub", floats(context, op), vector(context, "offset"))
    return op("Mul", shifted, vector(context, "scale"))


@composed("Normalizer", domain=DOMAIN)
def normalizer(op: Composer, x: TensorValue, *, norm: str = "MAX") -> TensorValue:
    """Rows divided by their largest entry, sum of magnitudes, or root of the sum of squares; rows with 0 are
    unchanged."""
    reductions = {"MAX": "ReduceMax", "L1": "ReduceL1", "L2": "ReduceL2"}
    if norm not in reductions:
        op.context.invalid(f"the norm {norm!r} does not exist")
    data = floats(op.context, op)
    size = op(reductions[norm], data, int64s(len(x.shape) - 1), keepdims=1)
    return op("Div", data, op("Where", op("Equal", size, 0.0), np.float32(1), size))


@converter("Imputer", domain=DOMAIN)
def imputer(context: NodeContext) -> TensorValue:
    """Replace the value that marks missing entries, for all features or per feature."""
    op = Composer(context)
    is_integer = context.has_attribute("imputed_value_int64s")
    kind, suffix = (np.int64, "int64") if is_integer else (np.float32, "float")
    values = np.array(context.required_attribute(f"imputed_value_{suffix}s"), kind)
    missing = context.attribute(f"replaced_value_{suffix}", 0)
    data = context.value(0)
    require_features(context, values.size)
    is_missing = op("IsNaN", data) if not is_integer and np.isnan(missing) else op("Equal", data, kind(missing))
    return op("Where", is_missing, values, data)


@converter("FeatureVectorizer", domain=DOMAIN)
def feature_vectorizer(context: NodeContext) -> TensorValue:
    """Concatenate all inputs as float32."""
    op = Composer(context)
    widths: list[int] = context.attribute("inputdimensions", [])
    for index, width in enumerate(widths[: len(context.node.input)]):
        if context.rank(index):
            require(context, context.shape(index)[-1], "equal", int(width))
    parts = [op("Cast", context.value(index), to=1) for index in range(len(context.node.input))]
    return op("Concat", *parts, axis=-1)


@converter("OneHotEncoder", domain=DOMAIN)
def one_hot_encoder(context: NodeContext) -> TensorValue:
    """Append an axis with 1 at the position of the category; all 0 for unlisted categories."""
    if context.has_attribute("cats_strings"):
        context.refuse("string categories are not supported at run time")
    if not context.attribute("zeros", 1):
        context.refuse("zeros=0, an error for categories that are not listed, is not supported")
    op = Composer(context)
    categories = np.array(context.required_attribute("cats_int64s"), np.int64)
    values = op("Unsqueeze", op("Cast", context.value(0), to=7), int64s(-1))
    return op("Cast", op("Equal", values, categories), to=1)


@converter("LabelEncoder", domain=DOMAIN)
def label_encoder(context: NodeContext) -> TensorValue | list[Value]:
    """Value of each key, or the default."""
    op = Composer(context)
    if context.dtype(0) == "string":
        return fold_strings(context)
    keys, values, default = (_labels(context, part) for part in ("keys", "values", "default"))
    if values is None or keys is None or values.dtype == object:
        context.refuse("string labels are not supported at run time")
    if default is None:
        default = np.array(-1 if values.dtype.kind == "i" else -0.0, values.dtype)
    table = _table_of(keys, values, default)
    if table is not None and context.dtype(0) == "int64":
        low = int(keys.min()) - 1
        index = op("Min", op("Max", context.value(0), np.int64(low)), np.int64(low + len(table) - 1))
        return op("Gather", table, op("Sub", index, np.int64(low)), axis=0)
    data = op("Unsqueeze", context.value(0), int64s(-1))
    matches = op("Equal", data, keys.astype(dtypes.numpy_dtype(context.dtype(0))))
    if context.dtype(0).startswith("float") and np.isnan(keys).any():
        both = op("And", op("IsNaN", data), np.isnan(keys))
        matches = op("Or", matches, both)
    index = op("ArgMax", op("Cast", matches, to=6), axis=-1, keepdims=0)
    found = op("Greater", op("ReduceMax", op("Cast", matches, to=6), int64s(-1), keepdims=0), np.int32(0))
    return op("Where", found, op("Gather", values, index, axis=0), default.reshape(()))


def _table_of(keys: np.ndarray, values: np.ndarray, default: np.ndarray) -> np.ndarray | None:
    """Return a table of values from one below the least key to one above the greatest; None if most integers are no
    keys."""
    if keys.dtype.kind != "i" or not keys.size:
        return None
    low, high, limits = int(keys.min()), int(keys.max()), np.iinfo(np.int64)
    if high - low > _SPARSE * len(keys) + _SMALL_TABLE or low == limits.min or high == limits.max:
        return None
    table = np.full(high - low + 3, default.reshape(()), values.dtype)
    table[keys[::-1].astype(np.int64) - low + 1] = values[::-1]  # the first of equal keys counts
    return table


def _labels(context: NodeContext, part: str) -> np.ndarray | None:
    """Return keys, values or the default, from the attribute that holds them."""
    if context.has_attribute(f"{part}_tensor"):
        return tree_ensembles.tensor_attribute(context, f"{part}_tensor")
    plural = "" if part == "default" else "s"
    for suffix, kind in (("int64", np.int64), ("float", np.float32), ("string", object)):
        if context.has_attribute(f"{part}_{suffix}{plural}"):
            return np.array(context.required_attribute(f"{part}_{suffix}{plural}"), kind)
    return None


@converter("LinearRegressor", domain=DOMAIN)
def linear_regressor(context: NodeContext) -> TensorValue:
    """x @ coefficients' + intercepts."""
    op = Composer(context)
    return transformed(context, op, _linear(context, op, int(context.attribute("targets", 1))))


def _linear(context: NodeContext, op: Composer, outputs: int) -> TensorValue:
    coefficients = vector(context, "coefficients").reshape(outputs, -1)
    result = op("MatMul", floats(context, op), np.ascontiguousarray(coefficients.T))
    intercepts = vector(context, "intercepts")
    return op("Add", result, intercepts) if intercepts.size else result


@converter("LinearClassifier", domain=DOMAIN)
def linear_classifier(context: NodeContext) -> list[TensorValue]:
    """The label with the highest score, and the scores."""
    op, labels = Composer(context), class_labels(context)
    rows = len(vector(context, "intercepts")) or len(labels)
    return _classified(context, op, _linear(context, op, rows), labels)


def class_labels(context: NodeContext) -> np.ndarray:
    """Return the labels as int64. String labels are refused if the label is read; otherwise replaced by their
    positions."""
    names = [name for name in ("classlabels_ints", "classlabels_int64s") if context.has_attribute(name)]
    if not names:
        strings: list[object] = context.attribute("classlabels_strings", [])
        if strings and not context.output_used(0):
            return np.arange(len(strings))
        context.refuse(
            "string class labels are not supported at run time; leave the label out by naming the other outputs "
            "in outputs=, or train it on their numbers"
        )
    return np.array(context.required_attribute(names[0]), np.int64)


def _classified(context: NodeContext, op: Composer, values: TensorValue, labels: np.ndarray) -> list[TensorValue]:
    """Return [label, scores]; a single score decides between two classes."""
    if values.shape[-1] != 1 or len(labels) < 2:
        index = op("ArgMax", values, axis=-1, keepdims=0)
        return [op("Gather", labels, index, axis=0), transformed(context, op, values)]
    positive = op("Squeeze", op("Greater", values, 0.0), int64s(-1))
    label = op("Where", positive, labels[1:2], labels[0:1])
    if context.attribute("post_transform", "NONE") not in ("NONE", "LOGISTIC"):
        context.refuse("a transformation of the score of one of two classes is not supported")
    score = transformed(context, op, values)
    return [label, op("Concat", op("Sub", 1.0, score), score, axis=-1)]


@converter("TreeEnsembleRegressor", domain=DOMAIN)
def tree_ensemble_regressor(context: NodeContext) -> TensorValue:
    """Sum, mean, minimum or maximum of the trees' values for each target."""
    op, count = Composer(context), int(context.attribute("n_targets", 1))
    ensemble = tree_ensembles.from_node_lists(context, "target", count, context.integer_list("target_ids"))
    return transformed(context, op, _float_scores(context, op, ensemble, count))


def _float_scores(context: NodeContext, op: Composer, ensemble: Ensemble, count: int) -> TensorValue:
    base = np.zeros(count, np.float32)
    given = _base_values(context)
    base[: len(given)] = given
    value = context.runtime(tree_ensembles.scores(context, ensemble, base), ensemble.weights.dtype.name)
    return value if value.dtype == "float32" else op("Cast", value, to=1)


def _base_values(context: NodeContext) -> np.ndarray:
    if context.has_attribute("base_values_as_tensor"):
        return tree_ensembles.tensor_attribute(context, "base_values_as_tensor")
    return vector(context, "base_values")


@converter("TreeEnsembleClassifier", domain=DOMAIN)
def tree_ensemble_classifier(context: NodeContext) -> list[TensorValue]:
    """Label with the highest score, and the scores; leaves that all vote for one class decide between two."""
    op, labels = Composer(context), class_labels(context)
    ids = context.integer_list("class_ids")
    binary = len(labels) == 2 and len(np.unique(ids)) == 1
    outputs = 1 if binary else len(labels)
    ensemble = tree_ensembles.from_node_lists(context, "class", outputs, np.zeros_like(ids) if binary else ids)
    values = _float_scores(context, op, ensemble, outputs)
    if not binary:
        return _classified(context, op, values, labels)
    return _binary_votes(context, op, values, labels, positive=bool(np.all(ensemble.weights >= 0)))


def _binary_votes(
    context: NodeContext, op: Composer, values: TensorValue, labels: np.ndarray, *, positive: bool
) -> list[TensorValue]:
    """Return label and scores: votes that are all positive are probabilities of the second class; others are signed."""
    if context.attribute("post_transform", "NONE") not in ("NONE", "LOGISTIC"):
        context.refuse("a transformation of the votes for one of two classes is not supported")
    above = op("Greater", values, 0.5 if positive else 0.0)
    label = op("Where", op("Squeeze", above, int64s(-1)), labels[1:2], labels[0:1])
    if context.attribute("post_transform", "NONE") == "LOGISTIC":
        scores = [op("Sigmoid", op("Neg", values)), op("Sigmoid", values)]
    else:
        scores = [op("Sub", 1.0, values) if positive else op("Neg", values), values]
    return [label, op("Concat", *scores, axis=-1)]


@converter("TreeEnsemble", domain=DOMAIN, since=5)
def tree_ensemble(context: NodeContext) -> TensorValue:
    """The newest encoding: leaves are separate from branches, and a branch may test set membership."""
    op, count = Composer(context), int(context.required_attribute("n_targets"))
    ensemble = tree_ensembles.from_leaf_lists(context, count)
    base = np.zeros(count, ensemble.weights.dtype)
    value = context.runtime(tree_ensembles.scores(context, ensemble, base), ensemble.weights.dtype.name)
    return transformed(context, op, value)


@converter("ZipMap", domain=DOMAIN)
def zip_map(context: NodeContext) -> TensorValue:
    """Tensor of the scores in its dictionaries, which do not exist at run time."""
    empty: list[object] = []
    keys = context.attribute("classlabels_int64s", empty) or context.attribute("classlabels_strings", empty)
    if not keys:
        context.invalid("it lists no class labels")
    named = ", ".join(map(str, keys[:_SHOWN_KEYS])) + (", ..." if len(keys) > _SHOWN_KEYS else "")
    context.importer.notes.append(
        f"output {context.node.output[0]!r}: a tensor of scores in place of ZipMap's dictionaries; "
        f"its columns are the classes {named}"
    )
    return context.tensor(0)


# ai.onnx.ml: support vector machines. Each pair of classes has a score, a sum over the support vectors.


@converter("SVMRegressor", domain=DOMAIN)
def svm_regressor(context: NodeContext) -> TensorValue:
    """Score of each row, or with `one_class` 1 for rows in the class and -1 for others."""
    op = Composer(context)
    features = _kernel(context, op, int(context.attribute("n_supports", 0)))
    coefficients = vector(context, "coefficients").reshape(-1, 1)
    score = op("Add", op("MatMul", features, coefficients), vector(context, "rho")[:1])
    if context.attribute("one_class", 0):
        return op("Where", op("Greater", score, 0.0), np.float32(1), np.float32(-1))
    return transformed(context, op, score)


@converter("SVMClassifier", domain=DOMAIN)
def svm_classifier(context: NodeContext) -> list[TensorValue]:
    """Label that wins most pairs, and the pairs' scores or, with `prob_a`, the classes' probabilities.

    Without support vectors, the scores belong to the classes.
    """
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
    alone = len(labels) == 2 and scores.shape[-1] == 1
    if counts.sum() and len(vector(context, "prob_a")):
        scores, alone = _probabilities(context, op, scores, len(counts)), False
    elif alone:
        scores = op("Concat", op("Neg", scores), scores, axis=-1)
    return [label, transformed(context, op, scores, alone=alone)]


def _probabilities(context: NodeContext, op: Composer, scores: TensorValue, classes: int) -> TensorValue:
    """Return probabilities (rows, classes): pair probabilities by Platt's sigmoid of their scores, coupled."""
    slopes, offsets = vector(context, "prob_a"), vector(context, "prob_b")
    first = op("Sigmoid", op("Neg", op("Add", op("Mul", scores, slopes), offsets)))
    pairs = op("Clip", first, np.float32(_MIN_PROBABILITY), np.float32(1 - _MIN_PROBABILITY))
    expr = context.importer.builder.materialize(pairs)
    coupled = context.emit_te(coupling_kernel(classes), expr, primfunc_name_hint="coupled_pairs")
    return context.runtime(coupled, "float32")


def _kernel(context: NodeContext, op: Composer, count: int) -> TensorValue:
    """Return the kernel value (rows, count) of each row and support vector; the rows themselves if there are none."""
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
    """Return (vectors, pairs): each support vector's weight for each pair of classes (as stored by LIBSVM)."""
    coefficients = vector(context, "coefficients").reshape(-1, int(counts.sum()))
    ends = np.cumsum(counts)
    positions = [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]
    pairs = list(combinations(range(len(counts)), 2))
    result = np.zeros((int(counts.sum()), len(pairs)), np.float32)
    for pair, (first, second) in enumerate(pairs):
        result[positions[first], pair] = coefficients[second - 1, positions[first]]
        result[positions[second], pair] = coefficients[first, positions[second]]
    return result


def _votes(op: Composer, scores: TensorValue, classes: int) -> TensorValue:
    """Return (rows, classes): the number of pairs a class wins; a positive score votes for the first class of the
    pair."""
    pairs = list(combinations(range(classes), 2))
    change, start = np.zeros((len(pairs), classes), np.float32), np.zeros(classes, np.float32)
    for pair, (first, second) in enumerate(pairs):
        change[pair, first], change[pair, second] = 1, -1
        start[second] += 1
    won = op("Cast", op("Greater", scores, 0.0), to=1)
    return op("Add", op("MatMul", won, change), start)


_STEPS = 100
_ERROR = 0.005  # divided by the number of classes
_WHY = "each step starts from the probabilities of the one before"


def coupling_kernel(classes: int) -> Callable[[te.Tensor], te.Tensor]:
    """Return a tensor expression from (rows, pairs), the probability of each pair's first class, to (rows, classes)."""

    def kernel(pairs: te.Tensor) -> te.Tensor:
        rows = pairs.shape[0]

        def generate(ins: list[Expr], outs: list[Expr]) -> Stmt:
            buffers = [FlatBuffer(each) for each in (*ins, *outs)]
            with IRBuilder() as builder:
                work = rows * int64(_STEPS * classes * classes)
                with shared_tasks(rows, work, MIN_PARALLEL_WORK) as row:
                    _Row(classes, row, *buffers).emit()
                return builder.get()

        shapes = [[rows, int64(classes)], [rows, int64(classes * classes)], [rows, int64(classes + 2)]]
        return te.extern(shapes, [pairs], generate, dtype=["float32"] * 3, name="coupled")[0]

    return kernel


class _Row:
    """Emits the steps for one row: its probabilities p minimize p' Q p; `state` holds Q p, p' Q p and the error."""

    def __init__(self, classes: int, row: Expr, pairs: Buffer, p: Buffer, q: Buffer, state: Buffer) -> None:
        self.classes, self.row, self.pairs, self.p, self.q, self.state = classes, row, pairs, p, q, state
        self.total, self.error = int64(classes), int64(classes + 1)

    def emit(self) -> None:
        self._matrix()
        with T.serial(0, int64(self.classes)) as each:
            self.p[self.row, each] = tirx.const(1 / self.classes, "float32")
        self.state[self.row, self.error] = tirx.const(1.0, "float32")
        limit = tirx.const(_ERROR / self.classes, "float32")
        with in_sequence(int64(_STEPS), _WHY), T.If(self.state[self.row, self.error] >= limit), T.Then(), T.seq_scope():
            self._products()
            with T.If(self.state[self.row, self.error] >= limit), T.Then(), in_sequence(int64(self.classes), _WHY) as i:
                self._improve(i)

    def _matrix(self) -> None:
        """Compute Q: sums of squares of the others' probabilities on the diagonal, negated products elsewhere."""
        row, q, classes = self.row, self.q, int64(self.classes)
        with T.serial(0, classes) as i:
            q[row, i * classes + i] = tirx.const(0.0, "float32")
        with T.serial(0, classes - 1) as i, T.serial(i + 1, classes) as j, T.seq_scope():
            position = i * classes - tirx.floordiv(i * (i + 1), int64(2)) + j - i - 1  # of a pair, in order
            first = T.bind(self.pairs[row, position])
            second = T.bind(tirx.const(1.0, "float32") - first)
            q[row, i * classes + i] = q[row, i * classes + i] + second * second
            q[row, j * classes + j] = q[row, j * classes + j] + first * first
            q[row, i * classes + j] = -(first * second)
            q[row, j * classes + i] = -(first * second)

    def _products(self) -> None:
        """Compute Q p, p' Q p, and the largest difference between an entry of the former and the latter."""
        row, state, classes = self.row, self.state, int64(self.classes)
        state[row, self.total] = tirx.const(0.0, "float32")
        with T.serial(0, classes) as i, T.seq_scope():
            state[row, i] = tirx.const(0.0, "float32")
            with T.serial(0, classes) as j:
                state[row, i] = state[row, i] + self.q[row, i * classes + j] * self.p[row, j]
            state[row, self.total] = state[row, self.total] + self.p[row, i] * state[row, i]
        state[row, self.error] = tirx.const(0.0, "float32")
        with T.serial(0, classes) as i:
            state[row, self.error] = tirx.max(state[row, self.error], tirx.abs(state[row, i] - state[row, self.total]))

    def _improve(self, i: Expr) -> None:
        """Move one probability to the minimum along it, and scale all to sum to 1."""
        row, state, classes, one = self.row, self.state, int64(self.classes), tirx.const(1.0, "float32")
        diagonal = self.q[row, i * classes + i]
        with T.seq_scope():
            change = T.bind((state[row, self.total] - state[row, i]) / diagonal)
            wider = T.bind(one + change)
            grown = state[row, self.total] + change * (change * diagonal + state[row, i] + state[row, i])
            self.p[row, i] = self.p[row, i] + change
            state[row, self.total] = grown / wider / wider
            with T.serial(0, classes) as j, T.seq_scope():
                state[row, j] = (state[row, j] + change * self.q[row, i * classes + j]) / wider
                self.p[row, j] = self.p[row, j] / wider
