"""Requirements on inputs that a PyTorch program has and its ONNX form lacks; checked before a run like ONNX's.

Branches that a model's own code takes on sizes: `torch.export` follows the one that the example takes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from compiler.frontends.imported_model import ImportedModel, IndexRequirement, SizeRequirement
from compiler.frontends.torch.branches import Condition, branch_relations
from compiler.frontends.torch.dimension_ranges import dimensions, range_relations
from compiler.frontends.torch.index_ranges import IndexRange, index_ranges
from compiler.frontends.torch.node_names import shown_name
from compiler.frontends.torch.size_formulas import size_formula
from compiler.frontends.torch.size_relations import SizeRelation, size_relations
from compiler.support.formula import FormulaError, names_in

if TYPE_CHECKING:
    import torch

_Shapes = Mapping[str, Sequence[int | str]]
_Formula = tuple[str, dict[str, str]]


class ProgramRequirements:
    """The requirements of a program, taken before its operators are rewritten."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        inputs = set(program.graph_signature.user_inputs)
        self._places: dict[str, tuple[str, int]] = {}
        self._indices: list[tuple[IndexRange, str]] = []
        self._sizes: list[Condition] = []
        self._symbols: dict[str, str] = {}
        for each in dimensions(program):
            self._places[each.name] = (each.input, each.axis)
            if not each.is_symbol:
                self._symbols.setdefault(each.symbol, each.formula_of_symbol)
        for node in program.graph.nodes:
            if node.op == "placeholder" and node.name in inputs:
                for axis, size in enumerate(getattr(node.meta.get("val"), "shape", ())):
                    self._places.setdefault(str(size), (node.name, axis))
            elif node.op == "call_function":
                where = f"{_operator(node)} {shown_name(node)!r}"
                self._indices += [(each, where) for each in index_ranges(node) if each.values.name in inputs]
                self._sizes += [(each, where) for each in size_relations(node) if not _is_known(each)]
        self._sizes += branch_relations(program)
        self._sizes += range_relations(program)  # last: those of operators say what needs them

    def add(self, conditions: Iterable[Condition]) -> None:
        """Further relations of sizes, of the program that the operators were rewritten to."""
        self._sizes += conditions

    def added_to(self, model: ImportedModel) -> ImportedModel:
        """The model with these before its own; not those of inputs or of sizes that it does not have."""
        shapes = {spec.name: spec.shape for spec in model.inputs}
        return replace(
            model,
            indices=tuple(self._index_requirements(model, shapes)),
            requirements=tuple(self._size_requirements(model, shapes)),
        )

    def _index_requirements(self, model: ImportedModel, shapes: _Shapes) -> list[IndexRequirement]:
        kept: dict[tuple[str, str, str | None], IndexRequirement] = {}
        for each, where in self._indices:
            name = each.values.name
            formula = self._formula(each.size, shapes) if name in shapes else None
            if formula is not None:
                least = None if each.least is None else str(each.least)
                kept.setdefault((name, formula[0], least), IndexRequirement(name, *formula, where, least))
        for own in model.indices:
            if (own.input, own.size, "0") not in kept:  # that is the narrower one
                kept.setdefault((own.input, own.size, own.least), own)
        return list(kept.values())

    def _size_requirements(self, model: ImportedModel, shapes: _Shapes) -> list[SizeRequirement]:
        kept: dict[tuple[str, str, str], SizeRequirement] = {}
        for each, where in self._sizes:
            left, right = self._formula(each.left, shapes), self._formula(each.right, shapes)
            if left is not None and right is not None and (left[1] or right[1]):
                symbols = {**left[1], **right[1]}
                requirement = SizeRequirement(left[0], each.relation, right[0], symbols, where)
                kept.setdefault((left[0], each.relation, right[0]), requirement)
        for own in model.requirements:
            kept.setdefault((own.left, own.relation, own.right), own)
        return list(kept.values())

    def _formula(self, size: object, shapes: _Shapes) -> _Formula | None:
        """A size as a formula and the dimensions that its names stand for; None where it is not one of inputs' sizes.

        The number takes the place of the name of a dimension that the caller fixed.
        """
        try:
            text = re.sub(r"\b\w+\b", self._in_dimensions, size_formula(size))
        except FormulaError:
            return None
        symbols: dict[str, str] = {}
        for name in names_in(text):
            if name not in self._places or self._places[name][0] not in shapes:
                return None
            index, axis = self._places[name]
            dimension = shapes[index][axis]
            if isinstance(dimension, int):
                text = re.sub(rf"\b{name}\b", str(dimension), text)
            else:
                symbols[name] = dimension
        return text, symbols

    def _in_dimensions(self, name: re.Match[str]) -> str:
        """A symbol that no dimension is, as a formula of the dimension that is linear in it."""
        return name.group() if name.group() in self._places else self._symbols.get(name.group(), name.group())


def _operator(node: torch.fx.Node) -> str:
    return str(node.target).removeprefix("aten.").partition(".")[0]


def _is_known(relation: SizeRelation) -> bool:
    """True if both sizes are numbers, which `torch.export` has checked."""
    return isinstance(relation.left, int) and isinstance(relation.right, int)
