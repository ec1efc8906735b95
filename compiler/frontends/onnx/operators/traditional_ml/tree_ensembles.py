"""ai.onnx.ml: ensembles of decision trees, in any of their three encodings, traversed by one kernel: several traversals
at once, which hides their latency.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tvm import relax, te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from compiler.frontends.flat_buffer import FlatBuffer
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.tensor.sort_kernels import int64, shared_tasks
from compiler.frontends.onnx.operators.traditional_ml.tree_tables import (
    EQUAL,
    IN_SET,
    LEAF,
    MEMBER,
    MODES,
    Array,
    Ensemble,
    TreeError,
    TreeTable,
    tree_table,
)
from compiler.frontends.onnx.values import Constant
from schedules.codegen.parallel import MIN_PARALLEL_WORK
from schedules.instructions.llvm_options import SCALAR_CODE
from schedules.ir.tvm_types import Buffer, Expr, Stmt

AGGREGATES = ("AVERAGE", "SUM", "MIN", "MAX")


class _Keys:
    """Maps (tree, node) pairs to their indices in the lists of nodes."""

    def __init__(self, context: NodeContext) -> None:
        self._context = context
        self.trees = context.integer_list("nodes_treeids")
        keys = self._key(self.trees, context.integer_list("nodes_nodeids"))
        self._order = np.argsort(keys, kind="stable")
        self._sorted = keys[self._order]
        if len(keys) > 1 and bool((self._sorted[1:] == self._sorted[:-1]).any()):
            context.invalid("two of its nodes have the same tree and number")

    def index(self, trees: Array, nodes: Array) -> Array:
        """Return the index of each pair; InvalidModelError if there is no such node."""
        keys = self._key(trees, nodes)
        position = np.searchsorted(self._sorted, keys)
        position[position == len(self._sorted)] = 0
        if not len(self._sorted) or bool((self._sorted[position] != keys).any()):
            self._context.invalid("it refers to a node that does not exist")
        return self._order[position]

    def _key(self, trees: Array, nodes: Array) -> Array:
        if trees.shape != nodes.shape:
            self._context.invalid("its lists of trees and nodes differ in length")
        if len(trees) and not 0 <= min(trees.min(), nodes.min()) <= max(trees.max(), nodes.max()) < 1 << 31:
            self._context.invalid("its numbers of trees and nodes must lie in 0 to 2^31 - 1")
        return trees << 31 | nodes


def from_node_lists(context: NodeContext, prefix: str, outputs: int, outputs_of: Array) -> Ensemble:
    """Read the older encoding: nodes are (tree, node) pairs, by which weights, named with a `prefix`, refer to
    leaves."""
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
    """Read the newest encoding: leaves are separate from branches, and a branch may test set membership."""
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
    """Return (first and last (exclusive) value of each node's set, the values): the sets are concatenated, each
    terminated by a NaN."""
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
    """Return floats given as a list, or as a tensor under the name with `_as_tensor`."""
    if context.has_attribute(f"{name}_as_tensor"):
        return np.array(tensor_attribute(context, f"{name}_as_tensor"))
    return np.array(context.required_attribute(name), np.float32)


def tensor_attribute(context: NodeContext, name: str) -> Array:
    """Return a tensor attribute."""
    reader = context.importer.model.reader
    return reader.constant(context.required_attribute(name), f"{name} of {context.name!r}").array


def scores(context: NodeContext, ensemble: Ensemble, base: Array) -> relax.Expr:
    """Return scores (rows, outputs) for (rows, features), in the weights' type."""
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
    """Check that the input has the features, at run time if its shape is dynamic, and the node the outputs."""
    features = ensemble.features[ensemble.modes != LEAF]
    if ensemble.targets.size and not 0 <= ensemble.targets.min() <= ensemble.targets.max() < ensemble.outputs:
        context.invalid(f"its leaves must refer to one of {ensemble.outputs} outputs")
    if features.size and not 0 <= features.min() <= features.max() < 1 << 30:
        context.invalid("its features must lie in 0 to 2^30 - 1")
    needed, width = int(features.max(initial=0)) + 1, context.shape(0)[1]
    if isinstance(width, int) and width < needed:
        context.invalid(f"it reads feature {needed - 1} of an input with {width} features")
    context.importer.builder.require(width, "at least", needed)


# Concurrent traversals: a step of one takes some 20 cycles, mostly memory latency.
_LANES = 8
# Rows per task; their values stay in the L1 cache for all trees.
_TASK_ROWS = 64
# Maximum number of rows whose sums are kept at a time, and bytes of these sums.
_STRIP_ROWS = 1024
_STRIP_BYTES = 4 << 20
# Maximum number of tasks per row, and minimum table slots per task: waking a thread takes microseconds.
_TREE_BLOCKS = 16
_MIN_SLOTS = 1 << 15


@dataclass(frozen=True)
class Plan:
    """Partition of the work. It depends only on the table, so sums do not depend on the number of threads or rows."""

    trees: int
    block_trees: int
    strip_rows: int
    outputs: int
    aggregate: str

    @property
    def blocks(self) -> int:
        return -(-self.trees // self.block_trees)

    @property
    def is_sum(self) -> bool:
        return self.aggregate in ("SUM", "AVERAGE")


def plan_of(table: TreeTable, outputs: int, aggregate: str) -> Plan:
    """Choose blocks of trees large enough for a task, and as many rows at a time as their sums may occupy."""
    trees = len(table.roots)
    slots = max(1, len(table.words) // trees)
    block = max(-(-trees // _TREE_BLOCKS), -(-_MIN_SLOTS // slots))
    block = min(trees, -(-block // _LANES) * _LANES)
    row_bytes = -(-trees // block) * max(outputs, 1) * 8
    strip = min(_STRIP_ROWS, max(_TASK_ROWS, _STRIP_BYTES // row_bytes // _TASK_ROWS * _TASK_ROWS))
    return Plan(trees, block, strip, max(outputs, 1), aggregate)


def operands_of(table: TreeTable, base: np.ndarray) -> dict[str, np.ndarray]:
    """Return the tables that the kernel reads, by name."""
    optional = {
        "tree_targets": table.tree_targets,
        "leaf_starts": table.leaf_starts,
        "leaf_targets": table.leaf_targets,
        "set_starts": table.set_starts,
    }
    present = {name: array for name, array in optional.items() if array is not None}
    needed = {"words": table.words, "roots": table.roots, "weights": table.weights, "base": base}
    needed |= {"members": table.members} if table.set_starts is not None else {}
    return {name: a if a.size else np.zeros(1, a.dtype) for name, a in (needed | present).items()}


def walking_kernel(table: TreeTable, plan: Plan, names: list[str]) -> Callable[..., te.Tensor]:
    """Return a tensor expression from (rows, features) and the operands with these names to (rows, outputs)."""

    def kernel(data: te.Tensor, *tables: te.Tensor) -> te.Tensor:
        rows, dtype = data.shape[0], str(tables[names.index("weights")].dtype)
        sums = "float32" if dtype == "float16" else dtype
        size = plan.blocks * plan.strip_rows * plan.outputs

        def generate(ins: list[Expr], outs: list[Expr]) -> Stmt:
            buffers = dict(zip(["data", *names], (FlatBuffer(item) for item in ins), strict=True))
            result, partial, touched = (FlatBuffer(out) for out in outs)
            with IRBuilder() as builder:
                code = _Code(table, plan, buffers, partial, touched, sums)
                code.emit(rows, data.shape[1], result, dtype)
                return builder.get()

        shapes = [[rows, int64(plan.outputs)], [int64(size)], [int64(1 if plan.is_sum else size)]]
        made = te.extern(shapes, [data, *tables], generate, dtype=[dtype, sums, "int8"], name="tree_ensemble")
        return made[0]

    return kernel


@dataclass(frozen=True)
class _Code:
    """Emits the loops. `partial` (blocks, strip rows, outputs) holds each block's contribution to each row."""

    table: TreeTable
    plan: Plan
    buffers: dict[str, Buffer]
    partial: Buffer
    touched: Buffer
    sums: str

    def emit(self, rows: Expr, features: Expr, result: Buffer, dtype: str) -> None:
        plan = self.plan
        strip_rows = int64(plan.strip_rows)
        with T.serial(0, tirx.ceildiv(rows, strip_rows)) as strip, T.seq_scope():
            first = strip * strip_rows
            count = tirx.min(strip_rows, rows - first)
            parts = tirx.ceildiv(count, int64(_TASK_ROWS))
            tasks = parts * int64(plan.blocks)
            with T.If(tasks == int64(1)):
                with T.Then():
                    self._task(first, count, int64(0), int64(0), features)
                with T.Else(), T.parallel(0, tasks) as task:
                    self._task(first, count, task // parts, task % parts, features)
            self._join(first, count, result, dtype)

    def _join(self, first: Expr, count: Expr, result: Buffer, dtype: str) -> None:
        """Compute the results of a strip; threads share its rows if there are enough sums."""
        plan = self.plan
        rows, sums = int64(_TASK_ROWS), plan.blocks * plan.outputs
        if plan.strip_rows * sums < MIN_PARALLEL_WORK:
            rows = int64(plan.strip_rows)
        with (
            shared_tasks(tirx.ceildiv(count, rows), count * int64(sums), MIN_PARALLEL_WORK) as task,
            T.serial(0, tirx.min(rows, count - task * rows)) as offset,
            T.serial(0, int64(plan.outputs)) as output,
            T.seq_scope(),
        ):
            self._combine(first, task * rows + offset, output, result, dtype)

    def _task(self, strip_first: Expr, strip_count: Expr, block: Expr, part: Expr, features: Expr) -> None:
        """Process some rows of the strip with a block of trees."""
        plan, lanes = self.plan, int64(_LANES)
        start = part * int64(_TASK_ROWS)
        count = tirx.min(int64(_TASK_ROWS), strip_count - start)
        first_row = block * int64(plan.strip_rows) + start
        first_tree = block * int64(plan.block_trees)
        trees = tirx.min(int64(plan.block_trees), int64(plan.trees) - first_tree)
        with T.seq_scope():
            with T.serial(0, count * int64(plan.outputs)) as i, T.seq_scope():
                self.partial[first_row * int64(plan.outputs) + i] = tirx.const(0, self.sums)
                if not plan.is_sum:
                    self.touched[first_row * int64(plan.outputs) + i] = tirx.const(0, "int8")
            groups = count // lanes
            with T.serial(0, trees) as tree, T.serial(0, groups) as group:
                row = group * lanes
                self._walks(
                    [first_tree + tree] * _LANES,
                    [strip_first + start + row + lane for lane in range(_LANES)],
                    [first_row + row + lane for lane in range(_LANES)],
                    features,
                )
            # Remaining rows process several trees at once.
            with T.serial(0, count - groups * lanes) as left, T.serial(0, tirx.ceildiv(trees, lanes)) as group:
                row = groups * lanes + left
                self._walks(
                    [first_tree + group * lanes + lane for lane in range(_LANES)],
                    [strip_first + start + row] * _LANES,
                    [first_row + row] * _LANES,
                    features,
                    trees - group * lanes,
                )

    def _walks(
        self, trees: list[Expr], rows: list[Expr], positions: list[Expr], features: Expr, valid: Expr | None = None
    ) -> None:
        """Traverse one tree per lane with one row each, and add the leaf values in lane order; only the first `valid`
        lanes count."""
        word = "int32" if self.table.value_type == "float32" else "int64"
        last = int64(self.plan.trees - 1)
        with T.seq_scope():
            node = FlatBuffer(T.alloc_buffer([_LANES], "int64", scope="local"))
            going = FlatBuffer(T.alloc_buffer([1], word, scope="local"))
            for lane, tree in enumerate(trees):
                inside = tree if valid is None else tirx.min(tree, last)
                node[lane] = self.buffers["roots"][inside].astype("int64")
            going[0] = tirx.const(1, word)
            with T.While(going[0] != tirx.const(0, word)), T.seq_scope():
                going[0] = tirx.const(0, word)
                for lane, row in enumerate(rows):
                    self._step(node, lane, row * features, going, word)
            for lane, (tree, target) in enumerate(zip(trees, positions, strict=True)):
                if valid is None:
                    self._add_leaf(node[lane], tree, target)
                else:
                    with T.If(int64(lane) < valid), T.Then():
                        self._add_leaf(node[lane], tree, target)

    def _step(self, node: Buffer, lane: int, row: Expr, going: Buffer, word: str) -> None:
        """Step from a branch to one of its children; a leaf stays."""
        table = self.table

        def constant(value: int) -> Expr:
            return tirx.const(value, word)

        with T.seq_scope():
            node_value, number, link = self._node(node[lane])
            feature = (link & constant((1 << table.feature_bits) - 1)).astype("int64")
            value = T.bind(self.buffers["data"][row + feature].astype(table.value_type))
            threshold = T.bind(node_value)
            tests = (link >> constant(table.feature_bits + 1)) & constant(3)
            holds = value <= threshold
            if table.tests_equality:
                holds = tirx.Select(tests == constant(EQUAL), value == threshold, holds)
            asks = tests == constant(IN_SET)
            if table.set_starts is not None:
                holds = tirx.all(holds, tirx.Not(asks))  # the threshold's field holds a set's number
            if table.tracks_missing:
                tracks = (link & constant(1 << table.feature_bits)) != constant(0)
                holds = tirx.any(holds, tirx.all(tracks, tirx.isnan(value)))
            if table.set_starts is not None:
                holds = self._in_set(value, number, asks, holds)
            distance = T.bind(link >> constant(table.feature_bits + 3))
            # Arithmetic, since selects would become branches, half of them mispredicted.
            right = constant(1) - holds.astype(word)
            branches = (distance != constant(0)).astype(word)
            node[lane] = node[lane] + (distance + (right & branches)).astype("int64")
            going[0] = going[0] | distance

    def _node(self, node: Expr) -> tuple[Expr, Expr, Expr]:
        """Return the contents of a node: the threshold field as a float and as a number; and the link."""
        words = self.buffers["words"]
        if self.table.value_type == "float64":
            first = T.bind(words[node * int64(2)])
            return T.reinterpret("float64", first), first, T.bind(words[node * int64(2) + int64(1)])
        both = T.bind(words[node])
        # The number is an index, whose type TVM may change, so it is not reinterpreted.
        number = both & int64(0xFFFFFFFF)
        return T.reinterpret("float32", both.astype("int32")), number, T.bind((both >> int64(32)).astype("int32"))

    def _in_set(self, value: Expr, number: Expr, asks: Expr, otherwise: Expr) -> Expr:
        """True if the value is in the numbered set, for a branch that tests membership."""
        starts, members = self.buffers["set_starts"], self.buffers["members"]
        is_member = FlatBuffer(T.alloc_buffer([1], "int32", scope="local"))
        is_member[0] = tirx.Select(otherwise, tirx.const(1, "int32"), tirx.const(0, "int32"))
        with T.If(asks), T.Then(), T.seq_scope():
            start, end = starts[number].astype("int64"), starts[number + int64(1)].astype("int64")
            with T.serial(0, end - start) as k, T.If(members[start + k] == value), T.Then():
                is_member[0] = tirx.const(1, "int32")
        return is_member[0] == tirx.const(1, "int32")

    def _add_leaf(self, node: Expr, tree: Expr, row: Expr) -> None:
        table, outputs = self.table, int64(self.plan.outputs)
        weight, number, _ = self._node(node)
        if table.tree_targets is not None:
            self._add(row * outputs + self.buffers["tree_targets"][tree].astype("int64"), weight.astype(self.sums))
            return
        starts, weights = self.buffers["leaf_starts"], self.buffers["weights"]
        with T.seq_scope():
            leaf = T.bind(number)
            start = T.bind(starts[leaf].astype("int64"))
            with T.serial(0, starts[leaf + int64(1)].astype("int64") - start) as k, T.seq_scope():
                target = k if table.leaf_targets is None else self.buffers["leaf_targets"][start + k].astype("int64")
                self._add(row * outputs + target, weights[start + k].astype(self.sums))

    def _add(self, index: Expr, weight: Expr) -> None:
        if self.plan.is_sum:
            self.partial[index] = self.partial[index] + weight
            return
        with T.seq_scope():
            known = self.touched[index] != tirx.const(0, "int8")
            self.partial[index] = tirx.Select(known, self._extreme(self.partial[index], weight), weight)
            self.touched[index] = tirx.const(1, "int8")

    def _extreme(self, left: Expr, right: Expr) -> Expr:
        return tirx.min(left, right) if self.plan.aggregate == "MIN" else tirx.max(left, right)

    def _combine(self, first: Expr, row: Expr, output: Expr, result: Buffer, dtype: str) -> None:
        """Combine the contributions of the blocks of trees to a row, in order; 0 if no leaf contributed."""
        plan = self.plan
        total = FlatBuffer(T.alloc_buffer([1], self.sums, scope="local"))
        known = FlatBuffer(T.alloc_buffer([1], "int8", scope="local"))
        total[0] = tirx.const(0, self.sums)
        known[0] = tirx.const(0, "int8")
        with T.serial(0, int64(plan.blocks)) as block, T.seq_scope():
            index = (block * int64(plan.strip_rows) + row) * int64(plan.outputs) + output
            if plan.is_sum:
                total[0] = total[0] + self.partial[index]
            else:
                with T.If(self.touched[index] != tirx.const(0, "int8")), T.Then(), T.seq_scope():
                    value, seen = self.partial[index], known[0] != tirx.const(0, "int8")
                    total[0] = tirx.Select(seen, self._extreme(total[0], value), value)
                    known[0] = tirx.const(1, "int8")
        if plan.aggregate == "AVERAGE":
            total[0] = total[0] * (tirx.const(1, self.sums) / tirx.const(plan.trees, self.sums))
        base = self.buffers["base"][output].astype(self.sums)
        result[(first + row) * int64(plan.outputs) + output] = (total[0] + base).astype(dtype)
