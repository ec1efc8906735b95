"""Utilities for TIR expressions and statements: constants, substitution, loads, conversion of narrow numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from schedules.ir.tir import Buffer, Expr, Index, Node, Stmt, Var, s_tir, structural_map, structural_walk, tirx, tvm

DIVISIONS = (tirx.FloorDiv, tirx.FloorMod, tirx.Div, tirx.Mod)


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
    """Replace buffer loads, innermost first; `replace` returns None to keep one."""
    return _mapped(root, tvm.ir.TensorLoad, replace)


def map_stores(root: Stmt, replace: Callable[[Stmt], Stmt | None]) -> Stmt:
    """Replace buffer stores; `replace` returns None to keep one."""
    return _mapped(root, tirx.BufferStore, replace)


def _mapped(root: Node, kind: type, replace: Callable[[Node], Node | None]) -> Node:
    def visit(node: Node) -> Node:
        answer = replace(node)
        return node if answer is None else answer

    return structural_map(root, (kind, visit))


def map_accesses(root: Node, moved: Callable[[Buffer, Sequence[Expr]], tuple[Buffer, Sequence[Expr]] | None]) -> Node:
    """Redirect loads and stores: `moved(buffer, indices)` is the new position, or None to keep an access."""

    def load(node: Expr) -> Expr | None:
        position = moved(node.source, node.indices)
        return None if position is None else tirx.BufferLoad(position[0], list(position[1]))

    def store(node: Stmt) -> Stmt | None:
        position = moved(node.buffer, node.indices)
        return None if position is None else tirx.BufferStore(position[0], node.value, list(position[1]))

    return map_stores(map_loads(root, load), store)


def nodes(root: Node, *kinds: Any) -> list[Any]:
    """Every node below `root` of the given TVM classes, children first."""
    found: list[Any] = []
    structural_walk(root, (kinds, found.append))
    return found


def buffers_loaded(root: Node) -> list[Expr]:
    """Every BufferLoad below `root`."""
    return nodes(root, tvm.ir.TensorLoad)


def unflattened(position: Expr, extents: Sequence[Expr]) -> list[Expr]:
    """The indices of nested loops at a position of their iteration space."""
    values: list[Expr] = []
    for extent in reversed(extents[1:]):
        values.append(tirx.FloorMod(position, extent))
        position = tirx.FloorDiv(position, extent)
    return [position, *reversed(values)]


def changed_block(block: Node, **changed: Any) -> Node:
    """A copy of an `s_tir.SBlock` with some of its fields changed."""
    names = (
        "iter_vars",
        "reads",
        "writes",
        "name_hint",
        "body",
        "init",
        "alloc_buffers",
        "match_buffers",
        "annotations",
    )
    return s_tir.SBlock(*(changed.get(name, getattr(block, name)) for name in names))


def uses(root: Expr, var: Var) -> bool:
    """True if a variable occurs below `root`."""
    return any(node.same_as(var) for node in nodes(root, tvm.ir.Var))


def vector_lanes(value: Expr) -> int:
    """Number of lanes of a vector, 1 for a scalar."""
    return int(str(value.ty).partition("x")[2] or 1)


def index(value: int, dtype: str = "int64") -> Expr:
    """A constant index."""
    return tirx.IntImm(dtype, value)


def expression(value: Index, dtype: str = "int64") -> Expr:
    """An int as a constant index."""
    return index(value, dtype) if isinstance(value, int) else value


def minimum(left: Index, right: Index) -> Expr:
    """Minimum of two, folded if both are constant."""
    return min(left, right) if isinstance(left, int) and isinstance(right, int) else tirx.min(left, right)


def maximum(left: Index, right: Index) -> Expr:
    """Maximum of two, folded if both are constant."""
    return max(left, right) if isinstance(left, int) and isinstance(right, int) else tirx.max(left, right)


def number(stored: Expr, dtype: str) -> Expr:
    """A stored element, or a vector of them, as `dtype`; for float32, uint16 holds the bits of a bfloat16."""
    element_type, _, lanes = str(stored.ty).partition("x")
    if element_type == dtype:
        return stored
    if element_type == "uint16" and dtype == "float32":
        return widened(stored)
    return tirx.Cast(_vector(dtype, lanes), stored)


def widened(bits: Expr) -> Expr:
    """The float32 value of a bfloat16 stored in a uint16; exact."""
    lanes = str(bits.ty).partition("x")[2]
    words = _vector("int32", lanes)
    return tirx.reinterpret(_vector("float32", lanes), tirx.Cast(words, bits) << tirx.const(16, words))


def low_halves(words: Expr) -> Expr:
    """16-bit integers in the low halves of int32, zeros above."""
    own, _, lanes = str(words.ty).partition("x")
    assert own == "int16"
    unsigned = tirx.reinterpret(_vector("uint16", lanes), words)
    return tirx.Cast(_vector("int32", lanes), unsigned)


def _vector(dtype: str, lanes: str) -> str:
    return f"{dtype}x{lanes}" if lanes else dtype
