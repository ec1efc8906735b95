"""Attention: scaled dot products of queries and keys, masks, softmax, and the weighted sum of values.

Also attention in one kernel that reads keys once for all heads that share them, and only the visible ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import ml_dtypes
from tvm import relax, te, tirx
from tvm.relax import op as R

from compiler.frontends.onnx import dtypes
from compiler.frontends.onnx.bounds import limited, require, require_entries, require_shape, require_values
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.math.matrix import matrix_product
from compiler.frontends.onnx.operators.precision import cast
from compiler.frontends.onnx.registry import OWN_DOMAIN, converter
from compiler.frontends.onnx.symbolic import Dim, expression
from compiler.frontends.onnx.values import tensor_shape
from schedules.attention.cache.call import AttentionOptions, cached_attention
from schedules.ir.tvm_types import Expr, Tensor

_MASK, _PAST_KEY, _PAST_VALUE, _LENGTHS = 3, 4, 5, 6
_RAW, _CAPPED, _MASKED, _PROBABILITIES = range(4)


@dataclass(frozen=True)
class _Heads:
    """Queries (batch, query heads, queries, size), keys and values (batch, heads, keys, size)."""

    query: relax.Expr
    key: relax.Expr
    value: relax.Expr

    @property
    def dtype(self) -> str:
        return str(self.query.ty.dtype)


@converter("Attention", domain=OWN_DOMAIN)
@converter("Attention", since=23)
def attention(context: NodeContext) -> list[relax.Expr | None]:
    """Scaled dot-product attention with grouped heads, a cache of keys and values, masks, and a cap on the scores."""
    is_flat = context.rank(0) == 3
    heads = _heads(context)
    key, value = _with_past(context, heads.key, _PAST_KEY), _with_past(context, heads.value, _PAST_VALUE)
    heads = _Heads(heads.query, key, value)
    _check_sizes(context, heads)
    masking = _masking(context, heads)
    if _reads_in_place(context, heads, masking):
        return [_result_in_place(context, heads, masking, is_flat=is_flat), key, value, None]
    raw = _scores(context, heads)
    capped = _softcapped(context, raw, masking.softcap)
    masked = _masked(context, capped, masking)
    probabilities = _softmax(context, masked, guarded=masked is not capped)
    result = _weighted_values(context, cast(context, probabilities, heads.dtype), heads)
    if is_flat:
        batch, count, queries, size = tensor_shape(result)
        result = context.emit(R.permute_dims(result, [0, 2, 1, 3]))
        result = context.reshape(result, [batch, queries, context.arithmetic.multiply(count, size)])
    seen = {_RAW: raw, _CAPPED: capped, _MASKED: masked, _PROBABILITIES: probabilities}
    mode = context.attribute("qk_matmul_output_mode", _RAW)
    if mode not in seen:
        context.invalid(f"qk_matmul_output_mode must be 0 to 3, not {mode}")
    return [result, key, value, cast(context, seen[mode], heads.dtype) if context.output_used(3) else None]


def _reads_in_place(context: NodeContext, heads: _Heads, masking: Visible) -> bool:
    """True if one kernel computes everything; plain heads with only a mask are fused into one later."""
    if context.output_used(3) or not masking.is_served(heads.dtype) or not keeps_precision(context, heads.dtype):
        return False
    if not (isinstance(tensor_shape(heads.query)[3], int) and isinstance(tensor_shape(heads.value)[3], int)):
        return False
    same = all(str(each.ty.dtype) == heads.dtype for each in (heads.key, heads.value))
    needed = masking.is_positional or masking.lengths is not None or context.has_input(_PAST_KEY)
    return same and (needed or masking.softcap != 0.0 or _groups(context, heads)[1] > 1)


def _result_in_place(context: NodeContext, heads: _Heads, masking: Visible, *, is_flat: bool) -> relax.Expr:
    _groups(context, heads)
    size = tensor_shape(heads.query)[3]
    scale = float(context.attribute("scale", 1.0 / math.sqrt(size)))
    query = context.emit(R.permute_dims(heads.query, [0, 2, 1, 3]))
    result = attention_in_place(context, query, heads.key, heads.value, scale, masking)
    if not is_flat:
        return context.emit(R.permute_dims(result, [0, 2, 1, 3]))
    batch, queries, count, width = tensor_shape(result)
    return context.reshape(result, [batch, queries, context.arithmetic.multiply(count, width)])


def _heads(context: NodeContext) -> _Heads:
    """Return the inputs with a separate head axis."""
    counts = [context.attribute("q_num_heads", 0), *[context.attribute("kv_num_heads", 0)] * 2]
    tensors = []
    for index, count in enumerate(counts):
        tensor = context.input(index)
        if context.rank(index) == 3:
            if count < 1:
                context.invalid("inputs of rank 3 need q_num_heads and kv_num_heads")
            batch, length, width = context.shape(index)
            if isinstance(width, int) and width % count:
                context.invalid(f"its input {index} of width {width} does not divide into {count} heads")
            shape = [batch, length, count, context.arithmetic.floor_divide(width, count)]
            tensor = context.emit(R.permute_dims(context.reshape(tensor, shape), [0, 2, 1, 3]))
        elif context.rank(index) != 4:
            context.invalid(f"its input {index} must have rank 3 or 4, not {context.rank(index)}")
        tensors.append(tensor)
    return _Heads(*tensors)


def _with_past(context: NodeContext, tensor: relax.Expr, index: int) -> relax.Expr:
    if not context.has_input(index):
        return tensor
    batch, heads, _, size = tensor_shape(tensor)
    # Sizes that TVM cannot prove equal are checked at run time.
    past = context.match_shape(context.input(index), [batch, heads, context.shape(index)[2], size])
    return context.emit(R.concat([past, tensor], axis=2))


def _check_sizes(context: NodeContext, heads: _Heads) -> None:
    """Check that queries, keys, values, mask and lengths fit; a mask broadcasts along axes of size 1."""
    query, key, value = (tensor_shape(each) for each in (heads.query, heads.key, heads.value))
    require(context, query[0], "equal", key[0])
    require_shape(context, value[:3], key[:3], "the value")
    if context.has_input(_MASK):
        if context.rank(_MASK) > 4:
            context.invalid(f"a mask of rank {context.rank(_MASK)}")
        scores = [*query[:3], key[2]]
        *outer, length = context.shape(_MASK)
        for size, score_size in zip(outer, scores[3 - len(outer) : 3], strict=True):
            require(context, size, "broadcast", score_size)
            require(context, score_size, "at least", size)
        require_entries(context, length, key[2])
    if context.has_input(_LENGTHS):
        require_shape(context, context.shape(_LENGTHS), query[:1], "nonpad_kv_seqlen")
        require_values(context, _LENGTHS, 0, context.arithmetic.add(key[2], 1))


def _masking(context: NodeContext, heads: _Heads) -> Visible:
    offset: Dim | None = 0
    if context.has_input(_PAST_KEY):
        offset = context.shape(_PAST_KEY)[2]
    elif context.has_input(_LENGTHS):
        offset = None
    return Visible(
        causal=bool(context.attribute("is_causal", 0)),
        left=context.attribute("left_window_size", -1),
        right=context.attribute("right_window_size", -1),
        softcap=float(context.attribute("softcap", 0.0)),
        offset=offset,
        lengths=context.input(_LENGTHS) if context.has_input(_LENGTHS) else None,
        mask=context.input(_MASK) if context.has_input(_MASK) else None,
    )


def _groups(context: NodeContext, heads: _Heads) -> tuple[int, int]:
    """Return (key heads, query heads per key head)."""
    query_heads, key_heads = tensor_shape(heads.query)[1], tensor_shape(heads.key)[1]
    if not isinstance(query_heads, int) or not isinstance(key_heads, int):
        context.refuse("the number of heads is not known when compiling")
    if key_heads < 1 or query_heads % key_heads:
        context.invalid(f"{query_heads} query heads do not share {key_heads} heads of keys")
    return key_heads, query_heads // key_heads


def _scores(context: NodeContext, heads: _Heads) -> relax.Expr:
    """Return scaled dot products of queries and keys: (batch, query heads, queries, keys)."""
    size = tensor_shape(heads.query)[3]
    if not isinstance(size, int):
        context.refuse("the size of a head is not known when compiling")
    scale = float(context.attribute("scale", 1.0 / math.sqrt(size)))
    query, key = heads.query, context.emit(R.permute_dims(heads.key, [0, 1, 3, 2]))
    if dtypes.bits(heads.dtype) >= 32:
        query = context.emit(R.multiply(query, context.literal(scale, heads.dtype)))
    else:
        # Both are scaled by the square root, so that no product overflows.
        root = context.literal(math.sqrt(scale), heads.dtype)
        query, key = context.emit(R.multiply(query, root)), context.emit(R.multiply(key, root))
    return _grouped_product(context, query, key, heads)


def _weighted_values(context: NodeContext, probabilities: relax.Expr, heads: _Heads) -> relax.Expr:
    value = cast(context, heads.value, heads.dtype)
    return _grouped_product(context, probabilities, value, heads)


def _grouped_product(context: NodeContext, left: relax.Expr, right: relax.Expr, heads: _Heads) -> relax.Expr:
    """Multiply each head of `left` by its head of `right`; rows of heads that share one are stacked, not repeated."""
    count, group = _groups(context, heads)
    if group == 1:
        return matrix_product(context, left, right)
    batch, query_heads, rows, inner = tensor_shape(left)
    stacked = context.reshape(left, [batch, count, context.arithmetic.multiply(rows, group), inner])
    product = matrix_product(context, stacked, right)
    return context.reshape(product, [batch, query_heads, rows, tensor_shape(product)[3]])


def _softcapped(context: NodeContext, scores: relax.Expr, softcap: float) -> relax.Expr:
    if softcap == 0.0:
        return scores
    cap = context.literal(softcap, str(scores.ty.dtype))
    return context.emit(R.multiply(R.tanh(R.divide(scores, cap)), cap))


def _masked(context: NodeContext, scores: relax.Expr, masking: Visible) -> relax.Expr:
    """Add the mask to the scores, with minus infinity for hidden keys; unchanged without any mask."""
    has_mask, has_lengths = context.has_input(_MASK), context.has_input(_LENGTHS)
    if not (has_mask or has_lengths or masking.is_positional):
        return scores
    tensors = [context.input(index) for index in (_MASK, _LENGTHS) if context.has_input(index)]
    scalars = [] if masking.offset is None else [expression(masking.offset)]

    def compute(data: Tensor, *arguments: Tensor) -> Tensor:
        operands = list(arguments)
        mask: Tensor | None = operands.pop(0) if has_mask else None
        lengths: Tensor | None = operands.pop(0) if has_lengths else None
        queries = data.shape[2]

        def element(sample: Expr, head: Expr, query: Expr, key: Expr) -> Expr:
            length = None if lengths is None else limited(lengths[sample], 0, data.shape[3])
            offset = operands[0] if operands else length - queries
            allowed = _allowed(masking, offset + query, key)
            if lengths is not None:
                allowed.append(key < length)
            value = data(sample, head, query, key)
            low = tirx.const(-math.inf, str(data.dtype))
            if mask is not None:
                value = _with_mask(mask, [sample, head, query, key], value, low)
            for condition in allowed:
                value = tirx.Select(condition, value, low)
            return value

        return te.compute(data.shape, element, name="masked_scores")

    return context.emit_te(compute, scores, *tensors, *scalars, primfunc_name_hint="mask_scores")


def _allowed(masking: Visible, position: Expr, key: Expr) -> list[Expr]:
    conditions = []
    if masking.causal:
        conditions.append(key <= position)
    if masking.left >= 0:
        conditions.append(key >= position - masking.left)
    if masking.right >= 0:
        conditions.append(key <= position + masking.right)
    return conditions


def _with_mask(mask: Tensor, indices: list[Expr], value: Expr, low: Expr) -> Expr:
    """Add a float mask to the score, or keep the score where a boolean mask is true. Keys beyond a mask are hidden."""
    zero = tirx.const(0, "int64")
    own = indices[4 - len(mask.shape) :]
    positions = [tirx.Select(size == 1, zero, index) for size, index in zip(mask.shape, own, strict=True)]
    length, key = mask.shape[-1], indices[-1]
    # The last axis never broadcasts: a shorter mask ends there.
    positions[-1] = tirx.min(key, length - 1)
    entry = mask(*positions)
    entry = tirx.Select(entry, value, low) if str(mask.dtype) == "bool" else value + entry
    return tirx.Select(key < length, entry, low)


def _softmax(context: NodeContext, scores: relax.Expr, *, guarded: bool) -> relax.Expr:
    """Return probabilities over the keys, in the type softmax_precision; zeros for a query that sees no key."""
    precision = context.attribute("softmax_precision", 0)
    if precision:
        name = dtypes.dtype_name(precision)
        if name is None or not dtypes.is_float(name):
            context.invalid(f"softmax_precision {precision} is not a floating-point type")
        scores = cast(context, scores, name)
    dtype = str(scores.ty.dtype)
    if dtypes.bits(dtype) < 32:
        exponentials = _narrow_exponentials(context, scores)
        total = cast(context, context.emit(R.sum(cast(context, exponentials, "float32"), [-1], keepdims=True)), dtype)
        result = context.emit(R.divide(exponentials, total))
    else:
        result = context.emit(R.nn.softmax(scores, axis=-1))
    if not guarded:
        return result
    # TVM's maximum over only minus infinity is the smallest finite number.
    low, zero = (
        context.literal(float(ml_dtypes.finfo(dtypes.numpy_dtype(dtype)).min), dtype),
        context.literal(0.0, dtype),
    )
    hidden = context.emit(R.less_equal(R.max(scores, [-1], keepdims=True), low))
    return context.emit(R.where(hidden, zero, result))


def _narrow_exponentials(context: NodeContext, scores: relax.Expr) -> relax.Expr:
    """exp(score - largest), each step rounded to the narrow type as ONNX prescribes; only sums use a wider type."""
    return context.emit(R.exp(context.emit(R.subtract(scores, R.max(scores, [-1], keepdims=True)))))


_KERNEL_RANK = 4


@dataclass(frozen=True)
class Visible:
    """Keys that each query may attend to. `offset` is the number of keys before the queries, equal for all samples;
    None if `lengths` (batch,) gives the number of keys of each sample, with the queries' own last."""

    causal: bool
    left: int
    right: int
    softcap: float
    offset: Dim | None
    lengths: relax.Expr | None
    mask: relax.Expr | None

    @property
    def is_positional(self) -> bool:
        """True if it depends on a query's position."""
        return self.causal or self.left >= 0 or self.right >= 0

    def is_served(self, dtype: str) -> bool:
        """True if the kernel supports it."""
        narrow_enough = dtype in ("float32", "float16", "bfloat16")
        return narrow_enough and (self.causal or not self.is_positional)


