"""Loops that reduce one segment of the rows of a table after the other, as PyTorch's exporter writes embedding bags.

They become one kernel, instead of a step for each segment.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from tvm import relax, te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T
from tvm_ffi import structural_equal

from compiler.frontends.flat_buffer import FlatBuffer
from compiler.frontends.onnx.broadcasting import maximum
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.control_flow.loop_body import known_scalar, size_value
from compiler.frontends.onnx.operators.tensor.sort_kernels import in_sequence, in_vectors, int64, shared_runs
from compiler.frontends.onnx.symbolic import Dim, Scalar, expression
from compiler.frontends.onnx.values import (
    Constant,
    Runtime,
    SequenceValue,
    StackedSequence,
    Symbolic,
    TensorValue,
    Value,
)
from schedules.codegen.parallel import MIN_PARALLEL_WORK
from schedules.ir.tvm_types import Buffer, Expr, Stmt

# Terms, by which loop bodies are compared: an operator with its operands, a number, a name of the enclosing graph, or
# (in a pattern) a variable "?name".
Term = tuple[Any, ...] | str | int

_NEXT: Term = ("Add", "index", 1)
_START: Term = ("Slice", "?offsets", "index", _NEXT)
_END: Term = ("Slice", "?offsets", _NEXT, ("Add", "index", 2))
_IS_LAST: Term = ("Equal", "index", "?last")
_ROWS: Term = ("Slice", "?rows", _START, _END)
_SUM: Term = ("ReduceSum", _ROWS, 0)
_COUNT: Term = ("Sub", "?total", _START)
_LAST_MEAN: Term = ("If", ("Greater", _COUNT, 0), ("Div", _SUM, _COUNT), _SUM)
_REDUCTIONS: dict[str, Term] = {
    "sum": _SUM,
    "mean": ("If", _IS_LAST, _LAST_MEAN, ("ReduceMean", _ROWS, 0)),
    "max": ("ReduceMax", ("If", _IS_LAST, ("Slice", "?rows", _START, "?total"), _ROWS), 0),
}
# With a padding index, an inner loop collects the positions of the other rows.
_FROM: Term = ("Gather", "?offsets", "index")
_TO: Term = ("Gather", "?offsets", _NEXT)
_ID: Term = ("Gather", "?indices", "inner 2")
_IS_PADDING: Term = ("Equal", ("If", ("Less", _ID, 0), ("Add", _ID, "?table"), _ID), "?padding")
_COLLECTED: Term = ("If", ("Not", _IS_PADDING), ("Concat {'axis': 0}", "inner 3", "inner 2"), "inner 3")
_AFTER: Term = ("Add", "inner 2", 1)
_KEPT: Term = ("Loop", "", ("Less", _FROM, _TO), _FROM, "?empty", ("Less", _AFTER, _TO), _AFTER, _COLLECTED)
_PATTERNS: dict[str, Term] = {
    kind: ("If", ("Equal", _START, _END), "?zeros", each) for kind, each in _REDUCTIONS.items()
}
_PADDED_PATTERNS: dict[str, Term] = {
    kind: ("If", ("Equal", ("Size", _KEPT), 0), "?zeros", (operator, ("Gather", "?rows", _KEPT), 0))
    for kind, operator in (("sum", "ReduceSum"), ("mean", "ReduceMean"), ("max", "ReduceMax"))
}
_WIDE = (onnx.TensorProto.INT64, onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE)
_BRANCHES = ("then_branch", "else_branch")
_OWN = ("", "sequence", "index")  # inputs of the body
_COLUMNS = 64  # of a task
_LARGEST_ROW = 2**16  # larger constants are not read
_SEGMENT = "a reduction of the rows of a segment"


def segment_loop(context: NodeContext, body: onnx.GraphProto, state: Sequence[Value]) -> list[Value] | None:
    """Return the results of a loop that appends to a sequence a sum, mean or maximum of each segment; None if the loop
    does something else."""
    places = [place for place, each in enumerate(state) if isinstance(each, SequenceValue) and not each.values]
    if len(state) != 2 or len(body.output) != 3 or len(places) != 1:
        return None
    (sequence,) = places  # the exporter's order varies
    start = state[1 - sequence]
    if not isinstance(start, Constant) or start.shape != () or known_scalar(start) != 0:
        return None
    found = _Matcher(context, body, sequence).reduction()
    if found is None:
        return None
    count = context.arithmetic.maximum(found.count, 0)
    kernel = _kernel(found.kind) if found.padding is None else _padded_kernel(found.kind, *found.padding)
    sizes = expression(count), expression(found.rows.ty.shape.values[0])
    result = context.emit_te(kernel, *found.operands, *sizes, primfunc_name_hint=f"segment_{found.kind}")
    stack = StackedSequence(context.runtime(result, str(found.rows.ty.dtype)))
    end = size_value(count)
    return [stack, end] if sequence == 0 else [end, stack]


@dataclass(frozen=True)
class _Reduction:
    """`count` segments of rows (total, columns), from an offset to the next. Rows whose index is the padding, after
    adding the table's size to negative ones, are left out: `padding` is (index, size)."""

    kind: str
    operands: list[relax.Expr]  # rows, offsets, indices if there is a padding
    count: Scalar
    padding: tuple[int, int] | None

    @property
    def rows(self) -> relax.Expr:
        return self.operands[0]


