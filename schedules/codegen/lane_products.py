"""Vectors whose lanes are multiplied one by one, by machines with `lane_products`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from schedules.codegen.nest import bind
from schedules.ir.tir import Expr, Stmt, tirx


def lanes_repeated(values: Sequence[Expr], lanes: int) -> tuple[list[Stmt], Callable[[int, int, int], Expr]]:
    """Statements that bind float32 vectors of `lanes` lanes, and a function of (vector index, lane, count) that
    broadcasts a lane."""
    bound = [bind(f"input{i}", value, "float32", lanes) for i, value in enumerate(values)]

    def repeated(which: int, lane: int, count: int) -> Expr:
        return tirx.Shuffle([bound[which][0]], [tirx.IntImm("int32", lane)] * count)

    return [statement for _, statement in bound], repeated
