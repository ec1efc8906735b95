"""Attention in one kernel that reads keys once for all heads that share them, and only what a query may see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvm import relax, te
from tvm.relax import op as R

from compiler.frontends.onnx import dtypes
from compiler.frontends.onnx.bounds import limited
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.symbolic import Dim, expression
from compiler.frontends.onnx.values import tensor_shape
from schedules.attention.cache.call import AttentionOptions, cached_attention

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Expr

_KERNEL_RANK = 4


@dataclass(frozen=True)
class Visible:
    """Keys that each query may attend to. `offset` is the number of keys before the queries, the same for all samples;
    None where `lengths` (batch,) say how many keys each sample has, the queries' own last."""

    causal: bool
    left: int
    right: int
    softcap: float
    offset: Dim | None
    lengths: relax.Expr | None
    mask: relax.Expr | None

    @property
    def is_positional(self) -> bool:
        """True if it depends on a query's place."""
        return self.causal or self.left >= 0 or self.right >= 0

    def is_served(self, dtype: str) -> bool:
        """True if the kernel has what this asks for."""
        narrow_enough = dtype in ("float32", "float16", "bfloat16")
        return narrow_enough and (self.causal or not self.is_positional)


def attention_in_place(
    context: NodeContext, query: relax.Expr, key: relax.Expr, value: relax.Expr, scale: float, visible: Visible
) -> relax.Expr:
    """(batch, queries, heads, size) of queries of that shape, and keys and values (batch, heads, keys, size)."""
    position = length = None
    if visible.lengths is not None:
        new = expression(tensor_shape(query)[1]) if visible.causal else 0
        found = _less(context, visible.lengths, new, tensor_shape(key)[2])
        position, length = (found, None) if visible.causal else (None, found)
    elif visible.causal:
        assert visible.offset is not None
        position = _scalar(context, visible.offset)
    call = cached_attention(
        context.block_builder,
        query,
        key,
        value,
        AttentionOptions(
            position=position,
            length=length,
            causal=visible.causal,
            scale=scale,
            window=visible.left + 1 if visible.left >= 0 else None,
            softcap=visible.softcap,
            bias=None if visible.mask is None else _of_rank_4(context, visible.mask),
        ),
    )
    return context.emit(call)


def _of_rank_4(context: NodeContext, mask: relax.Expr) -> relax.Expr:
    shape = tensor_shape(mask)
    if len(shape) == _KERNEL_RANK:
        return mask
    sizes = [1] * (_KERNEL_RANK - len(shape)) + [expression(size) for size in shape]
    return context.emit(R.reshape(mask, sizes))


def _scalar(context: NodeContext, size: Dim) -> relax.Expr:
    """A size as an int64 tensor ()."""
    if isinstance(size, int):
        return context.literal(size, "int64")
    return context.emit_te(
        lambda number: te.compute((), lambda *_: number, name="position"),
        expression(size),
        primfunc_name_hint="position",
    )


def _less(context: NodeContext, lengths: relax.Expr, new: Dim, most: Dim) -> relax.Expr:
    """Each length, limited to the keys there are, less the number of queries."""

    def compute(each: te.Tensor, *sizes: Expr) -> te.Tensor:
        most, *new = sizes
        return te.compute(each.shape, lambda b: limited(each[b], 0, most) - sum(new), name="positions")

    sizes = [expression(most), *([] if isinstance(new, int) else [new])]
    return context.emit_te(compute, lengths, *sizes, primfunc_name_hint="positions")


def keeps_precision(context: NodeContext, dtype: str) -> bool:
    """True if softmax in float32 is what the node asks for."""
    precision = context.attribute("softmax_precision", 0)
    return not precision or dtypes.dtype_name(precision) in ("float32", dtype)
