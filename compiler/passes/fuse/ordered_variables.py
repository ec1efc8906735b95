"""Kernels take sizes that are no tensor dimensions in order of use, deterministically.

`relax.BlockBuilder.call_te` collects them in sets of variables, ordered by address: kernels would differ between
processes, and two equal layers might take `(height, width)` and `(width, height)` and so not share code. Importing this
module makes TVM's function use insertion-ordered sets.
"""

from __future__ import annotations

from collections.abc import Container, Iterable

import schedules.ir.load_tvm  # noqa: F401  (first, so that TVM loads without torch)

# isort: split
from tvm.relax import utils

from schedules.ir.tvm_types import Expr, Var


class OrderedSet(dict["Var", None]):
    """The part of a set's interface that `tvm.relax.utils` uses, in insertion order."""

    def __init__(self, members: Iterable[Var] = ()) -> None:
        super().__init__(dict.fromkeys(members))

    def add(self, member: Expr) -> None:
        """Add a member."""
        self[member] = None

    def update(self, members: Iterable[Expr]) -> None:  # type: ignore[override]
        """Add several members."""
        for each in members:
            self.add(each)

    def __sub__(self, other: Container[object]) -> OrderedSet:
        return OrderedSet(each for each in self if each not in other)


utils.set = OrderedSet