class _Matcher:
    """Compares the body of a loop with the reductions."""

    def __init__(self, context: NodeContext, body: onnx.GraphProto, sequence: int) -> None:
        self._context = context
        self._body = body
        state = ("sequence", "index") if sequence == 0 else ("index", "sequence")
        self._sequence = sequence
        self._reader = context.importer.model.reader
        self._reader.keep_data()
        self._inputs = dict(zip((each.name for each in body.input), ("", "", *state), strict=True))
        self._variables: dict[str, Term] = {}
        self._terms: dict[tuple[str, int, int], Term] = {}

    def reduction(self) -> _Reduction | None:
        go, *following = (self._term(each.name, [self._body]) for each in self._body.output)
        appended = following.pop(self._sequence)
        for patterns in (_PATTERNS, _PADDED_PATTERNS):
            for kind, segment in patterns.items():
                self._variables = {}
                loop = ("SequenceInsert", "sequence", segment), _NEXT, ("Less", _NEXT, "?count")
                if all(map(self._matches, loop, (appended, *following, go))):
                    return self._checked(kind, padded=patterns is _PADDED_PATTERNS)
        return None

    def _checked(self, kind: str, *, padded: bool) -> _Reduction | None:
        """Return the reduction if its tensors and sizes are as the kernels assume."""
        names = ("?rows", "?offsets", "?indices") if padded else ("?rows", "?offsets")
        tensors = [each for name in names if (each := self._tensor(self._variables[name])) is not None]
        count = self._size(self._variables["?count"])
        if len(tensors) < len(names) or count is None or not self._begins_if_positive(count):
            return None
        rows, *vectors = tensors
        if len(rows.shape) != 2 or rows.dtype not in ("float32", "float64"):
            return None
        if any(len(each.shape) != 1 or each.dtype != "int64" for each in vectors):
            return None
        padding = self._padding() if padded else None
        if self._variables["?zeros"] not in (0, ("Zeros", 1, rows.shape[1])):
            return None
        if not self._has_sizes(rows, vectors, count) or (padded and padding is None):
            return None
        operands = [self._context.importer.builder.materialize(each) for each in tensors]
        return _Reduction(kind, operands, count, padding)

    def _has_sizes(self, rows: TensorValue, vectors: Sequence[TensorValue], count: Scalar) -> bool:
        arithmetic = self._context.arithmetic
        expected: dict[str, Dim] = {"?total": rows.shape[0], "?last": arithmetic.subtract(count, 1)}
        sizes: list[tuple[Dim | None, Dim]] = [(vectors[0].shape[0], arithmetic.add(count, 1))]
        sizes += [(each.shape[0], rows.shape[0]) for each in vectors[1:]]
        sizes += [
            (self._size(self._variables[name]), size) for name, size in expected.items() if name in self._variables
        ]
        return all(one is not None and arithmetic.equal_is_proved(one, other) for one, other in sizes)

    def _padding(self) -> tuple[int, int] | None:
        """Return the index and the size of the table, if they are known and the list of positions begins empty."""
        empty = self._tensor(self._variables["?empty"])
        padding, table = self._variables["?padding"], self._variables["?table"]
        if empty is None or empty.shape != (0,) or not isinstance(padding, int) or not isinstance(table, int):
            return None
        return padding, table

    def _begins_if_positive(self, count: Scalar) -> bool:
        """True if the condition before the loop is that there are segments."""
        begins, expected = self._context.tensor(1), self._context.arithmetic.less(0, count)
        if isinstance(begins, Constant):
            return isinstance(expected, bool | np.bool_) and bool(begins.array) == bool(expected)
        if not isinstance(begins, Symbolic):
            return False
        return bool(structural_equal(expression(begins.array.item()), expression(expected)))

    def _term(self, name: str, graphs: list[onnx.GraphProto]) -> Term:
        """Return what computes a value in the innermost of these graphs; computed once, since values are shared."""
        key = (name, len(graphs), id(graphs[-1]))
        if key not in self._terms:
            self._terms[key] = self._new_term(name, graphs)
        return self._terms[key]

    def _new_term(self, name: str, graphs: list[onnx.GraphProto]) -> Term:
        for depth in range(len(graphs), 0, -1):
            graph = graphs[depth - 1]
            for node in graph.node:
                if name in node.output:
                    return self._node_term(node, name, graphs[:depth])
            for tensor in graph.initializer:
                if tensor.name == name:
                    return _known(name, self._reader.constant(tensor, f"initializer {name!r}"))
        return self._inputs[name] if name in self._inputs else _known(name, self._context.scope.lookup(name))

    def _node_term(self, node: onnx.NodeProto, name: str, graphs: list[onnx.GraphProto]) -> Term:
        if node.op_type == "Loop" and len(node.input) == 4 and len(node.output) == 2:
            return self._loop_term(node, name, graphs)
        if len(node.output) != 1 or node.domain not in ("", "ai.onnx"):
            return f"a result of {node.op_type} {name}"
        if node.op_type == "If":
            branches = {each.name: each.g for each in node.attribute}
            inner = [self._term(branches[each].output[0].name, [*graphs, branches[each]]) for each in _BRANCHES]
            return ("If", self._term(node.input[0], graphs), *inner)
        attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
        operands = [self._term(each, graphs) for each in node.input]
        if _keeps(node.op_type, operands, attributes):
            return operands[0]
        if node.op_type == "Shape" and attributes == {"start": 0, "end": 1}:
            attributes = {}
        operator = node.op_type if not attributes else f"{node.op_type} {attributes}"
        return (operator, *operands)

    def _loop_term(self, node: onnx.NodeProto, name: str, graphs: list[onnx.GraphProto]) -> Term:
        """Return an inner loop, with the state that counts before the other, whose result is the loop's: the exporter's
        order varies."""
        (body,) = (each.g for each in node.attribute)
        sums = {each for addition in body.node if addition.op_type == "Add" for each in addition.output}
        order = sorted((2, 3), key=lambda place: body.output[place - 1].name not in sums)
        if name != node.output[order[1] - 2]:
            return f"a result of {node.op_type} {name}"
        self._inputs |= {body.input[place].name: f"inner {at}" for at, place in enumerate((0, 1, *order))}
        inputs = [self._term(node.input[place], graphs) for place in (1, *order)]
        results = [self._term(body.output[place - 1].name, [*graphs, body]) for place in (1, *order)]
        return ("Loop", node.input[0], *inputs, *results)

    def _matches(self, pattern: Term, term: Term) -> bool:
        if isinstance(pattern, str) and pattern.startswith("?"):
            return self._variables.setdefault(pattern, term) == term
        if isinstance(pattern, tuple) and isinstance(term, tuple):
            return len(pattern) == len(term) and all(map(self._matches, pattern, term))
        return type(pattern) is type(term) and pattern == term

    def _tensor(self, term: Term) -> Constant | Symbolic | Runtime | None:
        value = self._context.scope.lookup(term) if isinstance(term, str) and term not in _OWN else None
        return value if isinstance(value, Constant | Symbolic | Runtime) else None

    def _size(self, term: Term) -> Dim | None:
        """Return the value of a term as a size, if it is one."""
        if isinstance(term, int):
            return term
        if isinstance(term, tuple):
            operands = [self._size(each) for each in term[1:]] if term[0] == "Sub" else []
            if len(operands) == 2 and operands[0] is not None and operands[1] is not None:
                return self._context.arithmetic.subtract(*operands)
            shaped = self._tensor(term[1]) if term[0] == "Shape" else None
            return shaped.shape[0] if shaped is not None and shaped.shape else None
        value = self._tensor(term)
        if isinstance(value, Constant | Symbolic) and value.dtype == "int64" and value.array.size == 1:
            size: Dim = value.array.reshape(-1)[0]
            return int(size) if isinstance(size, np.integer) else size
        return None


