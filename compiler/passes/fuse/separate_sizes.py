"""separate-sizes: whatever defines or checks a symbolic size stands before everything that reads it, in a block of its
own.

In a dataflow block the variables that are read say what must come before what. A `match_cast` that gives a symbolic
size its value breaks that rule: kernels read the size in their types alone. Passes that move kernels, as the grouping
of operators does, would move them before it. So a block is cut at each such cast, as early as its operands allow:

    dataflow: a; count; match_cast(count, [n]); f(a); g(a, n)
    =>  dataflow: count;  match_cast(count, [n]);  dataflow: a; f(a); g(a, n)

The same holds for a cast that checks computed sizes: no variable says that what is unsafe without it comes after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

from tvm import relax
from tvm.ir import IRModule
from tvm.relax.expr_functor import PyExprMutator, mutator

from compiler.passes.context import PipelineContext
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.graph import bindings_of, rewritable_functions

if TYPE_CHECKING:
    from schedules.ir.tvm_types import BindingBlock, Expr, SeqExpr

Binding: TypeAlias = relax.Binding
Var: TypeAlias = relax.Var


@graph_pass("separate-sizes", summary="Cut dataflow blocks where a size gets its value or is checked")
def separate_sizes(mod: IRModule, context: PipelineContext) -> IRModule:
    """Each `match_cast` that defines or checks a size is in a plain block, as early as its operands allow."""
    changed = {}
    for variable, function in rewritable_functions(mod):
        if any(isinstance(binding, relax.MatchCast) for binding in bindings_of(function.body)):
            cutter = _Cutter(mod, function.params)
            rewritten = cutter.visit_expr(function)
            if cutter.cuts:
                changed[variable] = rewritten
    if not changed:
        return mod
    copy = mod.clone()
    for variable, function in changed.items():
        copy.update_func(variable, function)
    return copy


@mutator
class _Cutter(PyExprMutator):
    def __init__(self, mod: IRModule, params: Sequence[Var]) -> None:
        super().__init__(mod)
        self.cuts = 0
        self._known: set[Var] = set()
        for parameter in params:
            self._known.update(relax.analysis.definable_tir_vars_in_type(parameter.ty))
        self._escaping: set[Var] = set()

    def visit_seq_expr_(self, sequence: SeqExpr) -> Expr:
        blocks = [part for block in sequence.blocks for part in self._parts(block)]
        return self.visit_expr_post_order(relax.SeqExpr(blocks, sequence.body, sequence.span))

    def visit_dataflow_var_def_(self, variable: Var) -> Var:
        if variable not in self._escaping:
            return variable
        escaped = relax.Var(variable.name, variable.ty)
        self.set_var_remap(variable, escaped)
        return escaped

    def _parts(self, block: BindingBlock) -> list[BindingBlock]:
        """The block, cut at what defines sizes."""
        bindings = list(block.bindings)
        defining = [i for i, binding in enumerate(bindings) if self._new_sizes(binding) or _checks_sizes(binding)]
        if not isinstance(block, relax.DataflowBlock) or not defining:
            return [block]
        self.cuts += len(defining)
        groups, rest = _grouped(bindings, defining)
        self._mark_escaping([*groups, rest])
        parts: list[Expr] = []
        for group in groups:
            if len(group) > 1:
                parts.append(relax.DataflowBlock(group[:-1]))
            parts.append(relax.BindingBlock(group[-1:]))
        return [*parts, relax.DataflowBlock(rest)] if rest else parts

    def _new_sizes(self, binding: Binding) -> bool:
        """True if it defines sizes that nothing before it does; they count as defined from then on."""
        if not isinstance(binding, relax.MatchCast):
            return False
        sizes = set(relax.analysis.definable_tir_vars_in_type(binding.ty)) - self._known
        self._known |= sizes
        return bool(sizes)

    def _mark_escaping(self, groups: Sequence[Sequence[Binding]]) -> None:
        """Variables that are read outside of the block they will be in, or defined outside of any dataflow block."""
        home = {}
        for index, group in enumerate(groups):
            for position, binding in enumerate(group):
                place = (index, position == len(group) - 1 and index < len(groups) - 1)
                home[binding.var] = place
                reads = {variable for variable in _reads(binding) if home.get(variable, place) != place}
                self._escaping |= reads
                if place[1]:
                    self._escaping.add(binding.var)


def _reads(binding: Binding) -> set[Var]:
    """Variables and sizes that a binding reads, in its type too."""
    read = set(relax.analysis.free_vars(binding.value))
    if isinstance(binding, relax.MatchCast):
        return read | set(relax.analysis.tir_vars_in_type(binding.ty))
    return read | set(relax.analysis.tir_vars_in_type(binding.value.ty))


def _checks_sizes(binding: Binding) -> bool:
    """True if it checks computed sizes, which no kernel reads: those that rely on the check must not move before it."""
    return isinstance(binding, relax.MatchCast) and isinstance(binding.value.ty, relax.ShapeType)


def _grouped(bindings: Sequence[Binding], defining: Sequence[int]) -> tuple[list[list[Binding]], list[Binding]]:
    """For each defining binding what it needs and itself last, in order; and all other bindings."""
    makers: dict[Var, int] = {}
    needs: list[set[int]] = []
    for index, binding in enumerate(bindings):
        needs.append({makers[variable] for variable in _reads(binding) if variable in makers})
        makers[binding.var] = index
        if index in defining:
            for size in relax.analysis.definable_tir_vars_in_type(binding.ty):
                makers.setdefault(size, index)
    placed: set[int] = set()
    groups = []
    for index in defining:
        wanted, waiting = {index}, [index]
        while waiting:
            fresh = needs[waiting.pop()] - placed - wanted
            wanted |= fresh
            waiting.extend(fresh)
        groups.append([bindings[each] for each in sorted(wanted)])
        placed |= wanted
    return groups, [binding for index, binding in enumerate(bindings) if index not in placed]
