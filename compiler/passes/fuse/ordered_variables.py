"""Kernels take sizes that are not dimensions of their tensors in the order of use, in every process.

`relax.BlockBuilder.call_te` collects them in sets of variables, whose order is that of their addresses: the same model
then has other kernels in each process, and two layers that are alike may take `(height, width)` and `(width, height)`,
so that they do not share their code. Importing this module gives TVM's function sets that keep the order.
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
