"""merge-small-matmuls: merge matmuls of one input with few rows by several weights into one.

    x @ a, x @ b, x @ c => slices of x @ [a b c]
    x @ a + p, x @ b + q => slices of x @ [a b] + [p q]

The input is read once instead of three times, and one larger matmul keeps all cores busy; the slices cost a copy if
nothing fuses with them. With few rows each matmul has too little work; with many, one matmul measured no faster than
three, nor did one convolution.

merge-products-of-slices: merge matmuls of a tensor's slices by one weight into one matmul of the tensor.

    split(x)[0] @ w, split(x)[1] @ w, ...    => split(x @ w)[0], split(x @ w)[1], ...
    take(x, 0) @ w, take(x, 1) @ w, ...      => take(x @ w, 0), take(x @ w, 1), ...       also slices

Exporters unroll recurrent cells: each step multiplies one element of the sequence, reading the whole weight from
memory for one or two rows.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from tvm import relax
from tvm.ir import GenericConst, IRModule
from tvm_ffi import StructuralKey

from compiler.passes.context import PipelineContext
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.constant_pool import ConstantPool
from compiler.passes.rewriting.constant_products import MATMUL, Linear, along_axis, as_linear, per_channel
from compiler.passes.rewriting.graph import (
    Call,
    Expr,
    Graph,
    Var,
    operands,
    operator_name,
    remove_unused,
    rewrite_functions,
)
from compiler.passes.rewriting.matching import (
    Array,
    as_constant,
    constant_array,
    dtype_of,
    plain,
    rank_of,
    shape_of,
    static_shape,
)
from schedules.ir.tvm_types import Binding, BindingBlock

FEW_ROWS = 64


@graph_pass("merge-small-matmuls", summary="Merge matmuls of the same few rows by constant weights")
def merge_small_matmuls(mod: IRModule, context: PipelineContext) -> IRModule:
    """Merges within a dataflow block; see the equations in the module docstring."""
    merged = rewrite_functions(mod, partial(ParallelMerger, mod))
    return mod if merged is mod else remove_unused(merged)


@dataclass(frozen=True)
class Member:
    """One matmul of a group: the variable that holds it, and its sum with a bias if that is its only use."""

    linear: Linear
    product: Var
    total: Var | None = None
    bias: Array | None = None


class ParallelMerger(Graph):
    """At the first matmul of a group, computes all of them; each becomes a slice."""

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
        """Return the slice that holds a matmul's value; emits the merged matmul at the first of its group."""
        members = self._groups.pop(variable, None)
        if members is not None:
            self._emit_merged(members)
        part = self._slices.get(variable)
        if part is None:
            return None
        merged, axis, begin, end = part
        return relax.op.strided_slice(merged, [axis], [begin], [end])

    def _emit_merged(self, members: list[Member]) -> None:
        leading = members[0].linear
        weight = np.concatenate([member.linear.weight for member in members], axis=leading.out_axis)
        data = self._substitute(leading.data)
        call: Call = relax.Call(leading.call.op, [data, as_constant(weight)], leading.call.attrs, leading.call.ty_args)
        merged = self.emit(call)
        biased = all(member.bias is not None for member in members)
        rank = rank_of(leading.call)
        if biased and rank is not None:
            bias = np.concatenate([member.bias for member in members if member.bias is not None])
            constant = as_constant(along_axis(bias, rank, leading.channel_axis, dtype_of(leading.call)))
            merged = self.emit(relax.op.add(merged, constant))
        begin = 0
        for member in members:
            end = begin + member.linear.out_channels
            value = member.total if biased and member.total is not None else member.product
            self._slices[value] = (merged, leading.channel_axis, begin, end)
            begin = end


def _has_few_rows(linear: Linear) -> bool:
    shape = static_shape(linear.data)
    return operator_name(linear.call) == MATMUL and shape is not None and math.prod(shape[:-1]) <= FEW_ROWS


_FEWEST_SLICES = 3
_SPLIT, _TAKE, _SLICE = "relax.split", "relax.take", "relax.strided_slice"


@graph_pass("merge-products-of-slices", summary="Merge matmuls of a tensor's slices by one constant weight")
def merge_products_of_slices(mod: IRModule, context: PipelineContext) -> IRModule:
    """Merges if the slices are at least half of the tensor and each has few rows; see the module docstring."""
    merged = rewrite_functions(mod, partial(_PieceMerger, mod))
    return mod if merged is mod else remove_unused(merged)


@dataclass(frozen=True)
class _Piece:
    """A slice of `source`: `share` elements along an axis, cut by `call`; `index` is the element of a split."""

    source: Var
    axis: int
    share: int
    call: Call
    index: int | None = None