def attention_in_place(
    context: NodeContext, query: relax.Expr, key: relax.Expr, value: relax.Expr, scale: float, visible: Visible
) -> relax.Expr:
    """Return (batch, queries, heads, size) for queries of that shape, and keys and values (batch, heads, keys,
    size)."""
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
    return context.reshape(mask, [*[1] * (_KERNEL_RANK - len(shape)), *shape])


def _scalar(context: NodeContext, size: Dim) -> relax.Expr:
    """Return a size as an int64 tensor ()."""
    if isinstance(size, int):
        return context.literal(size, "int64")
    return context.emit_te(
        lambda number: te.compute((), lambda *_: number, name="position"),
        expression(size),
        primfunc_name_hint="position",
    )


def _less(context: NodeContext, lengths: relax.Expr, new: Dim, most: Dim) -> relax.Expr:
    """Return each length, limited to the number of keys, minus the number of queries."""

    def compute(each: te.Tensor, *sizes: Expr) -> te.Tensor:
        most, *new = sizes
        return te.compute(each.shape, lambda b: limited(each[b], 0, most) - sum(new), name="positions")

    sizes = [expression(most), *([] if isinstance(new, int) else [new])]
    return context.emit_te(compute, lengths, *sizes, primfunc_name_hint="positions")


def keeps_precision(context: NodeContext, dtype: str) -> bool:
    """True if the node's softmax is in float32 or its own type."""
    precision = context.attribute("softmax_precision", 0)
    return not precision or dtypes.dtype_name(precision) in ("float32", dtype)
