"""Sizes and conditions of `torch.export`, which are expressions of sympy, as formulas (`compiler.support.formula`)."""

# ruff: noqa: N802  (methods of sympy's printers have the names of its classes)

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from compiler.support.formula import FormulaError, parsed

_LARGEST_DENOMINATOR = 1 << 20


def size_formula(size: Any) -> str:
    """A whole number, symbolic size or expression of sympy as a formula; a text is one already.

    Raises:
        FormulaError: it has parts that formulas lack, such as a square root.
    """
    text = size if isinstance(size, str) else _text(getattr(getattr(size, "node", None), "expr", size))
    parsed(text)
    return text


def truth_formula(condition: Any) -> str:
    """A condition of sympy on sizes as a formula that is 1 where it holds, else 0. Raises FormulaError."""
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
    """The sides of a relation as expressions of whole numbers. Raises FormulaError where there are none."""
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
    """An expression as a quotient of whole ones; the divisor is positive, as sizes are.

    Raises:
        FormulaError: a floating-point number has more digits than products with sizes keep.
    """
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
    """Torch's printer of Python, with quotients that are rounded to whole numbers."""
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
