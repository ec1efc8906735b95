"""Requirements of a PyTorch program on its inputs that its ONNX form lacks; checked before a run like ONNX's.

Branches on sizes in a model's own code: `torch.export` follows the example's branch.

Inputs that hold indices, lengths or counts, and their ranges in PyTorch.

ONNX counts negative indices from the end everywhere, PyTorch only in some operators; and if an index reaches its ONNX
operator through other operators, the importer cannot tell that it is an input. Computed indices are not checked: the
kernels that use them clamp them.

Each dynamic dimension has a range, and may have to be a multiple of a number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from compiler.artifact.manifest import IndexRequirement, Requirement
from compiler.frontends.imported_model import ImportedModel
from compiler.frontends.torch.branches import Condition, branch_relations, size_formula
from compiler.frontends.torch.size_relations import SizeRelation, size_relations, sizes_of
from compiler.support.formula import FormulaError, names_in
from schedules.ir.size_proofs import Congruence

if TYPE_CHECKING:
    import torch

_Shapes = Mapping[str, Sequence[int | str]]
_Formula = tuple[str, dict[str, str]]


class ProgramRequirements:
    """The requirements of a program, collected before its operators are rewritten."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        inputs = set(program.graph_signature.user_inputs)
        self._positions: dict[str, tuple[str, int]] = {}
        self._indices: list[tuple[IndexRange, str]] = []
        self._sizes: list[Condition] = []
        self._symbols: dict[str, str] = {}
        for dimension in dimensions(program):
            self._positions[dimension.name] = (dimension.input, dimension.axis)
            if not dimension.is_symbol:
                self._symbols.setdefault(dimension.symbol, dimension.formula_of_symbol)
        for node in program.graph.nodes:
            if node.op == "placeholder" and node.name in inputs:
                for axis, size in enumerate(getattr(node.meta.get("val"), "shape", ())):
                    self._positions.setdefault(str(size), (node.name, axis))
            elif node.op == "call_function":
                where = f"{operator_of(node)} {shown_name(node)!r}"
                self._indices += [(each, where) for each in index_ranges(node) if each.values.name in inputs]
                self._sizes += [(each, where) for each in size_relations(node) if not _is_known(each)]
        self._sizes += branch_relations(program)
        self._sizes += range_relations(program)  # last: operators' relations name their source

    def add(self, conditions: Iterable[Condition]) -> None:
        """Add relations of sizes from the rewritten program."""
        self._sizes += conditions

    def added_to(self, model: ImportedModel) -> ImportedModel:
        """Return the model with these requirements before its own, except for inputs or sizes that it lacks."""
        shapes = {spec.name: spec.shape for spec in model.inputs}
        return replace(
            model,
            indices=tuple(self._index_requirements(model, shapes)),
            requirements=tuple(self._size_requirements(model, shapes)),
        )

    def _index_requirements(self, model: ImportedModel, shapes: _Shapes) -> list[IndexRequirement]:
        merged: dict[tuple[str, str, str | None], IndexRequirement] = {}
        for index_range, where in self._indices:
            name = index_range.values.name
            formula = self._formula(index_range.size, shapes) if name in shapes else None
            if formula is not None:
                least = None if index_range.least is None else str(index_range.least)
                size, symbols = formula
                requirement = IndexRequirement(input=name, size=size, least=least, symbols=symbols, where=where)
                merged.setdefault((name, size, least), requirement)
        for existing in model.indices:
            if (existing.input, existing.size, "0") not in merged:  # otherwise the model's own is narrower
                merged.setdefault((existing.input, existing.size, existing.least), existing)
        return list(merged.values())

    def _size_requirements(self, model: ImportedModel, shapes: _Shapes) -> list[Requirement]:
        merged: dict[tuple[str, str, str], Requirement] = {}
        for relation, where in self._sizes:
            left, right = self._formula(relation.left, shapes), self._formula(relation.right, shapes)
            if left is not None and right is not None and (left[1] or right[1]):
                symbols = {**left[1], **right[1]}
                requirement = Requirement(
                    left=left[0], relation=relation.relation, right=right[0], symbols=symbols, where=where
                )
                merged.setdefault((left[0], relation.relation, right[0]), requirement)
        for existing in model.requirements:
            merged.setdefault((existing.left, existing.relation, existing.right), existing)
        return list(merged.values())

    def _formula(self, size: object, shapes: _Shapes) -> _Formula | None:
        """Return a size as a formula with the dimensions its names refer to; None if it does not depend on inputs'
        sizes.

        Dimensions fixed by the caller are replaced by their number.
        """
        try:
            text = re.sub(r"\b\w+\b", self._in_dimensions, size_formula(size))
        except FormulaError:
            return None
        symbols: dict[str, str] = {}
        for name in names_in(text):
            if name not in self._positions or self._positions[name][0] not in shapes:
                return None
            index, axis = self._positions[name]
            dimension = shapes[index][axis]
            if isinstance(dimension, int):
                text = re.sub(rf"\b{name}\b", str(dimension), text)
            else:
                symbols[name] = dimension
        return text, symbols

    def _in_dimensions(self, name: re.Match[str]) -> str:
        """Express a symbol that is not a dimension in terms of a dimension that is linear in it."""
        return name.group() if name.group() in self._positions else self._symbols.get(name.group(), name.group())


