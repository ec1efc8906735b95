"""What every scheduled kernel goes through last, whichever rule made it."""

from __future__ import annotations

from typing import Any

from schedules.expression import substitute
from schedules.intrinsics import lower_intrinsics
from schedules.tir import structural_map, tirx


def finish(function: Any) -> Any:
    """Elementary functions become straight-line code, and every Let gets a variable of its own."""
    return function.with_body(_fresh_lets(lower_intrinsics(function.body)))


def _fresh_lets(root: Any) -> Any:
    """A body that was written several times (whole vectors, then the rest) must not bind one variable twice."""

    def renew(let: Any) -> Any:
        fresh = tirx.Var(str(let.var.name), let.var.ty)
        return tirx.Let(fresh, let.value, substitute(let.body, {let.var: fresh}))

    return structural_map(root, (tirx.Let, renew))
