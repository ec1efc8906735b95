"""Matmuls (MatMul, Gemm, Einsum), determinants and inverses.

GroupedMatMul of our own domain: rows sorted by group, each multiplied by the matrix of its group.

Einsum in terms of transpositions, sums and matmuls, for which there are schedules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import relax, te, tirx
from tvm.relax import op as R
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from compiler.frontends.flat_buffer import FlatBuffer
from compiler.frontends.onnx.bounds import require
from compiler.frontends.onnx.broadcasting import broadcast_shapes, broadcast_to, common_size
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.math.elimination import ELIMINATION, scale, subtract_multiple, vector_boundary
from compiler.frontends.onnx.operators.tensor.cast import is_narrow_float
from compiler.frontends.onnx.operators.tensor.create import filled
from compiler.frontends.onnx.operators.tensor.sort_kernels import in_sequence, in_vectors, int64, product
from compiler.frontends.onnx.registry import OWN_DOMAIN, converter
from compiler.frontends.onnx.symbolic import Dim, is_number
from compiler.frontends.onnx.values import tensor_shape
from compiler.passes.rewriting.block_weights import BlockWeight
from compiler.passes.rewriting.expert_products import expert_product, padded_experts
from schedules.ir.tvm_types import Buffer, Expr, Stmt, Tensor

_MAX_WHOLE_ROWS = 64  # elements: loops over a few known elements are unrolled, those from a start on are not


def order(context: NodeContext) -> Dim:
    """Return the number of rows of the input's matrices, which must be square."""
    shape = context.shape(0)
    if len(shape) < 2:
        context.invalid(f"its input has shape {shape}; it needs square matrices")
    require(context, shape[-1], "equal", shape[-2])
    return shape[-1]


def inverted(context: NodeContext, matrices: relax.Expr) -> relax.Expr:
    """Invert stacked square matrices by Gauss-Jordan elimination with row exchanges, in float64."""
    if order(context) == 0:
        return matrices
    results = context.emit_te(_inverse_kernel, matrices, primfunc_name_hint="inverse")
    return relax.TupleGetItem(results, 0)


def _inverse_kernel(data: te.Tensor) -> list[te.Tensor]:
    size, dtype = data.shape[-1], str(data.dtype)

    def generate(ins: Sequence[Buffer], outs: Sequence[Buffer]) -> Stmt:
        source, (result, work, right, state) = FlatBuffer(ins[0]), (FlatBuffer(out) for out in outs)
        zero, one = tirx.const(0.0, "float64"), tirx.const(1.0, "float64")
        is_large = not isinstance(size, tirx.IntImm) or int(size) > _MAX_WHOLE_ROWS
        with IRBuilder() as builder:
            with in_sequence(product(data.shape[:-2]), ELIMINATION) as b, T.seq_scope():
                with T.serial(0, size * size) as i, T.seq_scope():
                    work[i] = source[b * size * size + i].astype("float64")
                    right[i] = tirx.Select(tirx.floordiv(i, size) == tirx.floormod(i, size), one, zero)
                with T.serial(0, size) as column, T.seq_scope():
                    _pivot(work, right, state, column, size)
                    # Elements before the diagonal are 0.
                    start = vector_boundary(column, size) if is_large else int64(0)
                    parts = ((work, start), (right, int64(0)))
                    state[1] = one / work[column * size + column]
                    for buffer, first in parts:
                        scale(buffer, column * size + first, size - first, state[1], in_lanes=is_large)
                    with T.serial(0, size) as row, T.If(row != column), T.Then(), T.seq_scope():
                        state[1] = work[row * size + column]
                        for buffer, first in parts:
                            at, pivot = row * size + first, column * size + first
                            subtract_multiple(buffer, at, pivot, size - first, state[1], in_lanes=is_large)
                with T.serial(0, size * size) as i:
                    result[b * size * size + i] = right[i].astype(dtype)
            return builder.get()

    shapes = [list(data.shape), [size * size], [size * size], [int64(2)]]
    outputs: list[te.Tensor] = te.extern(shapes, [data], generate, dtype=[dtype, *["float64"] * 3], name="inverse")
    return outputs