@dataclass
class _Group:
    """Matmuls of slices of one tensor by one weight, and the code emitted for them: the whole matmul and its slices."""

    linear: Linear
    pieces: dict[Var, _Piece]
    whole: Var | None = None
    splits: dict[Hashable, Var] = field(default_factory=dict)

    def pays_off(self) -> bool:
        """True if there are several slices, together at least half of the tensor."""
        pieces = list(self.pieces.values())
        size = (shape_of(pieces[0].source) or ())[pieces[0].axis]
        share = sum(piece.share for piece in pieces)
        return len(pieces) >= _FEWEST_SLICES and isinstance(size, int) and 2 * share >= size


class _PieceMerger(Graph):
    """At the first matmul of a group, computes the whole matmul; each becomes a slice of it."""

    def __init__(self, mod: IRModule) -> None:
        super().__init__({}, mod)
        self._groups: dict[Var, _Group] = {}

    def _rewrite_block(self, block: BindingBlock) -> BindingBlock:
        if isinstance(block, relax.DataflowBlock):
            self._find_groups(block)
        return super()._rewrite_block(block)

    def _find_groups(self, block: BindingBlock) -> None:
        values = {binding.var: binding.value for binding in block.bindings}
        pool, groups = ConstantPool(), dict[Any, _Group]()
        for binding in block.bindings:
            linear = as_linear(self, binding.value)
            if (
                linear is None
                or linear.position != 1
                or operator_name(linear.call) != MATMUL
                or linear.weight.ndim != 2
            ):
                continue
            piece = _piece_of(linear.data, values)
            if piece is not None and _slices_have_few_rows(linear.data):
                key = (piece.source, piece.axis, pool.index(linear.call.args[1]), str(linear.call.attrs.out_dtype))
                groups.setdefault(key, _Group(linear, {})).pieces[binding.var] = piece
        for group in groups.values():
            if group.pays_off():
                self._groups.update(dict.fromkeys(group.pieces, group))

    def offer(self, value: Expr, variable: Var) -> Expr | None:
        """Return the slice of the whole matmul."""
        group = self._groups.get(variable)
        if group is None:
            return None
        piece, call = group.pieces[variable], group.linear.call
        if group.whole is None:
            data = self._substitute(piece.source)
            group.whole = self.emit(relax.Call(call.op, [data, call.args[1]], call.attrs, call.ty_args))
        if piece.index is None:
            return relax.Call(piece.call.op, [group.whole, *list(piece.call.args)[1:]], piece.call.attrs)
        if piece.call not in group.splits:
            group.splits[piece.call] = self.emit(relax.Call(piece.call.op, [group.whole], piece.call.attrs))
        return relax.TupleGetItem(group.splits[piece.call], piece.index)


def _piece_of(data: Expr, values: dict[Var, Expr]) -> _Piece | None:
    """Return the slice that computes `data`, if along an axis other than the last."""
    value: Expr = values.get(data)
    index = None
    if isinstance(value, relax.TupleGetItem):
        value, index = values.get(value.tuple_value), int(value.index)
    name, shape = operator_name(value), shape_of(data)
    expected = (_SPLIT,) if index is not None else (_TAKE, _SLICE)
    if name not in expected or shape is None or not isinstance(value.args[0], relax.Var):
        return None
    rank = rank_of(value.args[0])
    axis = _cut_axis(value)
    if rank is None or axis is None or axis % rank == rank - 1:
        return None
    share = 1 if name == _TAKE else shape[axis % rank]
    return _Piece(value.args[0], axis % rank, share, value, index) if isinstance(share, int) else None


def _cut_axis(call: Call) -> int | None:
    """Return the axis along which a call takes one element by a constant index, or a range with constant bounds."""
    name = operator_name(call)
    if name == _SPLIT:
        return int(call.attrs.axis)
    if name == _TAKE:
        is_element = isinstance(call.args[1], GenericConst) and rank_of(call.args[1]) == 0
        return int(call.attrs.axis) if is_element and call.attrs.axis is not None else None
    axes, *bounds = (list(getattr(argument, "fields", ())) for argument in list(call.args)[1:])
    numbers = [plain(each[0]) for each in (axes, *bounds) if len(each) == 1]
    whole = len(numbers) == 1 + len(bounds) and all(isinstance(number, int) for number in numbers)
    return numbers[0] if whole else None


def _slices_have_few_rows(data: Expr) -> bool:
    """True if a slice has few rows, counting dynamic sizes as 1."""
    shape = shape_of(data)
    return shape is not None and math.prod(size for size in shape[:-1] if isinstance(size, int)) <= FEW_ROWS
