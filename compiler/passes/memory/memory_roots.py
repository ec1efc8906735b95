"""Whose memory each variable of a lowered function stands for, and when that memory is read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from tvm import relax

from compiler.passes.memory.liveness import ALLOCATE
from compiler.passes.rewriting.graph import bindings_of, operator_name
from compiler.passes.rewriting.substitution import leaves

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Binding, Expr, Var


class Roots:
    """Parameters and allocations behind variables: sets, since a branch or a function may give one of several.

    Attributes:
        defined: the time (position among the bindings) at which each variable is bound.
    """

    def __init__(self, parameters: Iterable[Expr], bindings: Sequence[Binding]) -> None:
        self.defined: dict[Var, int] = {}
        self._values: dict[Var, Expr] = {}
        self._roots: dict[Var, frozenset[Expr]] = {each: frozenset({each}) for each in parameters}
        self._reads: dict[Var, list[int]] = {}
        for time, binding in enumerate(bindings):
            self.note(binding, time)

    def note(self, binding: Binding, time: int) -> None:
        """Take in a binding, which may read those before it."""
        self.defined[binding.var] = time
        self._values[binding.var] = binding.value
        for inner in bindings_of(binding.value):
            self._roots[inner.var] = self._behind(inner.var, inner.value)
        self._roots[binding.var] = self._behind(binding.var, binding.value)
        if not isinstance(binding.value, relax.Var | relax.Tuple | relax.TupleGetItem):
            read = frozenset().union(*(self.of(leaf) for leaf in leaves(binding.value)))
            for root in read:
                self._reads.setdefault(root, []).append(time)

    def of(self, expr: Expr) -> frozenset[Expr]:
        """The parameters and allocations whose memory an expression may stand for."""
        if isinstance(expr, relax.Var):
            return self._roots.get(expr, frozenset())
        found: frozenset[Var] = frozenset()
        for leaf in leaves(expr):
            if isinstance(leaf, relax.Var):
                found |= self._roots.get(leaf, frozenset())
        return found

    def exact(self, expr: Expr) -> Expr:
        """The variable that `expr` is another name of, also as a field of a tuple."""
        while isinstance(expr, relax.Var):
            bound = self._values.get(expr)
            if isinstance(bound, relax.TupleGetItem):
                whole = self.value(bound.tuple_value)
                bound = whole.fields[bound.index] if isinstance(whole, relax.Tuple) else None
            if not isinstance(bound, relax.Var):
                break
            expr = bound
        return expr

    def value(self, expr: Expr) -> Expr:
        """Value that a variable is bound to, through its other names; None for a parameter."""
        variable = self.exact(expr)
        return self._values.get(variable) if isinstance(variable, relax.Var) else variable

    def reads(self, root: Expr) -> list[int]:
        """The times at which its memory is read or written, in order."""
        return self._reads.get(root, [])

    def _behind(self, variable: Var, value: Expr) -> frozenset[Expr]:
        if operator_name(value) == ALLOCATE:
            return frozenset({variable})
        return self.of(value)
