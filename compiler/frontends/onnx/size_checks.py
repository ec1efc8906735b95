"""The relations of sizes that a model requires, collected during import; they are checked before a run or within it."""

from __future__ import annotations

from typing import Literal

import tvm
from tvm import tirx

from compiler.frontends.imported_model import IndexRequirement, SizeRequirement
from compiler.frontends.onnx.symbolic import Dim, is_number
from compiler.support.operation_count import UncountableError, size_formula

Relation = Literal["equal", "at least", "broadcast"]


class SizeChecks:
    """Relations of the inputs' sizes, and a name for each check in the module.

    Attributes:
        where: the current node, as text for messages.
        inputs: the symbolic sizes of the model's inputs, with the names of their dimensions.
        input_names: the variables of the model's inputs, and of what has their elements, with the inputs' names.
        described: purpose of each check; check N binds a variable whose name is `check_N_`.
    """

    def __init__(self) -> None:
        self.where = ""
        self.inputs: dict[tvm.ir.Expr, str] = {}
        self.described: list[str] = []
        self.input_names: dict[tvm.ir.Expr, str] = {}
        self._indices: dict[tuple[str, str, str | None], IndexRequirement] = {}
        self._requirements: dict[tuple[str, str, str], SizeRequirement] = {}

    @property
    def requirements(self) -> tuple[SizeRequirement, ...]:
        """In the order of the nodes."""
        return tuple(self._requirements.values())

    @property
    def indices(self) -> tuple[IndexRequirement, ...]:
        """In the order of the nodes."""
        return tuple(self._indices.values())

    def next_name(self, reason: str = "") -> str:
        """The name of the variable of a check that belongs to the node at hand; why it fails where sizes do not say."""
        text = f"{self.where}: {reason}" if reason else self.where
        if not self.described or self.described[-1] != text:
            self.described.append(text)
        # TVM appends numbers of its own to names.
        return f"check_{len(self.described) - 1}_"

    def same_elements(self, variable: tvm.ir.Expr, other: tvm.ir.Expr) -> None:
        """Note that a variable has the elements of another one, so that what is required of them is of an input's."""
        if other in self.input_names:
            self.input_names[variable] = self.input_names[other]

    def require_range(self, variable: tvm.ir.Expr, least: Dim | None, size: Dim) -> None:
        """Note that the elements of an input lie in [least, size); nothing when the variable is not an input.

        A `least` of None is -size.
        """
        name = self.input_names.get(variable)
        said = None if name is None else self._formula(size)
        low = (None, {}) if least is None else self._formula(least)
        if name is not None and said is not None and low is not None:
            requirement = IndexRequirement(name, said[0], {**said[1], **low[1]}, self.where, low[0])
            self._indices.setdefault((name, said[0], low[0]), requirement)

    def _formula(self, size: Dim) -> tuple[str, dict[str, str]] | None:
        """A size as a formula and what its names stand for; None when it is not one of the inputs' sizes alone."""
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
        """Note a relation; False when it is not one of the inputs' sizes alone, or no formula can say it."""
        first, second = self._formula(left), self._formula(right)
        if first is None or second is None:
            return False
        requirement = SizeRequirement(first[0], relation, second[0], {**first[1], **second[1]}, self.where)
        self._requirements.setdefault((first[0], relation, second[0]), requirement)
        return True


def _outermost(formula: str) -> str:
    """The formula without the parentheses around all of it."""
    if not formula.startswith("("):
        return formula
    depth = 0
    for index, letter in enumerate(formula):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return formula[1:-1] if index == len(formula) - 1 else formula
    return formula
