"""Ensembles of decision trees as tables of two words per node, in traversal order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Array = np.ndarray

MODES = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ", "BRANCH_MEMBER", "LEAF")
LEQ, LT, GTE, GT, EQ, NEQ, MEMBER, LEAF = range(len(MODES))
# Tests of branches in the table: all comparisons by size are "at most" another threshold.
AT_MOST, EQUAL, IN_SET = range(3)


@dataclass(frozen=True)
class Ensemble:
    """Nodes of all trees in one list, as in the model.

    Attributes:
        features: (nodes) int, the input's column.
        modes: (nodes) int, indices into `MODES`.
        thresholds: (nodes) float.
        branches: (nodes, 2) int, the next node if the test is true, and if it is false.
        missing: (nodes) bool, True if NaN counts as true.
        leaf_weights: (nodes, 2) int, the first and the last (exclusive) of a leaf's weights.
        sets: (nodes, 2) int, the first and the last (exclusive) of a set's values in `members`; None without sets.
        roots: (trees) int.
        targets: (weights) int, the output that a weight belongs to.
        weights: (weights) float.
    """

    features: Array
    modes: Array
    thresholds: Array
    branches: Array
    missing: Array
    leaf_weights: Array
    sets: Array | None
    members: Array
    roots: Array
    targets: Array
    weights: Array
    outputs: int
    aggregate: str


@dataclass(frozen=True)
class TreeTable:
    """Tables traversed by the kernel.

    Attributes:
        words: int64. A node is a threshold's bits and a link: from the highest bit, the distance to the first of its
            two children (0 for a leaf), the test (2 bits), whether NaN goes to the first child, and the feature. If
            values are compared in float32, both are halves of one word, (slots), with the link in the upper half;
            otherwise the words are (2 * slots). Children are adjacent, the one for a true test first. In the
            threshold's field, a leaf has its weight, or its number, and a branch that tests membership the number of
            its set.
        roots: (trees) int32, slots.
        tree_targets: (trees) int32, the output of all leaves of a tree, whose weights are in `words`; None if trees do
            not have this form. Then leaf n has the weights from `leaf_starts[n]` up to `leaf_starts[n + 1]`.
        leaf_targets: the output of each weight; None if every leaf has a weight for each output, in order.
        set_starts: start of each set's values in `members`; None without sets.
        value_type: "float32" or "float64", the type of comparisons of values and thresholds.
        feature_bits: the width of the feature in a link.
    """

    words: Array
    roots: Array
    tree_targets: Array | None
    leaf_starts: Array | None
    leaf_targets: Array | None
    weights: Array
    set_starts: Array | None
    members: Array
    value_type: str
    feature_bits: int
    tests_equality: bool
    tracks_missing: bool


class TreeError(ValueError):
    """The nodes do not form trees."""


@dataclass(frozen=True)
class _Walk:
    """Nodes in table order: tree by tree, each level by level, with adjacent children.

    `nodes` (slots) are indices into the ensemble, `trees` (slots) the tree of each, `children` (slots) the slot of the
    """

    nodes: Array
    trees: Array
    children: Array
    roots: Array


def tree_table(ensemble: Ensemble, input_type: str) -> TreeTable:
    """Return the table for data of `input_type`. Raises TreeError if the nodes do not form trees."""
    single = _values_in_single(ensemble, input_type)
    walk = _walk(ensemble)
    modes = ensemble.modes[walk.nodes]
    is_leaf = modes == LEAF
    flags = _flags(ensemble, walk.nodes, modes)
    distance = np.where(is_leaf, 0, walk.children - np.arange(len(walk.nodes)))
    features = np.where(is_leaf, 0, ensemble.features[walk.nodes])
    feature_bits = max(1, int(features.max(initial=0)).bit_length())
    single = single and int(distance.max(initial=0)).bit_length() + 3 + feature_bits <= 31
    float_type, word_type = (np.float32, np.int32) if single else (np.float64, np.int64)
    thresholds = _thresholds(ensemble.thresholds[walk.nodes], modes, float_type)
    first = thresholds.view(word_type)
    tree_targets = _tree_targets(ensemble, walk, is_leaf, float_type)
    leaves = np.flatnonzero(is_leaf)
    starts = targets = None
    weights = ensemble.weights
    if tree_targets is not None:
        given = ensemble.weights[ensemble.leaf_weights[walk.nodes[leaves], 0]].astype(float_type)
        first[leaves] = given.view(word_type)
        weights = np.zeros(1, ensemble.weights.dtype)
    else:
        starts, order = _leaf_lists(ensemble, walk.nodes[leaves])
        first[leaves] = np.arange(len(leaves))
        weights, targets = ensemble.weights[order], ensemble.targets[order].astype(np.int32)
        if np.array_equal(targets, np.tile(np.arange(ensemble.outputs, dtype=np.int32), len(leaves))):
            targets = None
    set_starts, members = _sets(ensemble, walk.nodes, modes, first)
    words = np.empty(2 * len(walk.nodes), word_type)
    words[0::2] = first
    words[1::2] = (((distance << 2 | flags.tests) << 1 | flags.missing) << feature_bits) | features
    if single:
        words = words.astype("<i4").view("<i8").astype(np.int64)
    return TreeTable(
        words,
        walk.roots.astype(np.int32),
        tree_targets,
        starts,
        targets,
        weights,
        set_starts,
        members.astype(float_type),
        np.dtype(float_type).name,
        feature_bits,
        bool((flags.tests == EQUAL).any()),
        bool(flags.missing.any()),
    )


def _values_in_single(ensemble: Ensemble, input_type: str) -> bool:
    """True if comparing in float32 gives the same results as comparing in the wider type of input and thresholds."""
    if input_type == "float64":
        return False
    if ensemble.thresholds.dtype != np.float64:
        return True
    with np.errstate(over="ignore"):
        exact = bool((ensemble.thresholds.astype(np.float32) == ensemble.thresholds).all())
    by_size = bool(np.isin(ensemble.modes, (LEQ, LT, GTE, GT, LEAF)).all())
    return input_type in ("float32", "float16", "bfloat16") and (exact or by_size)


def _walk(ensemble: Ensemble) -> _Walk:
    levels, trees, firsts = [], [], []
    nodes, owners = ensemble.roots.astype(np.int64), np.arange(len(ensemble.roots))
    swapped = np.isin(ensemble.modes, (GTE, GT)) & ~np.isnan(ensemble.thresholds) | (ensemble.modes == NEQ)
    limit = 2 * len(ensemble.modes) + len(ensemble.roots)
    total = 0
    while len(nodes):
        total += len(nodes)
        if total > limit:
            raise TreeError("its nodes do not form trees: a node is reached from several others")
        inner = ensemble.modes[nodes] != LEAF
        levels.append(nodes)
        trees.append(owners)
        firsts.append(np.where(inner, total + 2 * (np.cumsum(inner) - 1), -1))
        following = ensemble.branches[nodes[inner]]
        turned = swapped[nodes[inner]]
        following[turned] = following[turned, ::-1]
        nodes, owners = following.reshape(-1).astype(np.int64), np.repeat(owners[inner], 2)
    if not levels:
        raise TreeError("it has no trees")
    all_nodes, all_trees, first = np.concatenate(levels), np.concatenate(trees), np.concatenate(firsts)
    order = np.argsort(all_trees, kind="stable")
    slot = np.empty(total, np.int64)
    slot[order] = np.arange(total)
    children = np.where(first >= 0, slot[np.maximum(first, 0)], slot)[order]
    return _Walk(all_nodes[order], all_trees[order], children, slot[: len(ensemble.roots)])


@dataclass(frozen=True)
class _Flags:
    tests: Array
    missing: Array


def _flags(ensemble: Ensemble, nodes: Array, modes: Array) -> _Flags:
    """Return the comparison of each branch, and True if NaN goes to the first child."""
    tests = np.select([np.isin(modes, (EQ, NEQ)), modes == MEMBER], [EQUAL, IN_SET], AT_MOST).astype(np.int64)
    missing = ensemble.missing[nodes].astype(bool)
    turned = np.isin(modes, (GTE, GT)) & ~np.isnan(ensemble.thresholds[nodes])
    # NaN is above no threshold: it takes the branch of a false test, which is the first child here. It differs from any
    # number, so that NEQ is true with or without tracks.
    missing = np.where(turned, ~missing, missing) & (modes != LEAF) & (modes != NEQ)
    return _Flags(tests, missing.astype(np.int64))


def _thresholds(stored: Array, modes: Array, float_type: type[np.floating]) -> Array:
    """Return the largest numbers of `float_type` for which "at most" is true; NaN if there is none."""
    with np.errstate(over="ignore", invalid="ignore"):
        values = stored.astype(float_type)
        by_size = np.isin(modes, (LEQ, LT, GTE, GT))
        strict = np.isin(modes, (LT, GTE))
        above = np.where(strict, values >= stored, values > stored) & by_size
        lowest = above & (values == -np.inf)
        values[above] = np.nextafter(values[above], float_type(-np.inf))
        values[lowest] = np.nan
    return values


def _tree_targets(ensemble: Ensemble, walk: _Walk, is_leaf: Array, float_type: type[np.floating]) -> Array | None:
    """Return the output of each tree, if each of its leaves has one weight, for that output, that fits into the
    table."""
    if ensemble.weights.dtype == np.float64 and float_type == np.float32:
        return None
    bounds = ensemble.leaf_weights[walk.nodes[is_leaf]]
    if not len(bounds) or not (bounds[:, 1] - bounds[:, 0] == 1).all():
        return None
    targets, trees = ensemble.targets[bounds[:, 0]], walk.trees[is_leaf]
    of_tree = np.zeros(len(walk.roots), np.int32)
    of_tree[trees] = targets
    return of_tree if bool((of_tree[trees] == targets).all()) else None


def _leaf_lists(ensemble: Ensemble, leaves: Array) -> tuple[Array, Array]:
    """Return (start and end of each leaf's weights; the positions of all weights in the ensemble)."""
    bounds = ensemble.leaf_weights[leaves].astype(np.int64)
    counts = bounds[:, 1] - bounds[:, 0]
    starts = np.concatenate([[0], np.cumsum(counts)])
    within = np.arange(starts[-1]) - np.repeat(starts[:-1], counts)
    return starts.astype(np.int32), np.repeat(bounds[:, 0], counts) + within


def _sets(ensemble: Ensemble, nodes: Array, modes: Array, first: Array) -> tuple[Array | None, Array]:
    """Return (start and end of the sets; their values); the numbers of the sets are written to `first`."""
    asking = np.flatnonzero(modes == MEMBER)
    if ensemble.sets is None or not len(asking):
        return None, np.zeros(1, np.float32)
    bounds = ensemble.sets[nodes[asking]].astype(np.int64)
    counts = bounds[:, 1] - bounds[:, 0]
    starts = np.concatenate([[0], np.cumsum(counts)])
    within = np.arange(starts[-1]) - np.repeat(starts[:-1], counts)
    first[asking] = np.arange(len(asking))
    return starts.astype(np.int32), ensemble.members[np.repeat(bounds[:, 0], counts) + within]
