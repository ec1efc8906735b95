"""merge-products-of-slices: products of a tensor's slices by one weight become one product of the whole tensor.

    split(x)[0] @ w, split(x)[1] @ w, ...    => split(x @ w)[0], split(x @ w)[1], ...
    take(x, 0) @ w, take(x, 1) @ w, ...      => take(x @ w, 0), take(x @ w, 1), ...       slices likewise

Exporters unroll recurrent cells step by step: each step multiplies one element of the sequence, and the weight is
read from memory again for a row or two.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tvm import relax
from tvm.ir import GenericConst, IRModule

from compiler.passes.canonicalize.merge_small_matmuls import FEW_ROWS
from compiler.passes.context import PipelineContext
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.constant_pool import ConstantPool
from compiler.passes.rewriting.constant_products import MATMUL, Linear, as_linear
from compiler.passes.rewriting.graph import (
    Expr,
    Graph,
    Var,
    operator_name,
    remove_unused,
    rewritable_functions,
    update_functions,
)
from compiler.passes.rewriting.matching import plain, rank_of, shape_of

if TYPE_CHECKING:
    from schedules.ir.tvm_types import BindingBlock, Call

_FEWEST_SLICES = 3
_SPLIT, _TAKE, _SLICE = "relax.split", "relax.take", "relax.strided_slice"


@graph_pass("merge-products-of-slices", summary="One product for those of a tensor's slices by one constant weight")
def merge_products_of_slices(mod: IRModule, context: PipelineContext) -> IRModule:
    """Merge where the slices are at least half of the tensor and each has few rows; see the module's documentation."""
    changed = {}
    for variable, function in rewritable_functions(mod):
        rewritten = _PieceMerger(mod).rewrite_function(function)
        if rewritten is not None:
            changed[variable] = rewritten
    return remove_unused(update_functions(mod, changed)) if changed else mod


@dataclass(frozen=True)
class _Piece:
    """`share` elements of `source` along an axis, as `call` cuts them off; `index` is the element of a split."""

    source: Var
    axis: int
    share: int
    call: Call
    index: int | None = None


@dataclass
class _Group:
    """Products of slices of one tensor by one weight, and what was emitted for them: the whole product, and slices of
    it."""

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
    """At the first product of a group, computes the whole product; each becomes a slice of it."""

    def __init__(self, mod: IRModule) -> None:
        super().__init__({}, mod)
        self._groups: dict[Var, _Group] = {}

    def _rewrite_block(self, block: BindingBlock) -> BindingBlock:
        if isinstance(block, relax.DataflowBlock):
            self._find_groups(block)
        return super()._rewrite_block(block)

    def _find_groups(self, block: BindingBlock) -> None:
        values = {binding.var: binding.value for binding in block.bindings}
        pool, found = ConstantPool(), dict[Any, _Group]()
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
            if piece is not None and _has_few_rows(linear.data):
                key = (piece.source, piece.axis, pool.index(linear.call.args[1]), str(linear.call.attrs.out_dtype))
                found.setdefault(key, _Group(linear, {})).pieces[binding.var] = piece
        for group in found.values():
            if group.pays_off():
                self._groups.update(dict.fromkeys(group.pieces, group))

    def offer(self, value: Expr, variable: Var) -> Expr | None:
        """The slice of the whole product."""
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
    """The slice of another tensor that `data` is, along another axis than the last one."""
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
    """The axis along which a call takes one element by a constant index, or what lies between constant bounds."""
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


def _has_few_rows(data: Expr) -> bool:
    """True if a slice has few rows, counting dynamic sizes as 1."""
    shape = shape_of(data)
    return shape is not None and math.prod(size for size in shape[:-1] if isinstance(size, int)) <= FEW_ROWS
