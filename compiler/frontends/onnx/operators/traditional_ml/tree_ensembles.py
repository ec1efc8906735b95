"""ai.onnx.ml: ensembles of decision trees, in any of their three encodings, walked by one kernel."""

from __future__ import annotations

import numpy as np
from tvm import relax, tirx

from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.traditional_ml.tree_kernel import operands_of, plan_of, walking_kernel
from compiler.frontends.onnx.operators.traditional_ml.tree_tables import (
    LEAF,
    MEMBER,
    MODES,
    Array,
    Ensemble,
    TreeError,
    tree_table,
)
from compiler.frontends.onnx.values import Constant
from schedules.instructions.llvm_options import SCALAR_CODE

AGGREGATES = ("AVERAGE", "SUM", "MIN", "MAX")


class _Keys:
    """(tree, node) pairs and where they are in the lists of nodes."""

    def __init__(self, context: NodeContext) -> None:
        self._context = context
        self.trees = context.integer_list("nodes_treeids")
        keys = self._key(self.trees, context.integer_list("nodes_nodeids"))
        self._order = np.argsort(keys, kind="stable")
        self._sorted = keys[self._order]
        if len(keys) > 1 and bool((self._sorted[1:] == self._sorted[:-1]).any()):
            context.invalid("two of its nodes have the same tree and number")

    def index(self, trees: Array, nodes: Array) -> Array:
        """The index of each pair; InvalidModelError where there is no such node."""
        wanted = self._key(trees, nodes)
        position = np.searchsorted(self._sorted, wanted)
        position[position == len(self._sorted)] = 0
        if not len(self._sorted) or bool((self._sorted[position] != wanted).any()):
            self._context.invalid("it refers to a node that does not exist")
        return self._order[position]

    def _key(self, trees: Array, nodes: Array) -> Array:
        if trees.shape != nodes.shape:
            self._context.invalid("its lists of trees and nodes differ in length")
        if len(trees) and not 0 <= min(trees.min(), nodes.min()) <= max(trees.max(), nodes.max()) < 1 << 31:
            self._context.invalid("its numbers of trees and nodes must lie in 0 to 2^31 - 1")
        return trees << 31 | nodes


def from_node_lists(context: NodeContext, prefix: str, outputs: int, outputs_of: Array) -> Ensemble:
    """The older encoding: nodes are (tree, node) pairs, by which weights, named with a `prefix`, refer to leaves."""
    keys = _Keys(context)
    count = len(keys.trees)
    modes = context.choices("nodes_modes", MODES)
    features, thresholds = context.integer_list("nodes_featureids"), _values(context, "nodes_values")
    lists: dict[str, Array] = {"nodes_modes": modes, "nodes_featureids": features, "nodes_values": thresholds}
    inner = modes != LEAF
    branches = np.zeros((count, 2), np.int64)
    for column, name in ((0, "nodes_truenodeids"), (1, "nodes_falsenodeids")):
        following = lists[name] = context.integer_list(name)
        _check_lengths(context, lists, count)
        branches[inner, column] = keys.index(keys.trees[inner], following[inner])
    leaves = keys.index(context.integer_list(f"{prefix}_treeids"), context.integer_list(f"{prefix}_nodeids"))
    weights = _values(context, f"{prefix}_weights")
    _check_lengths(context, {f"{prefix}_weights": weights, f"{prefix}_ids": outputs_of}, len(leaves))
    order = np.argsort(leaves, kind="stable")
    ends = np.searchsorted(leaves[order], np.arange(count + 1), "left")
    is_root = np.ones(count, bool)
    is_root[branches[inner].reshape(-1)] = False
    return Ensemble(
        features=features,
        modes=modes,
        thresholds=thresholds,
        branches=branches,
        missing=_missing(context, count),
        leaf_weights=np.stack([ends[:-1], ends[1:]], 1),
        sets=None,
        members=np.zeros(1, np.float32),
        roots=np.flatnonzero(is_root),
        targets=outputs_of[order],
        weights=weights[order],
        outputs=outputs,
        aggregate=context.attribute("aggregate_function", "SUM"),
    )


