"""Conditions on sizes that `torch.export` assumed: branches in a model's own code, and in decompositions.

Conditions that PyTorch's own operators check (mostly on strides) do not restrict other sizes.
The sympy expressions of `torch.export` are converted to formulas (`compiler.support.formula`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.errors import Refusal, UnsupportedModelError
from compiler.frontends.torch.size_relations import SizeRelation
from compiler.support.formula import FormulaError, parsed

if TYPE_CHECKING:
    import torch

Condition = tuple[SizeRelation, str]
"""A relation of sizes, and the source that requires it."""

_DECOMPOSITIONS = ("_decomp", "_refs")  # folders of torch with functions that compute results, like model code
_CALLS = ("_export", "_tensor.py", "_jit_internal.py")  # parts of torch that call its functions on behalf of a model


def branch_relations(program: torch.export.ExportedProgram) -> Iterator[Condition]:
    """Yield the relations between input sizes under which the exported branches are taken, with their locations. Raises
    UnsupportedModelError if a branch of the model depends on a condition that is not a formula of sizes."""
    values = (node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder")
    environments = {id(mode.shape_env): mode.shape_env for mode in (getattr(each, "fake_mode", None) for each in values)
                    if mode is not None and mode.shape_env is not None}  # fmt: skip
    for environment in environments.values():
        for guard in environment.guards:
            folder, where = _source(guard)
            if where and not folder.startswith("_") and not _is_assumed(guard):
                yield from _conditions(guard.expr, f"a branch of the model {where}", required=not folder)


def _is_assumed(guard: Any) -> bool:
    """True if a composite operator, not the model, requires that a size is not 0 or 1, on which its results do not
    depend."""
    caller = getattr(guard.sloc.framework_loc, "name", "")
    return caller == "_special_op_to_decompose_cia" and getattr(guard.expr, "rel_op", None) == "!="


def decomposition_relations(guard: Any) -> Iterator[Condition]:
    """Yield the equation required by a guard in `torch`, if an operator's decomposition computes with it.

    Inequalities are skipped: most state that a size is not 1, which tracing assumes and results do not depend on.
    """
    folder, where = _source(guard)
    computes = folder in _DECOMPOSITIONS and "view" not in guard.sloc.framework_loc.name
    if where and (computes or not folder) and getattr(guard.expr, "rel_op", None) == "==":
        yield from _conditions(guard.expr, f"a decomposed operator {where}", required=False)


def equation_on_a_size(guard: Any) -> list[Condition]:
    """Return the equation of a guard, from any source; empty if no formula expresses it."""
    return list(_conditions(guard.expr, f"a decomposed operator {_source(guard)[1]}".rstrip(), required=False))


def _source(guard: Any) -> tuple[str, str]:
    """Return (folder of PyTorch or "", text for messages) of the code that guards; the text is "" if unknown."""
    import torch

    location: Any = getattr(guard.sloc, "framework_loc", None)
    if not hasattr(location, "filename"):
        return "", ""
    path, home = Path(location.filename), Path(torch.__file__).parent
    folder = path.relative_to(home).parts[0] if path.is_relative_to(home) else ""
    folder = "" if folder in _CALLS else folder
    return folder, f"({path.name}:{location.lineno})"


def _conditions(condition: Any, where: str, *, required: bool) -> Iterator[Condition]:
    """Convert a sympy condition to relations. Raises UnsupportedModelError if it is `required` and has no formula."""
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


# ruff: noqa: N802  (methods of sympy's printers are named after its classes)


_LARGEST_DENOMINATOR = 1 << 20


def size_formula(size: Any) -> str:
    """Return an integer, symbolic size or sympy expression as a formula; strings are returned unchanged. Raises
    FormulaError if it has parts that formulas lack, such as a square root."""
    text = size if isinstance(size, str) else _text(getattr(getattr(size, "node", None), "expr", size))
    parsed(text)
    return text


def truth_formula(condition: Any) -> str:
    """Return a sympy condition on sizes as a formula that is 1 if it holds, otherwise 0. Raises FormulaError."""
    kind = type(condition).__name__
    if kind in ("And", "Or"):
        parts = ", ".join(truth_formula(each) for each in condition.args)
        return f"{'min' if kind == 'And' else 'max'}({parts})"
    if kind == "Not":
        return f"(1 - {truth_formula(condition.args[0])})"
    relation = getattr(condition, "rel_op", None)
    if relation not in _TRUTHS:
        raise FormulaError(f"not a condition on sizes: {condition}")
    left, right = map(size_formula, sides(condition))
    return _TRUTHS[relation](f"({left} - ({right}))")


def sides(relation: Any) -> tuple[Any, Any]:
    """Return the sides of a relation as integer expressions. Raises FormulaError if there are none."""
    try:
        size_formula(relation.lhs), size_formula(relation.rhs)
    except FormulaError:
        return _fraction(relation.lhs - relation.rhs)[0], 0
    return relation.lhs, relation.rhs


_TRUTHS: dict[str, Callable[[str], str]] = {
    ">=": lambda difference: f"max(min({difference} + 1, 1), 0)",
    ">": lambda difference: f"max(min({difference}, 1), 0)",
    "<=": lambda difference: f"max(min(1 - {difference}, 1), 0)",
    "<": lambda difference: f"max(min(-{difference}, 1), 0)",
    "==": lambda difference: f"(1 - min(max({difference}, -{difference}), 1))",
    "!=": lambda difference: f"min(max({difference}, -{difference}), 1)",
}


def _fraction(expr: Any) -> tuple[Any, Any]:
    """Return an expression as a quotient of integer expressions; the divisor is positive, like sizes. Raises
    FormulaError if a float has more digits than products with sizes preserve."""
    import sympy
    from torch.utils._sympy.functions import FloatTrueDiv, IntTrueDiv, ToFloat

    for kind in (IntTrueDiv, FloatTrueDiv):
        expr = expr.replace(kind, lambda over, under: over / under)
    expr = expr.replace(ToFloat, lambda whole: whole)
    exact = {number: sympy.Rational(number) for number in expr.atoms(sympy.Float)}
    if any(number.q > _LARGEST_DENOMINATOR for number in exact.values()):
        raise FormulaError(f"not whole numbers: {expr}")
    expr = expr.xreplace(exact)
    over, under = sympy.fraction(sympy.together(expr))
    return over, under


def _text(expr: Any) -> str:
    return expr if isinstance(expr, str) else str(_printer().doprint(expr))


@cache
def _printer() -> Any:
    """Return torch's Python printer, extended by quotients rounded to integers."""
    from torch.utils._sympy.printers import PythonPrinter

    class Printer(PythonPrinter):
        def _rounded(self, expr: Any, form: str) -> str:
            over, under = (self.doprint(each) for each in _fraction(expr.args[0]))
            return form.format(over=f"({over})", under=f"({under})")

        def _print_FloorToInt(self, expr: Any) -> str:
            return self._rounded(expr, "({over} // {under})")

        def _print_CeilToInt(self, expr: Any) -> str:
            return self._rounded(expr, "(-(-{over} // {under}))")

        def _print_TruncToInt(self, expr: Any) -> str:
            return self._rounded(expr, "(max({over}, 0) // {under} - max(-{over}, 0) // {under})")

        def _print_RoundToInt(self, expr: Any) -> str:
            """Halves are rounded to the even neighbor: down from an odd one that is exactly a half above."""
            nearest = "(2 * {over} + {under}) // (2 * {under})"
            half = "(1 - min((2 * {over} - {under}) % (2 * {under}), 1))"
            return self._rounded(expr, f"({nearest} - {nearest} % 2 * {half})")

        def _print_CeilDiv(self, expr: Any) -> str:
            over, under = map(self.doprint, expr.args)
            return f"(-(-({over}) // ({under})))"

        def _print_Pow(self, expr: Any) -> str:
            if not expr.exp.is_nonnegative:
                raise FormulaError(f"not a whole number: {expr}")
            return str(super()._print_Pow(expr))

        def _print_CleanDiv(self, expr: Any) -> str:
            return str(self._print_FloorDiv(expr))

        def _print_Identity(self, expr: Any) -> str:
            return str(self.doprint(expr.args[0]))

    return Printer()
