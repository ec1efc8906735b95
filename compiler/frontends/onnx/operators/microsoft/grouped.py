"""com.microsoft: GroupQueryAttention, as exported language models use it."""

from __future__ import annotations

from typing import Any

from tvm import relax, te, tirx

from compiler.frontends.onnx.bounds import limited, require, require_entries, require_shape, require_values
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.composition import Composer, int64s
from compiler.frontends.onnx.operators.microsoft.fused import DOMAIN
from compiler.frontends.onnx.registry import converter
from compiler.frontends.onnx.symbolic import Dim, expression
from compiler.frontends.onnx.values import Runtime, tensor_shape

_KEY, _VALUE, _PAST_KEY, _PAST_VALUE, _LENGTHS, _TOTAL, _COSINES, _SINES, _POSITIONS, _BIAS = range(1, 11)
_LAST_INPUT = _BIAS


@converter("GroupQueryAttention", domain=DOMAIN)
def group_query_attention(context: NodeContext) -> list[Any]:
    """Causal attention of many query heads to few key heads, with a cache and rotary positions.

    Inputs: query (or query, key and value packed), key, value, past key and value (batch, heads, past, size), the last
    position of each sample, the total length, cosines and sines, positions, a bias of the scores. The cache may be
    longer than what is in it: new entries go where each sample ends.
    """
    _refuse_variants(context)
    return _Grouped(context).outputs()


def _refuse_variants(context: NodeContext) -> None:
    for name, usual in (("smooth_softmax", 0), ("kv_cache_bit_width", 0), ("qk_output", 0), ("causal", 1)):
        if context.attribute(name, usual) not in (usual, -1):
            context.refuse(f"{name}={context.attribute(name, usual)} is not supported")
    for index in range(_LAST_INPUT + 1, len(context.inputs)):
        if context.has_input(index):
            context.refuse(f"its input {index} is not supported")
    if context.output_used(3):
        context.refuse("its output 3 is not computed")


