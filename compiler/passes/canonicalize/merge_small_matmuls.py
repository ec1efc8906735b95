"""merge-small-matmuls: products of one input of few rows by several weights become one.

    x @ a, x @ b, x @ c => slices of x @ [a b c]
    x @ a + p, x @ b + q => slices of x @ [a b] + [p q]

The input is read once in place of three times, and one larger product keeps all cores busy; the slices cost a copy
where nothing fuses with them. Few rows leave each product short of work; with many, measured, one product is no faster
than three, and neither is one convolution.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from tvm import relax
from tvm.ir import IRModule
from tvm_ffi import StructuralKey

from compiler.passes.context import PipelineContext
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.constant_products import MATMUL, Linear, along_axis, as_linear, per_channel
from compiler.passes.rewriting.graph import (
    Call,
    Expr,
    Graph,
    Var,
    operands,
    operator_name,
    remove_unused,
    rewritable_functions,
    update_functions,
)
from compiler.passes.rewriting.matching import Array, as_constant, constant_array, dtype_of, rank_of, static_shape

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Binding, BindingBlock

FEW_ROWS = 64


@graph_pass("merge-small-matmuls", summary="One product for several of the same few rows by constant weights")
def merge_small_matmuls(mod: IRModule, context: PipelineContext) -> IRModule:
    """Within a dataflow block; see the equations in the module's documentation."""
    changed = {}
    for variable, function in rewritable_functions(mod):
        rewritten = ParallelMerger(mod).rewrite_function(function)
        if rewritten is not None:
            changed[variable] = rewritten
    return remove_unused(update_functions(mod, changed)) if changed else mod


@dataclass(frozen=True)
class Member:
    """One product of a group: the variable that holds it, and the sum with its bias where that is all it is for."""

    linear: Linear
    product: Var
    total: Var | None = None
    bias: Array | None = None


class ParallelMerger(Graph):
    """At the first product of a group, computes all of them; each becomes a slice."""

    def __init__(self, mod: IRModule) -> None:
        super().__init__({}, mod)
        self._groups: dict[Var, list[Member]] = {}
        self._slices: dict[Var, tuple[Var, int, int, int]] = {}

    def _rewrite_block(self, block: BindingBlock) -> BindingBlock:
        if isinstance(block, relax.DataflowBlock):
            self._find_groups(block)
        return super()._rewrite_block(block)

    def _find_groups(self, block: BindingBlock) -> None:
        consumers: dict[Var, list[Expr]] = defaultdict(list)
        for binding in block.bindings:
            for operand in operands(binding.value):
                consumers[operand].append(binding)
        candidates: dict[Hashable, list[Member]] = defaultdict(list)
        first: dict[Hashable, Var] = {}
        for binding in block.bindings:
            linear = as_linear(self, binding.value)
            if linear is None or linear.position != 1 or not _has_few_rows(linear):
                continue
            shape = list(linear.weight.shape)
            shape[linear.out_axis] = 0
            key = (linear.data, StructuralKey(linear.call.attrs), str(linear.weight.dtype), tuple(shape))
            first.setdefault(key, binding.var)
            candidates[key].append(self._member(linear, binding.var, consumers[binding.var]))
        for alike, members in candidates.items():
            if len(members) > 1:
                self._groups[first[alike]] = members

    def _member(self, linear: Linear, product: Var, consumers: list[Binding]) -> Member:
        if len(consumers) == 1 and self.only_use(product):
            binding = consumers[0]
            call = self.call(binding.value, "relax.add")
            for position in (0, 1) if call is not None else ():
                assert call is not None
                bias = per_channel(
                    constant_array(self, call.args[position]),
                    rank_of(product),
                    linear.channel_axis,
                    linear.out_channels,
                )
                if bias is not None and call.args[1 - position].same_as(product):
                    return Member(linear, product, binding.var, bias)
        return Member(linear, product)

    def offer(self, value: Expr, variable: Var) -> Expr | None:
        """The slice that holds a product's value; emits the merged product before the first of its group."""
        members = self._groups.pop(variable, None)
        if members is not None:
            self._emit_merged(members)
        found = self._slices.get(variable)
        if found is None:
            return None
        merged, axis, begin, end = found
        return relax.op.strided_slice(merged, [axis], [begin], [end])

    def _emit_merged(self, members: list[Member]) -> None:
        lead = members[0].linear
        weight = np.concatenate([member.linear.weight for member in members], axis=lead.out_axis)
        data = self._substitute(lead.data)
        call: Call = relax.Call(lead.call.op, [data, as_constant(weight)], lead.call.attrs, lead.call.ty_args)
        merged = self.emit(call)
        biased = all(member.bias is not None for member in members)
        rank = rank_of(lead.call)
        if biased and rank is not None:
            bias = np.concatenate([member.bias for member in members if member.bias is not None])
            constant = as_constant(along_axis(bias, rank, lead.channel_axis, dtype_of(lead.call)))
            merged = self.emit(relax.op.add(merged, constant))
        begin = 0
        for member in members:
            end = begin + member.linear.out_channels
            value = member.total if biased and member.total is not None else member.product
            self._slices[value] = (merged, lead.channel_axis, begin, end)
            begin = end


def _has_few_rows(linear: Linear) -> bool:
    shape = static_shape(linear.data)
    return operator_name(linear.call) == MATMUL and shape is not None and math.prod(shape[:-1]) <= FEW_ROWS
