"""ai.onnx.ml: ensembles of decision trees, in any of their three encodings, walked by one kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax, te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.sort_kernels import int64
from compiler.frontends.onnx.values import Constant

MODES = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ", "BRANCH_MEMBER", "LEAF")
MEMBER, LEAF = MODES.index("BRANCH_MEMBER"), MODES.index("LEAF")
COLUMNS = 9
AGGREGATES = ("AVERAGE", "SUM", "MIN", "MAX")


@dataclass(frozen=True)
class Ensemble:
    """Nodes of all trees in one list.

    `integers` (nodes, 9) int64: feature, mode, the nodes when true and when false, whether NaN counts as true, the
    first and the last (exclusive) weight of a leaf, the first and the last (exclusive) value of a set in `members`.
    `targets` (weights) int64 and `weights` (weights): what the leaves add to which output.
    """

    integers: np.ndarray
    thresholds: np.ndarray
    members: np.ndarray
    roots: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    outputs: int
    aggregate: str

    @property
    def depth(self) -> int:
        """The most branches on a way from a root to a leaf."""
        deepest, level = 0, [int(root) for root in self.roots]
        while level:
            branches = [node for node in level if self.integers[node, 1] != LEAF]
            level = [int(self.integers[node, column]) for node in branches for column in (2, 3)]
            deepest += bool(level)
            if deepest > len(self.integers):
                raise ValueError("the nodes of a tree form a cycle")
        return deepest


def from_node_lists(context: NodeContext, prefix: str, outputs: int, outputs_of: np.ndarray) -> Ensemble:
    """The older encoding: nodes are (tree, node) pairs, by which weights, named with a `prefix`, refer to leaves."""
    trees, numbers = (np.array(context.required_attribute(f"nodes_{name}")) for name in ("treeids", "nodeids"))
    index = {(int(t), int(n)): i for i, (t, n) in enumerate(zip(trees, numbers, strict=True))}
    modes = [MODES.index(mode) for mode in context.required_attribute("nodes_modes")]
    integers = np.zeros((len(trees), COLUMNS), np.int64)
    integers[:, 0] = context.required_attribute("nodes_featureids")
    integers[:, 1] = modes
    for column, name in ((2, "nodes_truenodeids"), (3, "nodes_falsenodeids")):
        following: list[int] = context.required_attribute(name)
        leaf = integers[:, 1] == LEAF
        integers[:, column] = [
            0 if leaf[i] else index[int(t), int(n)] for i, (t, n) in enumerate(zip(trees, following, strict=True))
        ]
    tracks: list[int] = context.attribute("nodes_missing_value_tracks_true", [])
    integers[:, 4] = tracks if tracks else 0
    leaves = [
        index[int(t), int(n)]
        for t, n in zip(
            context.required_attribute(f"{prefix}_treeids"),
            context.required_attribute(f"{prefix}_nodeids"),
            strict=True,
        )
    ]
    order = np.argsort(leaves, kind="stable")
    sorted_leaves = np.array(leaves, np.int64)[order]
    integers[:, 5] = np.searchsorted(sorted_leaves, np.arange(len(trees)), "left")
    integers[:, 6] = np.searchsorted(sorted_leaves, np.arange(len(trees)), "right")
    reached = {int(v) for column in (2, 3) for v in integers[integers[:, 1] != LEAF, column]}
    return Ensemble(
        integers,
        _values(context, "nodes_values"),
        np.zeros(1, np.float32),
        np.array([i for i in range(len(trees)) if i not in reached], np.int64),
        outputs_of[order].astype(np.int64),
        _values(context, f"{prefix}_weights")[order],
        outputs,
        context.attribute("aggregate_function", "SUM"),
    )


def _values(context: NodeContext, name: str) -> np.ndarray:
    """Floats given as a list, or as a tensor under the name with `_as_tensor`."""
    if context.has_attribute(f"{name}_as_tensor"):
        return np.array(tensor_attribute(context, f"{name}_as_tensor"))
    return np.array(context.required_attribute(name), np.float32)


def tensor_attribute(context: NodeContext, name: str) -> np.ndarray:
    """A tensor in an attribute."""
    reader = context.importer.model.reader
    return reader.constant(context.required_attribute(name), f"{name} of {context.name!r}").array


def scores(context: NodeContext, ensemble: Ensemble, base: np.ndarray) -> relax.Expr:
    """(rows, outputs) of (rows, features), in the type of the weights."""
    if context.rank(0) != 2:
        context.invalid(f"its input must have rank 2, not {context.rank(0)}")
    try:
        depth = ensemble.depth
    except ValueError as error:
        context.invalid(str(error))
    arrays = [
        ensemble.integers,
        ensemble.thresholds,
        ensemble.members,
        ensemble.roots,
        ensemble.targets,
        ensemble.weights,
        base.astype(ensemble.weights.dtype),
    ]
    padded = [a if a.size else np.zeros((1, *a.shape[1:]), a.dtype) for a in arrays]
    kernel = _walking_kernel(ensemble, depth)
    operands = [Constant(array).expr() for array in padded]
    return context.emit_te(kernel, context.input(0), *operands, primfunc_name_hint="tree_ensemble")


def _walking_kernel(ensemble: Ensemble, depth: int) -> Any:
    outputs, aggregate = ensemble.outputs, ensemble.aggregate

    def kernel(data: te.Tensor, *tables: te.Tensor) -> te.Tensor:
        rows, features, trees = data.shape[0], data.shape[1], tables[3].shape[0]
        dtype = str(tables[5].dtype)

        def generate(ins: Any, outs: Any) -> Any:
            source, nodes, thresholds, members, roots, targets, weights, base = (T.buffer_proxy(item) for item in ins)
            result, touched, state = (T.buffer_proxy(out) for out in outs)

            def column(node: Any, index: int) -> Any:
                return nodes[node * int64(COLUMNS) + int64(index)]

            with IRBuilder() as builder:
                with T.serial(0, rows) as row, T.seq_scope():
                    with T.serial(0, int64(outputs)) as o, T.seq_scope():
                        result[row * outputs + o] = tirx.const(0.0, dtype)
                        touched[o] = int64(0)
                    with T.serial(0, trees) as tree, T.seq_scope():
                        state[0] = roots[tree]
                        with T.serial(0, int64(depth)), T.If(column(state[0], 1) != int64(LEAF)), T.Then():
                            _branch(state, source, row * features, column, thresholds, members)
                        first, last = column(state[0], 5), column(state[0], 6)
                        with T.serial(0, last - first) as k, T.seq_scope():
                            target = targets[first + k]
                            place = row * outputs + target
                            new = weights[first + k]
                            result[place] = _combined(aggregate, result[place], new, touched[target])
                            touched[target] = int64(1)
                    with T.serial(0, int64(outputs)) as o:
                        place = row * outputs + o
                        scale = tirx.const(1.0, dtype)
                        if aggregate == "AVERAGE":
                            scale = scale / trees.astype(dtype)
                        result[place] = result[place] * scale + base[o]
                return builder.get()

        shapes = [[rows, int64(outputs)], [int64(max(outputs, 1))], [int64(2)]]
        made = te.extern(shapes, [data, *tables], generate, dtype=[dtype, "int64", "int64"], name="tree_ensemble")
        return made[0]

    return kernel


def _branch(state: Any, source: Any, row: Any, column: Any, thresholds: Any, members: Any) -> None:
    """state[0], a branch, becomes the node that follows for the values that begin at `row`."""
    with T.seq_scope():
        value = source[row + column(state[0], 0)].astype(str(thresholds.dtype))
        _decide(state, value, column(state[0], 1), thresholds[state[0]], column(state[0], 4))
        _test_members(state, value, column, members)
        state[0] = tirx.if_then_else(state[1] == int64(1), column(state[0], 2), column(state[0], 3))


def _combined(aggregate: str, old: Any, new: Any, touched: Any) -> Any:
    if aggregate in ("SUM", "AVERAGE"):
        return old + new
    extreme = tirx.min(old, new) if aggregate == "MIN" else tirx.max(old, new)
    return tirx.Select(touched == int64(1), extreme, new)


def _decide(state: Any, value: Any, mode: Any, threshold: Any, tracks: Any) -> None:
    """state[1] becomes 1 when the branch of a true comparison is to be taken."""
    comparisons = [
        value <= threshold,
        value < threshold,
        value >= threshold,
        value > threshold,
        value == threshold,
        value != threshold,
    ]
    state[1] = tirx.Select(tirx.all(tirx.isnan(value), tracks == int64(1)), int64(1), int64(0))
    for number, holds in enumerate(comparisons):
        with T.If(tirx.all(mode == int64(number), holds)), T.Then():
            state[1] = int64(1)


def _test_members(state: Any, value: Any, column: Any, members: Any) -> None:
    """Nodes that ask whether the value is in a set."""
    start, end = column(state[0], 7), column(state[0], 8)
    asks, in_set = column(state[0], 1) == int64(MEMBER), T.serial(0, end - start)
    with T.If(asks), T.Then(), in_set as k, T.If(members[start + k] == value), T.Then():
        state[1] = int64(1)