def operator_of(node: torch.fx.Node) -> str:
    """Return the name of a node's operator, without its overload."""
    return str(node.target).removeprefix("aten.").partition(".")[0]


def _is_known(relation: SizeRelation) -> bool:
    """True if both sizes are numbers, which `torch.export` has checked."""
    return isinstance(relation.left, int) and isinstance(relation.right, int)


_LARGEST_COUNT = 2**62


@dataclass(frozen=True)
class IndexRange:
    """Elements of an input (its node) must be in [least, size); a `least` of None means -size."""

    values: Any
    size: Any
    least: int | None = 0


_Ranges = Callable[[Any], Iterator[IndexRange]]


def index_ranges(node: Any) -> Iterator[IndexRange]:
    """Yield a node's requirements on its index tensors, applied to the tensors that they are copies of."""
    for each in _OPERATORS.get(str(node.target), _nothing)(node):
        source = _source(each.values)
        if source is not None:
            yield IndexRange(source, each.size, each.least)


_ALIKE = frozenset(
    f"aten.{name}"
    for name in (
        *("_to_copy.default", "to.dtype", "to.dtype_layout", "to.device", "clone.default", "contiguous.default"),
        *(
            "alias.default",
            "detach.default",
            "detach_.default",
            "view.default",
            "reshape.default",
            "flatten.using_ints",
        ),
        *("squeeze.default", "squeeze.dim", "squeeze.dims", "unsqueeze.default", "expand.default", "expand_as.default"),
        *("transpose.int", "permute.default", "t.default", "repeat.default", "lift_fresh_copy.default"),
    )
)
"""Operators whose result has exactly the elements of their first argument."""


def _source(node: Any) -> Any:
    """Return the integer tensor with the same elements as this one; None if they are not integers."""
    while getattr(node, "op", None) == "call_function" and str(node.target) in _ALIKE:
        if not _holds_integers(node):
            return None
        node = node.args[0]
    return node if _holds_integers(node) else None


def _holds_integers(node: Any) -> bool:
    value = getattr(node, "meta", {}).get("val")
    return value is not None and hasattr(value, "dtype") and str(value.dtype) in _INTEGERS


_INTEGERS = frozenset({"torch.int64", "torch.int32"})


def _argument(node: Any, position: int, name: str, default: Any = None) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _nothing(node: Any) -> Iterator[IndexRange]:
    yield from ()