def _keeps(operator: str, operands: Sequence[Term], attributes: dict[str, Any]) -> bool:
    """True if an operator gives its first operand: a scalar, converted or made a vector of length 1."""
    first = operands[0] if operands else ""
    if operator == "Cast":
        return attributes["to"] in _WIDE and (isinstance(first, int) or first[:1] == ("Sub",))
    if operator == "CastLike":
        return isinstance(first, int)
    return operator == "Identity" or (operator == "Reshape" and first in ("index", "inner 2"))


def _known(name: str, value: Value | None) -> Term:
    """Return the integer that is the only element of a value, or the shape of a row of zeros; otherwise its name."""
    if not isinstance(value, Constant) or not 0 < value.size <= _LARGEST_ROW:
        return name
    if value.size > 1:
        return name if value.array.any() else ("Zeros", *value.shape)
    number = value.array.item()
    return int(number) if isinstance(number, int | float) and float(number).is_integer() else name


def _kernel(kind: str) -> Callable[..., te.Tensor]:
    """Return a kernel that takes rows (total, columns), offsets (count + 1), `count` and `total`; it returns (count, 1,
    columns). Segments are clamped like slices."""

    def segment(bounds: FlatBuffer, at: Expr, count: Expr, total: Expr) -> _Segment:
        start, end = T.bind(bounds[at]), T.bind(bounds[at + int64(1)])
        is_last = at == count - int64(1)
        # The last maximum is of all rows that follow, and the last mean is divided by their number.
        stop = tirx.Select(is_last, total, end) if kind == "max" else end
        first = T.bind(_clamped(start, total))
        length = T.bind(tirx.max(_clamped(stop, total) - first, int64(0)))
        rest = tirx.Select(total > start, total - start, int64(1))
        return _Segment(first, length, T.bind(tirx.Select(is_last, rest, length)), start == end)

    def compute(rows: te.Tensor, offsets: te.Tensor, count: Expr, total: Expr) -> te.Tensor:
        return _reduced(kind, [rows, offsets], count, total, lambda inputs, at: segment(inputs[1], at, count, total))

    return compute