def from_leaf_lists(context: NodeContext, outputs: int) -> Ensemble:
    """The newest encoding: leaves stand apart from the branches, and a branch may test for membership in a set."""
    modes = tensor_attribute(context, "nodes_modes").astype(np.int8)
    thresholds, weights = tensor_attribute(context, "nodes_splits"), tensor_attribute(context, "leaf_weights")
    features, targets = context.integer_list("nodes_featureids"), context.integer_list("leaf_targetids")
    inner, leaves = len(modes), len(weights)
    lists: dict[str, Array] = {"nodes_splits": thresholds, "nodes_featureids": features}
    _check_lengths(context, {"leaf_targetids": targets}, leaves)
    if bool(((modes < 0) | (modes > MEMBER)).any()):
        context.invalid(f"nodes_modes must lie in 0 to {MEMBER}")
    branches = np.zeros((inner + leaves, 2), np.int64)
    for column, side in ((0, "true"), (1, "false")):
        following = lists[f"nodes_{side}nodeids"] = context.integer_list(f"nodes_{side}nodeids")
        is_leaf = lists[f"nodes_{side}leafs"] = context.integer_list(f"nodes_{side}leafs").astype(bool)
        _check_lengths(context, lists, inner)
        if bool(((following < 0) | (following >= np.where(is_leaf, leaves, inner))).any()):
            context.invalid("it refers to a node that does not exist")
        branches[:inner, column] = np.where(is_leaf, following + inner, following)
    roots = context.integer_list("tree_roots")
    if bool(((roots < 0) | (roots >= max(inner, 1))).any()):
        context.invalid("tree_roots refers to a node that does not exist")
    numbers = np.maximum(np.arange(-inner, leaves), 0)
    sets, members = _membership(context, modes, leaves, thresholds)
    return Ensemble(
        features=np.concatenate([features, np.zeros(leaves, np.int64)]),
        modes=np.concatenate([modes, np.full(leaves, LEAF, np.int8)]),
        thresholds=np.concatenate([thresholds, np.zeros(leaves, thresholds.dtype)]),
        branches=branches,
        missing=np.concatenate([_missing(context, inner), np.zeros(leaves, bool)]),
        leaf_weights=np.stack([numbers, numbers + 1], 1),
        sets=sets,
        members=members,
        roots=roots,
        targets=targets,
        weights=weights,
        outputs=outputs,
        aggregate=AGGREGATES[int(context.attribute("aggregate_function", 1))],
    )


def _membership(context: NodeContext, modes: Array, leaves: int, thresholds: Array) -> tuple[Array | None, Array]:
    """(the first and the last (exclusive) value of each node's set, the values): one set after another, each ended by
    a NaN."""
    asking = np.flatnonzero(modes == MEMBER)
    if not len(asking):
        return None, np.zeros(1, thresholds.dtype)
    members = tensor_attribute(context, "membership_values")
    ends = np.flatnonzero(np.isnan(members))
    if len(ends) < len(asking):
        context.invalid(f"membership_values has {len(ends)} sets for {len(asking)} nodes")
    sets = np.zeros((len(modes) + leaves, 2), np.int64)
    sets[asking, 0] = np.concatenate([[0], ends + 1])[: len(asking)]
    sets[asking, 1] = ends[: len(asking)]
    return sets, members


def _missing(context: NodeContext, count: int) -> Array:
    tracks = context.integer_list("nodes_missing_value_tracks_true").astype(bool)
    if not len(tracks):
        return np.zeros(count, bool)
    _check_lengths(context, {"nodes_missing_value_tracks_true": tracks}, count)
    return tracks


def _check_lengths(context: NodeContext, lists: dict[str, Array], count: int) -> None:
    for name, values in lists.items():
        if values.shape != (count,):
            context.invalid(f"{name} must have {count} elements, not {values.size}")


def _values(context: NodeContext, name: str) -> Array:
    """Floats given as a list, or as a tensor under the name with `_as_tensor`."""
    if context.has_attribute(f"{name}_as_tensor"):
        return np.array(tensor_attribute(context, f"{name}_as_tensor"))
    return np.array(context.required_attribute(name), np.float32)


def tensor_attribute(context: NodeContext, name: str) -> Array:
    """A tensor in an attribute."""
    reader = context.importer.model.reader
    return reader.constant(context.required_attribute(name), f"{name} of {context.name!r}").array


def scores(context: NodeContext, ensemble: Ensemble, base: Array) -> relax.Expr:
    """(rows, outputs) of (rows, features), in the type of the weights."""
    if context.rank(0) != 2:
        context.invalid(f"its input must have rank 2, not {context.rank(0)}")
    _check_indices(context, ensemble)
    try:
        table = tree_table(ensemble, context.dtype(0))
    except TreeError as error:
        context.invalid(str(error))
    operands = operands_of(table, base.astype(ensemble.weights.dtype))
    kernel = walking_kernel(table, plan_of(table, ensemble.outputs, ensemble.aggregate), list(operands))
    constants = [Constant(array).expr() for array in operands.values()]
    return context.emit_te(
        kernel,
        context.input(0),
        *constants,
        primfunc_name_hint="tree_ensemble",
        primfunc_attrs={SCALAR_CODE: tirx.IntImm("bool", 1)},
    )


def _check_indices(context: NodeContext, ensemble: Ensemble) -> None:
    """Features that the input has, checked within a run where its shape is dynamic, and outputs that the node has."""
    features = ensemble.features[ensemble.modes != LEAF]
    if ensemble.targets.size and not 0 <= ensemble.targets.min() <= ensemble.targets.max() < ensemble.outputs:
        context.invalid(f"its leaves must refer to one of {ensemble.outputs} outputs")
    if features.size and not 0 <= features.min() <= features.max() < 1 << 30:
        context.invalid("its features must lie in 0 to 2^30 - 1")
    needed, given = int(features.max(initial=0)) + 1, context.shape(0)[1]
    if isinstance(given, int) and given < needed:
        context.invalid(f"it reads feature {needed - 1} of an input with {given} features")
    context.importer.builder.require(given, "at least", needed)