def _pivot(work: Buffer, right: Buffer, state: Buffer, column: Expr, size: Expr) -> None:
    """Move the row with the largest element of a column into its position, in both halves."""
    state[0] = column.astype("float64")
    with T.serial(0, size - column) as below:
        row, best = column + below, state[0].astype("int64")
        larger = tirx.abs(work[row * size + column]) > tirx.abs(work[best * size + column])
        with T.If(larger), T.Then():
            state[0] = row.astype("float64")
    for buffer in (work, right):
        with T.serial(0, size) as j, T.seq_scope():
            pivot_element = state[0].astype("int64") * size + j
            state[1] = buffer[column * size + j]
            buffer[column * size + j] = buffer[pivot_element]
            buffer[pivot_element] = state[1]


def matrix_product(context: NodeContext, a: relax.Expr, b: relax.Expr, *, out_dtype: str | None = None) -> relax.Expr:
    """numpy.matmul: vectors, matrices, and stacks of them that broadcast; narrow floats are accumulated in float32.

    `out_dtype` is the accumulator type of narrow integers, and the result's type.
    """
    left, right = tensor_shape(a), tensor_shape(b)
    if not left or not right:
        context.invalid("a scalar has no matrix product")
    a, b = _same_inner_size(context, a, b)
    a, b = _broadcast_stacks(context, a, b)
    dtype = out_dtype or str(a.ty.dtype)
    if isinstance(left[-1], int) and left[-1] == 0:
        shape = list(tensor_shape(context.emit(R.matmul(a, b))))
        return filled(context, 0, dtype, shape)
    if is_narrow_float(dtype):
        return context.emit(R.astype(context.emit(R.matmul(a, b, out_dtype="float32")), dtype))
    return context.emit(R.matmul(a, b, out_dtype=out_dtype))


def _same_inner_size(context: NodeContext, a: relax.Expr, b: relax.Expr) -> tuple[relax.Expr, relax.Expr]:
    left, right = tensor_shape(a), tensor_shape(b)
    inner = len(right) - 2 if len(right) > 1 else 0
    inner_a, inner_b = left[-1], right[inner]
    if context.arithmetic.equal_is_proved(inner_a, inner_b):
        return a, b
    if isinstance(inner_a, int) and isinstance(inner_b, int):
        context.invalid(f"the inner sizes {inner_a} and {inner_b} of a matrix product differ")
    if isinstance(inner_a, int):
        return a, context.match_shape(b, [inner_a if axis == inner else size for axis, size in enumerate(right)])
    return context.match_shape(a, [*left[:-1], inner_b]), b


def _broadcast_stacks(context: NodeContext, a: relax.Expr, b: relax.Expr) -> tuple[relax.Expr, relax.Expr]:
    """Broadcast stacks whose sizes TVM cannot prove equal."""
    left, right = tensor_shape(a), tensor_shape(b)
    try:
        stack, sure = broadcast_shapes(context, [left[:-2], right[:-2]])
    except ValueError as error:
        context.invalid(str(error))
    if sure:
        return a, b
    a = broadcast_to(context, a, [*stack, *left[-2:]])
    b = broadcast_to(context, b, [*stack, *right[-2:]])
    return a, context.match_shape(b, [*tensor_shape(a)[:-2], *right[-2:]])


@converter("MatMul")
def matmul(context: NodeContext) -> relax.Expr:
    """numpy.matmul."""
    if context.dtype(0) != context.dtype(1):
        context.invalid(f"it multiplies {context.dtype(0)} by {context.dtype(1)}")
    return matrix_product(context, context.input(0), context.input(1))


