"""Conditions on sizes that `torch.export` followed: branches of a model's own code, and of decompositions.

Conditions that PyTorch's own operators ask for (of strides, mostly) hold for the results of other sizes as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.errors import Refusal, UnsupportedModelError
from compiler.frontends.torch.size_formulas import sides, size_formula, truth_formula
from compiler.frontends.torch.size_relations import SizeRelation
from compiler.support.formula import FormulaError

if TYPE_CHECKING:
    import torch

Condition = tuple[SizeRelation, str]
"""A relation of sizes, and where it is asked for."""

_DECOMPOSITIONS = ("_decomp", "_refs")  # folders of torch whose functions compute results, as a model's code does


def branch_relations(program: torch.export.ExportedProgram) -> Iterator[Condition]:
    """Relations between input sizes under which the followed branches are taken, and where they are.

    Raises:
        UnsupportedModelError: a branch of the model depends on a condition that no formula of sizes states.
    """
    values = (node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder")
    environments = {id(mode.shape_env): mode.shape_env for mode in (getattr(each, "fake_mode", None) for each in values)
                    if mode is not None and mode.shape_env is not None}  # fmt: skip
    for environment in environments.values():
        for guard in environment.guards:
            folder, where = _source(guard)
            if where and not folder.startswith("_"):
                yield from _conditions(guard.expr, f"a branch of the model {where}", required=not folder)


def decomposition_relations(guard: Any) -> Iterator[Condition]:
    """The equation that a guard of `torch` asks for, where the decomposition of an operator computes by it.

    Inequalities are left out: most say that a size is not 1, which tracing assumes and results do not depend on.
    """
    folder, where = _source(guard)
    computes = folder in _DECOMPOSITIONS and "view" not in guard.sloc.framework_loc.name
    if where and (computes or not folder) and getattr(guard.expr, "rel_op", None) == "==":
        yield from _conditions(guard.expr, f"a decomposed operator {where}", required=False)


def _source(guard: Any) -> tuple[str, str]:
    """(folder of PyTorch or "", text for messages) of the code that asks; the text is "" where that is not known."""
    import torch

    location: Any = getattr(guard.sloc, "framework_loc", None)
    if not hasattr(location, "filename"):
        return "", ""
    path, home = Path(location.filename), Path(torch.__file__).parent
    folder = path.relative_to(home).parts[0] if path.is_relative_to(home) else ""
    return folder, f"({path.name}:{location.lineno})"


def _conditions(condition: Any, where: str, *, required: bool) -> Iterator[Condition]:
    """A condition of sympy as relations. Raises UnsupportedModelError where it is `required` and has no formula."""
    try:
        yield from [(each, where) for each in _relations(condition)]
    except FormulaError as error:
        if required:
            hint = "leave out of dynamic_shapes the dimensions that it depends on"
            raise UnsupportedModelError([Refusal("branch", where, f"it depends on {condition}")], hint) from error


def _relations(condition: Any) -> Iterator[SizeRelation]:
    if type(condition).__name__ == "And":
        for part in condition.args:
            yield from _relations(part)
        return
    kind = getattr(condition, "rel_op", None)
    if kind not in (">=", ">", "<=", "<", "=="):
        yield SizeRelation(truth_formula(condition), "equal", 1)
        return
    left, right = sides(condition)
    if kind == "==":
        yield SizeRelation(size_formula(left), "equal", size_formula(right))
        return
    large, small = (left, right) if kind in (">=", ">") else (right, left)
    yield SizeRelation(size_formula(large), "at least", size_formula(small + 1 if kind in (">", "<") else small))