def _along(position: int, axis: int, least: int | None = 0) -> _Ranges:
    """Argument `position` indexes an axis of the first tensor, given by argument `axis`."""

    def ranges(node: Any) -> Iterator[IndexRange]:
        sizes, dimension = sizes_of(node.args[0]), _argument(node, axis, "dim")
        if sizes and dimension is not None:
            yield IndexRange(node.args[position], sizes[dimension], least)

    return ranges


def _embedding(node: Any) -> Iterator[IndexRange]:
    yield IndexRange(node.args[1], sizes_of(node.args[0])[0])


def _bags(node: Any) -> Iterator[IndexRange]:
    """Offsets are the start of each bag in the indices."""
    yield from _embedding(node)
    yield IndexRange(node.args[2], sizes_of(node.args[1])[0] + 1)


def _advanced(node: Any) -> Iterator[IndexRange]:
    """Index tensors by axis; negative indices count from the end."""
    for size, values in zip(sizes_of(node.args[0]), node.args[1], strict=False):
        if values is not None:
            yield IndexRange(values, size, None)


def _take(node: Any) -> Iterator[IndexRange]:
    yield IndexRange(node.args[1], node.args[0].meta["val"].numel(), None)


def _one_hot(node: Any) -> Iterator[IndexRange]:
    classes = _argument(node, 1, "num_classes", -1)
    if isinstance(classes, int) and classes > 0:
        yield IndexRange(node.args[0], classes)


def _repeats(node: Any) -> Iterator[IndexRange]:
    yield IndexRange(node.args[1], _LARGEST_COUNT)


def _unpooled(node: Any) -> Iterator[IndexRange]:
    """Positions are within the output image."""
    *_, height, width = sizes_of(node)
    yield IndexRange(node.args[1], height * width)


def _target(node: Any) -> Iterator[IndexRange]:
    """Class indices, or the ignored index; numbers in between are accepted too."""
    sizes, ignored = sizes_of(node.args[0]), _argument(node, 4, "ignore_index", -100)
    if sizes and isinstance(ignored, int):
        yield IndexRange(node.args[1], sizes[1 if len(sizes) > 1 else 0], min(ignored, 0))


_OPERATORS: dict[str, _Ranges] = {
    "aten.embedding.default": _embedding,
    "aten.embedding_bag.default": _bags,
    "aten.embedding_bag.padding_idx": _bags,
    "aten.one_hot.default": _one_hot,
    "aten.index.Tensor": _advanced,
    "aten.index_put.default": _advanced,
    "aten.take.default": _take,
    "aten.nll_loss_nd.default": _target,
    "aten.cross_entropy_loss.default": _target,
    "aten.take_along_dim.default": _along(1, 2, None),
    "aten.max_unpool2d.default": _unpooled,
    "aten.repeat_interleave.self_Tensor": _repeats,
    "aten.index_fill.int_Scalar": _along(2, 1, None),
    **{
        f"aten.{name}": _along(2, 1)
        for name in (
            *("gather.default", "index_select.default", "index_add.default", "index_copy.default"),
            *("scatter.src", "scatter.value", "scatter.reduce", "scatter.value_reduce"),
            *("scatter_add.default", "scatter_reduce.two"),
        )
    },
}


_ARTIFICIAL_MIN = 2
"""torch.export assumes dynamic sizes of at least 2 while tracing, but its programs also run with smaller ones."""


@dataclass(frozen=True)
class Dimension:
    """A dynamic dimension of an input: `factor * symbol + offset`, for a symbol of `torch.export`. `input`, `axis`: its
    position."""

    input: str
    axis: int
    symbol: str
    factor: int
    offset: int

    @property
    def is_symbol(self) -> bool:
        """True if the dimension is the symbol itself."""
        return self.factor == 1 and self.offset == 0

    @property
    def name(self) -> str:
        """Return its name in formulas."""
        return f"{self.input}_axis{self.axis}"

    @property
    def formula_of_symbol(self) -> str:
        """Return the symbol as a formula of the dimension."""
        return f"({self.multiple} // {self.factor})"

    @property
    def multiple(self) -> str:
        """Return the expression that must be a multiple of the factor."""
        return f"({self.name}{_signed(-self.offset)})"