def _padded_kernel(kind: str, padding: int, table: int) -> Callable[..., te.Tensor]:
    """Return a kernel like `_kernel`, whose third operand has the index (total) of each row: those of the padding are
    left out."""

    def is_padding(indices: FlatBuffer, row: Expr) -> Expr:
        index = indices[row]
        return tirx.Select(index < int64(0), index + int64(table), index) == int64(padding)

    def segment(inputs: Sequence[FlatBuffer], at: Expr, total: Expr) -> _Segment:
        first = T.bind(tirx.max(tirx.min(inputs[1][at], total), int64(0)))
        length = T.bind(tirx.max(tirx.min(inputs[1][at + int64(1)], total) - first, int64(0)))
        kept = FlatBuffer(T.alloc_buffer([1], "int64", scope="local"))
        kept[0] = int64(0)
        with in_sequence(length, _SEGMENT) as row:
            kept[0] = kept[0] + tirx.Select(is_padding(inputs[2], first + row), int64(0), int64(1))
        number = T.bind(kept[0])
        return _Segment(first, length, number, number == int64(0), lambda row: is_padding(inputs[2], row))

    def compute(rows: te.Tensor, offsets: te.Tensor, indices: te.Tensor, count: Expr, total: Expr) -> te.Tensor:
        operands = [rows, offsets, indices]
        return _reduced(kind, operands, count, total, lambda inputs, at: segment(inputs, at, total))

    return compute


@dataclass(frozen=True)
class _Segment:
    """`length` rows from `first`, of which some may be left out; the divisor of their mean; and if the result is 0."""

    first: Expr
    length: Expr
    divisor: Expr
    is_zero: Expr
    is_left_out: Callable[[Expr], Expr] | None = None


def _reduced(
    kind: str,
    operands: Sequence[te.Tensor],
    count: Expr,
    total: Expr,
    segment_at: Callable[[Sequence[FlatBuffer], Expr], _Segment],
) -> te.Tensor:
    dtype, columns = str(operands[0].dtype), operands[0].shape[1]
    neutral = tirx.const(-math.inf if kind == "max" else 0, dtype)

    def generate(ins: list[Buffer], outs: list[Buffer]) -> Stmt:
        inputs, result = [FlatBuffer(each) for each in ins], FlatBuffer(outs[0])
        with IRBuilder() as builder:
            with shared_runs(count, total, columns, MIN_PARALLEL_WORK, _COLUMNS) as (at, first, width):
                segment = segment_at(inputs, at)

                def run(column: Expr) -> None:
                    reduced = FlatBuffer(T.alloc_buffer([1], dtype, scope="local"))
                    reduced[0] = neutral
                    with in_sequence(segment.length, _SEGMENT) as step:
                        row = segment.first + step
                        element = inputs[0][row * columns + (first + column)]
                        new = maximum(reduced[0], element) if kind == "max" else reduced[0] + element
                        left_out = segment.is_left_out
                        reduced[0] = new if left_out is None else tirx.Select(left_out(row), reduced[0], new)
                    value = reduced[0] / segment.divisor.astype(dtype) if kind == "mean" else reduced[0]
                    zero = tirx.const(0, dtype)
                    result[at * columns + (first + column)] = tirx.Select(segment.is_zero, zero, value)

                in_vectors(width, dtype, run)
            return builder.get()

    shape = [count, int64(1), columns]
    out = tirx.decl_buffer(shape, dtype, "reduced", layout=None)
    return te.extern([shape], list(operands), generate, dtype=dtype, out_buffers=[out], name=f"segment_{kind}")


def _clamped(bound: Expr, total: Expr) -> Expr:
    wrapped = tirx.Select(bound < int64(0), bound + total, bound)
    return tirx.max(tirx.min(wrapped, total), int64(0))
