"""Einsum as transpositions, sums and matrix products, which the schedules know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvm import relax, te
from tvm.relax import op as R

from compiler.frontends.onnx.bounds import require
from compiler.frontends.onnx.broadcasting import broadcast_to, common_size
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.math.matrix import matrix_product
from compiler.frontends.onnx.operators.tensor.reshape import reshaped
from compiler.frontends.onnx.registry import converter
from compiler.frontends.onnx.symbolic import Dim
from compiler.frontends.onnx.values import tensor_shape

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Expr


@dataclass
class Term:
    """A tensor and the label of each of its axes; labels are letters, or numbers for the axes of an ellipsis."""

    data: relax.Expr
    labels: list[str]

    def size(self, label: str) -> Dim:
        return tensor_shape(self.data)[self.labels.index(label)]


@converter("Einsum", since=12)
def einsum(context: NodeContext) -> relax.Expr:
    """The sum over the labels that the result does not have, of products of elements with equal labels."""
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
    """The labels of one term; an ellipsis stands for as many axes as are left, numbered from its end."""
    before, found, after = part.partition("...")
    width = rank - len(before) - len(after)
    if width < 0 or (width and not found) or (not (before + after).isalpha() and before + after):
        context.invalid(f"the term {part!r} does not fit a tensor of rank {rank}")
    return [*before, *(str(axis) for axis in range(width - 1, -1, -1)), *after], width


def _diagonal(context: NodeContext, term: Term) -> Term:
    """Take the diagonal where a label occurs twice in one term."""
    unique = list(dict.fromkeys(term.labels))
    if len(unique) == len(term.labels):
        return term
    sizes = [term.size(label) for label in unique]
    for label, size in zip(term.labels, tensor_shape(term.data), strict=True):
        require(context, size, "equal", term.size(label))

    def pick(data: te.Tensor) -> te.Tensor:
        shape = [data.shape[term.labels.index(label)] for label in unique]

        def element(*place: Expr) -> Expr:
            return data(*(place[unique.index(label)] for label in term.labels))

        return te.compute(shape, element, name="diagonal")

    data = context.emit_te(pick, term.data, primfunc_name_hint="diagonal")
    return Term(context.match_shape(data, sizes), unique)


def _common_sizes(context: NodeContext, terms: list[Term]) -> list[Term]:
    """Make the sizes of each label equal; those of an ellipsis and those of 1 broadcast."""
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
        wanted = [sizes[label] for label in term.labels]
        own = tensor_shape(term.data)
        equal = all(context.arithmetic.equal_is_proved(a, b) for a, b in zip(own, wanted, strict=True))
        data = term.data if equal else broadcast_to(context, term.data, wanted)
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
    return Term(reshaped(context, product, [sizes[label] for label in labels]), labels)


def _grouped(context: NodeContext, term: Term, groups: list[list[str]], sizes: dict[str, Dim]) -> relax.Expr:
    """The term's axes ordered by groups, each group one axis."""
    order = [term.labels.index(label) for group in groups for label in group]
    data = term.data
    if order != list(range(len(order))):
        data = context.emit(R.permute_dims(data, order))
    return reshaped(context, data, [context.arithmetic.product(sizes[label] for label in group) for group in groups])