@converter("Gemm", since=7)
def gemm(context: NodeContext) -> relax.Expr:
    """alpha * A' * B' + beta * C, with ' an optional transposition."""
    a, b, dtype = context.input(0), context.input(1), context.dtype(0)
    if context.rank(0) != 2 or context.rank(1) != 2:
        context.invalid(f"it multiplies ranks {context.rank(0)} and {context.rank(1)}")
    if context.attribute("transA", 0):
        a = context.emit(R.permute_dims(a))
    if context.attribute("transB", 0):
        b = context.emit(R.permute_dims(b))
    product = matrix_product(context, a, b)
    alpha, beta = context.attribute("alpha", 1.0), context.attribute("beta", 1.0)
    if alpha != 1.0:
        product = context.emit(R.multiply(product, context.literal(alpha, dtype)))
    if not context.has_input(2):
        return product
    bias = context.input(2)
    if beta != 1.0:
        bias = context.emit(R.multiply(bias, context.literal(beta, dtype)))
    shape = tensor_shape(product)
    return R.add(product, _bias_of(context, bias, shape))


def _bias_of(context: NodeContext, bias: relax.Expr, shape: Sequence[Dim]) -> relax.Expr:
    """Return the bias, broadcast to the matmul's size if its own is symbolic and not known to be equal or 1."""
    own = tensor_shape(bias)
    for size, target in zip(own[::-1], shape[::-1], strict=False):
        if is_number(size) and size != 1:  # the matmul does not broadcast to its bias
            require(context, target, "equal", size)
    try:
        _, sure = broadcast_shapes(context, [shape, tensor_shape(bias)])
    except ValueError as error:
        context.invalid(str(error))
    return bias if sure else context.match_shape(broadcast_to(context, bias, shape), shape)


@converter("Det", since=11)
def determinant(context: NodeContext) -> relax.Expr:
    """Compute determinants of stacked square matrices by elimination with row exchanges, in float64."""
    dtype = context.dtype(0)
    if order(context) == 0:
        return filled(context, 1.0, dtype, context.shape(0)[:-2])
    result = context.emit_te(_determinant_kernel(dtype), context.input(0), primfunc_name_hint="determinant")
    return relax.TupleGetItem(result, 0)


def _determinant_kernel(dtype: str) -> Callable[..., Tensor]:
    def kernel(data: te.Tensor) -> list[te.Tensor]:
        stack, size = list(data.shape[:-2]), data.shape[-1]
        count: Expr = tirx.const(1, "int64")
        for extent in stack:
            count = count * extent

        def generate(ins: list[Expr], outs: list[Expr]) -> Stmt:
            source, (result, work) = FlatBuffer(ins[0]), (FlatBuffer(out) for out in outs)
            with IRBuilder() as builder:
                with in_sequence(count, ELIMINATION) as b:
                    _eliminate(source, result, work, b, size, dtype)
                return builder.get()

        return te.extern([stack, [size * size + 2]], [data], generate, dtype=[dtype, "float64"], name="determinant")

    return kernel


def _eliminate(source: Buffer, result: Buffer, work: Buffer, b: Expr, size: Expr, dtype: str) -> None:
    """Gaussian elimination of matrix `b` in `work`, whose last elements hold the product and a spare."""
    product, spare, first = size * size, size * size + 1, int64(0)
    with T.seq_scope():
        pivot = FlatBuffer(T.alloc_buffer([1], "int64", scope="local"))
        largest = FlatBuffer(T.alloc_buffer([1], "float64", scope="local"))
        base = b * size * size
        in_vectors(size * size, "float64", lambda i: work.__setitem__(i, source[base + i].astype("float64")))
        work[product] = tirx.const(1.0, "float64")
        with T.serial(0, size) as column, T.seq_scope():
            pivot[first] = column
            largest[first] = tirx.abs(work[column * size + column])
            with T.serial(0, size - column) as below:
                magnitude = tirx.abs(work[(column + below) * size + column])
                with T.If(magnitude > largest[first]), T.Then(), T.seq_scope():
                    pivot[first] = column + below
                    largest[first] = magnitude
            with T.If(pivot[first] != column), T.Then(), T.seq_scope():
                work[product] = tirx.const(0.0, "float64") - work[product]
                with T.serial(0, size) as j:
                    _exchange(work, column * size + j, pivot[first] * size + j, spare)
            work[product] = work[product] * work[column * size + column]
            nonzero = work[column * size + column] != tirx.const(0.0, "float64")
            with T.If(nonzero), T.Then(), T.serial(0, size - column - 1) as down, T.seq_scope():
                row = column + 1 + down
                work[spare] = work[row * size + column] / work[column * size + column]
                # Starts at a vector boundary: the rest of the column is not read again.
                start = vector_boundary(column + 1, size)
                subtract_multiple(work, row * size + start, column * size + start, size - start, work[spare])
        result[b] = work[product].astype(dtype)


