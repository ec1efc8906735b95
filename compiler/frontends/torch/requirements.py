"""Requirements on inputs that a PyTorch program has and its ONNX form lacks; checked before a run like ONNX's.

Branches that a model's own code takes on sizes: `torch.export` follows the one that the example takes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.frontends.imported_model import ImportedModel, IndexRequirement, SizeRequirement
from compiler.frontends.torch.dimension_ranges import dimensions, range_relations
from compiler.frontends.torch.index_ranges import IndexRange, index_ranges
from compiler.frontends.torch.node_names import shown_name
from compiler.frontends.torch.size_relations import SizeRelation, size_relations
from compiler.support.formula import evaluate, names_in

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
        self._sizes: list[tuple[SizeRelation, str]] = []
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
        text = re.sub(r"\bMod\((\w+), (\w+)\)", r"(\1 % \2)", str(size))
        text = re.sub(r"\b(Min|Max)\(", lambda found: found.group().lower(), text)
        text = re.sub(r"\b\w+\b", self._in_dimensions, text)
        symbols: dict[str, str] = {}
        try:
            for name in names_in(text):
                if name not in self._places or self._places[name][0] not in shapes:
                    return None
                place, axis = self._places[name]
                dimension = shapes[place][axis]
                if isinstance(dimension, int):
                    text = re.sub(rf"\b{name}\b", str(dimension), text)
                else:
                    symbols[name] = dimension
            evaluate(text, dict.fromkeys(symbols, 1))
        except ValueError:
            return None
        return text, symbols

    def _in_dimensions(self, name: re.Match[str]) -> str:
        """A symbol that no dimension is, as a formula of the dimension that is linear in it."""
        return name.group() if name.group() in self._places else self._symbols.get(name.group(), name.group())


def _operator(node: torch.fx.Node) -> str:
    return str(node.target).removeprefix("aten.").partition(".")[0]


def _is_known(relation: SizeRelation) -> bool:
    """True if both sizes are numbers, which `torch.export` has checked."""
    return isinstance(relation.left, int) and isinstance(relation.right, int)


def branch_relations(program: torch.export.ExportedProgram) -> Iterator[tuple[SizeRelation, str]]:
    """Relations between input sizes under which the followed branches are taken, and where they are.

    Conditions that PyTorch's own operators ask for (of strides, mostly) hold for the results of other sizes as well.
    """
    values = (node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder")
    environments = {id(mode.shape_env): mode.shape_env for mode in (getattr(each, "fake_mode", None) for each in values)
                    if mode is not None and mode.shape_env is not None}  # fmt: skip
    for environment in environments.values():
        for guard in environment.guards:
            place: Any = getattr(guard.sloc, "framework_loc", None)
            if hasattr(place, "filename") and not _is_of_torch(place.filename):
                where = f"a branch of the model ({Path(place.filename).name}:{place.lineno})"
                yield from ((relation, where) for relation in _relations(guard.expr))


def _is_of_torch(filename: str) -> bool:
    """True if it is a file of PyTorch that computes shapes and strides."""
    import torch

    home = Path(torch.__file__).parent
    path = Path(filename)
    return path.is_relative_to(home) and path.relative_to(home).parts[0].startswith("_")


def _relations(condition: Any) -> Iterator[SizeRelation]:
    """A condition of sympy as relations; none where it is an alternative."""
    if type(condition).__name__ == "And":
        for part in condition.args:
            yield from _relations(part)
        return
    kind = getattr(condition, "rel_op", None)
    if kind is None:
        return
    left, right = condition.lhs, condition.rhs
    if kind in (">=", ">"):
        yield SizeRelation(left, "at least", right if kind == ">=" else right + 1)
    elif kind in ("<=", "<"):
        yield SizeRelation(right, "at least", left if kind == "<=" else left + 1)
    elif kind == "==":
        yield SizeRelation(left, "equal", right)
    elif kind == "!=":
        difference = f"({left} - ({right}))"
        yield SizeRelation(f"{difference}*{difference}", "at least", 1)  # its square
