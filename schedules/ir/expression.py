"""Small tools on TIR expressions and statements: constants, substitution, loads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from schedules.ir.tir import Expr, Index, Node, Stmt, Var, structural_map, structural_walk, tirx, tvm


def constant_int(value: Expr) -> Index:
    """A Python int when the expression is a constant integer or bool, else the expression itself."""
    if isinstance(value, tirx.IntImm):
        return int(value.value)
    return value


def substitute(root: Node, mapping: Mapping[Var, Expr | int]) -> Node:
    """Replace variables in an expression or statement."""
    exprs = {var: index(value, str(var.ty)) if isinstance(value, int) else value for var, value in mapping.items()}
    pairs = [(var, value) for var, value in exprs.items() if not var.same_as(value)]
    if not pairs:
        return root
    by_name: dict[str, list[tuple[Var, Expr]]] = {}
    for var, value in pairs:
        by_name.setdefault(str(var.name), []).append((var, value))

    def replace(node: Expr) -> Expr:
        for var, value in by_name.get(str(node.name), ()):
            if node.same_as(var):
                return value
        return node

    return structural_map(root, (tvm.ir.Var, replace))


def map_loads(root: Node, replace: Callable[[Expr], Expr | None]) -> Node:
    """Replace buffer loads, innermost first; `replace` answers None to keep one."""

    def visit(load: Expr) -> Expr:
        answer = replace(load)
        return load if answer is None else answer

    return structural_map(root, (tvm.ir.TensorLoad, visit))


def map_stores(root: Stmt, replace: Callable[[Stmt], Stmt | None]) -> Stmt:
    """Replace buffer stores; `replace` answers None to keep one."""

    def visit(store: Stmt) -> Stmt:
        answer = replace(store)
        return store if answer is None else answer

    return structural_map(root, (tirx.BufferStore, visit))


def nodes(root: Node, *kinds: Any) -> list[Any]:
    """Every node of some classes of TVM below `root`, children first."""
    found: list[Any] = []
    structural_walk(root, (kinds, found.append))
    return found


def buffers_loaded(root: Node) -> list[Expr]:
    """Every BufferLoad below `root`."""
    return nodes(root, tvm.ir.TensorLoad)


def uses(root: Expr, var: Var) -> bool:
    """True if a variable occurs below `root`."""
    return any(node.same_as(var) for node in nodes(root, tvm.ir.Var))


def index(value: int, dtype: str = "int64") -> Expr:
    """A constant index."""
    return tirx.IntImm(dtype, value)