def _exchange(work: Buffer, a: Expr, b: Expr, spare: Expr) -> None:
    """Swap two elements."""
    with T.seq_scope():
        work[spare] = work[a]
        work[a] = work[b]
        work[b] = work[spare]


@converter("GroupedMatMul", domain=OWN_DOMAIN)
def grouped_matmul(context: NodeContext) -> Expr:
    """Multiply rows (n, depth) by weights (groups, depth, columns), given each group's end in the rows (groups,)."""
    rows = context.input(0)
    groups = context.emit_te(_groups, rows, context.input(2), primfunc_name_hint="groups")
    weights = context.known(1) if context.dtype(0) == "float32" else None
    if weights is not None:
        columns = weights.shape[2]
        stored = BlockWeight.of_floats(padded_experts(weights.transpose(0, 2, 1)), "float32")
        return expert_product(context.block_builder, rows, stored, columns, groups, "float32")
    matrices = context.emit(R.take(context.input(1), groups, axis=0))
    return R.squeeze(context.emit(R.matmul(context.emit(R.expand_dims(rows, 1)), matrices)), [1])


def _groups(rows: te.Tensor, ends: te.Tensor) -> te.Tensor:
    """Return the group of each row, int64: the number of groups that end at or before it."""
    count = int(ends.shape[0])

    def group(row: Expr) -> Expr:
        position, total = tirx.Cast("int64", row), tirx.const(0, "int64")
        for each in range(count - 1):
            total = total + tirx.Cast("int64", position >= tirx.Cast("int64", ends[each]))
        return total

    return te.compute((rows.shape[0],), group, name="groups")


@dataclass
class Term:
    """A tensor with a label for each axis: a letter, or a number for an ellipsis axis."""

    data: relax.Expr
    labels: list[str]

    def size(self, label: str) -> Dim:
        return tensor_shape(self.data)[self.labels.index(label)]


@converter("Einsum", since=12)
def einsum(context: NodeContext) -> relax.Expr:
    """Sum over labels missing in the result, of products of elements with equal labels."""
    inputs, result = _parse(context)
    terms = [Term(context.input(i), labels) for i, labels in enumerate(inputs)]
    terms = [_diagonal(context, term) for term in terms]
    terms = _common_sizes(context, terms)
    while len(terms) > 1:
        first, second, *rest = terms
        needed = set(result).union(*(term.labels for term in rest))
        terms = [_contract(context, first, second, needed), *rest]
    final = _summed(context, terms[0], set(result))
    order = [final.labels.index(label) for label in result]
    return final.data if order == list(range(len(order))) else R.permute_dims(final.data, order)


def _parse(context: NodeContext) -> tuple[list[list[str]], list[str]]:
    equation = str(context.required_attribute("equation")).replace(" ", "")
    left, arrow, right = equation.partition("->")
    parts = left.split(",")
    if len(parts) != len(context.inputs):
        context.invalid(f"equation {equation!r} has {len(parts)} terms for {len(context.inputs)} inputs")
    inputs, widths = [], []
    for index, part in enumerate(parts):
        labels, width = _labels(context, part, context.rank(index))
        inputs.append(labels)
        widths.append(width)
    dots = [str(axis) for axis in range(max(widths, default=0))][::-1]
    if arrow:
        before, found, after = right.partition("...")
        result = [*before, *(dots if found else []), *after]
    else:
        letters = [label for labels in inputs for label in labels if label.isalpha()]
        result = [*dots, *sorted(label for label in set(letters) if letters.count(label) == 1)]
    known = {label for labels in inputs for label in labels}
    if len(set(result)) != len(result) or not set(result) <= known:
        context.invalid(f"equation {equation!r} has a bad result")
    return inputs, result