def dimensions(program: torch.export.ExportedProgram) -> list[Dimension]:
    """Return the dynamic dimensions of the program's inputs that are linear in one symbol, plain symbols first."""
    inputs = set(program.graph_signature.user_inputs)
    dynamic = [
        each
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in inputs
        for axis, size in enumerate(getattr(node.meta.get("val"), "shape", ()))
        for each in [_linear(node.name, axis, size)]
        if each is not None
    ]
    return sorted(dynamic, key=lambda each: not each.is_symbol)


def _linear(name: str, axis: int, size: Any) -> Dimension | None:
    expr = getattr(getattr(size, "node", None), "expr", None)
    if expr is None or len(expr.free_symbols) != 1:
        return None
    (symbol,) = expr.free_symbols
    factor = expr.coeff(symbol)
    offset = expr - factor * symbol
    if not factor.is_Integer or not offset.is_Integer or int(factor) <= 0:
        return None
    return Dimension(name, axis, str(symbol), int(factor), int(offset))


def range_relations(program: torch.export.ExportedProgram) -> Iterator[tuple[SizeRelation, str]]:
    """Yield the bounds of each symbol, and the agreement of dimensions with one symbol, with their source."""
    first: dict[str, Dimension] = {}
    for dimension in dimensions(program):
        linear = f"{dimension.factor}*{dimension.symbol}{_signed(dimension.offset)}"
        where = f"dimension {dimension.axis} of {dimension.input!r} is {linear} in the exported program"
        if dimension.symbol in first:
            value = first[dimension.symbol].formula_of_symbol
            yield SizeRelation(dimension.name, "equal", f"{dimension.factor}*{value}{_signed(dimension.offset)}"), where
        elif dimension.factor > 1:
            yield SizeRelation(f"{dimension.multiple} % {dimension.factor}", "equal", 0), where
        first.setdefault(dimension.symbol, dimension)
    for symbol, bounds in program.range_constraints.items():
        if not symbol.is_symbol:  # follows from the symbol's
            continue
        where = f"torch.export captured the model for {symbol} in [{bounds.lower}, {bounds.upper}]"
        if str(bounds.lower).isdecimal() and int(bounds.lower) > _ARTIFICIAL_MIN:
            yield SizeRelation(str(symbol), "at least", int(bounds.lower)), where
        if str(bounds.upper).isdecimal():
            yield SizeRelation(int(bounds.upper), "at least", str(symbol)), where


def _signed(number: int) -> str:
    """Return a number as the last term of a sum."""
    return "" if not number else f" {'-' if number < 0 else '+'} {abs(number)}"


def congruences(program: torch.export.ExportedProgram) -> dict[str, Congruence]:
    """Return known congruences of dimensions, by their names in torch's ONNX exporter ("4*s39")."""
    known = {}
    for dimension in dimensions(program):
        if dimension.factor > 1:
            size = _size_at(program, dimension)
            known[str(size)] = Congruence(dimension.factor, dimension.offset % dimension.factor)
    return known


def _size_at(program: torch.export.ExportedProgram, dimension: Dimension) -> Any:
    (node,) = (each for each in program.graph.nodes if each.op == "placeholder" and each.name == dimension.input)
    return node.meta["val"].shape[dimension.axis]


_CONTAINERS = "torch.nn.modules.container."


def shown_name(node: Any) -> str:
    """Return the path of the module that the node computes; for a module of several operators, of a node in it."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack:
        return str(node.name)
    path, kind = (str(each) for each in stack[-1])
    is_operator = kind.startswith("torch.nn.modules.") and not kind.startswith(_CONTAINERS)
    return path if path and is_operator else ".".join(filter(None, (path, str(node.name))))
