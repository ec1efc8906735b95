"""Sizes that depend on symbolic dimensions, as short arithmetic texts such as "2*batch*(seq + 1)*384"."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping

_OPERATIONS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_FUNCTIONS: dict[str, Callable[..., int]] = {"min": min, "max": max}


def evaluate(formula: str, sizes: Mapping[str, int]) -> int:
    """The value of a formula of integers, names, + - * // %, min and max.

    Raises:
        ValueError: it holds anything else, divides by zero, or a name has no size.
    """
    try:
        return _value(ast.parse(formula, mode="eval").body, sizes)
    except (SyntaxError, RecursionError, ZeroDivisionError) as error:
        raise ValueError(f"no formula: {formula[:80]!r} ({error})") from error


def names_in(formula: str) -> set[str]:
    """The names of dimensions that a formula uses."""
    try:
        tree = ast.parse(formula, mode="eval")
    except (SyntaxError, RecursionError) as error:
        raise ValueError(f"no formula: {formula[:80]!r} ({error})") from error
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - set(_FUNCTIONS)


def _value(node: ast.expr, sizes: Mapping[str, int]) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.Name):
        if node.id not in sizes:
            raise ValueError(f"the size of {node.id!r} is not known")
        return sizes[node.id]
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        return _OPERATIONS[type(node.op)](_value(node.left, sizes), _value(node.right, sizes))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand, sizes)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS:
        if not node.args or node.keywords:
            raise ValueError(f"{node.func.id} takes one or more numbers")
        return _FUNCTIONS[node.func.id](*(_value(argument, sizes) for argument in node.args))
    raise ValueError(f"no formula: {ast.dump(node)[:80]}")
