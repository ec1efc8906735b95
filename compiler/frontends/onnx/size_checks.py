"""Relations between sizes that a model requires, collected during import and checked before or during a run."""

from __future__ import annotations

from typing import Literal

import tvm
from tvm import tirx

from compiler.artifact.manifest import IndexRequirement, Requirement
from compiler.frontends.onnx.symbolic import Dim, is_number
from compiler.support.operation_count import UncountableError, size_formula

Relation = Literal["equal", "at least", "broadcast"]


class SizeChecks:
    """Relations between input sizes, and a name for each check in the module.

    Attributes:
        where: the current node, as text for messages.
        inputs: symbolic sizes of the model's inputs -> names of their dimensions.
        input_names: variables of inputs, and of tensors with their elements -> input names.
        described: purpose of each check; check N binds a variable whose name is `check_N_`.
    """

    def __init__(self) -> None:
        self.where = ""
        self.inputs: dict[tvm.ir.Expr, str] = {}
        self.described: list[str] = []
        self.input_names: dict[tvm.ir.Expr, str] = {}
        self._indices: dict[tuple[str, str, str | None], IndexRequirement] = {}
        self._requirements: dict[tuple[str, str, str], Requirement] = {}

    @property
    def requirements(self) -> tuple[Requirement, ...]:
        """Requirements in node order."""
        return tuple(self._requirements.values())

    @property
    def indices(self) -> tuple[IndexRequirement, ...]:
        """Requirements in node order."""
        return tuple(self._indices.values())

    def next_name(self, reason: str = "") -> str:
        """Return the variable name for a check of the current node; `reason`: the failure, if not evident from
        sizes."""
        text = f"{self.where}: {reason}" if reason else self.where
        if not self.described or self.described[-1] != text:
            self.described.append(text)
        # TVM appends numbers to names.
        return f"check_{len(self.described) - 1}_"

    def same_elements(self, variable: tvm.ir.Expr, other: tvm.ir.Expr) -> None:
        """Record that a variable has the elements of another, so that requirements on it apply to the same input."""
        if other in self.input_names:
            self.input_names[variable] = self.input_names[other]

    def require_range(self, variable: tvm.ir.Expr, least: Dim | None, size: Dim) -> None:
        """Record that the elements of an input are in [least, size); ignored if the variable is not an input.

        A `least` of None means -size.
        """
        name = self.input_names.get(variable)
        formula = None if name is None else self._formula(size)
        low = (None, {}) if least is None else self._formula(least)
        if name is not None and formula is not None and low is not None:
            requirement = IndexRequirement(
                input=name, size=formula[0], least=low[0], symbols={**formula[1], **low[1]}, where=self.where
            )
            self._indices.setdefault((name, formula[0], low[0]), requirement)

    def _formula(self, size: Dim) -> tuple[str, dict[str, str]] | None:
        """Return a size as a formula with its names; None if it does not depend only on input sizes."""
        if is_number(size):
            return str(size), {}
        variables = set(tirx.analysis.undefined_vars(size))
        if not variables <= self.inputs.keys():
            return None
        try:
            formula = _outermost(size_formula(size))
        except UncountableError:
            return None
        return formula, {str(variable.name): self.inputs[variable] for variable in variables}

    def require(self, left: Dim, relation: Relation, right: Dim) -> bool:
        """Record a relation; False if it does not depend only on input sizes, or no formula expresses it."""
        first, second = self._formula(left), self._formula(right)
        if first is None or second is None:
            return False
        requirement = Requirement(
            left=first[0], relation=relation, right=second[0], symbols={**first[1], **second[1]}, where=self.where
        )
        self._requirements.setdefault((first[0], relation, second[0]), requirement)
        return True


def _outermost(formula: str) -> str:
    """Return the formula without parentheses around the whole."""
    if not formula.startswith("("):
        return formula
    depth = 0
    for index, letter in enumerate(formula):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return formula[1:-1] if index == len(formula) - 1 else formula
    return formula