class _Grouped:
    """One node: its heads, lengths and places."""

    def __init__(self, context: NodeContext) -> None:
        self.context, self.op = context, Composer(context)
        self.heads = int(context.required_attribute("num_heads"))
        self.key_heads = int(context.required_attribute("kv_num_heads"))
        self.query, self.key, self.value = self._parts()
        self.batch, self.length = context.shape(0)[0], context.shape(0)[1]
        self.past: Dim = context.shape(_PAST_KEY)[2] if context.has_input(_PAST_KEY) else 0
        (self.total,) = context.shape_values(_TOTAL)
        self.capacity = context.arithmetic.maximum(self.past, self.total)
        self._check_sizes()
        self.starts = self._starts()

    def outputs(self) -> list[Any]:
        """[result, present key, present value]."""
        context, op = self.context, self.op
        if context.attribute("do_rotary", 0):
            self.query, self.key = self._rotated(self.query), self._rotated(self.key)
        key = self._with_past(self.key, _PAST_KEY)
        value = self._with_past(self.value, _PAST_VALUE, tensor_shape(key.expr)[2])
        scale = float(context.attribute("scale", 0.0))
        result = op(
            "Attention",
            self.query,
            key,
            value,
            self._mask(tensor_shape(key.expr)[2]),
            scale=scale or None,
            softcap=float(context.attribute("softcap", 0.0)),
        )
        merged = op("Reshape", op("Transpose", result, perm=[0, 2, 1, 3]), int64s(0, 0, -1))
        return [merged, key, value]

    def _parts(self) -> list[Any]:
        """Query, key and value as (batch, heads, length, size)."""
        context, op = self.context, self.op
        width = context.shape(0)[2]
        if not isinstance(width, int):
            context.refuse("the size of the heads is not known when compiling")
        counts = [self.heads, self.key_heads, self.key_heads]
        if context.has_input(_KEY) and context.has_input(_VALUE):
            parts: list[Any] = [context.value(index) for index in (0, _KEY, _VALUE)]
        else:
            size = width // sum(counts)
            parts = op.outputs(3, "Split", context.value(0), int64s(*(count * size for count in counts)), axis=2)
        return [
            part
            if len(part.shape) == 4
            else op("Transpose", op("Reshape", part, int64s(0, 0, count, -1)), perm=[0, 2, 1, 3])
            for part, count in zip(parts, counts, strict=True)
        ]

    def _check_sizes(self) -> None:
        """Keys, values, lengths and the bias must fit the queries."""
        context = self.context
        for name, part in (("the key", self.key), ("the value", self.value)):
            require_shape(context, part.shape[:3], [self.batch, self.key_heads, self.length], name)
        require(context, context.arithmetic.product(context.shape(_LENGTHS)), "equal", self.batch)
        longest = context.arithmetic.add(self.past, self.length)
        require_values(context, _LENGTHS, 0, longest)
        require_values(context, _TOTAL, 1, context.arithmetic.add(longest, 1))
        if context.has_input(_BIAS):
            sample, heads, rows, length = context.shape(_BIAS)
            require(context, sample, "broadcast", self.batch)
            require(context, self.batch, "at least", sample)
            require(context, self.heads, "at least", heads)
            require(context, rows, "at least", self.length)
            require_entries(context, length, self.capacity)

    def _starts(self) -> relax.Expr:
        """How many entries of the cache belong to each sample: int64 (batch,); none when all there is is new."""
        length, total = expression(self.length), expression(self.total)

        def starts(lengths: te.Tensor, new: Any, all_of_them: Any) -> te.Tensor:
            def start(*place: Any) -> Any:
                before = limited(limited(lengths(*place), -1, all_of_them) + 1 - new, 0, all_of_them)
                return tirx.Select(new == all_of_them, tirx.const(0, "int64"), before)

            return te.compute(lengths.shape, start, name="starts")

        lengths = self.op("Reshape", self.context.value(_LENGTHS), int64s(-1))
        expr = self.context.importer.builder.materialize(lengths)
        return self.context.emit_te(starts, expr, length, total, primfunc_name_hint="cache_starts")

    def _rotated(self, tensor: Any) -> Any:
        context = self.context
        positions = context.value(_POSITIONS) if context.has_input(_POSITIONS) else self._positions()
        interleaved = context.attribute("rotary_interleaved", 0)
        tables = context.value(_COSINES), context.value(_SINES)
        size, half = tensor.shape[-1], self.context.shape(_COSINES)[-1]
        rotated = 0 if size == 2 * half else 2 * half
        return self.op(
            "RotaryEmbedding", tensor, *tables, positions, interleaved=interleaved, rotary_embedding_dim=rotated
        )

    def _positions(self) -> Runtime:
        """Of each new entry: int64 (batch, length)."""

        def positions(starts: te.Tensor, new: Any) -> te.Tensor:
            return te.compute((starts.shape[0], new), lambda b, i: starts[b] + i, name="positions")

        expr = self.context.emit_te(
            positions, self.starts, expression(self.length), primfunc_name_hint="cache_positions"
        )
        return self.context.runtime(expr, "int64")

    def _with_past(self, tensor: Any, index: int, capacity: Dim | None = None) -> Runtime:
        """The cache with the new entries where each sample ends: (batch, heads, capacity, size)."""
        context = self.context
        new = context.importer.builder.materialize(tensor)
        operands = [new, self.starts]
        if context.has_input(index):
            batch, heads, _, size = tensor_shape(new)
            operands.append(context.match_shape(context.input(index), [batch, heads, self.past, size]))

        def place(entries: te.Tensor, starts: te.Tensor, *rest: Any) -> te.Tensor:
            *past, capacity = rest

            def element(b: Any, h: Any, t: Any, d: Any) -> Any:
                zero = tirx.const(0, "int64")
                inner = tirx.max(tirx.min(t - starts[b], entries.shape[2] - 1), zero)
                fresh = entries[b, h, inner, d]
                is_new = tirx.all(t >= starts[b], t < starts[b] + entries.shape[2])
                nothing = tirx.const(0, entries.dtype)
                if not past:
                    return tirx.Select(is_new, fresh, nothing)
                is_old = tirx.all(t < starts[b], t < past[0].shape[2])
                return tirx.Select(is_new, fresh, tirx.if_then_else(is_old, past[0][b, h, t, d], nothing))

            shape = (entries.shape[0], entries.shape[1], capacity, entries.shape[3])
            return te.compute(shape, element, name="cache")

        size = self.capacity if capacity is None else capacity
        expr = context.emit_te(place, *operands, expression(size), primfunc_name_hint="extend_cache")
        return context.runtime(context.with_simple_sizes(expr), tensor.dtype)

    def _mask(self, capacity: Dim) -> Runtime:
        """What is added to the scores, (batch, 1 or heads, length, capacity): each sees itself and what is before."""
        context = self.context
        window = int(context.attribute("local_window_size", -1))
        dtype = self.query.dtype
        operands = [self.starts] + ([context.input(_BIAS)] if context.has_input(_BIAS) else [])

        def masks(starts: te.Tensor, *rest: Any) -> te.Tensor:
            *bias, new, capacity = rest
            zero = tirx.const(0, "int64")
            heads = bias[0].shape[1] if bias else 1

            def element(b: Any, h: Any, i: Any, t: Any) -> Any:
                last = starts[b] + i
                allowed = t <= last
                if window > 0:
                    allowed = tirx.all(allowed, t > last - window)
                added: Any = tirx.const(0.0, dtype)
                if bias:
                    sample = tirx.Select(bias[0].shape[0] == 1, zero, b)
                    added = bias[0][sample, h, i, tirx.min(t, bias[0].shape[3] - 1)]
                return tirx.Select(allowed, added, tirx.const(float("-inf"), dtype))

            return te.compute((starts.shape[0], heads, new, capacity), element, name="mask")

        expr = context.emit_te(
            masks, *operands, expression(self.length), expression(capacity), primfunc_name_hint="causal_mask"
        )
        return context.runtime(expr, dtype)