def _labels(context: NodeContext, part: str, rank: int) -> tuple[list[str], int]:
    """Return the labels of one term; an ellipsis covers the remaining axes, numbered from the end."""
    head, ellipsis, tail = part.partition("...")
    width = rank - len(head) - len(tail)
    if width < 0 or (width and not ellipsis) or (not (head + tail).isalpha() and head + tail):
        context.invalid(f"the term {part!r} does not fit a tensor of rank {rank}")
    return [*head, *(str(axis) for axis in range(width - 1, -1, -1)), *tail], width


def _diagonal(context: NodeContext, term: Term) -> Term:
    """Take the diagonal if a label occurs twice in one term."""
    unique = list(dict.fromkeys(term.labels))
    if len(unique) == len(term.labels):
        return term
    sizes = [term.size(label) for label in unique]
    for label, size in zip(term.labels, tensor_shape(term.data), strict=True):
        require(context, size, "equal", term.size(label))

    def pick(data: te.Tensor) -> te.Tensor:
        shape = [data.shape[term.labels.index(label)] for label in unique]

        def element(*indices: Expr) -> Expr:
            return data(*(indices[unique.index(label)] for label in term.labels))

        return te.compute(shape, element, name="diagonal")

    data = context.emit_te(pick, term.data, primfunc_name_hint="diagonal")
    return Term(context.match_shape(data, sizes), unique)


def _common_sizes(context: NodeContext, terms: list[Term]) -> list[Term]:
    """Make the sizes of each label equal; ellipsis axes and sizes of 1 broadcast."""
    sizes: dict[str, Dim] = {}
    for term in terms:
        for label in term.labels:
            try:
                size, _ = common_size(context, sizes.get(label, 1), term.size(label))
            except ValueError as error:
                context.invalid(f"label {label!r}: {error}")
            sizes[label] = size
    result = []
    for term in terms:
        target_shape = [sizes[label] for label in term.labels]
        own = tensor_shape(term.data)
        equal = all(context.arithmetic.equal_is_proved(a, b) for a, b in zip(own, target_shape, strict=True))
        data = term.data if equal else broadcast_to(context, term.data, target_shape)
        result.append(Term(data, term.labels))
    return result


def _summed(context: NodeContext, term: Term, needed: set[str]) -> Term:
    """Sum over the labels that nothing else needs."""
    gone = [axis for axis, label in enumerate(term.labels) if label not in needed]
    if not gone:
        return term
    return Term(context.emit(R.sum(term.data, gone)), [label for label in term.labels if label in needed])


def _contract(context: NodeContext, a: Term, b: Term, needed: set[str]) -> Term:
    """One matmul of two terms, contracting the common labels that are not needed afterwards."""
    a = _summed(context, a, needed | set(b.labels))
    b = _summed(context, b, needed | set(a.labels))
    common = [label for label in a.labels if label in b.labels]
    stack = [label for label in common if label in needed]
    inner = [label for label in common if label not in needed]
    rows = [label for label in a.labels if label not in common]
    columns = [label for label in b.labels if label not in common]
    sizes = {label: term.size(label) for term in (a, b) for label in term.labels}
    left = _grouped(context, a, [stack, rows, inner], sizes)
    right = _grouped(context, b, [stack, inner, columns], sizes)
    product = matrix_product(context, left, right)
    labels = [*stack, *rows, *columns]
    return Term(context.reshape(product, [sizes[label] for label in labels]), labels)


def _grouped(context: NodeContext, term: Term, groups: list[list[str]], sizes: dict[str, Dim]) -> relax.Expr:
    """Order a term's axes by groups, and merge each group into one axis."""
    order = [term.labels.index(label) for group in groups for label in group]
    data = term.data
    if order != list(range(len(order))):
        data = context.emit(R.permute_dims(data, order))
    return context.reshape(data, [context.arithmetic.product(sizes[label] for label in group) for group in groups])
