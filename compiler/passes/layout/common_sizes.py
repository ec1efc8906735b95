"""Likely values of symbolic sizes, needed to estimate how fast a kernel is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tvm.ir import Var
from tvm.sym import Analyzer
from tvm.tirx import IntImm

from schedules.ir.tir import structural_map

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Expr

_SIDES = (160, 224, 384)  # of images that networks take


def common_sizes(sizes: Sequence[Expr]) -> list[tuple[int, ...]]:
    """`sizes` with numbers in place of symbols, in several ways: those of images of common sides."""
    return [tuple(_at(size, side) for size in sizes) for side in _SIDES]


def _at(size: Expr, side: int) -> int:
    if isinstance(size, int):
        return size
    known = Analyzer().simplify(structural_map(size, (Var, lambda _: IntImm("int64", side))))
    return int(known) if isinstance(known, IntImm) else side
